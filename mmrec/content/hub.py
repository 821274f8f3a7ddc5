"""Encoders from any transformers model, by hub name or folder: what a model's own files say becomes an encoder.

In: a folder or a hub name. Out: a `Description` (modality, pooling, prompt, dtype, a version that changes when any of
them or the weights do), and a `HubModel` that meets the Encoder protocol.
Whoever encodes on the processor loads neither torch nor transformers: hub_export.py runs once as its own process.
Trade-off: on the processor every batch has one fixed size, so that a row's bits depend on it alone; a last batch is
mostly padding.

Shape legend: B rows, L tokens, D vector size.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmrec.content.batching import fill, fill_media
from mmrec.content.hub_config import Description, known, read
from mmrec.content.hub_prepare import media
from mmrec.content.sandbox import Sandbox
from mmrec.content.video import FRAMES, is_video
from mmrec.errors import InputError, TransientError
from mmrec.ort import PROVIDERS, session

_TOKENS, _BATCH = 512, {"image": 8, "audio": 4}  # a run on the processor: tokens of texts, rows; padded to just that
_TEXTS = 256  # tokenized at a time, while the model works on those before
_BUDGET = {"text": 16_384, "image": 64, "audio": 16}  # a GPU's: tokens a batch of texts, rows of the others


def describe(
    source: str, cache: Path, modality: str | None = None, dtype: str = "fp32", prompt: str | None = None,
    max_length: int = 512,
) -> Description:  # fmt: skip
    """Read a model's files.

    Args:
        source: a folder, or a name that the hub's cache or the hub holds (HF_HUB_OFFLINE is respected).
        cache: where graphs are kept; only int8 needs it here, because it is tried before it is promised.
        modality: "text", "image" or "audio"; needed where a model has several.
        dtype: "fp32"; "int8" (text, on the processor); "best": of those two; "bf16" (on a GPU).
        prompt: the name of one of the model's own prompts; None: its default one, if it has one.
        max_length: at most so many tokens, where the model allows more.

    Raises: InputError: the name can't be resolved, files are missing, or nothing says how to pool. TransientError:
        the export was killed.
    """
    made = read(source, modality, "fp32" if dtype == "best" else dtype, prompt, max_length)
    if dtype == "best" and made.modality == "text":
        made = replace(made, dtype="int8")
    if made.dtype == "int8" and (reason := _refused(_prepared(made, cache))):
        return replace(made, dtype="fp32", reason=reason)
    return made


def packaged(folder: str, cache: Path, device: str, threads: int) -> HubModel:
    """A text encoder that comes with a package in int8, which it is known to bear: its name costs no trial."""
    dtype = "bf16" if device == "cuda" else "int8"
    return HubModel(read(folder, "text", dtype, None, 512), cache, device, threads)


class HubModel:
    """An Encoder (modality, version, dim, encode) of a described model.

    Args:
        device: "cpu": ONNX Runtime in fp32 or int8. "cuda": torch under autocast; the description's dtype is "bf16".

    Raises: InputError: a device that can't be used or doesn't make that dtype; a model that can't be exported.
    """

    def __init__(
        self, description: Description, cache: Path, device: str = "cpu", threads: int = 2, *,
        _torch_on: str | None = None,
    ) -> None:  # fmt: skip
        self.description, self.cache, self.device, self.threads = description, cache, device, threads
        self.modality, self.version = description.modality, description.version
        self._torch_on = _torch_on or ("cuda" if device == "cuda" else None)
        known("device", device, tuple(PROVIDERS), description.source)
        if (description.dtype == "bf16") != bool(self._torch_on):
            raise InputError("this device doesn't make that dtype", where=description.source,
                             value=f"{device}: {description.dtype}", valid="cpu: fp32, int8; cuda: bf16",
                             next="describe the model with a dtype of its device")  # fmt: skip
        self._conf: dict[str, Any] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._tokenizer: Any = None
        self._sandbox = Sandbox(workers=threads)  # processes start with the first medium
        self._graph: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return HubModel, (self.description, self.cache, self.device, self.threads)

    @property
    def dim(self) -> int:
        """The vector's size; the model is exported if it wasn't yet."""
        return int(self._ready()["dim"])

    def encode(self, raw: Sequence[Any]) -> tuple[np.ndarray, list[str | None]]:
        """Rows to (B, D) float32, zero where refused, and the reason or None of each row."""
        conf = self._ready()
        out, why = np.zeros((len(raw), conf["dim"]), np.float32), [None] * len(raw)
        threads = 1 if self._torch_on else self.threads
        if self.modality == "text":
            fill(out, self._rows(raw, why), size=self._batch, run=self._run, threads=threads)
            return out, why
        work = partial(media, modality=self.modality, conf=self._conf, arrays=self._arrays)
        frames = [FRAMES * (self.modality == "image" and is_video(data)) for data in raw]
        fill_media(out, why, self._sandbox.map(work, raw), frames=frames, size=self._batch, run=self._run,
                   threads=threads)  # fmt: skip
        return out, why

    def _ready(self) -> dict[str, Any]:
        if not self._conf:
            folder = _prepared(self.description, self.cache)
            if self.description.dtype == "int8" and (reason := _refused(folder)):
                raise InputError("int8 doesn't hold here", where=self.description.source, value=reason,
                                 valid="vectors as fp32 has them", next="name another encoder")  # fmt: skip
            self._conf = json.loads((folder / "prepare.json").read_text())
            if (folder / "arrays.npz").is_file():
                with np.load(folder / "arrays.npz") as stored:
                    self._arrays = dict(stored)
            if self.modality == "text":
                from tokenizers import Tokenizer

                self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            if self._torch_on:
                from mmrec.content.hub_torch import TorchGraph

                self._graph = TorchGraph(self.description, self._torch_on)
            else:
                self._graph = session(folder / "model.onnx", self.device, threads=1)  # each of ours has its own
        return self._conf

    def _rows(self, raw: Sequence[str], why: list[Any]) -> Iterator[tuple[int, int, list[int]]]:
        """(row, padded length, tokens) of texts; the length depends on the row alone."""
        # far beyond max_length tokens, and tokenizing 10 MB takes seconds; half a character becomes "?"
        longest = max(20_000, 40 * self.description.max_length)
        texts = [(self.description.prompt + t)[:longest].encode("utf-8", "replace").decode() for t in raw]
        if self.description.lower:
            texts = [t.lower() for t in texts]
        lengths = self._conf["lengths"]
        for start in range(0, len(texts), _TEXTS):
            for r, found in enumerate(self._tokenizer.encode_batch(texts[start : start + _TEXTS]), start):
                if found.ids:
                    yield r, lengths[bisect_left(lengths, len(found.ids))], found.ids
                else:
                    why[r] = "no_tokens: nothing that the tokenizer knows"

    def _batch(self, length: int) -> int:
        if self._torch_on:
            return max(1, _BUDGET[self.modality] // max(1, length))
        return max(1, _TOKENS // length) if self.modality == "text" else _BATCH[self.modality]

    def _run(self, rows: list[Any], length: int) -> np.ndarray:
        size = self._batch(length)
        if self.modality != "text":
            batch = np.zeros((size, *rows[0].shape), np.float32)
            batch[: len(rows)] = rows
            feeds = {self._conf["input"]: batch}
        else:
            ids_BL = np.full((size, length), self._conf["pad_id"], np.int64)
            mask_BL = np.zeros((size, length), np.int64)
            mask_BL[:, 0] = 1  # an empty row still needs one token to divide by
            for b, ids in enumerate(rows):
                ids_BL[b, : len(ids)], mask_BL[b, : len(ids)] = ids, 1
            feeds = {"ids": ids_BL} if self.description.fixed_length else {"ids": ids_BL, "mask": mask_BL}
        return self._graph.run(None, feeds)[0][: len(rows)]


def _refused(folder: Path) -> str | None:
    """Why a graph that was to be in int8 is not."""
    return json.loads((folder / "parity.json").read_text())["int8"]["reason"]


def _place(description: Description, cache: Path) -> Path:
    slug = hashlib.sha256(description.version.encode()).hexdigest()[:16]
    return cache / f"hub-{description.modality}-{description.dtype}-{slug}"


def _prepared(description: Description, cache: Path) -> Path:
    """The folder of this version's graph, made by a process of its own if it isn't there."""
    folder = _place(description, cache)
    if (folder / "parity.json").is_file():
        return folder
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    child = subprocess.run([sys.executable, "-m", "mmrec.content.hub_export", str(folder)], text=True,
                           input=json.dumps(asdict(description)), capture_output=True, env=environment)  # fmt: skip
    if child.returncode == 0:
        return folder
    said = (child.stdout.strip().splitlines() or [""])[-1]
    if child.returncode in (InputError.exit_code, TransientError.exit_code) and said.startswith("{"):
        kind = InputError if child.returncode == InputError.exit_code else TransientError
        raise kind(**json.loads(said))
    said = (child.stderr or child.stdout).strip()[-500:] or f"ended by {child.returncode}"
    raise TransientError("an encoder could not be exported", where=description.source, value=said, next="mmrec embed")
