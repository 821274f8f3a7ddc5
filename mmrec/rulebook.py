"""The shop's rules: what the file says and whom it reaches, and what it would change in a published night.

In: settings, tables, `rules.yaml`. Out: rows for a person or a program; nothing is written.
Lists are made again as the night made them, from what it stored: the features, the users' vectors, the bundle. So the
difference that is shown is the rules' own.
Trade-off: a preview looks at some users only, by a digest of their ids, unless all are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec import schema
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.lake.store import Lake
from mmrec.recommend import rules as book
from mmrec.recommend.packed import Packed
from mmrec.recommend.rules import Rule
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.slate import DRAWN
from mmrec.recommend.spread import lists_of
from mmrec.recommend.worded import worded
from mmrec.remade import remade
from mmrec.review import reviewed

_PLACE = ["user_id", "item_id", "rank"]
_SHOWN = 5  # users whose lists a preview shows


def check(config: Config, lake: Lake, when: date | None = None) -> list[dict[str, Any]]:
    """The rules of the home's file, a row each: name, line, kind, says, from, until, in_force, items, users, and
    behind: whether it is a pin behind the end of every list.

    Args:
        when: the run_date they are asked for; None: the day after the newest published one.

    Items and users are those of the newest night whose features hold attributes; None: there is no such night yet.

    Raises: InputError: with the line of what is wrong, or both lines of a contradiction; or there is no such file.
    """
    rules = _read(config)
    night = _newest(lake)
    when = when or (night + timedelta(days=1) if night else None)
    items_R, users_R = _reach(lake, night, rules) if night else (None, None)
    return [{"name": r.name, "line": r.line, "kind": r.kind, "says": worded(r), "from": r.from_, "until": r.until,
             "in_force": when is None or r.holds(when), "items": None if items_R is None else int(items_R[n]),
             "users": None if users_R is None else int(users_R[n]),
             "behind": r.place is not None and r.place > config.night.k} for n, r in enumerate(rules)]  # fmt: skip


def preview(config: Config, lake: Lake, when: date | None = None, most: int | None = 1000) -> dict[str, Any]:
    """What the home's file would change in the lists of the newest published night.

    Args:
        when: the run_date whose rules are in force; None: the day after that night. most: users looked at; None: all.

    Returns: run_date (of the night), for_date, users, changed (users whose list differs), came and went (rows); rules:
        a row each of name, line, kind, items and users that it names, rows_now and rows_then (of those users' lists
        that are its items), passed (candidates it kept out), placed (rows it lifted or pinned); lists: of some users
        whose list changes most, user_id; went: rank, item_id, title; came: the same and rule.

    Raises: InputError: as `check`; no night is published, or its features are of before there were rules.
    """
    rules = _read(config)
    made = remade(config, lake)
    when = when or made.day + timedelta(days=1)
    force = [r for r in reviewed(lake, rules) if r.holds(when)]
    users = made.some(made.users, most)
    with made.packed(force) as packed:
        new = _lists(packed, users)
        ruling = packed.ruling
        assert ruling is not None
        meant_RN = ruling.meant_RN
        holds_UR = np.array([ruling.holds_for(u, a) for u, a in _pairs(users)], bool)
        holds_UR = holds_UR.reshape(users.num_rows, len(force))
    old = lake.day("gold.recommendations", made.day, columns=["user_id", "rank", "item_id", "source"])
    before, after = _by_user(old, users), _by_user(new, users)
    ranks = {id(lists): {(r["user_id"], r["item_id"]): r["rank"] for r in rows.select(_PLACE).to_pylist()}
             for lists, rows in ((before, old), (after, new))}  # fmt: skip
    passed: Counter[str] = Counter()
    for causes, many in zip(new["passed"].to_pylist(), new["passed_n"].to_pylist(), strict=True):
        passed.update(dict(zip(causes or (), many or (), strict=True)))
    placed = Counter(r for r in new["rule"].to_pylist() if r)
    by = {(r["user_id"], r["item_id"]): r["rule"] for r in new.select(["user_id", "item_id", "rule"]).to_pylist()}
    place = {i: n for n, i in enumerate(made.items["item_id"].to_pylist())}
    titles = made.items["title"].to_pylist()

    def rows_of(lists: dict[str, list[str]], n: int) -> int:
        """How many rows of lists a rule is about."""
        return sum(int(meant_RN[n, place[i]]) for h, items in zip(holds_UR[:, n], lists.values(), strict=True) if h
                   for i in items)  # fmt: skip

    rows = [{"name": r.name, "line": r.line, "kind": r.kind, "items": int(meant_RN[n].sum()),
             "users": int(holds_UR[:, n].sum()), "rows_now": rows_of(before, n), "rows_then": rows_of(after, n),
             "passed": passed[r.name], "placed": placed[r.name]} for n, r in enumerate(force)]  # fmt: skip
    diffs = {u: ([i for i in before[u] if i not in after[u]], [i for i in after[u] if i not in before[u]])
             for u in before}  # fmt: skip
    changed = [u for u in before if before[u] != after[u]]
    asked = sorted(changed, key=lambda u: (-len(diffs[u][0]) - len(diffs[u][1]), u))[:_SHOWN]

    def shown(u: str, item: str, lists: dict[str, list[str]]) -> dict[str, Any]:
        return {"rank": ranks[id(lists)][u, item], "item_id": item, "title": titles[place[item]]}

    return {
        "run_date": str(made.day), "for_date": str(when), "users": len(before), "changed": len(changed),
        "went": sum(len(went) for went, _ in diffs.values()), "came": sum(len(came) for _, came in diffs.values()),
        "rules": rows,
        "lists": [{"user_id": u, "went": [shown(u, i, before) for i in diffs[u][0]],
                   "came": [shown(u, i, after) | {"rule": by[u, i]} for i in diffs[u][1]]} for u in asked],
    }  # fmt: skip


# ---- parts ----


def _read(config: Config) -> list[Rule]:
    if not config.rules.is_file():
        raise InputError("there are no rules", where=str(config.rules), valid="a file, as docs/rules.md shows",
                         next=f"write {config.rules}, then mmrec rules check")  # fmt: skip
    return book.read(config.rules)


def _newest(lake: Lake) -> date | None:
    days = lake.run_dates()
    if not days or lake.day("gold.item_features", days[-1], columns=["attributes"])["attributes"].null_count:
        return None
    return days[-1]


def _pairs(users: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(users["user_id"].to_pylist(), users["attributes"].to_pylist(), strict=True)


def _reach(lake: Lake, night: date, rules: list[Rule]) -> tuple[np.ndarray, list[int]]:
    """How many items and users of a night each rule names."""
    ruling = Ruling(rules, lake.day("gold.item_features", night).sort_by("item_id"))
    users = lake.day("gold.user_sequences", night, columns=["user_id", "attributes"])
    holds = sum((ruling.holds_for(u, a).astype(np.int64) for u, a in _pairs(users)), np.zeros(len(rules), np.int64))
    return ruling.meant_RN.sum(1), holds.tolist()


def _lists(packed: Packed, users: pa.Table) -> pa.Table:
    batches = iter(users.combine_chunks().to_batches(max_chunksize=8192))
    return pa.Table.from_batches(lists_of(str(packed.folder), batches), schema.table("gold.recommendations").arrow)


def _by_user(lists: pa.Table, users: pa.Table) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {u: [] for u in users["user_id"].to_pylist()}
    shown = lists.filter(pc.not_equal(lists["source"], DRAWN))  # what is drawn differs with its pool, by no rule
    rows = shown.select(["user_id", "rank", "item_id"]).sort_by([("user_id", "ascending"), ("rank", "ascending")])
    for u, i in zip(rows["user_id"].to_pylist(), rows["item_id"].to_pylist(), strict=True):
        if u in out:
            out[u].append(i)
    return out
