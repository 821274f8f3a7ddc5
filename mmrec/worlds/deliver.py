"""The built-in world's files: a day's rows in the standard layout, with faults planted as every source has them.

In: rows by kind, a seed. Out: `<folder>/<kind>.csv|jsonl` and `media/`; bad rows, a torn last line, broken media.
Trade-off: faults are the same share of every day, so that a night's quarantine is never empty.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from mmrec.worlds import render

_COLUMNS = {
    "interactions": ("user_id", "item_id", "event_type", "event_ts", "available_at", "weight", "context", "text"),
    "relations": ("kind", "subject_id", "relation", "object_id", "available_at"),
    "impressions": ("impression_id", "user_id", "item_id", "shown_at", "available_at", "surface", "rank", "run_id",
                    "arm", "propensity"),
    "wishes": ("user_id", "wish", "field", "value", "wished_at", "withdrawn_at", "available_at"),
}  # fmt: skip


def deliver(
    folder: Path, day: date, rows: dict[str, list[Any]], seed: int, kind_of: Callable[[int], np.ndarray]
) -> dict[str, int]:
    """Write a day, whole or not at all; counts of rows by kind, of planted rows and planted media.

    A day that is there already is left as it is: two runs may deliver it at the same time.

    Args:
        kind_of: number of an item -> its kinds by part; pictures and tones are made from them.
    """
    target, folder = folder, folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.part")
    (folder / "media").mkdir(parents=True)
    rng = np.random.default_rng([seed, 9, day.toordinal()])
    counts: Counter[str] = Counter({kind: len(r) for kind, r in rows.items()})
    for row in rows["items"]:
        counts.update(_media(folder, row, seed, kind_of))
    planted = _bad_rows(rows["interactions"], rng)
    rows["interactions"] += planted
    counts["planted_rows"] = len(planted)
    for kind in _COLUMNS:
        _csv(folder / f"{kind}.csv", kind, rows.get(kind, []), torn=kind == "interactions")
    counts["planted_rows"] += 1  # the torn line
    for kind in ("items", "users"):
        if rows.get(kind):
            lines = [json.dumps(r, sort_keys=True) for r in rows[kind]]
            (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(folder)
    return dict(counts)


def _media(folder: Path, row: dict[str, Any], seed: int, kind_of: Callable[[int], np.ndarray]) -> dict[str, int]:
    if row["image"] is None:
        return {}
    item = int(row["item_id"][1:])
    kind, rng = kind_of(item), np.random.default_rng([seed, 10, item])
    image, audio = render.picture(int(kind[1]), rng), render.tone(int(kind[2]), rng)
    broken = {17: (b"", audio), 29: (image[: len(image) // 2], audio), 41: (b"not a picture", audio),
              53: (image, audio[:2000])}.get(item % 61)  # fmt: skip
    image, audio = broken or (image, audio)
    (folder / row["image"]).write_bytes(image)
    (folder / row["audio"]).write_bytes(audio)
    return {"planted_media": 1} if broken else {}


def _bad_rows(rows: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """One of each fault: a source is never clean."""
    faults: list[dict[str, Any]] = [
        {"user_id": ""}, {"item_id": "i99999999"}, {"weight": "NaN"}, {"weight": "many"}, {"event_ts": "yesterday"},
        {"event_ts": "1969-07-20T20:17:00Z"},
        {"event_ts": "2100-01-01T00:00:00Z", "available_at": "2100-01-01T00:00:00Z"},
        {"context": "{broken"}, {},
    ]  # fmt: skip
    if not rows:
        return []
    picked = rng.choice(len(rows), len(faults), replace=len(rows) < len(faults))
    return [rows[int(i)] | fault for i, fault in zip(picked, faults, strict=True)]


def _csv(path: Path, kind: str, rows: list[dict[str, Any]], torn: bool) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS[kind], lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        if torn:
            file.write("u00001,i00002,view,2026-0")
