"""Changes of tables that a newer mmrec asks of an older home: what `mmrec migrate` may do.

In: nothing. Out: `Change`, `CHANGES`, `WIDER`, `BASELINE`.
A new nullable column, a new table, a new comment or CHECK needs no entry: it is absorbed (lake/evolve.py). Whatever
else differs between a home and the schema is refused unless a change of this list bridges it.
Trade-off: a change stays here for good, because a home may be opened after years; the list is read, never run.

A column of gold is dropped in three releases: first it gets `deprecated="YYYY-MM-DD: use X instead"` and goes on
being written; two minor versions and 90 days later a "drop" may stand here and the column may go (tests/lint).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WIDER = {"INT": "BIGINT", "FLOAT": "DOUBLE"}

# tables that every home has had since 0.1.0: one that is missing was lost, it is not new
BASELINE = frozenset(
    [f"bronze.{n}" for n in ("interactions", "items", "users", "relations", "impressions", "files", "media")]
    + [f"silver.{n}" for n in ("interactions", "items", "users", "relations", "impressions")]
    + [f"gold.{n}" for n in ("item_embeddings", "user_sequences", "item_features", "user_vectors", "recommendations")]
    + [f"ops.{n}" for n in ("quarantine", "runs", "metrics", "freshness", "promotions")]
)


@dataclass(frozen=True)
class Change:
    """One change that rewrites a table.

    Attributes:
        kind: rename: `was` is the old name. widen: `was` is the old type, a key of `WIDER`. relax: the column may be
            null from now on, or the CHECK of that name is kept no more. drop: the column is gone; `was` is its type.
        column: its name once the change is made, before later changes of the list.
        since: version of mmrec that asks for it, as "0.3.0".
    """

    kind: Literal["rename", "widen", "relax", "drop"]
    table: str
    column: str
    was: str
    since: str


# in the order in which they were asked for; nothing yet
CHANGES: tuple[Change, ...] = ()
