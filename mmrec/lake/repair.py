"""`mmrec repair`: what a loss of power or a bad disk did to a table's log is undone, or told.

In: a lake. Out: what was done to each damaged entry; nothing is deleted, a replaced entry goes to `<table>/_damaged/`.
An entry with a copy (log.py) is put back byte for byte. The newest entry without one was never acknowledged to its
writer, which settles an entry before it returns: it is moved aside, and the table stands as it stood before; the
writer's next run does its work again. Anything else needs a backup, and is said so.
Trade-off: a table is mended while nobody writes to it; a writer that comes in between is refused by the damage itself.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmrec import schema
from mmrec.files import put, sync_folder
from mmrec.lake import log
from mmrec.lake.store import Lake


@dataclass(frozen=True)
class Repair:
    """What was done about one damaged entry; `mended` is False where only a backup helps."""

    table: str
    version: int
    what: str
    done: str
    mended: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def repair(lake: Lake, *, dry_run: bool = False) -> list[Repair]:
    """Mend the log of every table of `lake` as far as can be.

    Args:
        dry_run: tell, change nothing.

    Returns: one entry a damage, in the order of tables and versions; empty where everything is whole.
    """
    told = []
    for name in schema.TABLES:
        if not lake.exists(name):
            continue
        folder = lake.path(name)
        found = log.damage(folder, name, all_of_it=True)
        newest = max((int(p.stem) for p in (folder / "_delta_log").glob("*.json") if p.stem.isdigit()), default=0)
        # from the newest down: an entry may be moved aside only when none stands on it
        for d in sorted(found, key=lambda d: -d.version):
            if d.copy is not None:
                done, mended = "put back from its copy", True
                if not dry_run:
                    _aside(folder, d.file)
                    put(d.file, d.copy)
            elif d.file.exists() and d.version == newest:
                done, mended = "moved aside: it was never acknowledged; run that night again", True
                newest -= 1
                if not dry_run:
                    _aside(folder, d.file)
            else:
                done, mended = "left: later entries stand on it; put the file back from a backup", False
            told.append(Repair(name, d.version, d.what, done, mended))
    return sorted(told, key=lambda r: (r.table, r.version))


def _aside(folder: Path, file: Path) -> None:
    if not file.exists():
        return
    kept = folder / "_damaged"
    kept.mkdir(exist_ok=True)
    n = sum(1 for _ in kept.iterdir())
    os.link(file, kept / f"{n:04}-{file.name}")
    file.unlink()
    for changed in (kept, file.parent):
        sync_folder(changed)
