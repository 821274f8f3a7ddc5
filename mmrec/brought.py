"""What other generators would bring to the lists of a published night, against what users chose in the days after.

In: settings, tables, a published date. Out: of the model and of each generator, how much of what users chose its best
hold, and how much that the model's as many do not; and what lists with it gain or lose.
Lists are made again as the night made them; places that are drawn are left out.
Trade-off: as of judged.py, and more so: what nobody was shown is rarely chosen.

Shape legend: C cases (users), P places, K places of a list.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np

from mmrec import metrics
from mmrec.config import Config
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.judged import Case, asked
from mmrec.lake.store import Lake
from mmrec.recommend.generators import COLUMN, NAMES, Generators
from mmrec.recommend.packed import Packed
from mmrec.recommend.rules import of_records
from mmrec.recommend.slate import chosen
from mmrec.served import looked_at

_K, _SAMPLES = 10, 2000
_COMPARED = (f"ndcg@{_K}", f"recall@{_K}")
_MODEL, _ALL = "model", "all of them"


def brought(
    config: Config, lake: Lake, when: date | None, most: int | None, tell: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """What each generator would bring.

    Args:
        when: a published run_date; None: of a week before the newest, else the nearest. most: users, the same ones
            whoever asks; None: all.

    Returns: run_date, users, depth, every; generators: a row each of name, the model's first: share of users to whom it
        brings anything, recall (of what users chose, among its first `depth`), new (of that, what the model's first
        `depth` lack), ndcg@10 and recall@10 of lists with it, and difference: metric -> mean, low, high to the model's
        own, 95% by bootstrap over users; None of social where the night did not ask for it. The last row is of lists
        with all of them.

    Raises: InputError: as `judged.asked`.
    """
    case, told = asked(config, lake, when, None, most), config.candidates
    night = case.night
    looked = looked_at(config, night.model, needed=False)
    record = told.model_dump() | {"generators": list(NAMES)} | looked
    if case.users[COLUMN].null_count == case.users.num_rows:
        record["generators"].remove("social")
    if night.model.kind not in ("two_tower", "factors"):
        record["generators"].remove("item_to_item")
    if not looked["encoders"]:
        record["generators"].remove("content")
    rows: list[dict[str, Any]] = []
    with night.packed(of_records(night.manifest.config["rules"]), candidates=record) as packed:
        whole = packed.others
        assert whole is not None
        tries: list[tuple[str, tuple[str, ...]]] = [(_MODEL, ()), *((n, (n,)) for n in record["generators"]),
                                                    (_ALL, tuple(record["generators"]))]  # fmt: skip
        first, own_CP = None, _best(case, packed, None, told.depth)
        for n, (name, names) in enumerate(tries):
            tell("generators", n, len(tries))
            others = whole.only(names) if names else None
            values = _lists(case, packed, others)
            first = first or values
            row = {"name": name, **{m: float(values[m].mean()) for m in _COMPARED}}
            row["difference"] = {m: paired_bootstrap(values[m], first[m], np.arange(case.users.num_rows), _SAMPLES)
                                 for m in _COMPARED}  # fmt: skip
            if name != _ALL:
                best_CP = own_CP if others is None else _best(case, packed, others, told.depth)
                row |= _found(case, best_CP, own_CP)
            rows.append(row)
    rows += [{"name": name} for name in NAMES if name not in record["generators"]]
    return {"run_date": str(night.day), "users": case.users.num_rows, "depth": told.depth, "every": told.every,
            "generators": rows}  # fmt: skip


def _lists(case: Case, packed: Packed, others: Generators | None) -> dict[str, np.ndarray]:
    made = chosen(case.users, packed.items, packed.scored(case.users), packed.job.k, packed.group_N, packed.ruling,
                  None, packed.variety, packed.wishes, others, packed.second)  # fmt: skip
    return metrics.ranking(made.lists.item_BK[:, :_K], case.ptr, case.wanted, (_K,))


def _best(case: Case, packed: Packed, others: Generators | None, depth: int) -> np.ndarray:
    """(C, P): the first of the model, or of a generator, that a user has not had."""
    if others is None:
        return chosen(case.users, packed.items, packed.scored(case.users), depth, None, None).lists.item_BK
    scored = packed.scored(case.users)
    return others.bests(case.users, None if scored is None else scored.speaks_N)


def _found(case: Case, best_CP: np.ndarray, own_CP: np.ndarray) -> dict[str, float]:
    recall, new = [], []
    for c in range(len(best_CP)):
        wanted = set(case.wanted[case.ptr[c] : case.ptr[c + 1]].tolist())
        hit = wanted & set(best_CP[c].tolist())
        recall.append(len(hit) / len(wanted))
        new.append(len(hit - set(own_CP[c].tolist())) / len(wanted))
    return {"users": float((best_CP >= 0).any(1).mean()), "recall": float(np.mean(recall)), "new": float(np.mean(new))}
