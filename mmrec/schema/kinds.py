"""What a table and a column are.

In: nothing. Out: `Table`, `Column`, `column`.
Trade-off: column types are the few that Delta, Arrow, Spark, Sail and DuckDB all read the same way; nested
attributes are JSON strings with sorted keys rather than maps, because a map has no canonical order to hash.

Words used below: grain says what one row is; `meta` columns describe the run that wrote a row and are left
out of the content hash; retention is how long a pinned version stays readable.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa

from mmrec.schema.rules import Rule

Mode = Literal["replace_partition", "append_new", "replace_all"]

_ARROW: dict[str, pa.DataType] = {
    "STRING": pa.string(),
    "INT": pa.int32(),
    "BIGINT": pa.int64(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "BINARY": pa.binary(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "ARRAY<STRING>": pa.list_(pa.string()),
    "ARRAY<BIGINT>": pa.list_(pa.int64()),
    "ARRAY<FLOAT>": pa.list_(pa.float32()),
    "ARRAY<DOUBLE>": pa.list_(pa.float64()),
}


@dataclass(frozen=True)
class Column:
    """One column. `type` is Spark DDL; `meta` marks run metadata, left out of the content hash.

    Attributes:
        rules: what a delivered row must keep, for columns of bronze and silver; see rules.py.
        stand_in: a column of the same row that is taken where this one is empty.
        default: the value where both are; of a text that may be blank, "" stands for null alone.
        deprecated: "YYYY-MM-DD: use X instead": not to be used from that day on, but written (changes.py).
    """

    name: str
    type: str
    comment: str
    nullable: bool = False
    meta: bool = False
    rules: tuple[Rule, ...] = ()
    stand_in: str | None = None
    default: str | float | None = None
    deprecated: str | None = None

    @property
    def described(self) -> str:
        """The comment, and from when on not to use the column."""
        return f"{self.comment} (deprecated since {self.deprecated})" if self.deprecated else self.comment

    @property
    def arrow(self) -> pa.Field:
        return pa.field(self.name, _ARROW[self.type], self.nullable)


@dataclass(frozen=True)
class Table:
    """One table; `checks` maps a constraint's name to a SQL condition that every row meets."""

    name: str
    grain: str
    comment: str
    step: str
    mode: Mode
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    checks: dict[str, str] = field(default_factory=dict)
    partition: str | None = None
    retention_days: int = 3650

    @cached_property
    def arrow(self) -> pa.Schema:
        return pa.schema([c.arrow for c in self.columns])

    @property
    def ddl(self) -> str:
        """Spark DDL of the columns, without constraints."""
        return ", ".join(f"`{c.name}` {c.type}" for c in self.columns)

    @property
    def layer(self) -> str:
        return self.name.split(".")[0]

    @property
    def view(self) -> str:
        """The short name that `mmrec sql` gives it: bare for gold and silver, prefixed for the rest."""
        layer, name = self.name.split(".")
        return name if layer in ("silver", "gold") else f"{layer}_{name}"

    @property
    def description(self) -> str:
        return f"Grain: {self.grain}. {self.comment}"

    @property
    def properties(self) -> dict[str, str]:
        """What Delta has no place of its own for, kept with the table: evolve.py compares with it."""
        checks = json.dumps(self.checks, sort_keys=True)  # a table's own text of a CHECK is not the one it was given
        return {"mmrec.key": ", ".join(self.key), "mmrec.mode": self.mode, "mmrec.checks": checks}

    @property
    def promises(self) -> dict[str, str]:
        """What tells other tools to leave a table's old versions alone for as long as they are promised."""
        keep = f"interval {self.retention_days} days"
        return {
            "delta.logRetentionDuration": keep,
            "delta.deletedFileRetentionDuration": keep,
            "delta.enableExpiredLogCleanup": "false",
            "delta.checkpointInterval": "1000000",  # lake/maintain.py makes them
        }

    @property
    def content_columns(self) -> list[str]:
        return [c.name for c in self.columns if not c.meta]


def column(name: str, type: str, comment: str, *rules: Rule, **more: Any) -> Column:
    """A column with its rules; `more` as in `Column`."""
    return Column(name, type, comment, rules=rules, **more)
