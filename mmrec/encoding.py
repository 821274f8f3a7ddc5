"""Which encoders a home has, and what they are asked: the embed station and the look at neighbours.

In: settings, tables. Out: rows of gold.item_embeddings and silver.item_groups, neighbours. The work is content's; the
text that stands for an item is features', and the two rooms meet here.
Trade-off: encoders are made anew at each call and open their graphs when a row needs them, so naming them is free.
"""

from __future__ import annotations

from typing import Any

from mmrec.config import Config
from mmrec.context import Night
from mmrec.errors import InputError
from mmrec.lake import commit
from mmrec.lake.store import Lake


def encoders(config: Config) -> list[Any]:
    """The encoders that config names, ready to encode; see content/encoders.py."""
    from mmrec.content.encoders import encoder

    where = config.cache / "encoders"
    return [encoder(name, where, config.device, config.threads, m) for m, name in _names(config).items()]


def embed(night: Night) -> dict[str, Any]:
    """Encode what is new (content/embed.py), then say who is listed twice (content/duplicates.py)."""
    from mmrec.content import duplicates
    from mmrec.content import embed as room

    config, ready = night.config, encoders(night.config)
    prints, alike = _agreement(config, ready)
    run_id = f"embed-{night.run_date}"
    counts = commit.again(
        # a fingerprint first: the last encoder of a modality says what is refused
        lambda: room.embed(night.lake, [*prints, *ready], run_id=run_id, text_of=_text, progress=night.progress)
    )
    return counts | commit.again(
        lambda: duplicates.regroup(night.lake, alike, refusing=[e.version for e in ready], text_of=_text,
                                   remembered=config.cache / "item_groups.json")
    )  # fmt: skip


def _names(config: Config) -> dict[str, str]:
    names = {m: getattr(config.night, m) for m in ("text", "image", "audio")}
    return {m: name for m, name in names.items() if name}


def _agreement(config: Config, ready: list[Any]) -> tuple[list[Any], list[Any]]:
    """Fingerprints, and which vectors must agree: an encoder that has no bound leaves its modality to equal content."""
    from mmrec.content.duplicates import Alike
    from mmrec.content.encoders import fingerprint

    bounds, prints, alike = config.twins.bounds, [], []
    for name, encoder in zip(_names(config).values(), ready, strict=True):
        if name not in bounds:
            continue
        alike.append(Alike(encoder.modality, encoder.version, bounds[name]))
        found = fingerprint(encoder.modality)
        if found and found[0] in bounds:
            prints.append(found[1])
            alike.append(Alike(encoder.modality, found[1].version, bounds[found[0]]))
    return prints, alike


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
