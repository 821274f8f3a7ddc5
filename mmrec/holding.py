"""Lists that wait for a person: a rule of kind hold that names no items holds the lists themselves.

In: a night whose lists are staged, its rules, ops.reviews. Out: what waits; decisions, written; publishing is stopped
until somebody has approved the run's lists.
Trade-off: a date is published by one commit, so it waits as a whole, though a rule may be about a few users' lists.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.dataset as ds

from mmrec import schema
from mmrec.config import Config
from mmrec.context import Night
from mmrec.errors import InputError, QualityError
from mmrec.lake import commit, evolve, stage
from mmrec.lake.store import Lake
from mmrec.recommend.rules import of_records
from mmrec.recommend.ruling import Ruling

_NAME = "ops.reviews"


def let_through(night: Night, ruling: Ruling | None, users: pa.Table) -> None:
    """Nothing, if nobody has to look at the night's lists, or somebody has let them through.

    Args:
        users: with a list, or more: rows of gold.user_sequences.

    Raises: QualityError: they wait, or were rejected; they stay staged.
    """
    if ruling is None or night.replayed:
        return
    for n, rule in enumerate(ruling.rules):
        if not rule.holds_lists:
            continue
        about = _holds(ruling, n, users)
        said = _decisions(night.lake, night.manifest.run_id).get(rule.name)
        if not about or (said and said["decision"] == "approved"):
            continue
        day = night.manifest.day
        raise QualityError(
            f"the lists were rejected by {said['decided_by']}" if said else "the lists wait for a person's approval",
            where=f"rule {rule.name} (line {rule.line}), run_date {day}, run {night.manifest.run_id}",
            value=(said["why"] or "no reason given") if said else f"{about} users' lists are to be looked at",
            valid="lists that somebody approved",
            next=f"mmrec run --date {day} --force" if said
            else f"mmrec review approve --date {day}, then mmrec run --date {day}",
        )  # fmt: skip


def held_lists(config: Config, waiting: bool = True) -> list[dict[str, Any]]:
    """Planned dates whose staged lists a rule holds, the newest first: run_date, run_id, rule, line, says, decision
    (waiting, approved or rejected), decided_by, why.

    Args:
        waiting: only those that nobody decided on.
    """
    found = [row for night in _staged(config) for row in _rows(night)]
    return sorted((r for r in found if not waiting or r["decision"] == "waiting"),
                  key=lambda r: (r["run_date"], r["line"]), reverse=True)  # fmt: skip


def decide_lists(
    config: Config, day: date, decision: str, *, rule: str | None = None, by: str | None = None, why: str = ""
) -> list[dict[str, Any]]:
    """Approve or reject the staged lists of a date; returns the rows of ops.reviews that were written.

    Args:
        rule: whose hold it is; None: every rule's that holds them. by: who decides; None: who is logged in.

    Raises: InputError: nothing of that date waits.
    """
    rows = [r for r in held_lists(config, waiting=False) if r["run_date"] == str(day) and rule in (None, r["rule"])]
    if not rows:
        dates = sorted({r["run_date"] for r in held_lists(config, waiting=False)})
        raise InputError("no rule holds the lists of this date", where="--date", value=str(day),
                         valid=dates or "nothing waits", next="mmrec review list")  # fmt: skip
    now, lake = datetime.now(UTC), Lake(config.lake)
    written = [{"rule": r["rule"], "item_id": "", "lists_of": r["run_id"], "decision": decision, "why": why,
                "decided_at": now, "decided_by": by or login()} for r in rows]  # fmt: skip
    evolve.absorb(lake)
    commit.append(lake, _NAME, pa.Table.from_pylist(written, schema.table(_NAME).arrow), f"review-{uuid4().hex[:12]}")
    return written


def approved(night: Night) -> bool:
    """Whether a date's lists are staged, held by a rule, and let through by a person: publishing is what is left."""
    rows = _rows(night) if night.is_planned and _waits(night) else []
    return bool(rows) and all(r["decision"] == "approved" for r in rows)


def login() -> str:
    """Who is logged in.

    Raises: InputError: nobody is.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        raise InputError("nobody is logged in", where="--by", valid="a name", next="mmrec review --by NAME") from None


def _staged(config: Config) -> Iterator[Night]:
    for pointer in sorted(config.runs.glob("planned-*.json")):
        night = Night(config, date.fromisoformat(pointer.stem.removeprefix("planned-")))
        if _waits(night):
            yield night


def _waits(night: Night) -> bool:
    try:
        folder = stage.waiting(night.folder / "stage.json")
    except InputError:  # a plan that can't be read holds nothing; who runs its date is told
        return False
    return folder is not None and stage.find("gold.recommendations", folder) is not None


def _rows(night: Night) -> list[dict[str, Any]]:
    m = night.manifest
    said = _decisions(night.lake, m.run_id)
    none = {"decision": "waiting", "decided_by": "", "why": ""}
    return [{"run_date": m.run_date, "run_id": m.run_id, "rule": r.name, "line": r.line, "says": r.why}
            | {c: said.get(r.name, none)[c] for c in none}
            for r in of_records(m.config.get("rules") or []) if r.holds_lists]  # fmt: skip


def _decisions(lake: Lake, run_id: str) -> dict[str, dict[str, Any]]:
    """Rule -> the newest decision on a run's lists."""
    if not lake.exists(_NAME):
        return {}
    rows = lake.arrow(_NAME, where=ds.field("lists_of") == run_id).sort_by("decided_at").to_pylist()
    return {r["rule"]: r for r in rows}


def _holds(ruling: Ruling, n: int, users: pa.Table) -> int:
    """How many users a rule is about."""
    law = ruling.law(users["user_id"].combine_chunks(), users["attributes"].combine_chunks())
    return int(law.holds_CR[law.class_B, n].sum())
