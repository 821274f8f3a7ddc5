"""What a home's encoders take to be alike, for a person, a program and the report, and whether that means anything.

In: settings, tables. Out: neighbours of items, how much they have in common beside chance, a page of the report. The
search is content's, the measure evaluate's; the two rooms meet here.
Trade-off: a night measures a drawn thousand of the items, so that its cost grows with the catalogue, not with its
square; `mmrec neighbours --meaning` measures all.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from mmrec.config import Config
from mmrec.context import Night
from mmrec.encoding import fields_of, text_of
from mmrec.errors import InputError, QualityError
from mmrec.lake.store import Lake
from mmrec.models.fields import pooling
from mmrec.served import encoders

_MOST = 1000  # items that a night measures
_LOOK = 100  # items of a kind among which a page's picks are
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def neighbours(config: Config, lake: Lake, asked: list[str], modality: str, k: int) -> dict[str, list[dict[str, Any]]]:
    """See content/neighbours.py; by the encoder that config names for `modality`.

    Raises: InputError: none is named, or see there.
    """
    return _seen_by(config, lake, modality).of(asked, k)


def meaning(config: Config, lake: Lake, modality: str, k: int = 10, seed: int = 0) -> dict[str, Any]:
    """How much items have in common with their `k` nearest by `modality`, beside chance: see evaluate/meaning.py.

    Items are those that have a vector and categories, and so are their neighbours; contents of equal bytes are none.

    Returns: its keys, after modality and encoder_version, before seed (of the bootstrap).

    Raises: InputError: no encoder is named for `modality`. QualityError: no two items can be compared.
    """
    seen = _seen_by(config, lake, modality)
    found = _measured(config, seen, k, None, seed)
    if found is None:
        raise QualityError("no two items can be compared", where="gold.item_embeddings", value=seen.version,
                           valid="items of different content, with vectors and categories",
                           next="mmrec embed --date D")  # fmt: skip
    return found


def page(night: Night, n: int = 5, k: int = 5) -> dict[str, Any]:
    """What the report shows: the most popular and the newest items on offer, and what lies nearest to each.

    Of the first hundred of either kind those come first that most encoders have seen.

    Returns: `measures`: `meaning` of a drawn thousand items, a modality that has any, with `of`, the number they were
        drawn from; `picks`: rows of item_id, kind (popular, fresh), users, since (a day), and near: modality -> rows
        of neighbours.
    """
    columns = ["item_id", "popularity_micro", "n_users", "available_us"]
    offered = night.lake.day("gold.item_features", night.run_date, columns=columns).to_pylist()
    popular = sorted(offered, key=lambda r: (-r["popularity_micro"], r["item_id"]))[:_LOOK]
    fresh = sorted(offered, key=lambda r: (-r["available_us"], r["item_id"]))[:_LOOK]
    asked = sorted({r["item_id"] for r in (*popular, *fresh)})
    near: dict[str, dict[str, Any]] = {item: {} for item in asked}
    measures = []
    for encoder in encoders(night.config):
        seen = _neighbours(night.config, night.lake, encoder.modality, encoder.version)
        for item, rows in seen.of(asked, k, passing_over=True).items():
            if rows:
                near[item][encoder.modality] = rows
        measures.append(_measured(night.config, seen, 10, _MOST, 0))
    picks: list[dict[str, Any]] = []
    for kind, rows in (("popular", popular), ("fresh", fresh)):
        taken = {p["item_id"] for p in picks}
        rows = [r for r in rows if near[r["item_id"]] and r["item_id"] not in taken]
        rows.sort(key=lambda r: -len(near[r["item_id"]]))
        picks += [{"item_id": r["item_id"], "kind": kind, "users": r["n_users"], "near": near[r["item_id"]],
                   "since": (_EPOCH + timedelta(microseconds=r["available_us"])).date()} for r in rows[:n]]  # fmt: skip
    return {"measures": [m for m in measures if m], "picks": picks}


def _seen_by(config: Config, lake: Lake, modality: str) -> Any:
    ready = {e.modality: e.version for e in encoders(config)}
    if modality not in ready:
        raise InputError("no encoder is configured for this modality", where="--modality", value=modality,
                         valid=sorted(ready), next="mmrec neighbours ITEM --modality text")  # fmt: skip
    return _neighbours(config, lake, modality, ready[modality])


def _neighbours(config: Config, lake: Lake, modality: str, version: str) -> Any:
    from mmrec.content.neighbours import Neighbours

    pool = pooling(config.content.fields, modality)
    apart = fields_of if pool == "mean" else None
    return Neighbours(lake, modality=modality, version=version, text_of=text_of, fields_of=apart, pool=pool)


def _measured(config: Config, seen: Any, k: int, most: int | None, seed: int) -> dict[str, Any] | None:
    """None: no item has a neighbour."""
    from mmrec.evaluate import meaning as room

    near = seen.apart(k, most=most, seed=seed)
    if not (near.near_QK >= 0).any():
        return None
    found = room.meaning(near.categories, near.content_N, near.asked_Q, near.near_QK,
                         samples=config.evaluate.bootstrap, seed=seed)  # fmt: skip
    named = {"modality": seen.modality, "encoder_version": seen.version}
    return named | found | {"of": len(near.items), "seed": seed}
