"""A small file written whole or not at all, whoever writes it at the same time, and lasting when this returns.

In: a path and its content. Out: the file. And what tells a path from a URL.
Trade-off: two fsyncs a file; for pointers and records, not for data.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def put(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`. The folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        settle(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def settle(part: Path, path: Path) -> None:
    """A file written beside `path` takes its place, and is on disk when this returns."""
    fd = os.open(part, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder: the names in it outlast a loss of power."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_url(reference: str | None) -> bool:
    """Whether what names a file names it by http or https, in any spelling of these."""
    return reference is not None and reference[:8].lower().startswith(("http://", "https://"))
