"""One row is one row: through either door, for every reader, in every storage type, a table and its content hash are the same."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F

from mmrec import schema
from mmrec.errors import InputError, MmrecError
from mmrec.lake import commit, sql, stage
from mmrec.lake.content import content_hash
from mmrec.lake.session import ENGINES, session
from mmrec.lake.store import Lake

LIST, USERS, ITEMS = "gold.recommendations", "silver.users", "silver.items"
DAY, NOON = date(1969, 12, 31), datetime(2026, 3, 1, 12, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXTS = ["", " ", "a", "A", "a\0b", "😀👩‍👩‍👧", "שלום", "e\u0301", "é", "\ufffd", "\U0010ffff", "\ue000", "'; --", "%2F/=", '{"k":"\\u0000"}', "l\nf\r\n\t", "NULL", "x" * 5000]
INSTANTS = [EPOCH, EPOCH - timedelta(microseconds=1), datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), datetime(1582, 10, 10, 1, 2, 3, 4, UTC),
            datetime(2026, 3, 29, 1, 30, 0, 123456, UTC), datetime(2026, 3, 29, 1, 30, 0, 123457, UTC)]  # fmt: skip
NUMBERS = [0.0, -0.0, 1.0, -1.5, 0.1, 1e-45, 5e-324, 3.4e38, 1e308, math.inf, -math.inf, math.nan]
VALUES: dict[str, list[Any]] = {
    "STRING": TEXTS, "INT": [0, 1, 2, -1, 2**31 - 1, -(2**31)], "BIGINT": [0, 1, 2, -1, 2**63 - 1, -(2**63), 2**53 + 1],
    "DOUBLE": NUMBERS, "FLOAT": [n for n in NUMBERS if not 3.4e38 < abs(n) < math.inf], "BOOLEAN": [True, False], "BINARY": [b"", b"\0", bytes(range(256))],
    "DATE": [date(1, 1, 1), DAY, date(1970, 1, 1), date(2026, 3, 1), date(9999, 12, 31)], "TIMESTAMP": INSTANTS,
}  # fmt: skip


@cache
def arbitrary(name: str, n: int = 60) -> pa.Table:
    """Rows that keep the table's key and CHECKs, made of nasty values; rejection by DuckDB, so it follows schema.py."""
    t, rng = schema.table(name), random.Random(name)
    literals = re.findall(r"'([^']+)'", " ".join(t.checks.values()))

    def value(c: schema.Column) -> Any:
        if c.nullable and rng.random() < 0.2:
            return None
        if c.name == t.partition:
            return DAY
        if c.type.startswith("ARRAY<"):
            return [rng.choice(VALUES[c.type[6:-1]]) for _ in range(rng.choice([0, 0, 1, 2, 5]))]
        if c.type == "STRING":
            return rng.choice(literals) if literals and rng.random() < 0.5 else rng.choice(TEXTS) + rng.choice(["", str(rng.randrange(10**6))])
        return rng.choice(VALUES[c.type])

    drawn = pa.Table.from_pylist([{c.name: value(c) for c in t.columns} for _ in range(2500)], t.arrow)
    kept = duckdb.connect()
    kept.execute("SET TimeZone = 'UTC'")
    kept.register("drawn", drawn)
    drawn = kept.sql(f"SELECT * FROM drawn WHERE {' AND '.join(f'({c})' for c in t.checks.values()) or 'true'}").to_arrow_table().cast(t.arrow)
    place = {tuple(r[k] for k in t.key): i for i, r in enumerate(drawn.select(t.key).to_pylist())}
    return drawn.take(sorted(place.values())[:n])


