"""Tables of an older home become those of this mmrec, where nothing that is there has to change.

In: a lake. Out: altered tables, and rows of ops.schema_changes that say so; or an InputError with the difference,
column by column. Absorbed are: a new nullable column, a new table, another comment, a CHECK that every row keeps. All
else is refused before anything is altered, and is for `mmrec migrate` (migrate.py).
A change is recorded first and then made: a process that dies in between leaves a record that the next one makes true.
Of two processes that alter one table, delta-rs refuses the second; it looks again and finds the change made.
Trade-off: whoever opens the lake to write reads the newest schema of every table, some milliseconds each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.schema import Schema

import mmrec
from mmrec import schema
from mmrec.errors import InputError, TransientError
from mmrec.lake import commit, log, past
from mmrec.lake.store import Lake
from mmrec.schema import changes

LEDGER = "ops.schema_changes"
_CHECK = "delta.constraints."
_TURNS = 50  # each turn that is lost is one that another process won, and there is a last change to make


@dataclass(frozen=True)
class Difference:
    """One thing in which a table of the lake is not the table of the schema.

    Attributes:
        change: what making it alike would do: column_added, column_changed, column_gone, comment_changed, check_added,
            check_changed, check_gone, partition_changed, key_changed, mode_changed, table_added, properties.
        column: the column or CHECK; empty for the whole table.
        was, now: in the lake, in the schema; empty: not there. version: of the table, -1 where there is none.
        additive: whether what is there stays as it is.
    """

    table: str
    change: str
    column: str
    was: str
    now: str
    version: int
    additive: bool

    def __str__(self) -> str:
        what = f"{self.table}.{self.column}" if self.column else f"{self.table}, {self.change.split('_')[0]}"
        return f"{what}: was {self.was or 'not there'}, is {self.now or 'not there'}"


@dataclass(frozen=True)
class Form:
    """What a table is: columns (name -> type as declared, comment), CHECKs (name -> as declared; None: not known)."""

    columns: dict[str, tuple[str, str]]
    checks: dict[str, str | None]
    partition: str
    key: str | None
    mode: str | None
    description: str
    properties: dict[str, str]
    version: int


def form_of(handle: DeltaTable, t: schema.Table) -> Form:
    """The form of a table as its log has it."""
    about = handle.metadata()
    held = {k: v for k, v in about.configuration.items() if k in t.properties}
    declared = json.loads(held.get("mmrec.checks", "{}"))
    columns = {f.name: (_typed(past.type_name(f.type), f.nullable), str(f.metadata.get("comment") or ""))
               for f in handle.schema().fields}  # fmt: skip
    key = held.get("mmrec.key")
    if key is not None:  # kept under the names of before a rename
        called = {c.was: c.column for c in changes.CHANGES if c.kind == "rename" and c.table == t.name}
        key = ", ".join(k if k in columns else _latest(k, called) for k in key.split(", "))
    checks = [k.removeprefix(_CHECK) for k in about.configuration if k.startswith(_CHECK)]
    return Form(columns, {c: declared.get(c) for c in checks}, ", ".join(about.partition_columns), key,
                held.get("mmrec.mode"), about.description or "", held, handle.version())  # fmt: skip


def differences(form: Form, t: schema.Table) -> list[Difference]:
    """In what `form` is not `t`, the columns first."""
    found: list[Difference] = []

    def note(change: str, column: str, was: str, now: str, additive: bool) -> None:
        found.append(Difference(t.name, change, column, was, now, form.version, additive))

    for c in t.columns:
        wanted = _typed(c.type, c.nullable)
        if c.name not in form.columns:
            note("column_added", c.name, "", wanted, c.nullable)
            continue
        held, comment = form.columns[c.name]
        if held != wanted:
            note("column_changed", c.name, held, wanted, False)
        if comment != c.described:
            note("comment_changed", c.name, comment, c.described, True)
    for name in form.columns.keys() - {c.name for c in t.columns}:
        note("column_gone", name, form.columns[name][0], "", False)
    if form.partition != (t.partition or ""):
        note("partition_changed", "", form.partition, t.partition or "", False)
    for what, was, now in (("key", form.key, ", ".join(t.key)), ("mode", form.mode, t.mode)):
        if was not in (None, now):  # a table made before they were kept has none
            note(f"{what}_changed", "", str(was), now, False)
    if form.description != t.description:
        note("comment_changed", "", form.description, t.description, True)
    for name, condition in t.checks.items():
        if name not in form.checks:
            note("check_added", name, "", condition, True)
        elif form.checks[name] not in (None, condition):
            note("check_changed", name, str(form.checks[name]), condition, True)
    for name in form.checks.keys() - t.checks.keys():
        note("check_gone", name, form.checks[name] or "a CHECK", "", False)
    if form.properties != t.properties:
        note("properties", "", "", "", True)
    return found


def absorb(lake: Lake, now: datetime | None = None) -> list[Difference]:
    """Make every table that the schema has what the schema says it is.

    Returns: what differed and was made alike; empty where nothing did.

    Raises:
        InputError: something differs that can't be absorbed; nothing was altered or recorded.
        TransientError: other processes altered the table again and again.
    """
    lake = Lake(lake.root)  # what is read here is no input of the caller's work
    found = different(lake)
    refused = [d for d in found if not d.additive]
    if refused:
        raise InputError(
            "the tables of this home are not those of this mmrec:\n" + "\n".join(f"    {d}" for d in refused),
            where=str(lake.root),
            valid="differences that add: a nullable column, a table, a comment, a CHECK that every row keeps",
            next=f"mmrec migrate --home {lake.root.parent}",
            report={"differences": [vars(d) for d in refused]},
        )
    if not found:
        return []
    record(lake, [_row(d) for d in found if d.change != "properties"], now)
    for name in dict.fromkeys(d.table for d in found):
        _settle(lake, schema.table(name))
    return found


def different(lake: Lake) -> list[Difference]:
    """Every difference of every table; a CHECK that rows break is one that can't be absorbed."""
    found: list[Difference] = []
    made: set[str] | None = None
    for t in schema.TABLES.values():
        if lake.exists(t.name):
            own = differences(form_of(lake.handle(t.name), t), t)
            # a CHECK may speak of a column that a migration has yet to rename
            keeps = all(d.additive for d in own)
            found += [_kept(lake, t, d) if keeps and d.change in ("check_added", "check_changed") else d for d in own]
        elif t.name not in changes.BASELINE:
            if made is None:
                ledger = lake.arrow(LEDGER).to_pylist() if lake.exists(LEDGER) else []
                made = {r["table_name"] for r in ledger if r["change"] == "table_added"}
            if t.name not in made:  # else it was there and is lost: whoever needs it says so
                found.append(Difference(t.name, "table_added", "", "", t.grain, -1, True))
    return found


