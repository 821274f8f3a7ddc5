"""The golden lake reads as its makers' literals, at every version, by every reader there is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from mmrec import schema
from mmrec.lake import commit, log, sql
from mmrec.lake.content import content_hash
from mmrec.lake.store import Lake
from mmrec.schema.kinds import _ARROW
from tests.golden import make
from tests.golden.rows import of

HERE = Path(__file__).parent
EXPECTED: dict[str, dict[str, Any]] = json.loads((HERE / "expected.json").read_text())
READERS = ("delta-rs dataset", "delta-rs query", "duckdb", "polars", "mmrec")


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A copy: readers may leave files, and what is checked in must not change."""
    root = tmp_path_factory.mktemp("golden") / "lake"
    shutil.copytree(HERE / "lake", root)
    return Lake(root)


def read(reader: str, lake: Lake, name: str, version: int, columns: list[str]) -> pa.Table:
    path = str(lake.path(name))
    if reader == "delta-rs dataset":
        files = SubTreeFileSystem(path, LocalFileSystem())
        return DeltaTable(path, version=version).to_pyarrow_dataset(filesystem=files).to_table(columns=columns)
    if reader == "delta-rs query":
        picked = ", ".join(f'"{c}"' for c in columns)
        return pa.table(QueryBuilder().register("t", DeltaTable(path, version=version)).execute(f"SELECT {picked} FROM t"))
    if reader == "duckdb":
        picked = ", ".join(f'"{c}"' for c in columns)
        return sql.query(lake, f"SELECT {picked} FROM {schema.table(name).view}", {name: version})
    if reader == "polars":
        return pl.read_delta(path, version=version).select(columns).to_arrow()
    return lake.arrow(name, version, columns=columns)


def right(name: str, version: int) -> list[dict[str, Any]]:
    about = EXPECTED[name]
    return about["states"][about["versions"][version]]


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_gives_exactly_the_rows_of_every_version(golden: Lake, reader: str, name: str) -> None:
    about = EXPECTED[name]
    for version in range(len(about["versions"])):
        assert of(read(reader, golden, name, version, about["columns"]), about["columns"], about["key"]) == right(name, version), version


@pytest.mark.parametrize("name", EXPECTED)
def test_an_engine_gives_exactly_the_rows_of_every_version(golden: Lake, spark: Any, name: str) -> None:
    # a version costs Spark half a second: of versions with the same rows the first, and the newest
    about = EXPECTED[name]
    states = about["versions"]
    for version in [v for v, s in enumerate(states) if v in (0, len(states) - 1) or states[v - 1] != s]:
        own = spark.read.format("delta").option("versionAsOf", version).load(str(golden.path(name))).select(*about["columns"])
        assert of(own.toArrow(), about["columns"], about["key"]) == right(name, version), version
    ours = golden.frame(spark, name, len(states) - 1).select(*about["columns"])
    assert of(ours.toArrow(), about["columns"], about["key"]) == right(name, len(states) - 1)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_newest_version_is_the_last_expected_one_and_its_log_is_whole(golden: Lake, name: str) -> None:
    assert golden.version(name) == len(EXPECTED[name]["versions"]) - 1
    assert log.damage(golden.path(name), name, all_of_it=True) == []


def test_a_value_that_differs_in_the_least_is_seen() -> None:
    columns = ["x"]
    for a, b in ((0.0, -0.0), (float("nan"), None), ("é", "e\u0301"), (b"", b"\0"), ("", None), ([], None), (1, True), ([1.5], [1.5000001])):
        left, other = ([{"x": make.of(pa.table({"x": [v]}), columns, columns)}] for v in (a, b))
        assert json.dumps(left) != json.dumps(other), (a, b)


def test_the_golden_lake_has_what_it_is_there_for() -> None:
    names = [p.relative_to(HERE).as_posix() for p in (HERE / "lake").rglob("*") if p.is_file()]
    assert [n for n in names if n.endswith(".checkpoint.parquet")]
    assert [n for n in names if "stage-maintain-" in n and n.endswith(".parquet")]
    kinds = {c.type for n in EXPECTED for c in schema.table(n).columns if c.name in EXPECTED[n]["columns"]}
    later = {"ARRAY<DOUBLE>"}  # came after this lake; the maker's rows have it
    assert kinds == set(_ARROW) - later
    text = (HERE / "expected.json").read_text()
    for value in ('"-0.0"', '"nan"', "null", "[]", '{"us": -1}', '{"date": "1969-12-31"}', "\\u0000", '{"hex": ""}', "true"):
        assert value in text, value
    assert len({v for n in EXPECTED for v in EXPECTED[n]["versions"]}) > 3


def test_what_is_checked_in_is_small_and_names_no_machine() -> None:
    files = [p for p in HERE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files if p.suffix != ".py") < 300_000
    for path in files:
        if path.suffix != ".py":
            assert not re.search(rb"file:/|/home/|/root/|/tmp/|/Users/", path.read_bytes()), path


def test_the_maker_makes_a_lake_that_reads_as_it_says(tmp_path: Path, spark: Any, engine: str) -> None:
    if engine != "local":
        pytest.skip("made on the embedded engine")
    told = make.make(tmp_path, spark)
    lake = Lake(tmp_path / "lake")
    for name, about in told.items():
        assert len(about["states"]) > 1
        for version, state in enumerate(about["versions"]):
            assert of(lake.arrow(name, version), about["columns"], about["key"]) == about["states"][state], (name, version)


def test_the_golden_lake_takes_another_night(golden: Lake, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    shutil.copytree(golden.root, lake.root)
    name, day = "gold.recommendations", make.D1
    pinned = commit.fence(lake, name, day)
    assert pinned == 2
    rows = make.rows_of(name, make.lists(day, "night", 3))
    assert commit.write(lake, name, rows, run_id="night", pinned=pinned, partition=day).changed
    assert content_hash(lake.day(name, day), name) == content_hash(rows, name)
