"""What diversity costs: lists of a published night with and without it, against what users chose in the days after.

In: settings, tables, a published date. Out: rows of numbers of each kind of list, and differences with intervals.
Lists are made again as the night made them, under its rules; places that are drawn are left out. Wanted is what a user
had in the days after and not before, if it was on offer.
Trade-off: only users who came back can be asked, and they were shown the lists with it; what they would have chosen of
the others is not known, so a price is an upper bound.

Shape legend: C cases (users), K places, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec import metrics, schema
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.judged import Case, asked, judged
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.recommend.histories import rows_of
from mmrec.recommend.rules import of_records
from mmrec.recommend.slate import chosen
from mmrec.recommend.vary import Aims, Variety
from mmrec.served import looked_at

_K = 10
_COMPARED = ("ndcg@10", "recall@10")
_WITHOUT = Aims()
_TRIED = (
    *(Aims("mmr", s) for s in (0.1, 0.2, 0.3, 0.5)), *(Aims("dpp", s) for s in (0.05, 0.1, 0.2, 0.3)),
    *(Aims(calibration=c) for c in (0.2, 0.4)), Aims(novelty=0.1), Aims(serendipity=0.1),
)  # fmt: skip

Tell = Callable[[str, int, int], None]


def _quiet(_what: str, _done: int, _of: int) -> None:
    pass


def _measured(case: Case, aims: Sequence[Aims], tell: Tell = _quiet, samples: int = 2000) -> list[dict[str, Any]]:
    """Lists of each kind, the first being what the others are held against.

    Returns: a row each of kind (in words), aims (as settings have them), users, ndcg@10, recall@10, diversity@10 (1 -
        mean cosine over the pairs of a list, of sketches), mix@10 (divergence of a list's mix from the
        history's, 0: the same),
        novelty@10 and coverage@10 as in metrics.py; cost: metric -> difference to the first and its 95% interval, by
        user bootstrap.

    Raises: InputError: contents are to be looked at, and no encoder is named.
    """
    night, out, first = case.night, [], None
    looked = looked_at(night.config, night.model, any(a.looks for a in aims))
    ids, rules = night.items["item_id"].combine_chunks(), of_records(night.manifest.config["rules"])
    history = rows_of(case.users["item_ids"], ids)
    history = history.kept(history.at >= 0)
    everybody = night.lake.day("gold.user_sequences", night.day, columns=["n_interactions"])  # of all arms
    known_N, who = night.items["n_users"].to_numpy(), pc.sum(pc.greater(everybody["n_interactions"], 0)).as_py()
    look = Aims(strength=0.1 if looked["encoders"] else 0, calibration=0.1)
    with night.packed(rules, asdict(look) | looked) as packed:
        scored, sketch_NV = packed.scored(case.users), packed.sketch_NV
        for n, each in enumerate(aims):
            tell("kinds of lists", n, len(aims))
            variety = Variety.over(each, packed.items, sketch_NV)
            made = chosen(case.users, packed.items, scored, packed.job.k, packed.group_N, packed.ruling, None,
                          None if each == _WITHOUT else variety, packed.wishes, packed.others,
                          packed.second)  # fmt: skip
            ranked_CK = made.lists.item_BK[:, :_K]
            values = metrics.ranking(ranked_CK, case.ptr, case.wanted, (_K,))
            first = first or values
            mix = Variety.over(replace(look, over=each.over), packed.items, None)
            row: dict[str, Any] = {"kind": str(each), "aims": asdict(each), "users": len(ranked_CK)}
            row |= {m: float(values[m].mean()) for m in _COMPARED}
            row["diversity@10"] = None if sketch_NV is None else metrics.diversity(ranked_CK, sketch_NV, _K)
            row["mix@10"] = mix.divergence(ranked_CK, (history.ptr, history.at))
            row["novelty@10"] = metrics.novelty(ranked_CK, known_N, who or 1, _K)
            row["coverage@10"] = metrics.coverage(ranked_CK, len(ids), _K)
            cost = {m: paired_bootstrap(values[m], first[m], np.arange(len(ranked_CK)), samples) for m in _COMPARED}
            out.append(row | {"cost": cost})
    return out


def tradeoff(
    config: Config, lake: Lake, when: date | None = None, most: int | None = 2000, tell: Tell = _quiet
) -> dict[str, Any]:
    """Lists without diversity, with that of the settings, and with other aims, to choose from.

    Args:
        when: a published run_date; None: of a week before the newest, else the nearest. most: as of `judged.asked`.

    Returns: run_date, users, kinds: rows of `_measured`, the first without, the second the settings' if they ask for
        any.

    Raises: InputError: as `judged.asked` and `_measured`, or no night can be judged.
    """
    own = [Aims.of(config.diversity.model_dump())] if config.diversity.on else []
    case = asked(config, lake, when, None, most)
    contents = looked_at(config, case.night.model, needed=False)["encoders"]
    tried = [a for a in _TRIED if contents or not a.looks]
    rows = _measured(case, [_WITHOUT, *own, *(a for a in tried if a not in own)], tell)
    return {"run_date": str(case.night.day), "users": case.users.num_rows, "kinds": rows}


def priced(config: Config, lake: Lake, m: Manifest) -> pa.Table:
    """What a run's diversity would have cost the lists of a week before: rows of ops.metrics, `slice` being its words.

    Raises: InputError: there is no night that can be judged.
    """
    when = judged(lake, m.day)
    if when is None:
        raise InputError("no night of the last four weeks can be judged", where=f"run_date {m.day}", value="none",
                         valid="a published night", next=f"mmrec run --date {m.day - timedelta(1)}")  # fmt: skip
    aims = Aims.of(m.config["diversity"])
    rows = _measured(asked(config, lake, when, m.moment), [_WITHOUT, aims])
    same = {"run_date": m.day, "model_version": m.model_version, "protocol": "price", "split": "none",
            "slice": str(aims), "n": rows[0]["users"], "run_id": m.run_id}  # fmt: skip
    made = []
    for name, row in zip(("without", "with"), rows, strict=True):
        for metric in (*_COMPARED, "diversity@10", "mix@10", "novelty@10", "coverage@10"):
            if row[metric] is not None:
                made.append(same | {"model": name, "metric": metric, "value": row[metric], "lo": None, "hi": None})
    for metric, (mean, low, high) in rows[1]["cost"].items():
        made.append(same | {"model": "difference", "metric": metric, "value": mean, "lo": low, "hi": high})
    return pa.Table.from_pylist(made, schema.table("ops.metrics").arrow)
