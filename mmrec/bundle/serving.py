"""Which model serves: changes on record in the lake, each made by compare-and-swap.

In: ops.serving. Out: `Serving`, the state after the newest change; a change, or the word that somebody else was faster.
The lake is the truth; aliases in MLflow are a copy for its users (registry.py), so a night asks no server what serves.
A change is appended under the table's fence, and only if the state it was decided over is still the newest: of two that
are asked for at once, one is made.
Trade-off: the state is read from all changes; there are a few a month.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random

from mmrec import schema
from mmrec.errors import TransientError
from mmrec.lake import commit
from mmrec.lake.commit import Fenced
from mmrec.lake.store import Lake

_NAME = "ops.serving"
_TURNS = 50  # of a request that others' refusals outran
ZERO = "0"


class Outrun(TransientError):
    """Another change was made since the state was read; nothing was changed."""


@dataclass(frozen=True)
class Served:
    """A version that served or serves. `as_of`: what it knows ends here; None: it was not trained."""

    version: str
    sha256: str
    as_of: datetime | None


@dataclass(frozen=True)
class Serving:
    """What serves after `change` changes, 0: none was made. `stack`: what serves last, under it what served before it,
    down to the first; what was rolled back is not there. `trial`: what serves a `share` of the users in its place;
    None: nothing does."""

    change: int = 0
    stack: tuple[Served, ...] = ()
    trial: Served | None = None
    share: float = 0.0

    @property
    def version(self) -> str:
        return self.stack[-1].version if self.stack else ZERO

    @property
    def previous(self) -> str:
        return self.stack[-2].version if len(self.stack) > 1 else ZERO

    def known_at(self, as_of: datetime | None) -> Served | None:
        """What a night of `as_of` is scored with: what serves, unless it was trained on what lies after; then the
        newest that served once and knew nothing later. None: popularity."""
        once = sorted(dict.fromkeys(self.stack[:-1]), key=lambda s: -int(s.version))
        for served in (*self.stack[-1:], *once):
            if as_of is None or served.as_of is None or served.as_of <= as_of:
                return served
        return None


def serving(lake: Lake, change: int | None = None) -> Serving:
    """The state after a change; None: the newest. A home of an earlier release has no such table, and no change."""
    if change == 0 or not lake.exists(_NAME):
        return Serving()
    rows = [r for r in lake.arrow(_NAME).to_pylist() if 0 < (r["change"] or 0) <= (change or r["change"])]
    stack: list[Served] = []
    trial: Served | None = None
    share = 0.0
    for row in sorted(rows, key=lambda r: r["change"]):
        to = Served(row["model_version"], row["sha256"], row["trained_as_of"])
        if row["share"] is not None:
            trial, share = to, row["share"]
            continue
        if row["action"] != "rolled_back":
            stack.append(to)
        elif trial is None:
            stack.pop()
        trial, share = None, 0.0
    return Serving(len(rows), tuple(stack), trial, share)


def ask(lake: Lake, seen: Serving, action: str, to: Served | None, **about: Any) -> dict[str, Any]:
    """Put a request on record: a change, or a refusal.

    Args:
        seen: the state that it was decided over. action: promoted, rolled_back or refused. to: what serves from then
            on, or what was asked for; None: version 0. about: asked_by, through; why, overridden, said, numbers, share.

    Returns: the row of ops.serving.

    Raises: Outrun: another change was made meanwhile; nothing is on record. A refusal is never outrun.
    """
    version = Served(ZERO, "", None) if to is None else to
    row = {"request": uuid4().hex, "change": None if action == "refused" else seen.change + 1, "action": action,
           "model_version": version.version, "before": seen.version, "sha256": version.sha256,
           "trained_as_of": version.as_of, "why": "", "overridden": False, "said": "", "numbers": "{}", "share": None,
           "asked_at": datetime.now(UTC)} | about  # fmt: skip
    lake = Lake(lake.root)  # what is read here is no input of the caller's work
    lake.create(_NAME)
    table = pa.Table.from_pylist([row], schema.table(_NAME).arrow)

    def once() -> None:
        pinned = commit.fence(lake, _NAME)
        newest = serving(lake)
        if row["change"] is not None and newest.change != seen.change:
            raise Outrun("another change was made first: this one changed nothing", where=_NAME,
                         value=f"version {version.version} over change {seen.change}",
                         valid=f"change {newest.change}: version {newest.version} serves",
                         next="mmrec models list")  # fmt: skip
        commit.write(lake, _NAME, table, run_id=row["request"], pinned=pinned)

    turns = Retrying(retry=retry_if_exception_type(Fenced), stop=stop_after_attempt(_TURNS), wait=wait_random(0, 0.05),
                     reraise=True)  # fmt: skip
    turns(once)
    return row
