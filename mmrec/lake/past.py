"""Older forms of a table, read as the schema has it now.

In: a table at any version, or the files of one. Out: rows with today's columns: null where a column was not there yet,
under today's name where it was called otherwise (schema/changes.py), in today's type where it was narrower.
Trade-off: rows under an old name are read whole before they are filtered; a migration is rare, a night's read is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.schema import ArrayType, MapType, PrimitiveType, StructType
from pyarrow.fs import FileSystem

from mmrec import schema
from mmrec.schema import changes

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ADDED = "mmrec.added"  # property of a table: columns that older files of it lack

_DDL = {"integer": "INT", "long": "BIGINT"}


def names(t: schema.Table, held: Iterable[str]) -> dict[str, str | None]:
    """Today's columns of `t` -> what each is called among the columns `held`; None: it is not there."""
    there = set(held)
    renamed = [c for c in reversed(changes.CHANGES) if c.kind == "rename" and c.table == t.name]
    found: dict[str, str | None] = {}
    for column in t.columns:
        name = column.name
        for change in renamed:
            if name not in there and change.column == name:
                name = change.was
        found[column.name] = name if name in there else None
    return found


def dataset(handle: DeltaTable, t: schema.Table, files: FileSystem) -> ds.Dataset:
    """The files of `handle`; nullable columns that came later are there and null, narrower ones have today's type."""
    held = pa.schema(handle.schema().to_arrow())
    called = names(t, held.names)
    wanted = {called[c.name]: c.arrow.type for c in t.columns if called[c.name]}
    fields = [f.with_type(wanted[f.name]) if _widens(f.type, wanted.get(f.name)) else f for f in held]
    fields += [c.arrow for c in t.columns if c.nullable and called[c.name] is None]
    return handle.to_pyarrow_dataset(filesystem=files, schema=pa.schema(fields))


def read(held: ds.Dataset, t: schema.Table, columns: list[str], where: ds.Expression | None) -> pa.Table:
    """Today's `columns` of `held`, a `dataset`, in today's types."""
    called = names(t, held.schema.names)
    if all(called[c.name] in (c.name, None) for c in t.columns):
        rows = held.to_table(columns=columns, filter=where)
    else:  # `where` speaks of today's names
        rows = held.to_table(columns={n: ds.field(o) for n, o in called.items() if o})
        rows = (rows.filter(where) if where is not None else rows).select(columns)
    return rows.cast(pa.schema([t.arrow.field(n) for n in columns]))


def conform(frame: DataFrame, t: schema.Table, handle: DeltaTable) -> DataFrame:
    """An engine's frame of `handle` with today's columns."""
    if is_today(handle, t):
        return frame
    from pyspark.sql import functions as F

    called = names(t, [f.name for f in handle.schema().fields])
    held = {n: F.col(o) if o else F.lit(None) for n, o in called.items()}
    return frame.select([held[c.name].cast(c.type.lower()).alias(c.name) for c in t.columns])


def is_today(handle: DeltaTable, t: schema.Table) -> bool:
    """Whether the columns of `handle` have the names and types that the schema says."""
    held = {f.name: type_name(f.type) for f in handle.schema().fields}
    return held == {c.name: c.type for c in t.columns}


def sql_columns(t: schema.Table, held: Iterable[str], types: dict[str, str]) -> str:
    """DuckDB's select list that makes today's columns of files that hold `held`; `types`: DuckDB's name of a type."""
    called = names(t, held)
    return ", ".join(f'CAST({_quoted(called[c.name])} AS {types.get(c.type, c.type)}) AS "{c.name}"' for c in t.columns)


def type_name(kind: PrimitiveType | ArrayType | MapType | StructType) -> str:
    """A Delta type as the schema writes it."""
    if isinstance(kind, ArrayType):
        return f"ARRAY<{type_name(kind.element_type)}>"
    if isinstance(kind, PrimitiveType):
        return _DDL.get(kind.type, kind.type.upper())
    return str(kind.to_json())


def _quoted(name: str | None) -> str:
    return f'"{name}"' if name else "NULL"


def _widens(held: pa.DataType, wanted: pa.DataType | None) -> bool:
    return (held, wanted) in ((pa.int32(), pa.int64()), (pa.float32(), pa.float64()))
