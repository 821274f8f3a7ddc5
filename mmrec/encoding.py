"""What a home's encoders are given: the embed station.

In: settings, tables. Out: rows of gold.item_embeddings and silver.item_groups. The work is content's; the text that
stands for an item is features', and the two rooms meet here.
Trade-off: what could not be fed is told to the night's other stations by a file, not by the manifest: it says nothing
of what the lists are made of.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from mmrec.config import Config
from mmrec.context import Night
from mmrec.files import put
from mmrec.lake import commit
from mmrec.lake.spread import map_rows, parts
from mmrec.served import encoders, fed, fingerprints, texts_apart


def embed(night: Night) -> dict[str, Any]:
    """Feed every encoder version that the settings or a served model need (content/embed.py), then say who is listed
    twice (content/duplicates.py)."""
    from mmrec.content import duplicates
    from mmrec.content import embed as room
    from mmrec.content.everywhere import Everywhere

    config = night.config
    mapped = partial(map_rows, config.engine, config.spark)
    ready, prints = ([Everywhere(e, mapped) for e in es] for es in (fed(config), fingerprints(config).values()))
    run_id = f"embed-{night.run_date}"
    apart = fields_of if texts_apart(config) else None
    counts = commit.again(
        lambda: room.embed(night.lake, ready, prints=prints, run_id=run_id, text_of=text_of, progress=night.progress,
                           parts=parts(config.engine, config.spark), comments=config.content.comments,
                           fields_of=apart)
    )  # fmt: skip
    if "unfed" in counts:
        put(_unfed(night), json.dumps(counts["unfed"]))
    else:
        _unfed(night).unlink(missing_ok=True)
    own = encoders(config)
    return counts | commit.again(
        lambda: duplicates.regroup(night.lake, _alike(config, own), refusing=[e.version for e in own], text_of=text_of,
                                   remembered=config.cache / "item_groups.json")
    )  # fmt: skip


def unfed(night: Night) -> list[dict[str, Any]]:
    """What the date's last embed could not feed; see content/embed.py."""
    return json.loads(_unfed(night).read_text()) if _unfed(night).is_file() else []


def _unfed(night: Night) -> Path:
    return night.config.runs / f"unfed-{night.run_date}.json"


def _alike(config: Config, own: list[Any]) -> list[Any]:
    """Which vectors must agree: an encoder without a bound leaves its modality to equal content."""
    from mmrec.content.duplicates import Alike

    bounds = config.twins.bounds
    named = [*zip(config.encoder_names.values(), own, strict=True), *fingerprints(config).items()]
    return [Alike(e.modality, e.version, bounds[name]) for name, e in named if name in bounds]


def text_of(row: dict[str, Any]) -> str | None:
    """The text of a row of silver.items that is hashed and encoded: title, categories, text; None where it has none."""
    from mmrec.features.windows import content_text

    return content_text(row["title"], row["categories"], row["text"])


def fields_of(row: dict[str, Any]) -> list[str]:
    """The texts of such a row that stand for it where fields are separate, each a content: see features/windows.py."""
    from mmrec.features import windows

    return windows.fields_of(row["title"], row["categories"], row["text"])
