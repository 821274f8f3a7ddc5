"""Bundles: one folder per model version, sealed by one sha256 over all its files.

In: a folder with `bundle.json` and ONNX graphs or arrays. Out: a `Bundle` that was checked before a byte of it was
parsed. Nothing in it is pickled; every file is JSON, YAML, Markdown, Parquet, safetensors or ONNX.
Trade-off: the digest is over whole files, so a changed comment in bundle.json makes another bundle; that is the
price of a check that needs no knowledge of what the files mean.

Kinds: `popularity` (no graph: the items' decayed counts rank for everybody; version 0); `two_tower`, of ONNX graphs;
`factors` and `sparse`, of arrays (models/stored.py).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrec.errors import InputError, QualityError
from mmrec.models.fields import USUAL

SEAL = "digest.json"
KINDS = ("popularity", "two_tower", "factors", "sparse")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: `about` is bundle.json; paths lie in `folder`."""

    folder: Path
    digest: str
    about: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.about["kind"]

    @property
    def encoders(self) -> dict[str, str]:
        """Modality -> encoder version whose embeddings it was trained on."""
        return self.about.get("encoders", {})

    @property
    def fields(self) -> dict[str, str]:
        """Modality -> which of an item's contents it was trained on; a bundle of an earlier release says nothing."""
        return USUAL | self.about.get("fields", {})

    @property
    def encoder_names(self) -> dict[str, str]:
        """Modality -> that encoder as the settings named it; empty in a bundle of an earlier release."""
        return self.about.get("encoder_names", {})


def seal(folder: Path, about: dict[str, Any]) -> str:
    """Write bundle.json and the digest over everything in `folder`; returns the digest."""
    if about.get("kind") not in KINDS:
        raise InputError("no such kind of bundle", where="bundle.json: kind", value=about.get("kind"), valid=KINDS)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps(about, sort_keys=True, indent=1))
    files = _files(folder)
    digest = _digest(files)
    (folder / SEAL).write_text(json.dumps({"sha256": digest, "files": files}, sort_keys=True, indent=1))
    return digest


def load(folder: Path, expected: str | None = None, *, deep: bool = True) -> Bundle:
    """Check a bundle's digest, then read it.

    Args:
        expected: the digest that the registry or the manifest names; None: the bundle's own seal.
        deep: False: of its files only bundle.json is compared with the seal, for who opens no other.

    Raises:
        QualityError: a file was changed, added or lost since it was sealed. InputError: no bundle there.
    """
    seal_file = folder / SEAL
    if not seal_file.is_file():
        raise InputError(
            "there is no bundle here", where=str(folder), valid="a folder made by mmrec export", next="mmrec init"
        )
    try:
        sealed = json.loads(seal_file.read_text())
        told, listed = sealed["sha256"], dict(sealed["files"])
    except (ValueError, TypeError, KeyError):
        told, listed = "", {}
    about = folder / "bundle.json"
    files = _files(folder) if deep else {n: d for n, d in listed.items() if n != about.name} | _hashed(
        folder, [about] * about.is_file()
    )
    digest = _digest(files)
    whole = _digest(listed) == told  # a seal that contradicts itself was edited
    if not whole or digest != told or (expected is not None and digest != expected):
        changed = sorted(n for n in {*files, *listed} if files.get(n) != listed.get(n)) if whole else [SEAL]
        raise QualityError(
            "the model bundle was altered since it was sealed",
            where=str(folder),
            value=changed or digest,
            valid=expected or told or "the seal that mmrec export wrote",
            next="mmrec promote --help",
        )
    return Bundle(folder, digest, json.loads(about.read_text()))


def install(folder: Path, target: Path) -> Path:
    """Copy a sealed bundle to where versions live, whole or not at all."""
    load(folder)
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part)
    load(part)
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    try:
        part.replace(target)
    except OSError:
        if old.exists():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return target


def _files(folder: Path) -> dict[str, str]:
    return _hashed(folder, sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SEAL))


def _hashed(folder: Path, paths: list[Path]) -> dict[str, str]:
    found = {}
    for path in paths:
        with path.open("rb") as handle:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
