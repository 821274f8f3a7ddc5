"""What a home's encoders are asked: the embed station and the look at neighbours.

In: settings, tables. Out: rows of gold.item_embeddings, neighbours. The work is content's; the text that stands for an
item is features', and the two rooms meet here.
Trade-off: what could not be fed is told to the night's other stations by a file, not by the manifest: it says nothing
of what the lists are made of.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmrec.config import Config
from mmrec.context import Night
from mmrec.errors import InputError
from mmrec.files import put
from mmrec.lake import commit
from mmrec.lake.store import Lake
from mmrec.served import encoders, fed


def embed(night: Night) -> dict[str, Any]:
    """Feed every encoder version that the settings or a served model need; see content/embed.py."""
    from mmrec.content import embed as room

    ready = fed(night.config)
    run_id = f"embed-{night.run_date}"
    counts = commit.again(
        lambda: room.embed(night.lake, ready, run_id=run_id, text_of=_text, progress=night.progress)
    )
    if "unfed" in counts:
        put(_unfed(night), json.dumps(counts["unfed"]))
    else:
        _unfed(night).unlink(missing_ok=True)
    return counts


def unfed(night: Night) -> list[dict[str, Any]]:
    """What the date's last embed could not feed; see content/embed.py."""
    return json.loads(_unfed(night).read_text()) if _unfed(night).is_file() else []


def _unfed(night: Night) -> Path:
    return night.config.runs / f"unfed-{night.run_date}.json"


def neighbours(config: Config, lake: Lake, asked: list[str], modality: str, k: int) -> dict[str, list[dict[str, Any]]]:
    """See content/neighbours.py; by the encoder that config names for `modality`.

    Raises: InputError: none is named, or see there.
    """
    from mmrec.content import neighbours as room

    ready = {e.modality: e.version for e in encoders(config)}
    if modality not in ready:
        raise InputError("no encoder is configured for this modality", where="--modality", value=modality,
                         valid=sorted(ready), next="mmrec neighbours ITEM --modality text")  # fmt: skip
    return room.neighbours(lake, asked, modality=modality, version=ready[modality], text_of=_text, k=k)


def alike(night: Night, n: int = 4, k: int = 5) -> list[dict[str, Any]]:
    """What the encoders take to be alike, for the report: the items that tonight's lists hold most often, and theirs.

    Returns: a modality that has any: `modality`, `items`: rows of item_id and `near`, rows of neighbours.
    """
    from mmrec.content import neighbours as room

    shown = night.lake.day("gold.recommendations", night.run_date, columns=["item_id"])["item_id"]
    counts = sorted((-c["counts"], c["values"]) for c in shown.value_counts().to_pylist())
    often = [item for _, item in counts[: 10 * n]]  # some have no picture
    found = []
    for encoder in encoders(night.config):
        near = room.neighbours(night.lake, often, modality=encoder.modality, version=encoder.version, text_of=_text,
                               k=k, passing_over=True)  # fmt: skip
        rows = [{"item_id": item, "near": near[item]} for item in often if near.get(item)][:n]
        if rows:
            found.append({"modality": encoder.modality, "items": rows})
    return found


def _text(row: dict[str, Any]) -> str | None:
    from mmrec.features.windows import content_text

    return content_text(row["title"], row["categories"], row["text"])
