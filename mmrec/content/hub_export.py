"""Exports a described hub model to ONNX, once a cache folder.

In: a description (JSON on stdin), a target folder. Out: the folder, whole or not at all: model.onnx, prepare.json
(sizes and settings), tokenizer.json or arrays.npz, parity.json (what was compared, and how close it was).
Run as a process of its own (`python -m mmrec.content.hub_export FOLDER`), so that whoever encodes on the processor
never has torch in memory.
Trade-off: torch's older exporter (a trace) is tried first, it takes a tenth of the time; the newer one where it fails.
Both are held to torch on other sizes than the traced ones, and our preprocessing to the model's own.

Shape legend: B rows, L tokens.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from mmrec.content.hub_config import Description
from mmrec.content.hub_prepare import pixels, sound
from mmrec.content.hub_torch import load
from mmrec.content.quantize import quantize
from mmrec.errors import InputError, MmrecError, lost_store

_OPSET = 17
_DOMAINS = {"fp32": {"", "ai.onnx"}, "int8": {"", "ai.onnx", "com.microsoft"}}
_TOLERANCE = 1e-4  # of the largest number, fp32: other kernels in another order; measured 5e-7 to 1e-5
_INPUTS = 1e-4  # pixels and log-mels, of values around 1: float32 against float64 in another order
_EXTERNAL = 1_900_000_000  # bytes of weights; a protobuf file ends at 2 GB
_LENGTHS = (*range(4, 64, 4), *range(64, 128, 8), *range(128, 256, 16), *(64 * n for n in range(4, 1024)))
_P1, _MIN = 0.99, 0.98  # cosines of int8 to fp32 over the probes
_CALIBRATED = 128  # tokens of the longest rows that int8 is calibrated on: all activations of one are held at once


def export(description: Description, folder: Path) -> None:
    """Make `folder`, whole or not at all.

    Raises: InputError: the model can't be exported, or our preprocessing or its graph differ from its own.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))  # homes share a cache
    part.chmod(0o755)
    try:
        with torch.no_grad():
            parity = _fill(description, part)
        (part / "parity.json").write_text(json.dumps(parity, indent=1))
        try:
            part.replace(folder)
        except OSError:  # another process was first, and made the same
            if not (folder / "parity.json").is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(said: Description, part: Path) -> dict[str, Any]:
    """All files but parity.json, whose content is returned."""
    model = load(said)
    conf, samples, parity = _PREPARE[said.modality](said, part)
    conf["dim"] = int(model(*samples[0]).shape[1])
    if said.dtype != "bf16":
        parity |= _graph(model, said, samples, part)
    if said.dtype == "int8":
        parity["int8"] = _int8(samples, part)
    (part / "prepare.json").write_text(json.dumps(conf, indent=1))
    return parity


def _graph(model: Any, said: Description, samples: list[tuple[torch.Tensor, ...]], part: Path) -> dict[str, Any]:
    import onnx
    import onnxruntime as ort

    names = ["ids", "mask"][: len(samples[0])] if said.modality == "text" else ["input"]
    long = said.modality == "text" and not said.fixed_length
    axes = {n: {0: "B", 1: "L"} if long else {0: "B"} for n in names}
    target = part / "model.onnx"
    large = sum(p.numel() * p.element_size() for p in model.parameters()) > _EXTERNAL
    how = "trace"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(model, samples[0], str(target), input_names=names, output_names=["emb"],
                              dynamic_axes=axes | {"emb": {0: "B"}}, opset_version=_OPSET, dynamo=False)  # fmt: skip
        except Exception as error:  # whatever a trace can't follow
            how = f"dynamo, because the trace failed: {str(error)[:200]}"
            dims = {k: torch.export.Dim(k, min=1) for k in "BL"}
            shapes = tuple({i: dims[k] for i, k in axes[n].items()} for n in names)
            torch.onnx.export(model, samples[0], str(target), input_names=names, output_names=["emb"], dynamo=True,
                              dynamic_shapes=shapes, external_data=large, verbose=False)  # fmt: skip
    if large:
        graph = onnx.load(target)
        for file in set(part.iterdir()) - {part / n for n in ("tokenizer.json", "arrays.npz")}:
            file.unlink()
        onnx.save(graph, target, save_as_external_data=True, all_tensors_to_one_file=True, location="model.onnx.data")
    opened = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    worst = 0.0
    for sample in (tuple(v[:4] for v in s) for s in samples):
        wanted = model(*sample).numpy()
        got = opened.run(None, {n: v.numpy() for n, v in zip(names, sample, strict=True)})[0]
        worst = max(worst, float(np.abs(got - wanted).max() / np.abs(wanted).max()))
    if not worst <= _TOLERANCE:
        raise InputError("ONNX and torch differ", where=said.folder, value=worst, valid=f"at most {_TOLERANCE}",
                         next="name another model")  # fmt: skip
    return {"exporter": how, "onnx_to_torch": worst, "tolerance": _TOLERANCE} | _checked(target, "fp32")


