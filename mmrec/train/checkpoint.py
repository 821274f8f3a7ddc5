"""Where a fit stands, on disk: what a killed one goes on from.

In: tensors by name, and numbers. Out: one safetensors file, replaced whole, that says which fit it is of.
The file is of a fit of the same fingerprint: settings, seed, data, versions. That of another fit is as good as none: it
is left until the first checkpoint takes its place. So is one that is torn or whose bytes have changed, by its digests;
since a file is put in place whole and synced, that takes a failing disk, and a warning says so.
A fit that ended is kept the same way, see `fit_once`.
Trade-off: the whole state is written each time, five times the weights; at most once a minute and once an epoch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import mmrec
from mmrec.files import put, settle

if TYPE_CHECKING:
    from mmrec.train.fit import Champion

_FILE = "state.safetensors"
_EVERY_S = 60.0


class Checkpoint:
    """The file of one fit."""

    def __init__(self, folder: Path, fingerprint: str, every_s: float | None = None) -> None:
        """`fingerprint`: of all that the fit depends on. `every_s`: the least time between two within an epoch."""
        self.folder, self.fingerprint = folder, fingerprint
        self.every_s = _EVERY_S if every_s is None else every_s
        self.saved = time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self.saved >= self.every_s

    def save(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Replace the file; it is there, whole, when this returns. `numbers`: JSON."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        about = {"fingerprint": self.fingerprint, "numbers": numbers, "sums": {k: _sum(v) for k, v in held.items()}}
        part = self.folder / f"{_FILE}.part"
        save_file(held, part, {"about": json.dumps(about)})
        settle(part, self.folder / _FILE)
        self.saved = time.monotonic()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """What was saved last; None: nothing, of another fit, or torn."""
        path = self.folder / _FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                if about["fingerprint"] != self.fingerprint:
                    return None
                tensors = {k: file.get_tensor(k) for k in about["sums"]}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            return _torn(path, str(error))
        if {k: _sum(v) for k, v in tensors.items()} != about["sums"]:
            return _torn(path, "bytes have changed")
        return tensors, about["numbers"]

    def drop(self) -> None:
        """The fit is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def fit_once(model: Champion, folder: Path, *given: Any) -> Champion:
    """Fit `model` on `given` and save it in `folder`, with its checkpoint below; a fit of the same that ended is read.

    `folder` may hold anything of an earlier time: what is of another fit is written over.
    """
    key, ended = model.fingerprint(*given), folder / "ended"
    whole = all((folder / name).is_file() for name in ("model.json", "model.safetensors"))
    if whole and ended.is_file() and ended.read_text() == key:
        return type(model).load(folder)
    ended.unlink(missing_ok=True)
    model.state = folder / "under-way"
    model.fit(*given).save(folder)
    for file in folder.glob("model.*"):
        settle(file, file)
    put(ended, key)
    return model


def fingerprint(*parts: Any) -> str:
    """SHA-256 over dataclasses, mappings, sequences, arrays, tensors and JSON values, and the versions that compute."""
    digest = hashlib.sha256()
    _feed(digest, [mmrec.__version__, torch.__version__, np.__version__, *parts])
    return digest.hexdigest()


def _feed(digest: Any, part: Any) -> None:
    if is_dataclass(part):
        part = {f.name: getattr(part, f.name) for f in fields(part)}
    if isinstance(part, np.ndarray) and part.dtype == object:
        part = part.tolist()
    if isinstance(part, np.ndarray):
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    elif isinstance(part, dict):
        for key in sorted(part):
            digest.update(f"{key}=".encode())
            _feed(digest, part[key])
        digest.update(b"}")
    elif isinstance(part, Sequence) and any(isinstance(x, np.ndarray) or is_dataclass(x) for x in part):
        for one in part:
            _feed(digest, one)
        digest.update(b"]")
    else:
        digest.update(json.dumps(part).encode())


def _sum(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _torn(path: Path, why: str) -> None:
    warnings.warn(f"{path} can't be gone on from ({why}): the fit begins anew", stacklevel=3)
