"""What users chose in the days after a published night: what lists that are made again are held against.

In: settings, tables, a published date. Out: its users who came back, and what they had that they had not had before, if
it was on offer.
Trade-off: only users who came back can be asked, and they were shown the lists as they were; what they would have
chosen of others is not known, so what a change costs is overstated.

Shape legend: C cases (users).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec.bundle.registry import ZERO
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.lake.store import Lake
from mmrec.remade import Remade, remade

_DAYS, _BACK = 7, 28


@dataclass(frozen=True)
class Case:
    """What is asked of a night: `users` (C rows of gold.user_sequences), and their wanted items as CSR of places."""

    night: Remade
    users: pa.Table
    ptr: np.ndarray
    wanted: np.ndarray


def judged(lake: Lake, day: date) -> date | None:
    """The published night that can be judged on `day`: of a week before, else the nearest, of those whose lists a model
    made if there are any; None: there is none."""
    runs = lake.arrow("ops.runs", columns=["run_date", "model_version"]).to_pylist()
    ranked = {r["run_date"] for r in runs if r["model_version"] != ZERO}
    past = [d for d in lake.run_dates() if day - timedelta(_BACK) <= d < day]
    past = [d for d in past if d in ranked] or past
    early = [d for d in past if d <= day - timedelta(_DAYS)]
    return early[-1] if early else past[0] if past else None


def asked(
    config: Config, lake: Lake, when: date | None, until: datetime | None = None, most: int | None = 2000
) -> Case:
    """The users of a published night who chose something new in the week after it.

    Args:
        when: its run_date; None: that which `judged` gives for the newest. until: what happened or came later is not
            looked at; None: all that is known is. most: users, the same ones whoever asks; None: all.

    Raises: InputError: no such night, or none that can be judged; a night whose lists no model made; nobody chose
        anything.
    """
    days = lake.run_dates()
    when = when or (judged(lake, days[-1]) if days else None)
    if when is None:
        raise InputError("no night can be judged yet: it takes two", where="gold.recommendations",
                         value=[str(d) for d in days], valid="a published night, and events after it",
                         next="mmrec run --date D")  # fmt: skip
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
    return Case(night, users, ptr, np.array([i for w in wanted for i in w], np.int64))
