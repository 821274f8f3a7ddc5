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
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec import metrics, schema
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.recommend.histories import rows_of
from mmrec.recommend.rules import of_records
from mmrec.recommend.slate import chosen
from mmrec.recommend.vary import Aims, Variety
from mmrec.remade import Remade, remade
from mmrec.served import looked_at

_K = 10
_DAYS, _BACK = 7, 28
_COMPARED = ("ndcg@10", "recall@10")
_WITHOUT = Aims()
_TRIED = (
    *(Aims("mmr", s) for s in (0.1, 0.2, 0.3, 0.5)), *(Aims("dpp", s) for s in (0.05, 0.1, 0.2, 0.3)),
    *(Aims(calibration=c) for c in (0.2, 0.4)), Aims(novelty=0.1), Aims(serendipity=0.1),
)  # fmt: skip

Tell = Callable[[str, int, int], None]


def _quiet(_what: str, _done: int, _of: int) -> None:
    pass


@dataclass(frozen=True)
class _Case:
    """What is asked of a night: `users` (C rows of gold.user_sequences), and their wanted items as CSR of places."""

    night: Remade
    users: pa.Table
    ptr: np.ndarray
    wanted: np.ndarray


def _judged(lake: Lake, day: date) -> date | None:
    """The published night that can be judged on `day`: of a week before, else the nearest; None: there is none."""
    past = [d for d in lake.run_dates() if day - timedelta(_BACK) <= d < day]
    early = [d for d in past if d <= day - timedelta(_DAYS)]
    return early[-1] if early else past[0] if past else None


def _asked(config: Config, lake: Lake, when: date, until: datetime | None = None, most: int | None = 2000) -> _Case:
    """The users of a published night who chose something new in the week after it.

    Args:
        until: what happened or came later is not looked at; None: all that is known is. most: users, the same ones
            whoever asks; None: all.

    Raises: InputError: no such night, a night whose lists no model made, or nobody chose anything.
    """
    night = remade(config, lake, when)
    if night.model.kind == "popularity":
        raise InputError("no model ranked for this night, so there is no order to change", where=f"run_date {when}",
                         value="popularity", valid="a night of a trained model", next="mmrec train")  # fmt: skip
    start = night.manifest.moment
    end, at = start + timedelta(_DAYS), ds.field("event_ts")
    where = (at >= start) & (at < (min(until, end) if until else end))
    if until:
        where &= ds.field("available_at") < until
    events = lake.arrow("silver.interactions", columns=["user_id", "item_id"], where=where)
    place = {item: n for n, item in enumerate(night.items["item_id"].to_pylist())}
    chose: dict[str, set[int]] = {}
    for user, item in zip(*(c.to_pylist() for c in events.columns), strict=True):
        if item in place:
            chose.setdefault(user, set()).add(place[item])
    told = night.users.filter(pc.is_in(night.users["user_id"], value_set=pa.array(chose, pa.string())))
    for user, seen in zip(told["user_id"].to_pylist(), told["seen_item_ids"].to_pylist(), strict=True):
        chose[user] -= {place[i] for i in seen if i in place}
    asked_for = pa.array([user for user, items in chose.items() if items], pa.string())
    users = night.some(night.users.filter(pc.is_in(night.users["user_id"], value_set=asked_for)), most)
    if not users.num_rows:
        raise InputError("nobody of this night chose anything new afterwards", where=f"run_date {when}",
                         value=f"{start} to {end}", valid="a night with events after it",
                         next="an earlier --date, or mmrec run --date D, which takes in what came since")  # fmt: skip
    wanted = [sorted(chose[user]) for user in users["user_id"].to_pylist()]
    ptr = np.concatenate([[0], np.cumsum([len(w) for w in wanted])]).astype(np.int64)
    return _Case(night, users, ptr, np.array([i for w in wanted for i in w], np.int64))


def _measured(case: _Case, aims: Sequence[Aims], tell: Tell = _quiet, samples: int = 2000) -> list[dict[str, Any]]:
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
    known_N, who = night.items["n_users"].to_numpy(), pc.sum(pc.greater(night.users["n_interactions"], 0)).as_py()
    look = Aims(strength=0.1 if looked["encoders"] else 0, calibration=0.1)
    with night.packed(rules, asdict(look) | looked) as packed:
        scored, sketch_NV = packed.scored(case.users), packed.sketch_NV
        for n, each in enumerate(aims):
            tell("kinds of lists", n, len(aims))
            variety = Variety.over(each, packed.items, sketch_NV)
            made = chosen(case.users, packed.items, scored, packed.job.k, packed.group_N, packed.ruling, None,
                          None if each == _WITHOUT else variety, packed.wishes, packed.second)  # fmt: skip
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
        when: a published run_date; None: of a week before the newest, else the nearest. most: as of `_asked`.

    Returns: run_date, users, kinds: rows of `_measured`, the first without, the second the settings' if they ask for
        any.

    Raises: InputError: as `_asked` and `_measured`, or no night can be judged.
    """
    days = lake.run_dates()
    when = when or (_judged(lake, days[-1]) if days else None)
    if when is None:
        raise InputError("no night can be judged yet: it takes two", where="gold.recommendations",
                         value=[str(d) for d in days], valid="a published night, and events after it",
                         next="mmrec run --date D")  # fmt: skip
    own = [Aims.of(config.diversity.model_dump())] if config.diversity.on else []
    case = _asked(config, lake, when, None, most)
    contents = looked_at(config, case.night.model, needed=False)["encoders"]
    tried = [a for a in _TRIED if contents or not a.looks]
    rows = _measured(case, [_WITHOUT, *own, *(a for a in tried if a not in own)], tell)
    return {"run_date": str(when), "users": case.users.num_rows, "kinds": rows}


def priced(config: Config, lake: Lake, m: Manifest) -> pa.Table:
    """What a run's diversity would have cost the lists of a week before: rows of ops.metrics, `slice` being its words.

    Raises: InputError: there is no night that can be judged.
    """
    when = _judged(lake, m.day)
    if when is None:
        raise InputError("no night of the last four weeks can be judged", where=f"run_date {m.day}", value="none",
                         valid="a published night", next=f"mmrec run --date {m.day - timedelta(1)}")  # fmt: skip
    aims = Aims.of(m.config["diversity"])
    rows = _measured(_asked(config, lake, when, m.moment), [_WITHOUT, aims])
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
