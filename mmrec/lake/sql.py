"""SQL over the lake: DuckDB on delta-rs's file lists, each table at one version.

In: a query in DuckDB's SQL. Out: Arrow rows. Views have short names: silver and gold tables bare
(interactions, recommendations), bronze and ops prefixed (ops_metrics), and two made by join:
latest_recommendations (the greatest run_date) and impression_outcomes (what followed a showing).
Trade-off: DuckDB's own Delta reader is downloaded at first use; a file list from the log needs no network and
is pinned, but a view doesn't see commits that land while the connection is open.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict

import duckdb
import pyarrow as pa

from mmrec import schema
from mmrec.errors import InputError
from mmrec.lake import past
from mmrec.lake.store import Lake

DERIVED = {
    "latest_recommendations": (
        "the recommendations of the greatest run_date",
        "SELECT * FROM recommendations WHERE run_date = (SELECT max(run_date) FROM recommendations)",
    ),
    "impression_outcomes": (
        "each showing with the first interaction of that user on that item in the day after it",
        """SELECT m.*, i.event_type AS followed_by, i.event_ts AS followed_at FROM impressions m
           LEFT JOIN LATERAL (SELECT event_type, event_ts FROM interactions i
             WHERE i.user_id = m.user_id AND i.item_id = m.item_id AND i.event_ts >= m.shown_at
               AND i.event_ts < m.shown_at + INTERVAL 24 HOUR
             ORDER BY event_ts, event_type LIMIT 1) i ON true""",
    ),
}


def connect(
    lake: Lake, versions: dict[str, int] | None = None, con: duckdb.DuckDBPyConnection | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection, or `con`, with one view a table, at `versions` (default: the newest of each)."""
    con = con or duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET enable_progress_bar = false")
    for name, version in (lake.versions() if versions is None else versions).items():
        _view(con, lake, schema.table(name), version)
    for view, (_, query) in DERIVED.items():
        with contextlib.suppress(duckdb.CatalogException):  # a table it is made from is not among `versions`
            con.execute(f"CREATE VIEW {view} AS {query}")
    return con


def query(lake: Lake, statement: str, versions: dict[str, int] | None = None) -> pa.Table:
    """Rows of one statement. InputError with DuckDB's words where it can't be run."""
    con = None
    try:
        con = connect(lake, versions)
        relation = con.sql(statement)
        return relation.to_arrow_table() if relation is not None else pa.table({})
    except duckdb.Error as error:
        views = sorted([t.view for t in schema.TABLES.values()] + list(DERIVED))
        raise InputError(
            f"the query failed: {error}",
            where="sql",
            value=statement,
            valid=views,
            next='mmrec sql "select * from latest_recommendations limit 5"',
        ) from error
    finally:
        if con is not None:
            con.close()


def _view(con: duckdb.DuckDBPyConnection, lake: Lake, t: schema.Table, version: int) -> None:
    handle = lake.handle(t.name, version)
    actions = pa.table(handle.get_add_actions(flatten=True)).to_pydict()
    root = lake.path(t.name)
    by_value: dict[str | None, list[str]] = defaultdict(list)
    for i, path in enumerate(actions["path"]):
        value = actions[f"partition.{t.partition}"][i] if t.partition else None
        by_value[None if value is None else str(value)].append(str(root / path))
    columns = ", ".join(f'"{c.name}"' for c in t.columns)
    mixed = past.ADDED in handle.metadata().configuration or not past.is_today(handle, t)
    parts = []
    for n, (value, paths) in enumerate(sorted(by_value.items(), key=str)):
        files = con.from_parquet(sorted(paths), hive_partitioning=False, union_by_name=mixed)
        files.create_view(f"__{t.view}_{n}")
        if mixed:
            columns = past.sql_columns(t, [*files.columns, *([t.partition] if t.partition else [])], _DUCK)
        extra = f", DATE '{value}' AS {t.partition}" if t.partition else ""
        parts.append(f"SELECT {columns} FROM (SELECT *{extra} FROM __{t.view}_{n})")
    if not parts:
        empty = ", ".join(f'NULL::{_DUCK.get(c.type, c.type)} AS "{c.name}"' for c in t.columns)
        parts = [f"SELECT {empty} WHERE false"]
    con.execute(f"CREATE VIEW {t.view} AS {' UNION ALL '.join(parts)}")


_DUCK = {
    "STRING": "VARCHAR",
    "TIMESTAMP": "TIMESTAMPTZ",
    "BINARY": "BLOB",
    "ARRAY<STRING>": "VARCHAR[]",
    "ARRAY<BIGINT>": "BIGINT[]",
    "ARRAY<FLOAT>": "FLOAT[]",
    "ARRAY<DOUBLE>": "DOUBLE[]",
}