def _checked(target: Path, dtype: str) -> dict[str, Any]:
    import onnx

    graph = onnx.load(target, load_external_data=False)
    domains = {o.domain: o.version for o in graph.opset_import}
    used = {n.domain for n in graph.graph.node}
    if not used <= _DOMAINS[dtype]:
        raise InputError("the graph needs operators that are not standard", where=str(target), value=sorted(used),
                         valid=sorted(_DOMAINS[dtype]), next="name another model")  # fmt: skip
    return {"opset": domains.get("", domains.get("ai.onnx")), "domains": sorted(used)}


def _int8(samples: list[tuple[torch.Tensor, ...]], part: Path) -> dict[str, Any]:
    """By rows (content/quantize.py); kept only if the vectors stay where they were."""
    import onnxruntime as ort

    plain, small = part / "model.onnx", part / "int8.onnx"
    names = [i.name for i in ort.InferenceSession(str(plain), providers=["CPUExecutionProvider"]).get_inputs()]
    rows = [{n: v[row : row + 1].numpy() for n, v in zip(names, sample, strict=True)}
            for sample in samples for row in range(len(sample[0]))]  # fmt: skip
    real = [int(feeds["mask"].sum()) if "mask" in feeds else feeds[names[0]].shape[1] for feeds in rows]
    short = [{k: v[:, :n] for k, v in feeds.items()} for feeds, n in zip(rows, real, strict=True) if n <= _CALIBRATED]
    short = short or rows[:4]
    found = {"products": quantize(plain, small, short), "probes": len(rows)}
    if not found["products"]:
        return found | {"kept": False, "reason": "int8 has nothing to do: no product with constant weights"}
    both = [ort.InferenceSession(str(f), providers=["CPUExecutionProvider"]) for f in (plain, small)]
    cosines = []
    for feeds in rows:
        a, b = (s.run(None, feeds)[0][0].astype(np.float64) for s in both)
        cosines.append(float(a @ b / max(1e-12, np.linalg.norm(a) * np.linalg.norm(b))))
    p1, least = float(np.quantile(cosines, 0.01)), min(cosines)
    kept = p1 >= _P1 and least >= _MIN
    found |= {"kept": kept, "p1": p1, "min": least, "reason": None if kept else f"int8 moves vectors: cosine to fp32 "
              f"p1 {p1:.4f} (at least {_P1}), min {least:.4f} (at least {_MIN})"}  # fmt: skip
    for file in (plain,) if kept else (plain, small):
        for held in (file, file.with_name(f"{file.name}.data")):
            held.unlink(missing_ok=True)
    if kept:
        found |= _checked(small, "int8")
        small.replace(plain)  # its external data keeps its own name, which the graph holds
    return found


