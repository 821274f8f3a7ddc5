"""What a person lets through of what a rule holds: rules of kind hold keep items back until somebody approves them.

In: rules, ops.reviews. Out: rules with what is approved, for a plan to put on record; what waits; decisions, written.
A night reads decisions when it is planned, like the rules: what it read stands in its manifest.
Trade-off: items are approved for a rule, not for a user or a day; a new rule holds them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa

from mmrec import schema
from mmrec.errors import InputError
from mmrec.holding import login
from mmrec.lake import commit, evolve
from mmrec.lake.store import Lake
from mmrec.recommend.rules import Rule
from mmrec.recommend.ruling import Ruling

_NAME = "ops.reviews"
_SAID = ("decision", "decided_by", "why")


def reviewed(lake: Lake, rules: Sequence[Rule]) -> list[Rule]:
    """The rules, those that hold with the items that were approved for them, in order of ids."""
    if not any(r.kind == "hold" for r in rules):
        return list(rules)
    newest = _newest(lake)
    return [r if r.kind != "hold" or r.holds_lists else r.model_copy(update={"approved": tuple(sorted(
        item for (rule, item), row in newest.items() if rule == r.name and row["decision"] == "approved"))})
        for r in rules]  # fmt: skip


def held(lake: Lake, rules: Sequence[Rule], waiting: bool = True) -> list[dict[str, Any]]:
    """Items of the newest night that rules hold, the most popular first: rule, line, item_id, title, n_30d, decision
    (waiting, approved or rejected), decided_by, why.

    Args:
        waiting: only those that nobody decided on.

    Raises: InputError: no night is published.
    """
    days = lake.run_dates()
    if not days:
        raise InputError("no night is published yet", where="gold.recommendations", valid="one at least",
                         next="mmrec run --date D")  # fmt: skip
    holds = [r for r in rules if r.kind == "hold" and not r.holds_lists]
    columns = ["item_id", "title", "categories", "attributes", "n_30d"]
    items = lake.day("gold.item_features", days[-1], columns=columns).sort_by("item_id")
    if items["attributes"].null_count and any(set(r.items) - {"item", "category", "title"} for r in holds):
        raise InputError("the newest night is of before there were rules", where=f"gold.item_features {days[-1]}",
                         value="no attributes", valid="a night of this version of mmrec",
                         next="mmrec run --date D")  # fmt: skip
    newest, about = _newest(lake), items.select(["item_id", "title", "n_30d"])
    rows = []
    for rule, meant_N in zip(holds, Ruling(holds, items).meant_RN, strict=True):
        for item in about.filter(pa.array(meant_N)).to_pylist():
            said = newest.get((rule.name, item["item_id"]))
            if not (waiting and said):
                told = {c: said[c] for c in _SAID} if said else dict.fromkeys(_SAID, "") | {"decision": "waiting"}
                rows.append({"rule": rule.name, "line": rule.line, **item, **told})
    return sorted(rows, key=lambda r: (-r["n_30d"], r["item_id"], r["rule"]))


def decide(
    lake: Lake, rules: Sequence[Rule], items: Sequence[str], decision: str, *, rule: str | None = None,
    by: str | None = None, why: str = "",
) -> list[dict[str, Any]]:  # fmt: skip
    """Approve or reject items; returns the rows of ops.reviews that were written.

    Args:
        rule: whose hold it is; None: every rule's that holds the item. by: who decides; None: who is logged in.

    Raises: InputError: an item that no rule holds; nothing is written then.
    """
    now, written = datetime.now(UTC), []
    there = held(lake, rules, waiting=False)
    for item in dict.fromkeys(items):
        mine = [r for r in there if r["item_id"] == item and rule in (None, r["rule"])]
        if not mine:
            raise InputError("no rule holds this item", where="mmrec review" + (f", rule {rule}" if rule else ""),
                             value=item, valid=[r["item_id"] for r in there[:5]] or "nothing is held",
                             next="mmrec review list --all")  # fmt: skip
        written += [{"rule": r["rule"], "item_id": item, "decision": decision, "why": why, "decided_at": now,
                     "decided_by": by or login()} for r in mine]  # fmt: skip
    evolve.absorb(lake)  # an older home has no such table
    rows = pa.Table.from_pylist(written, schema.table(_NAME).arrow)
    commit.append(lake, _NAME, rows, f"review-{uuid4().hex[:12]}")
    return written


def _newest(lake: Lake) -> dict[tuple[str, str], dict[str, Any]]:
    """Rule and item -> the newest decision."""
    if not lake.exists(_NAME):  # of a home that is older
        return {}
    rows = lake.arrow(_NAME).sort_by("decided_at").to_pylist()
    return {(r["rule"], r["item_id"]): r for r in rows if r["item_id"]}
