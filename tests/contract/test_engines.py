"""Two homes live through the same two nights, one on either engine: every table is the same, row for row."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmrec import schema
from mmrec.lake.content import content_hash
from mmrec.lake.session import ENGINES
from mmrec.lake.store import Lake
from tests.conftest import NIGHTS, mmrec, share_encoders

pytestmark = pytest.mark.engines

DAYS = NIGHTS[:2]
OTHER = dict(zip(ENGINES, reversed(ENGINES), strict=True))
# where two nights of a shop without a trained model have no rows
EMPTY = {"silver.item_groups", "gold.user_vectors", "ops.promotions", "ops.alerts", "ops.schema_changes", "ops.suspects", "ops.reviews", "ops.serving",
         "gold.pair_scores"}  # fmt: skip


@dataclass(frozen=True)
class Home:
    """A home after two nights on one engine; `nights` are their summaries."""

    folder: Path
    nights: list[dict[str, Any]]

    @property
    def lake(self) -> Lake:
        return Lake(self.folder / "lake")


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory, encoders_cache: Path) -> dict[str, Home]:
    made = {}
    for engine in ENGINES:
        folder = tmp_path_factory.mktemp(engine) / "home"
        mmrec("init", "--home", str(folder), "--size", "tiny")
        share_encoders(folder, encoders_cache)
        told = mmrec("backfill", "--home", str(folder), "--from", DAYS[0], "--to", DAYS[-1], "--engine", engine, "--json")
        made[engine] = Home(folder, json.loads(told.stdout))
    return made


def clock(t: schema.Table) -> list[str]:
    """The columns that say when and how long a run took place: all that two runs of one night may differ in."""
    return [c.name for c in t.columns if c.meta and c.type in ("TIMESTAMP", "DOUBLE")]


def lines(t: schema.Table, rows: pa.Table) -> list[str]:
    """Rows by key, as text that keeps -0.0, NaN and null apart; run ids stay in, being digests of what was read."""
    found = rows.drop_columns(clock(t)).to_pylist()
    return [repr(r) for r in sorted(found, key=lambda r: [repr(r[k]) for k in t.key])]


def differences(t: schema.Table, a: pa.Table, b: pa.Table) -> list[tuple[str, str]]:
    left, right = lines(t, a), lines(t, b)
    return [(x, y) for x, y in zip(left, right, strict=False) if x != y][:3] + ([(f"{len(left)} rows", f"{len(right)} rows")] if len(left) != len(right) else [])


def test_two_nights_on_either_engine_are_published_under_the_same_run_ids_with_the_same_hashes(homes: dict[str, Home]) -> None:
    told = {e: [(n["published"], n["run_date"], n["run_id"], n["counts"]["publish"]["content_hash"], n["users"], n["items"], n["lists"]) for n in home.nights] for e, home in homes.items()}
    assert told["local"] == told["spark"]
    assert [n[:2] for n in told["local"]] == [(True, d) for d in DAYS]
    assert len({n[3] for n in told["local"]}) == 2


@pytest.mark.parametrize("name", schema.TABLES)
def test_a_table_that_either_engine_wrote_is_the_same_row_for_row_and_in_its_hash(homes: dict[str, Home], name: str) -> None:
    t = schema.table(name)
    local, spark = (homes[e].lake.arrow(name) for e in ("local", "spark"))
    assert (local.num_rows == 0) == (name in EMPTY)
    assert differences(t, local, spark) == []
    assert content_hash(local, name) == content_hash(spark, name)
    if t.partition:
        for day in DAYS:
            hashes = {content_hash(homes[e].lake.day(name, date.fromisoformat(day)), name) for e in ENGINES}
            assert len(hashes) == 1, day


def test_either_engine_makes_the_same_commits(homes: dict[str, Home]) -> None:
    assert homes["local"].lake.versions() == homes["spark"].lake.versions()


@pytest.mark.parametrize("column", ["score", "user_id", "rank", "run_id"])
def test_one_planted_value_is_seen_as_a_difference_at_its_row(homes: dict[str, Home], column: str) -> None:
    name = "gold.recommendations"
    rows = homes["local"].lake.arrow(name)
    kind, old = rows.schema.field(column).type, rows[column][7].as_py()
    values = rows[column].to_pylist()
    values[7] = -old - 1 if not isinstance(old, str) else old + "x"
    planted = rows.set_column(rows.column_names.index(column), column, pa.array(values, kind))
    assert differences(schema.table(name), rows, planted)
    assert (content_hash(planted, name) != content_hash(rows, name)) is (column != "run_id")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_promise_holds_on_the_tables_of_either_engine(homes: dict[str, Home], engine: str) -> None:
    told = json.loads(mmrec("verify", "--home", str(homes[engine].folder), "--json").stdout)
    assert told["ok"]
    assert len(told["checks"]) > 30


@pytest.mark.parametrize("engine", ["spark", pytest.param("local", marks=pytest.mark.deep)])
def test_a_night_that_one_engine_published_is_replayed_by_the_other_to_the_same_hash(homes: dict[str, Home], engine: str) -> None:
    home = homes[engine]
    told = json.loads(mmrec("run", "--home", str(home.folder), "--date", DAYS[1], "--replay", "--engine", OTHER[engine], "--json").stdout)
    assert told["replayed"]
    assert told["content_hash"] == home.nights[1]["counts"]["publish"]["content_hash"]


@pytest.mark.deep
def test_a_home_goes_on_under_the_other_engine_as_if_nothing_had_changed(homes: dict[str, Home], tmp_path: Path) -> None:
    """The spark home's third night on the embedded engine is the local home's third night."""
    told = {}
    for engine in ENGINES:
        folder = tmp_path / engine
        shutil.copytree(homes[engine].folder, folder, symlinks=True)
        night = json.loads(mmrec("run", "--home", str(folder), "--date", NIGHTS[2], "--no-train", "--engine", "local", "--json").stdout)
        told[engine] = (night["run_id"], night["counts"]["publish"]["content_hash"])
    assert told["local"] == told["spark"]