def _texts(said: Description, part: Path) -> tuple[dict[str, Any], list[tuple[torch.Tensor, ...]], dict[str, Any]]:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(said.folder)
    fast = own.backend_tokenizer if own.is_fast else None
    if fast is None:
        raise InputError("its tokenizer has no fast form", where=said.folder, value=type(own).__name__,
                         valid="a tokenizer that the tokenizers library runs", next="name another model")  # fmt: skip
    probes = [said.prompt + (t.lower() if said.lower else t) for t in _probes()]
    wanted = own(probes, truncation=True, max_length=said.max_length)["input_ids"]
    fast.no_padding()
    fast.enable_truncation(said.max_length, direction=own.truncation_side)
    fast.save(str(part / "tokenizer.json"))
    from tokenizers import Tokenizer

    found = [e.ids for e in Tokenizer.from_file(str(part / "tokenizer.json")).encode_batch(probes)]
    if found != wanted:
        raise InputError("the saved tokenizer gives other tokens than the model's own", where=said.folder,
                         value=next(p for p, a, b in zip(probes, found, wanted, strict=True) if a != b)[:80],
                         valid="the same tokens", next="name another model")  # fmt: skip
    pad = own.pad_token_id if own.pad_token_id is not None else 0
    lengths = [said.max_length] if said.fixed_length else sorted({*(n for n in _LENGTHS if n < said.max_length),
                                                                  said.max_length})  # fmt: skip
    conf = {"kind": "text", "lengths": lengths, "pad_id": pad}
    samples, most = [], 24 if said.dtype == "int8" else 4
    tried = [n for n in lengths if n >= 16 and n.bit_count() == 1] or lengths[-1:]
    for length in sorted({*tried, lengths[-1]}):
        rows = [i for i in found if i and len(i) <= length and (length == tried[0] or len(i) > length // 2)]
        # enough of each length for int8's first percentile; a short model has no long probes
        for at in range(0, min(len(rows), most), 16):
            batch = rows[at : min(most, at + 16)]
            ids_BL = torch.full((len(batch), length), pad)
            mask_BL = torch.zeros_like(ids_BL)
            for b, ids in enumerate(batch):
                ids_BL[b, : len(ids)], mask_BL[b, : len(ids)] = torch.tensor(ids), 1
            samples.append((ids_BL,) if said.fixed_length else (ids_BL, mask_BL))
    # the first is traced: rows of several lengths, and none of the sizes that are compared is its own
    if not said.fixed_length:
        samples.insert(0, tuple(v[:3, : max(3, v.shape[1] - 1)] for v in samples[0]))
    return conf, samples, {"tokenizer": "equal", "texts": len(probes)}


def _pictures(said: Description, part: Path) -> tuple[dict[str, Any], list[tuple[torch.Tensor, ...]], dict[str, Any]]:
    from transformers import AutoImageProcessor

    own = AutoImageProcessor.from_pretrained(said.folder, backend="pil")
    keys = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
            "do_normalize", "image_mean", "image_std")  # fmt: skip
    raw = {k: v for k, v in own.to_dict().items() if k in keys}
    sizes = {k: {n: s for n, s in dict(raw.get(k) or {}).items() if s} for k in ("size", "crop_size")}
    conf = raw | sizes | {"kind": "pixels", "input": "input"}
    worst, ready = 0.0, []
    for image in _drawings():
        wanted = np.asarray(own(image, return_tensors="np")["pixel_values"][0])
        got = pixels(image, conf)
        worst = max(worst, float(np.abs(got - wanted).max()) if got.shape == wanted.shape else np.inf)
        ready.append(torch.from_numpy(got))
    _same(said, worst, type(own).__name__)
    batch = torch.stack(ready)
    return conf, [(batch[:3],), (batch,)], {"inputs": worst, "inputs_tolerance": _INPUTS}


def _sounds(said: Description, part: Path) -> tuple[dict[str, Any], list[tuple[torch.Tensor, ...]], dict[str, Any]]:
    from transformers import AutoFeatureExtractor
    from transformers.audio_utils import mel_filter_bank, window_function

    own = AutoFeatureExtractor.from_pretrained(said.folder)
    conf = {k: v for k, v in own.to_dict().items() if isinstance(v, int | float | str | bool)} | {"input": "input"}
    rate = own.sampling_rate
    if said.architecture == "clap":
        conf["kind"], arrays = "clap", {"filters": own.mel_filters_slaney,
                                        "window": window_function(own.fft_window_size, "hann")}  # fmt: skip
        longest, given = own.nb_max_samples, {"truncation": "rand_trunc"}
        if conf["truncation"] != "rand_trunc":
            raise InputError("CLAP with fusion draws lots for long sounds", where=said.folder, value=conf["truncation"],
                             valid="truncation: rand_trunc", next="name an unfused model")  # fmt: skip
    else:
        # as the extractor makes them where torchaudio isn't installed
        filters = mel_filter_bank(num_frequency_bins=257, num_mel_filters=own.num_mel_bins, min_frequency=20,
                                  max_frequency=rate // 2, sampling_rate=rate, norm=None, mel_scale="kaldi",
                                  triangularize_in_mel_space=True)  # fmt: skip
        conf["kind"], arrays = "ast", {"filters": filters, "window": window_function(400, "hann", periodic=False)}
        longest, given = 400 + 160 * (own.max_length + 50), {}
    np.savez(part / "arrays.npz", **arrays)
    worst, ready = 0.0, []
    for samples in _notes(rate, longest):
        got = sound(samples, rate, conf, arrays)
        out = own(samples, sampling_rate=rate, return_tensors="np", **given)
        wanted = np.asarray(out[own.model_input_names[0]][0])
        worst = max(worst, float(np.abs(got - wanted).max()) if got.shape == wanted.shape else np.inf)
        ready.append(torch.from_numpy(got))
    _same(said, worst, type(own).__name__)
    batch = torch.stack(ready)
    return conf, [(batch[:3],), (batch,)], {"inputs": worst, "inputs_tolerance": _INPUTS}


_PREPARE = {"text": _texts, "image": _pictures, "audio": _sounds}


def _same(said: Description, worst: float, own: str) -> None:
    if not worst <= _INPUTS:
        raise InputError("our preprocessing differs from the model's own", where=f"{said.folder}: {own}", value=worst,
                         valid=f"at most {_INPUTS}", next="name another model")  # fmt: skip


def _probes() -> list[str]:
    """Titles and blurbs as shops write them, short to long, in several scripts; always the same."""
    rng = random.Random(7)
    things = ["running shoes", "a cast-iron pan", "noise-cancelling headphones", "Damenjacke", "un roman policier",
              "日本語の辞書", "детская книга", "a 1970s jazz record", "wireless mouse", "lipstick No. 5",
              "a board game", "organic green tea", "a thriller about a lost submarine", "LED desk lamp",
              "قهوة عربية"]  # fmt: skip
    words = ["red", "lightweight", "for men", "with 2 pockets", "waterproof", "made in Norway", "sehr leicht",
             "nouveau", "100% cotton", "€19.99", "the", "and", "easy to clean", "size 42", "gift box", "don't miss",
             "by hand", "a story of love and loss", "battery lasts 20 hours", "🎧", "fits small rooms"]  # fmt: skip
    made = [*things]
    for longest in (4, 12, 30, 80, 200, 700):
        for _ in range(48):
            made.append(" ".join([rng.choice(things), *rng.choices(words, k=rng.randint(1, longest))]) + ".")
    return made


def _drawings() -> list[Image.Image]:
    """Pictures wide, tall, small, large and odd in size."""
    rng, made = np.random.default_rng(7), []
    for width, height in ((400, 300), (301, 517), (40, 33), (224, 224), (97, 640)):
        image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        ImageDraw.Draw(image).ellipse((width // 5, height // 4, width // 2, height // 2), "red")
        noise = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        made.append(Image.fromarray((np.asarray(image) // 2 + noise).astype(np.uint8)))
    return made


def _notes(rate: int, longest: int) -> list[np.ndarray]:
    """Sounds with overtones and hiss, from a tenth of what the model hears to all of it."""
    made = []
    for pitch, share in ((220.0, 0.11), (440.0, 0.37), (97.0, 0.6), (1000.0, 1.0)):
        t = np.arange(max(2048, int(longest * share))) / rate
        clean = sum(np.sin(2 * np.pi * pitch * h * t) / h for h in (1, 2, 3)) * np.exp(-t / 2)
        made.append((0.3 * clean + np.random.default_rng(7).normal(0, 0.01, len(t))).astype(np.float32)[: int(longest)])
    return made


def _main() -> int:
    try:
        said = json.load(sys.stdin)
        said |= {k: tuple(said[k]) for k in ("pooling", "dense")}
        export(Description(**said), Path(sys.argv[1]))
        return 0
    except Exception as caught:  # a model may fail in any way, and the reason belongs in front of a person
        error = caught if isinstance(caught, MmrecError) else lost_store(caught, sys.argv[1]) or InputError(
            "this model can't be turned into a graph", where=said["source"], next="name another model",
            value=f"{type(caught).__name__}: {str(caught)[:500]}", valid="a model that torch can export")  # fmt: skip
        if isinstance(caught, MemoryError):
            raise
        fields = {k: getattr(error, k) for k in ("what", "where", "value", "valid", "next")}
        print("\n" + json.dumps(fields, default=str))
        return error.exit_code


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(_main())