def rows_of(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Arrow rows; what is left out is null, or a plain value where null is not allowed."""
    plain = {"STRING": "x", "INT": 1, "BIGINT": 1, "FLOAT": 1.0, "DOUBLE": 1.0, "TIMESTAMP": NOON, "DATE": DAY}
    t = schema.table(name)
    return pa.Table.from_pylist([{c.name: r.get(c.name, None if c.nullable else plain.get(c.type, [])) for c in t.columns} for r in rows], t.arrow)


def slates(*users: str, **more: Any) -> pa.Table:
    return rows_of(LIST, [{"user_id": u} | more for u in users])


def changed(rows: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.column_names.index(column), column, values)


def put(lake: Lake, rows: Any, name: str = LIST) -> commit.Committed:
    day = DAY if schema.table(name).partition else None
    return commit.write(lake, name, rows, run_id="r", pinned=commit.fence(lake, name, day), partition=day)


def bag(table: pa.Table) -> Counter[str]:
    """Rows in any order; repr keeps -0.0, NaN and null apart."""
    return Counter(map(repr, table.to_pylist()))


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lake]:
    made = {door: Lake(tmp_path_factory.mktemp(door)) for door in ("arrow", "engine")}
    for lake in made.values():
        lake.create_all()
    return made


def test_the_rows_of_these_tests_hold_every_nasty_value() -> None:
    texts, instants = arbitrary("ops.quarantine", 1500), arbitrary(ITEMS)
    assert set(TEXTS) <= set(texts["reason"].to_pylist())
    assert set(INSTANTS) | {None} == set(instants["withdrawn_at"].to_pylist())
    assert [] in instants["categories"].to_pylist()
    assert all(arbitrary(name).num_rows == 60 for name in schema.TABLES)


@pytest.mark.parametrize("name", schema.TABLES)
def test_a_table_staged_by_the_engine_and_by_arrow_is_the_same_for_every_reader(lakes: dict[str, Lake], spark: Any, name: str) -> None:
    t, rows = schema.table(name), arbitrary(name)
    frame = spark.createDataFrame(rows, t.ddl).repartition(3)
    for door, data in (("arrow", rows), ("engine", frame)):
        lake = lakes[door]
        done = put(lake, data, name)
        assert (done.changed, done.rows) == (True, rows.num_rows)
        stored = lake.arrow(name)
        assert stored.schema == t.arrow
        assert bag(stored) == bag(rows)
        assert content_hash(stored, name) == content_hash(rows, name)
        read = {"batches": pa.Table.from_batches(lake.batches(name)), "engine": lake.frame(spark, name, done.version).toArrow(), "sql": sql.query(lake, f"select * from {t.view}")}
        for reader, table in read.items():
            assert bag(table.select(t.arrow.names)) == bag(rows), reader
            assert content_hash(table, name) == content_hash(rows, name), reader


@pytest.mark.parametrize("name", schema.TABLES)
def test_an_empty_table_has_the_columns_types_and_promises_of_the_schema(tmp_path: Path, lakes: dict[str, Lake], name: str) -> None:
    t, lake = schema.table(name), Lake(tmp_path)
    lake.create(name)
    handle = lake.handle(name)
    made = {f.name: f for f in handle.schema().fields}
    assert list(made) == t.arrow.names
    assert {c.name: (c.nullable, c.comment) for c in t.columns} == {n: (f.nullable, f.metadata["comment"]) for n, f in made.items()}
    held = handle.metadata().configuration
    assert {f"delta.constraints.{c}" for c in t.checks} == {k for k in held if k.startswith("delta.constraints.")}
    assert held.items() >= (t.properties | t.promises).items()
    assert handle.metadata().partition_columns == ([t.partition] if t.partition else [])
    assert t.grain in handle.metadata().description
    assert lake.arrow(name).equals(t.arrow.empty_table())
    empty = sql.connect(lakes["arrow"], {n: len(schema.table(n).checks) for n in schema.TABLES})
    full = sql.connect(lakes["arrow"])
    assert empty.sql(f"describe {t.view}").fetchall() == full.sql(f"describe {t.view}").fetchall()
    assert empty.sql(f"select count(*) from {t.view}").fetchall() == [(0,)]


HOMES = ["plain-1.0_x", "two words", "größe", "a#b", "100% ours", "%20", "a [1] b", "a?b"]


@pytest.mark.parametrize("folder", HOMES)
def test_a_home_of_any_name_holds_its_rows_or_is_refused_before_anything_is_written(tmp_path: Path, spark: Any, folder: str) -> None:
    # an engine that writes elsewhere and says nothing would lose a night's rows
    try:
        lake = Lake(tmp_path / folder)
        for name in (LIST, USERS, "silver.interactions", "silver.impressions"):
            lake.create(name)
    except InputError:
        assert list(tmp_path.iterdir()) == []
        assert folder != HOMES[0]
        return
    put(lake, slates("a"))
    for n in range(2):
        put(lake, spark.createDataFrame(rows_of(USERS, [{"row_hash": f"h{n}"}])), USERS)
    assert sorted(lake.arrow(USERS)["row_hash"].to_pylist()) == ["h0", "h1"]
    assert sql.query(lake, "select count(*) n from users, recommendations").to_pylist() == [{"n": 2}]
    assert [p.name for p in tmp_path.iterdir()] == [folder]


def test_a_stage_whose_writer_left_no_log_is_not_taken_for_an_empty_one(lakes: dict[str, Lake]) -> None:
    with pytest.raises((MmrecError, OSError)):
        stage.read_stage(USERS, lakes["arrow"].path(USERS) / "stage-gone-0")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(tmp_path / "lake")
    made.create(LIST)
    return made


@pytest.mark.parametrize(("column", "to"), [("rank", "1.7D"), ("reason", "array('a')")], ids=["a fraction for an int", "a list for a text"])
def test_the_engines_door_casts_without_loss_or_refuses(lake: Lake, spark: Any, column: str, to: str) -> None:
    frame = spark.createDataFrame(slates("a")).withColumn(column, F.expr(to))
    with pytest.raises(MmrecError):
        put(lake, frame)
    assert lake.version(LIST) == len(schema.table(LIST).checks)


def test_the_engines_door_cuts_no_fraction_inside_a_list(tmp_path: Path, spark: Any) -> None:
    lake, name = Lake(tmp_path / "lake"), "gold.user_sequences"
    lake.create(name)
    with pytest.raises(MmrecError):
        put(lake, spark.createDataFrame(rows_of(name, [{}])).withColumn("event_us", F.expr("array(1.7D)")), name)
    put(lake, spark.createDataFrame(rows_of(name, [{}])).withColumn("event_us", F.expr("array(7)")), name)
    assert lake.arrow(name)["event_us"].to_pylist() == [[7]]


def test_a_frame_with_other_columns_is_refused_and_one_in_another_order_is_not(lake: Lake, spark: Any) -> None:
    frame = spark.createDataFrame(slates("a"))
    for bad in (frame.drop("reason"), frame.withColumn("extra", F.lit(1))):
        with pytest.raises(InputError, match="columns"):
            put(lake, bad)
    put(lake, frame.select(sorted(frame.columns, reverse=True)))
    assert lake.arrow(LIST).cast(schema.table(LIST).arrow).to_pylist() == slates("a").to_pylist()


def test_an_engine_that_fails_while_it_writes_leaves_no_file_and_no_version(lake: Lake, spark: Any) -> None:
    put(lake, slates("old"))
    before, files = lake.version(LIST), set(lake.path(LIST).iterdir())
    bad = F.when(F.col("user_id") == "b", F.raise_error(F.lit("boom"))).otherwise(F.col("reason"))
    with pytest.raises(Exception, match="boom"):
        put(lake, spark.createDataFrame(slates("a", "b")).withColumn("reason", bad))
    assert (lake.version(LIST), set(lake.path(LIST).iterdir())) == (before, files)
    assert bag(lake.arrow(LIST)) == bag(slates("old"))


TEXT = st.text("ab\0é😀", max_size=3)
ITEM = st.fixed_dictionaries({"title": TEXT, "text": st.none() | TEXT, "categories": st.lists(TEXT, max_size=3), "withdrawn_at": st.none() | st.just(NOON)})


def catalogue(rows: list[dict[str, Any]]) -> pa.Table:
    return rows_of(ITEMS, [r | {"row_hash": f"h{n}"} for n, r in enumerate(rows)])


@settings(max_examples=30, deadline=None)
@given(st.lists(ITEM, max_size=6), st.randoms(use_true_random=False), st.integers(1, 3), st.sampled_from(["plain", "large", "dictionary", "view"]))
def test_the_content_hash_is_the_same_for_any_order_chunking_and_storage_type(rows: list[dict[str, Any]], rng: random.Random, chunk: int, storage: str) -> None:
    table = catalogue(rows)
    order = list(range(len(rows)))
    rng.shuffle(order)
    moved = table.take(pa.array(order, pa.int64()))
    if storage != "plain":
        kind = {"large": pa.large_string(), "dictionary": pa.dictionary(pa.int32(), pa.string()), "view": pa.string_view()}[storage]
        moved = pa.table({c: moved[c].cast(kind) if pa.types.is_string(moved[c].type) else moved[c] for c in reversed(moved.column_names)})
    if storage == "large":
        moved = changed(moved, "categories", moved["categories"].cast(pa.large_list(pa.large_string())))
    moved = pa.Table.from_batches(moved.to_batches(max_chunksize=chunk), moved.schema)
    assert content_hash(moved, ITEMS) == content_hash(table, ITEMS)


@settings(max_examples=60, deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=2), st.lists(ITEM, min_size=1, max_size=2))
@example([{"title": "ab"}, {"title": "c"}], [{"title": "a"}, {"title": "bc"}])
@example([{"categories": ["a", "b"]}, {"categories": []}], [{"categories": ["a"]}, {"categories": ["b"]}])
@example([{"categories": ["ab"]}], [{"categories": ["a", "b"]}])
@example([{"categories": [""]}], [{"categories": []}])
@example([{"text": None}], [{"text": ""}])
@example([{"text": None}, {"text": "a"}], [{"text": "a"}, {"text": None}])
@example([{"text": "a", "title": "b"}], [{"text": "b", "title": "a"}])
@example([{"withdrawn_at": None}], [{"withdrawn_at": datetime(1970, 1, 1, tzinfo=UTC)}])
@example([{"title": "a"}], [{"title": "a"}, {"title": "a"}])
def test_content_hashes_are_equal_exactly_where_the_rows_are(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    left, right = catalogue(a), catalogue(b)
    assert (content_hash(left, ITEMS) == content_hash(right, ITEMS)) is (left.to_pylist() == right.to_pylist())


def test_content_hashes_leave_run_metadata_out_and_know_one_zero_and_one_nan() -> None:
    base = slates("a", "b", score=0.0)
    want = content_hash(base, LIST)
    assert content_hash(slates("a", "b", score=-0.0, run_id="another"), LIST) == want
    assert content_hash(base.drop_columns(["run_id"]), LIST) == want
    for column in schema.table(LIST).content_columns:
        other = {"STRING": "y", "DATE": NOON.date(), "INT": 2, "FLOAT": 1e-45, "DOUBLE": 0.5, "ARRAY<STRING>": ["y"], "ARRAY<BIGINT>": [2], "ARRAY<DOUBLE>": [0.5]}[next(c.type for c in schema.table(LIST).columns if c.name == column)]
        assert content_hash(changed(base, column, pa.array([base[column][0].as_py(), other], base.schema.field(column).type)), LIST) != want, column
    nan = pa.array([0x7FC00000, 0x7FC00001], pa.uint32()).view(pa.float32())
    assert content_hash(changed(base, "score", nan), LIST) == content_hash(changed(base, "score", pa.array([math.nan] * 2, pa.float32())), LIST)
    assert len({content_hash(slates(), LIST), content_hash(rows_of("gold.user_vectors", []), "gold.user_vectors"), want}) == 3


def test_a_content_hash_recorded_by_an_earlier_release_is_still_the_hash_of_those_rows() -> None:
    # the hash of lists is what ops.runs keeps; where no column is null in every row, other tables keep theirs too
    assert content_hash(slates("a", "ü", score=0.5, reason="שלום 😀"), LIST) == "5d9eedf4f600dd8258aa9d6160c03899592efd2af5ab45745768fcebd7a556d2"
    assert content_hash(catalogue([{"title": "שלום 😀", "categories": ["", "b"]}, {"text": ""}]), ITEMS) == "32a33fbe07d79b7fc05651f3bc73bc8b8275e0fd4d88d7910c773793b1cb5970"


def test_a_process_has_one_session_in_utc_and_knows_its_engines(spark: Any, engine: str) -> None:
    assert session(engine) is spark
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"
    with pytest.raises(InputError, match="local"):
        session("flink")
    other = next(e for e in ENGINES if e != engine)
    with pytest.raises(InputError, match="another engine"):
        session(other)