def record(lake: Lake, rows: Iterable[dict[str, Any]], now: datetime | None = None) -> int:
    """Append to ops.schema_changes what is not on record yet; returns how many rows that were.

    Args:
        rows: source, table_name, change, column_name, before, after, table_version. One is on record where the last
            word on its column, comment or CHECK says the same.
    """
    wanted = list(rows)
    lake = Lake(lake.root)
    if wanted and not lake.exists(LEDGER):
        _settle(lake, schema.table(LEDGER))
    stamp = {"code": mmrec.__version__, "applied_at": now or datetime.now(UTC)}

    def once() -> int:
        pinned = commit.fence(lake, LEDGER)
        known = lake.arrow(LEDGER).to_pylist()
        fresh = [r for r in wanted if not _on_record(r, known)]
        table = pa.Table.from_pylist([r | stamp for r in fresh], schema.table(LEDGER).arrow)
        return commit.write(lake, LEDGER, table, run_id=commit.work_id("schema", fresh), pinned=pinned).rows

    return commit.again(once) if wanted else 0


def _on_record(row: dict[str, Any], known: list[dict[str, Any]]) -> bool:
    about = ("source", "table_name", "column_name")
    same = [k for k in known if all(k[a] == row[a] for a in about)
            and k["change"].split("_")[0] == row["change"].split("_")[0]]  # fmt: skip
    if row["source"]:  # of a source, once is enough
        return bool(same)
    last = max((k["table_version"] for k in same), default=None)
    # a CHECK in other words is dropped and added: who dies in between leaves one to add
    said = ("after",) if row["change"].startswith("check") else ("change", "before", "after")
    return any(all(k[a] == row[a] for a in said) for k in same if k["table_version"] == last)


def _row(d: Difference) -> dict[str, Any]:
    return {"source": "", "table_name": d.table, "change": d.change, "column_name": d.column, "before": d.was,
            "after": d.now, "table_version": d.version}  # fmt: skip


def _settle(lake: Lake, t: schema.Table) -> None:
    """Alter a table until it is what the schema says, beside whoever else does the same."""
    for _ in range(_TURNS):
        try:
            if not lake.exists(t.name):
                lake.create(t.name)
            handle = lake.handle(t.name)
            todo = [d for d in differences(form_of(handle, t), t) if d.additive]
            if not todo:
                return log.settle(lake.path(t.name), lake.version(t.name))
            _alter(handle, t, todo)
        except (CommitFailedError, DeltaError) as error:
            lost = error
    raise TransientError(
        f"the table could not be altered: {str(lost).splitlines()[0]}",
        where=t.name,
        valid="a table that no other process alters for a second",
        next="run it again",
    ) from lost


def _alter(handle: DeltaTable, t: schema.Table, todo: list[Difference]) -> None:
    """Each change is one entry of the log, made on the state of the one before or not at all."""
    columns = {c.name: c for c in t.columns}
    added = [columns[d.column] for d in todo if d.change == "column_added"]
    if added:
        held = handle.metadata().configuration.get(past.ADDED)
        names = ", ".join([*([held] if held else []), *(c.name for c in added)])
        handle.alter.set_table_properties({past.ADDED: names}, raise_if_not_exists=False)
        fields = pa.schema([c.arrow.with_metadata({"comment": c.described}) for c in added])
        handle.alter.add_columns(Schema.from_arrow(fields).fields)
    for d in todo:
        if d.change == "check_changed":
            handle.alter.drop_constraint(d.column)
        if d.change in ("check_added", "check_changed"):
            handle.alter.add_constraint({d.column: d.now})
        elif d.change == "comment_changed" and d.column:
            handle.alter.set_column_metadata(d.column, {"comment": d.now})
        elif d.change == "comment_changed":
            handle.alter.set_table_description(d.now)
    if any(d.change in ("properties", "check_added", "check_changed") for d in todo):
        handle.alter.set_table_properties(t.properties, raise_if_not_exists=False)  # last: it says that all is done


def _kept(lake: Lake, t: schema.Table, d: Difference) -> Difference:
    """The difference of a CHECK, refused where rows break it."""
    con = duckdb.connect()
    try:
        con.execute("SET TimeZone = 'UTC'")
        con.register("rows", lake.dataset(t.name))
        n = con.execute(f"SELECT count(*) FROM rows WHERE NOT ({d.now})").fetchall()[0][0]
    finally:
        con.close()
    return replace(d, additive=False, was=f"{d.was or 'not there'} and broken by {n} rows") if n else d


def _typed(kind: str, nullable: bool) -> str:
    return kind if nullable else f"{kind} NOT NULL"


def _latest(name: str, renamed: dict[str, str]) -> str:
    while name in renamed:
        name = renamed[name]
    return name
