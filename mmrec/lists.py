"""A published night's lists beside everyone's own: what is most like an item, and what a segment of users would like.

In: settings, tables, a published date. Out: rows for a person or a program. The vectors are those that the night scored
with: users' as they are stored, items' made again from the pinned bundle and features.
Trade-off: the catalogue is encoded at each call, some seconds for 100,000 items; nothing is written. A segment is
ranked by the dot product, also where the model's blend re-ranks what users get: a mean of users has no ranks to
combine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec.bundle import bundle as bundles
from mmrec.config import Config
from mmrec.context import published
from mmrec.errors import InputError
from mmrec.lake.store import Lake
from mmrec.recommend import shared
from mmrec.recommend.histories import flat
from mmrec.recommend.score import item_side
from mmrec.topk.exact import TopK


def similar(
    config: Config, lake: Lake, asked: Sequence[str], k: int, when: date | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Asked item -> rows of rank, item_id, title, score (cosine), the most like it first.

    Args:
        when: a published date; None: the newest.

    Raises: InputError: no such night, its model has no vectors, or an item was not on offer.
    """
    seen = _scored(config, lake, when)
    ids = seen.items["item_id"].to_pylist()
    at = {item: n for n, item in enumerate(ids)}
    missing = [item for item in asked if item not in at]
    if missing:
        raise InputError("this item was not on offer", where=f"gold.item_features run_date={seen.day}",
                         value=missing[0], valid=f"one of {len(ids)}, as {', '.join(ids[:3])}",
                         next="mmrec sql 'select item_id, title from item_features'")  # fmt: skip
    found = shared.similar(seen.item_ND, np.array([at[i] for i in asked], np.int64), k, device=config.device)
    return {item: rows for item, rows in zip(asked, _rows(found, seen.items), strict=True)}


def segments(
    config: Config, lake: Lake, attribute: str, k: int, when: date | None = None
) -> list[dict[str, Any]]:
    """One row a value of a user attribute: segment, users, and list: rows of rank, item_id, title, score (the mean).

    Users without the attribute are in no segment. Segments come by size, then by name.

    Args:
        attribute: a key of users' attributes. when: as of `similar`.

    Raises: InputError: no such night, its model has no vectors, or no user has the attribute.
    """
    seen = _scored(config, lake, when)
    vectors = lake.day("gold.user_vectors", seen.day, columns=["user_id", "vector", "model_version"])
    vectors = vectors.filter(pc.equal(vectors["model_version"], seen.model_version))  # not those of a canary's users
    told = lake.day("gold.user_sequences", seen.day, columns=["user_id", "attributes"])
    texts = told["attributes"].take(pc.index_in(vectors["user_id"], value_set=told["user_id"])).combine_chunks()
    texts = pc.dictionary_encode(pc.fill_null(texts, "{}"))
    attributes = [json.loads(t) for t in texts.dictionary.to_pylist()]
    values = [a.get(attribute) for a in attributes]
    names = sorted({_name(v) for v in values if v is not None})
    if not names:
        raise InputError("no user has this attribute", where=f"gold.user_sequences run_date={seen.day}",
                         value=attribute, valid=sorted({key for a in attributes for key in a}),
                         next="mmrec segments ATTRIBUTE")  # fmt: skip
    place = {name: n for n, name in enumerate(names)}
    code = np.array([-1 if v is None else place[_name(v)] for v in values], np.int64)
    user_UD = flat(vectors["vector"])[1].to_numpy().reshape(vectors.num_rows, -1)
    found, users_S = shared.of_segments(user_UD, code[texts.indices.to_numpy()], len(names), seen.item_ND, k,
                                        device=config.device)  # fmt: skip
    made = [{"segment": name, "users": int(n), "list": rows}
            for name, n, rows in zip(names, users_S, _rows(found, seen.items), strict=True)]  # fmt: skip
    return sorted(made, key=lambda row: (-row["users"], row["segment"]))


@dataclass(frozen=True)
class _Scored:
    """A published night: its items, ascending by id, and their vectors (N, D)."""

    day: date
    model_version: str
    items: pa.Table
    item_ND: np.ndarray


def _scored(config: Config, lake: Lake, when: date | None) -> _Scored:
    m = published(lake, when)
    when = m.day
    model = bundles.load(config.bundles / m.model_version, m.model_digest)
    items = lake.day("gold.item_features", when).sort_by("item_id")
    side = item_side(model, items, lake, m.tables, device=config.device, threads=config.threads)
    if side is None:
        raise InputError("the model of this night has no vectors", where=f"run_date {when}",
                         value=f"version {m.model_version}, {model.kind}", valid="a two_tower or factors bundle",
                         next="mmrec promote --help")  # fmt: skip
    return _Scored(when, m.model_version, items, side.item_vec)


def _rows(found: TopK, items: pa.Table) -> list[list[dict[str, Any]]]:
    ids, titles = (items[c].to_pylist() for c in ("item_id", "title"))
    return [[{"rank": n + 1, "item_id": ids[i], "title": titles[i], "score": float(s)}
             for n, (i, s) in enumerate(zip(item_K, score_K, strict=True)) if i >= 0]
            for item_K, score_K in zip(found.item.tolist(), found.score.tolist(), strict=True)]  # fmt: skip


def _name(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
