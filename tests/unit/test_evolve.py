"""Homes of an older schema: what adds is absorbed and on record once, all else stops with its difference or is migrated.

Changes are planted in a schema of two tables: a list, a partition a day, and notes that are appended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mmrec import cli, docs, schema
from mmrec.config import Config
from mmrec.context import Night
from mmrec.errors import InputError, QualityError, TransientError
from mmrec.lake import commit, evolve, migrate, sql
from mmrec.lake import stage as staging
from mmrec.lake.content import content_hash
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.schema import Column, Table, changes
from mmrec.schema.changes import Change

D1, D2, D3 = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)
NOW = datetime(2026, 3, 5, tzinfo=UTC)
LIST = Table(
    "gold.recommendations", "one place of a list", "Lists.", "publish", "replace_partition", ("run_date", "user_id", "rank"),
    (Column("run_date", "DATE", "the day"), Column("user_id", "STRING", "external user id"), Column("rank", "INT", "1 is best"),
     Column("score", "FLOAT", "what it is ordered by"), Column("note", "STRING", "words", nullable=True),
     Column("run_id", "STRING", "the run that wrote the row", meta=True)),
    {"rank_from_1": "rank >= 1", "user_named": "user_id <> ''"}, partition="run_date",
)  # fmt: skip
NOTES = Table(
    "ops.notes", "one note", "Notes.", "monitor", "append_new", ("id",),
    (Column("id", "STRING", "its name"), Column("n", "INT", "how many"), Column("said", "STRING", "words", nullable=True)),
    {"n_from_0": "n >= 0"},
)  # fmt: skip
LEDGER = schema.TABLES[evolve.LEDGER]


@contextmanager
def planted(*tables: Table, declared: tuple[Change, ...] = ()) -> Iterator[None]:
    """The schema is `tables` and the ledger, and `declared` what may be migrated."""
    with patch.object(schema, "TABLES", {t.name: t for t in (*tables, LEDGER)}), patch.object(changes, "CHANGES", declared):
        yield


def altered(t: Table, *more: Column, **columns: Column | None) -> Table:
    """`t` with columns of a name replaced, None: left out, and others added."""
    kept = [columns.get(c.name, c) for c in t.columns]
    return replace(t, columns=tuple(c for c in (*kept, *more) if c is not None))


def column(t: Table, of: str, **other: Any) -> Column:
    return replace(next(c for c in t.columns if c.name == of), **other)


def slates(day: date, *users: str, **more: Any) -> list[dict[str, Any]]:
    return [{"run_date": day, "user_id": u, "rank": n, "score": n / 2, "note": None if n % 2 else u, "run_id": "r"} | more
            for n, u in enumerate(users, 1)]  # fmt: skip


def put(lake: Lake, name: str, rows: list[dict[str, Any]], day: date | None = None, pinned: int | None = None) -> None:
    t = schema.table(name)
    pinned = commit.fence(lake, name, day) if pinned is None else pinned
    commit.write(lake, name, pa.Table.from_pylist(rows, t.arrow), run_id="r", pinned=pinned, partition=day)


ROWS = [*slates(D1, "a", "b"), *slates(D2, "c")]
SAID = [{"id": "x", "n": 1, "said": "one"}, {"id": "y", "n": 2**31 - 1, "said": None}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of the older schema with two days of lists and two notes."""
    home = tmp_path_factory.mktemp("made") / "home"
    with planted(LIST, NOTES):
        lake = Lake(home / "lake")
        lake.create_all()
        for day in (D1, D2):
            put(lake, LIST.name, [r for r in ROWS if r["run_date"] == day], day)
        put(lake, NOTES.name, SAID)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def lake(home: Path) -> Lake:
    return Lake(home / "lake")


def rows_of(lake: Lake, name: str, version: int | None = None) -> list[dict[str, Any]]:
    keys = schema.table(name).key
    return sorted(lake.arrow(name, version).to_pylist(), key=lambda r: tuple(str(r[k]) for k in keys))


def ledger(lake: Lake) -> list[tuple[str, str, str, str, str]]:
    rows = lake.arrow(evolve.LEDGER).to_pylist() if lake.exists(evolve.LEDGER) else []
    assert {r["applied_at"] for r in rows} <= {NOW} or not rows
    return sorted((r["table_name"], r["change"], r["column_name"], r["before"], r["after"]) for r in rows)


def versions_of(lake: Lake) -> dict[str, int]:
    """Table -> version of everything that lies there, whatever the schema says."""
    return {str(p.parent.relative_to(lake.root)): DeltaTable(str(p.parent)).version() for p in lake.root.rglob("_delta_log")}


def listing(lake: Lake, name: str) -> set[str]:
    return {str(p.relative_to(lake.root)) for p in lake.path(name).rglob("*") if not {"_delta_log", "_entries"} & set(p.parts)}


WIDER = altered(LIST, Column("reason", "STRING", "why", nullable=True), Column("tags", "ARRAY<STRING>", "tags", nullable=True),
                rank=column(LIST, "rank", comment="position, 1 is best"))  # fmt: skip
WIDER = replace(WIDER, comment="Lists by day.", checks=LIST.checks | {"score_is_number": "NOT isnan(score)"})
NEWS = Table("ops.news", "one piece of news", "News.", "monitor", "append_new", ("id",), (Column("id", "STRING", "its name"),))


def test_what_adds_is_absorbed_recorded_once_and_read_at_every_version(lake: Lake, spark: Any) -> None:
    old = lake.version(LIST.name)
    with planted(LIST, NOTES):
        digest = content_hash(lake.day(LIST.name, D1), LIST.name)
    with planted(WIDER, NOTES, NEWS):
        found = evolve.absorb(lake, NOW)
        assert content_hash(lake.day(LIST.name, D1), LIST.name) == digest  # what is recorded of a night stays true
        assert evolve.different(lake) == []
        assert ledger(lake) == [
            ("gold.recommendations", "check_added", "score_is_number", "", "NOT isnan(score)"),
            ("gold.recommendations", "column_added", "reason", "", "STRING"),
            ("gold.recommendations", "column_added", "tags", "", "ARRAY<STRING>"),
            ("gold.recommendations", "comment_changed", "", "Grain: one place of a list. Lists.", "Grain: one place of a list. Lists by day."),
            ("gold.recommendations", "comment_changed", "rank", "1 is best", "position, 1 is best"),
            ("ops.news", "table_added", "", "", "one piece of news"),
        ]  # fmt: skip
        assert len(found) == len(ledger(lake)) + 1  # and the properties that keep the CHECK's own words
        versions = lake.versions()
        assert evolve.absorb(lake, NOW) == []
        assert lake.versions() == versions
        handle = lake.handle(LIST.name)
        assert {f.name: f.metadata["comment"] for f in handle.schema().fields} == {c.name: c.comment for c in WIDER.columns}
        assert handle.metadata().description == "Grain: one place of a list. Lists by day."
        assert set(handle.metadata().configuration) >= {"delta.constraints.score_is_number"}
        # rows of before have null; a day written now has values beside files that lack the columns
        put(lake, LIST.name, slates(D3, "d", reason="because", tags=["p", "q"]), D3)
        new = lake.version(LIST.name)
        empty = {"reason": None, "tags": None}
        want = {old: [r | empty for r in ROWS], new: [*(r | empty for r in ROWS), *slates(D3, "d", reason="because", tags=["p", "q"])]}
        for version, rows in want.items():
            rows = sorted(rows, key=lambda r: (str(r["run_date"]), r["user_id"]))
            assert rows_of(lake, LIST.name, version) == rows
            assert lake.arrow(LIST.name, version, columns=["tags", "user_id"], where=ds.field("run_date") == D1)["tags"].to_pylist() == [None, None]
            framed = lake.frame(spark, LIST.name, version).select(*(c.name for c in WIDER.columns)).toArrow().to_pylist()
            assert sorted(framed, key=lambda r: (str(r["run_date"]), r["user_id"])) == rows
            asked = sql.query(lake, "select * from recommendations order by run_date, user_id", {LIST.name: version}).to_pylist()
            assert asked == rows
        assert sum(b.num_rows for b in lake.batches(LIST.name, old, columns=["reason"])) == 3


def test_a_column_that_came_later_is_in_a_table_without_partitions_too(lake: Lake, spark: Any) -> None:
    """A classic session reads such a table's files by name: those of before lack the column."""
    more = altered(NOTES, Column("at", "TIMESTAMP", "when", nullable=True), Column("share", "DOUBLE", "how much", nullable=True))
    old = versions_of(lake)[NOTES.name.replace(".", "/")]
    with planted(LIST, more):
        evolve.absorb(lake, NOW)
        put(lake, NOTES.name, [{"id": "z", "n": 3, "said": "three", "at": NOW, "share": 0.5}])
        null = {"at": None, "share": None}
        for version, rows in ((old, [r | null for r in SAID]), (lake.version(NOTES.name), [*(r | null for r in SAID), {"id": "z", "n": 3, "said": "three", "at": NOW, "share": 0.5}])):
            assert rows_of(lake, NOTES.name, version) == rows
            framed = lake.frame(spark, NOTES.name, version).select(*more.arrow.names).toArrow().cast(pa.schema([f.with_nullable(True) for f in more.arrow]))
            assert sorted(framed.to_pylist(), key=lambda r: r["id"]) == rows
            assert sql.query(lake, "select * from ops_notes order by id", {NOTES.name: version}).to_pylist() == rows


BROKEN: dict[str, tuple[Table, str]] = {
    "a column is gone": (altered(LIST, note=None), "gold.recommendations.note: was STRING, is not there"),
    "another type": (altered(LIST, rank=column(LIST, "rank", type="STRING")), "gold.recommendations.rank: was INT NOT NULL, is STRING NOT NULL"),
    "a wider type": (altered(LIST, rank=column(LIST, "rank", type="BIGINT")), "rank: was INT NOT NULL, is BIGINT NOT NULL"),
    "null is not allowed any more": (altered(LIST, note=column(LIST, "note", nullable=False)), "note: was STRING, is STRING NOT NULL"),
    "null is allowed": (altered(LIST, score=column(LIST, "score", nullable=True)), "score: was FLOAT NOT NULL, is FLOAT"),
    "a new column that may not be null": (altered(LIST, Column("arm", "STRING", "arm")), "arm: was not there, is STRING NOT NULL"),
    "another name": (altered(LIST, user_id=column(LIST, "user_id", name="customer")), "customer: was not there, is STRING NOT NULL"),
    "no partition": (replace(LIST, partition=None), "partition: was run_date, is not there"),
    "another key": (replace(LIST, key=("run_date", "user_id")), "key: was run_date, user_id, rank, is run_date, user_id"),
    "another mode": (replace(LIST, mode="replace_all"), "mode: was replace_partition, is replace_all"),
    "a CHECK is gone": (replace(LIST, checks={"user_named": "user_id <> ''"}), "rank_from_1: was rank >= 1, is not there"),
    "a new CHECK that rows break": (replace(LIST, checks=LIST.checks | {"top": "rank = 1"}), "top: was not there and broken by 1 rows, is rank = 1"),
    "a stricter CHECK that rows break": (replace(LIST, checks=LIST.checks | {"rank_from_1": "rank >= 2"}), "rank_from_1: was rank >= 1 and broken by 2 rows, is rank >= 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_add_stops_with_the_difference_and_alters_nothing(lake: Lake, case: str) -> None:
    table, line = BROKEN[case]
    versions = versions_of(lake)
    with planted(table, altered(NOTES, Column("more", "STRING", "more", nullable=True))):
        with pytest.raises(InputError) as stopped:
            Night(Config(home=lake.root.parent), D3)
        assert line in str(stopped.value)
        assert f"next:  mmrec migrate --home {lake.root.parent}" in str(stopped.value)
        assert "ops.notes" not in str(stopped.value)
        # without a declared change, migrating names the same and changes as little
        with pytest.raises(InputError) as left:
            migrate.migrate(lake, NOW)
        assert line in str(left.value)
        assert versions_of(lake) == versions
    with planted(LIST, NOTES):
        assert rows_of(lake, LIST.name) == ROWS


def test_a_check_in_other_words_that_rows_keep_is_absorbed(lake: Lake) -> None:
    looser = replace(LIST, checks=LIST.checks | {"rank_from_1": "rank >= 1 AND rank < 1000"})
    with planted(looser, NOTES):
        evolve.absorb(lake, NOW)
        assert ledger(lake) == [("gold.recommendations", "check_changed", "rank_from_1", "rank >= 1", "rank >= 1 AND rank < 1000")]
        assert "1000" in lake.handle(LIST.name).metadata().configuration["delta.constraints.rank_from_1"]
        assert evolve.absorb(lake, NOW) == []


def test_opening_a_home_for_a_night_absorbs_what_adds_and_opening_it_again_or_for_a_replay_does_nothing(lake: Lake) -> None:
    config = Config(home=lake.root.parent)
    with planted(WIDER, NOTES):
        Night(config, D3, replayed=Manifest(str(D3), "", {}, "0", "", {}, {}, {}, ""))
        assert evolve.different(lake) != []
        assert Night(config, D3).lake.read == {}  # what was looked at is no input of the night
        assert evolve.different(lake) == []
        versions = lake.versions()
        Night(config, D3)
        assert lake.versions() == versions


def test_a_home_that_kept_no_key_takes_the_one_there_is_and_holds_to_it(tmp_path: Path) -> None:
    """Tables of before 0.2 say nothing of key, mode or a CHECK's own words."""
    lake = Lake(tmp_path / "lake")
    with planted(LIST, NOTES):
        for t in (LIST, NOTES):
            DeltaTable.create(str(lake.path(t.name)), pa.schema([c.arrow.with_metadata({"comment": c.comment}) for c in t.columns]),
                              partition_by=[t.partition] if t.partition else None, name=t.name, description=t.description)  # fmt: skip
            for check, condition in t.checks.items():
                lake.handle(t.name).alter.add_constraint({check: condition})
        assert {d.change for d in evolve.absorb(lake, NOW)} == {"properties", "table_added"}
        assert ledger(lake) == [("ops.schema_changes", "table_added", "", "", LEDGER.grain)]
    with planted(replace(LIST, key=("run_date",)), NOTES), pytest.raises(InputError, match="key: was run_date, user_id, rank"):
        evolve.absorb(lake, NOW)


def test_a_comment_that_goes_back_and_forth_is_on_record_each_time(lake: Lake) -> None:
    other = altered(NOTES, n=column(NOTES, "n", comment="B"))
    for table in (other, NOTES, other):
        with planted(LIST, table):
            assert len(evolve.absorb(lake, NOW)) == 1
            assert evolve.absorb(lake, NOW) == []
    with planted(LIST, NOTES):
        assert Counter((r[3], r[4]) for r in ledger(lake)) == {("how many", "B"): 2, ("B", "how many"): 1}


def test_a_table_that_was_lost_is_not_made_anew_in_silence(lake: Lake) -> None:
    with planted(LIST, NOTES, NEWS):
        evolve.absorb(lake, NOW)
        for name in (NEWS.name, LIST.name):  # new since, and there from the first
            shutil.rmtree(lake.path(name))
        assert evolve.absorb(lake, NOW) == []
        for name in (NEWS.name, LIST.name):
            assert not lake.exists(name)
            with pytest.raises(InputError, match="mmrec init"):
                lake.arrow(name)


def test_the_baseline_is_what_homes_have_and_each_of_it_is_still_a_table() -> None:
    assert set(schema.TABLES) >= changes.BASELINE
    assert evolve.LEDGER not in changes.BASELINE


@pytest.mark.parametrize("dies_after", range(6))
def test_an_absorption_that_dies_is_completed_by_the_next_and_recorded_once(lake: Lake, dies_after: int) -> None:
    """The record is there before the first alteration; each alteration is an entry of the log."""
    with planted(WIDER, NOTES, NEWS):
        whole = Lake(lake.root.with_name("whole"))
        shutil.copytree(lake.root, whole.root)
        evolve.absorb(whole, NOW)
        left = dies_after
        from deltalake.table import TableAlterer

        real = {n: getattr(TableAlterer, n) for n in ("add_columns", "add_constraint", "set_column_metadata", "set_table_description", "set_table_properties")}

        def dying(name: str) -> Callable[..., Any]:
            def call(self: Any, *args: Any, **more: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                return real[name](self, *args, **more)

            return call

        with patch.multiple(TableAlterer, **{n: dying(n) for n in real}), pytest.raises(KeyboardInterrupt):
            evolve.absorb(lake, NOW)
        assert rows_of(lake, LIST.name) == rows_of(whole, LIST.name)
        assert len(ledger(lake)) == 6
        evolve.absorb(lake, NOW)
        assert evolve.different(lake) == []
        assert ledger(lake) == ledger(whole)


def test_of_two_processes_that_alter_one_table_at_once_both_end_well_and_nothing_is_recorded_twice(lake: Lake) -> None:
    """A rival does all of it right before each alteration of the other, once a turn: delta-rs refuses the second."""
    from deltalake.table import TableAlterer

    real, turns = TableAlterer.add_columns, []

    def overtaken(self: Any, *args: Any, **more: Any) -> None:
        if not turns:
            turns.append(1)
            evolve.absorb(Lake(lake.root), NOW)
        real(self, *args, **more)

    with planted(WIDER, NOTES, NEWS), patch.object(TableAlterer, "add_columns", overtaken):
        evolve.absorb(lake, NOW)
        assert evolve.different(lake) == []
        assert len(ledger(lake)) == 6


SCRIPT = """
    import os, signal, sys, time
    from datetime import UTC, datetime
    from pathlib import Path
    from deltalake import DeltaTable
    from mmrec.lake import evolve, migrate
    from mmrec.lake.store import Lake
    from tests.unit import test_evolve as own

    root, go, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    Path(f"{go}-{os.getpid()}").touch()
    while not go.exists():
        time.sleep(0.001)
    if what == "absorb":
        with own.planted(own.WIDER, own.NOTES, own.NEWS):
            evolve.absorb(Lake(root), own.NOW)
    else:
        if what == "killed":
            DeltaTable.create_write_transaction = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
        with own.planted(own.MOVED, own.NOTES, declared=own.DECLARED):
            migrate.migrate(Lake(root), own.NOW)
"""


def processes(lake: Lake, what: str, n: int) -> list[int]:
    """Exit codes of `n` processes that start together."""
    go = lake.root.parent / f"go-{what}"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(lake.root), str(go), what]
    root = Path(__file__).parents[2]
    running = [subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stderr=subprocess.PIPE, text=True) for _ in range(n)]
    while sum(1 for _ in go.parent.glob(f"{go.name}-*")) < n:
        assert all(p.poll() is None for p in running), [p.communicate()[1] for p in running if p.poll() is not None]
    go.touch()
    return [p.wait() for p in running]


def test_real_processes_that_open_an_older_home_together_all_end_well(lake: Lake) -> None:
    assert processes(lake, "absorb", 3) == [0, 0, 0]
    with planted(WIDER, NOTES, NEWS):
        assert evolve.different(lake) == []
        assert len(ledger(lake)) == 6
        assert [r["user_id"] for r in rows_of(lake, LIST.name)] == ["a", "b", "c"]


KINDS = ("STRING", "INT", "BIGINT", "FLOAT", "DOUBLE", "BOOLEAN", "BINARY", "DATE", "TIMESTAMP", "ARRAY<STRING>", "ARRAY<BIGINT>", "ARRAY<FLOAT>", "ARRAY<DOUBLE>")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)), max_size=4),
       st.dictionaries(st.sampled_from(["id", "n", "said"]), st.text(max_size=8), max_size=3), st.booleans())  # fmt: skip
def test_any_addition_of_any_type_leaves_every_row_as_it_was(made: Path, tmp_path_factory: pytest.TempPathFactory,
                                                            new: list[tuple[str, str]], told: dict[str, str], check: bool) -> None:  # fmt: skip
    root = tmp_path_factory.mktemp("any") / "lake"
    shutil.copytree(made / "lake", root)
    lake = Lake(root)
    added = [Column(f"c{i}", kind, words, nullable=True) for i, (kind, words) in enumerate(new)]
    table = altered(NOTES, *added, **{n: column(NOTES, n, comment=words) for n, words in told.items()})
    table = replace(table, checks=NOTES.checks | ({"n_not_low": "n > -5"} if check else {}))
    with planted(LIST, NOTES):
        before = rows_of(lake, NOTES.name)
        version = lake.version(NOTES.name)
    with planted(LIST, table):
        found = evolve.absorb(lake, NOW)
        assert evolve.different(lake) == []
        want = [r | {c.name: None for c in added} for r in before]
        assert rows_of(lake, NOTES.name) == rows_of(lake, NOTES.name, version) == want
        assert len(ledger(lake)) == sum(d.change != "properties" for d in found) == len(added) + check + sum(
            words != column(NOTES, n).comment for n, words in told.items())  # fmt: skip


# a key's name, a type, a column that goes, one that may be null, beside what adds
MOVED = altered(LIST, Column("reason", "STRING", "why", nullable=True), user_id=column(LIST, "user_id", name="customer", comment="whose list"),
                rank=column(LIST, "rank", type="BIGINT"), score=column(LIST, "score", type="DOUBLE", nullable=True), note=None)  # fmt: skip
MOVED = replace(MOVED, key=("run_date", "customer", "rank"), checks={"rank_from_1": "rank >= 1", "user_named": "customer <> ''"})
DECLARED = (
    Change("rename", LIST.name, "who", "user_id", "0.2.0"),
    Change("rename", LIST.name, "customer", "who", "0.3.0"),
    Change("widen", LIST.name, "rank", "INT", "0.3.0"),
    Change("widen", LIST.name, "score", "FLOAT", "0.3.0"),
    Change("relax", LIST.name, "score", "NOT NULL", "0.3.0"),
    Change("drop", LIST.name, "note", "STRING", "0.3.0"),
)
MIGRATED = [{"run_date": r["run_date"], "customer": r["user_id"], "rank": r["rank"], "score": r["score"], "run_id": "r", "reason": None} for r in ROWS]
ON_RECORD = [
    ("gold.recommendations", "check_added", "user_named", "", "customer <> ''"), ("gold.recommendations", "column_dropped", "note", "STRING", ""),
    ("gold.recommendations", "column_relaxed", "score", "NOT NULL", ""), ("gold.recommendations", "column_renamed", "customer", "who", "customer"),
    ("gold.recommendations", "column_renamed", "who", "user_id", "who"), ("gold.recommendations", "column_widened", "rank", "INT", "BIGINT"),
    ("gold.recommendations", "column_widened", "score", "FLOAT", "DOUBLE"),
]  # fmt: skip


def test_declared_changes_are_made_in_one_commit_and_every_older_version_stays_readable(lake: Lake, spark: Any) -> None:
    old = lake.version(LIST.name)
    with planted(MOVED, NOTES, declared=DECLARED):
        with pytest.raises(InputError, match="mmrec migrate"):
            evolve.absorb(lake, NOW)
        [planned] = migrate.plan(lake)
        assert planned.steps == DECLARED
        assert planned.left == ()
        migrate.migrate(lake, NOW)
        history = DeltaTable(str(lake.path(LIST.name))).history()
        rewrites = [h for h in history if h["operation"] == "WRITE" and h["version"] > old]
        assert len(rewrites) == 1
        copies = {p.name[:27] for p in lake.path(LIST.name).glob("stage-migrate-*/_entry-*.json")}
        assert copies == {f"_entry-{rewrites[0]['version']:020}"}
        assert evolve.different(lake) == []
        assert ledger(lake) == sorted(ON_RECORD)
        versions = lake.versions()
        assert migrate.migrate(lake, NOW) == []
        assert evolve.absorb(lake, NOW) == []
        assert lake.versions() == versions
        handle = lake.handle(LIST.name)
        assert [f.name for f in handle.schema().fields if f.nullable] == ["score", "reason"]
        assert handle.metadata().configuration["mmrec.key"] == "run_date, customer, rank"
        assert "customer" in handle.metadata().configuration["delta.constraints.user_named"]
        assert lake.run_dates() == [D1, D2]
        assert not [p for p in listing(lake, LIST.name) if p.endswith("_delta_log")]
        for version in (old, lake.version(LIST.name)):
            assert rows_of(lake, LIST.name, version) == MIGRATED
            assert lake.day(LIST.name, D2, version, columns=["customer"])["customer"].to_pylist() == ["c"]
            assert lake.arrow(LIST.name, version, columns=["rank"], where=ds.field("customer") == "b")["rank"].to_pylist() == [2]
            framed = lake.frame(spark, LIST.name, version).select(*MOVED.arrow.names).toArrow()
            assert framed.schema.field("rank").type == pa.int64()
            assert sorted(framed.to_pylist(), key=lambda r: r["customer"]) == MIGRATED
            assert sql.query(lake, "select * from recommendations order by customer", {LIST.name: version}).to_pylist() == MIGRATED
        # and a night goes on
        put(lake, LIST.name, [{"run_date": D2, "customer": "z", "rank": 2**40, "score": None, "run_id": "s", "reason": "why"}], D2)
        assert [r["customer"] for r in rows_of(lake, LIST.name)] == ["a", "b", "z"]
        with pytest.raises(QualityError, match="rank_from_1"):
            put(lake, LIST.name, [{"run_date": D2, "customer": "z", "rank": 0, "score": None, "run_id": "s", "reason": None}], D2)


def test_a_table_without_rows_or_partitions_migrates_as_well(lake: Lake, spark: Any) -> None:
    wide = altered(NOTES, n=column(NOTES, "n", type="BIGINT"), said=column(NOTES, "said", name="words"))
    declared = (Change("widen", NOTES.name, "n", "INT", "0.2.0"), Change("rename", NOTES.name, "words", "said", "0.2.0"))
    bare = Lake(lake.root.with_name("bare"))
    old = versions_of(lake)[NOTES.name.replace(".", "/")]
    with planted(LIST, NOTES):
        bare.create_all()
    with planted(LIST, wide, declared=declared):
        for one, rows in ((lake, SAID), (bare, [])):
            migrate.migrate(one, NOW)
            assert evolve.different(one) == []
            want = [{"id": r["id"], "n": r["n"], "words": r["said"]} for r in rows]
            assert rows_of(one, NOTES.name) == want
            assert rows_of(one, NOTES.name, old if rows else 0) == want
            frame = one.frame(spark, NOTES.name, old if rows else 0).select("id", "n", "words").toArrow()
            assert sorted(frame.to_pylist(), key=lambda r: r["id"]) == want
            put(one, NOTES.name, [{"id": "big", "n": 2**40, "words": None}])
            assert len(rows_of(one, NOTES.name)) == len(rows) + 1


def test_a_check_that_is_kept_no_more_costs_no_rewriting(lake: Lake) -> None:
    loose = replace(LIST, checks={"user_named": "user_id <> ''"})
    before = listing(lake, LIST.name)
    with planted(loose, NOTES, declared=(Change("relax", LIST.name, "rank_from_1", "rank >= 1", "0.2.0"),)):
        migrate.migrate(lake, NOW)
        assert evolve.different(lake) == []
        assert ledger(lake) == [("gold.recommendations", "check_dropped", "rank_from_1", "rank >= 1", "")]
        assert listing(lake, LIST.name) == before
        assert migrate.migrate(lake, NOW) == []


@pytest.mark.parametrize("dies_at", ["stage", "audit", "seal", "commit"])
def test_a_migration_that_fails_before_its_commit_leaves_the_old_table_and_no_files(lake: Lake, dies_at: str) -> None:
    before, calls = listing(lake, LIST.name), []

    def dying(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 or dies_at == "commit":  # the first day of two is staged by then
            raise KeyboardInterrupt
        return real(*args, **more)

    where: tuple[Any, str] = {"stage": (migrate, "stage"), "audit": (migrate, "audit"), "seal": (staging.Stage, "seal"),
                              "commit": (DeltaTable, "create_write_transaction")}[dies_at]  # fmt: skip
    real = getattr(*where)
    unrecorded = patch.object(evolve, "record", lambda *a, **k: 0)  # what is recorded goes through the same doors
    with planted(MOVED, NOTES, declared=DECLARED), unrecorded, patch.object(*where, dying), pytest.raises(KeyboardInterrupt):
        migrate.migrate(lake, NOW)
    assert listing(lake, LIST.name) == before
    with planted(LIST, NOTES):
        assert rows_of(lake, LIST.name) == ROWS
    with planted(MOVED, NOTES, declared=DECLARED):
        migrate.migrate(lake, NOW)
        assert rows_of(lake, LIST.name) == MIGRATED
        assert ledger(lake) == sorted(ON_RECORD)


def test_a_migration_that_is_killed_leaves_the_old_table_and_is_done_by_the_next(lake: Lake) -> None:
    assert processes(lake, "killed", 1) == [-signal.SIGKILL]
    with planted(replace(LIST, checks={"rank_from_1": "rank >= 1"}), NOTES):
        assert rows_of(lake, LIST.name) == ROWS
    assert processes(lake, "migrate", 2) == [0, 0]  # two at once: one does it
    with planted(MOVED, NOTES, declared=DECLARED):
        assert rows_of(lake, LIST.name) == MIGRATED
        assert ledger(lake) == sorted(ON_RECORD)
        assert sum(h["operation"] == "WRITE" for h in DeltaTable(str(lake.path(LIST.name))).history()) == 3


def test_whoever_writes_during_a_migration_keeps_his_rows_and_whoever_planned_before_it_is_refused(lake: Lake) -> None:
    with planted(LIST, NOTES):
        planned = {day: commit.fence(lake, LIST.name, day) for day in (D1, D2)}
    real, calls = migrate.audit, []

    def overtaken(*args: Any, **more: Any) -> Any:
        if not calls:
            calls.append(1)
            with planted(LIST, NOTES):  # an older mmrec publishes a new day
                put(Lake(lake.root), LIST.name, slates(D3, "late"), D3)
        return real(*args, **more)

    with planted(MOVED, NOTES, declared=DECLARED):
        with patch.object(migrate, "audit", overtaken):
            migrate.migrate(lake, NOW)
        assert [r["customer"] for r in rows_of(lake, LIST.name)] == ["a", "b", "c", "late"]
        assert evolve.different(lake) == []
        row = [{"run_date": D1, "customer": "n", "rank": 1, "score": 1.0, "run_id": "n", "reason": None}]
        for day in (D1, D2):
            with pytest.raises(TransientError, match="committed first"):
                put(lake, LIST.name, [row[0] | {"run_date": day}], day, pinned=planned[day])
        put(lake, LIST.name, row, D1)


def test_one_difference_that_is_not_bridged_keeps_every_table_as_it_is(lake: Lake) -> None:
    versions = versions_of(lake)
    with planted(MOVED, altered(NOTES, n=None), declared=DECLARED):
        with pytest.raises(InputError, match=r"ops\.notes\.n: was INT NOT NULL, is not there") as stopped:
            migrate.migrate(lake, NOW)
        assert "customer" not in str(stopped.value)
        assert versions_of(lake) == versions


def test_a_change_that_is_declared_for_no_table_or_made_long_ago_does_nothing(lake: Lake) -> None:
    versions = versions_of(lake)
    past = (Change("rename", LIST.name, "rank", "place", "0.0.1"), Change("widen", LIST.name, "score", "HALF", "0.0.1"),
            Change("drop", NOTES.name, "gone", "STRING", "0.0.1"), Change("drop", NOTES.name, "n", "INT", "0.0.1"))  # fmt: skip
    with planted(LIST, NOTES, declared=past):
        assert migrate.plan(lake) == []
        assert migrate.migrate(lake, NOW) == []
        assert versions_of(lake) == versions


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(["rename", "widen", "drop", "add"]), st.integers(1, 4),
       st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5), st.integers(0, 2**31 - 1), st.none() | st.text(max_size=3)),
                max_size=6, unique_by=lambda r: r[0]))  # fmt: skip
def test_any_declared_changes_give_the_rows_that_a_naive_rewrite_gives(tmp_path_factory: pytest.TempPathFactory, order: list[str], n: int,
                                                                      rows: list[tuple[str, int, str | None]]) -> None:  # fmt: skip
    lake = Lake(tmp_path_factory.mktemp("any") / "lake")
    with planted(NOTES):
        lake.create_all()
        want = [dict(zip(("id", "n", "said"), r, strict=True)) for r in rows]
        if rows:
            put(lake, NOTES.name, want)
        first = lake.version(NOTES.name)
    table, declared = NOTES, []
    for step in order[:n]:
        if step == "rename":
            table = replace(altered(table, id=column(table, "id", name="key")), key=("key",))
            declared.append(Change("rename", NOTES.name, "key", "id", "0.2.0"))
            want = [{"key" if k == "id" else k: v for k, v in r.items()} for r in want]
        elif step == "widen":
            table = altered(table, n=column(table, "n", type="BIGINT"))
            declared.append(Change("widen", NOTES.name, "n", "INT", "0.2.0"))
        elif step == "drop":
            table = altered(table, said=None)
            declared.append(Change("drop", NOTES.name, "said", "STRING", "0.2.0"))
            want = [{k: v for k, v in r.items() if k != "said"} for r in want]
        else:
            table = altered(table, Column("more", "ARRAY<BIGINT>", "more", nullable=True))
            want = [r | {"more": None} for r in want]
    with planted(table, declared=tuple(declared)):
        migrate.migrate(lake, NOW)
        assert evolve.different(lake) == []
        ordered = sorted(want, key=lambda r: str(r[table.key[0]]))
        assert rows_of(lake, NOTES.name) == rows_of(lake, NOTES.name, first) == ordered


def test_the_command_shows_what_it_would_do_does_it_and_then_has_nothing_to_do(home: Path) -> None:
    words = ["migrate", "--home", str(home)]
    with planted(MOVED, NOTES, declared=DECLARED):
        versions = Lake(home / "lake").versions()
        shown = CliRunner().invoke(cli.app, [*words, "--json"])
        told = json.loads(shown.stdout)
        assert (shown.exit_code, told["applied"]) == (0, False)
        assert [(t["table"], [s["kind"] for s in t["steps"]], t["left"]) for t in told["tables"]] == [
            (LIST.name, ["rename", "rename", "widen", "widen", "relax", "drop"], [])]  # fmt: skip
        text = CliRunner().invoke(cli.app, words, env={"COLUMNS": "400"}).stdout
        for part in ("gold.recommendations", "customer", "rename, declared in 0.3.0", f"mmrec migrate --apply --home {home}"):
            assert part in text
        assert Lake(home / "lake").versions() == versions
        done = CliRunner().invoke(cli.app, [*words, "--apply", "--json"])
        assert (done.exit_code, json.loads(done.stdout)["applied"]) == (0, True)
        assert rows_of(Lake(home / "lake"), LIST.name) == MIGRATED
        again = CliRunner().invoke(cli.app, [*words, "--apply", "--json"])
        assert (again.exit_code, json.loads(again.stdout)["tables"]) == (0, [])
        assert "every table is what this mmrec says it is" in CliRunner().invoke(cli.app, words).stdout


def test_the_command_names_what_nothing_bridges_and_exits_with_two(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(cli.common, "leave", leave)
    with planted(altered(LIST, note=None), NOTES):
        shown = CliRunner().invoke(cli.app, ["migrate", "--home", str(home), "--json"])
        assert shown.exit_code == 2
        assert [(d["column"], d["was"], d["now"]) for d in json.loads(shown.stdout)["tables"][0]["left"]] == [("note", "STRING", "")]


def test_a_deprecated_column_says_so_wherever_it_is_shown_and_is_still_written(lake: Lake) -> None:
    old = altered(LIST, note=column(LIST, "note", deprecated="2026-03-01: use run_id instead"))
    with planted(old, NOTES):
        assert [d.change for d in evolve.absorb(lake, NOW)] == ["comment_changed"]
        comments = {f.name: f.metadata["comment"] for f in lake.handle(LIST.name).schema().fields}
        assert comments["note"] == "words (deprecated since 2026-03-01: use run_id instead)"
        with patch.object(docs, "TABLES", schema.TABLES):
            assert "| `note` | STRING, may be null | words (deprecated since 2026-03-01: use run_id instead) |" in docs.dictionary()
        told = json.loads(CliRunner().invoke(cli.app, ["tables", LIST.name, "--json"]).stdout)
        assert {c["name"]: c["deprecated"] for c in told["columns"] if c["deprecated"]} == {"note": "2026-03-01: use run_id instead"}
        assert "deprecated since 2026-03-01" in CliRunner().invoke(cli.app, ["tables", LIST.name], env={"COLUMNS": "160"}).stdout
        with pytest.raises(InputError, match="note"):
            commit.write(lake, LIST.name, pa.Table.from_pylist(slates(D3, "x")).drop_columns(["note"]), run_id="x", pinned=0, partition=D3)
        put(lake, LIST.name, slates(D3, "x", "y"), D3)
        assert lake.day(LIST.name, D3)["note"].to_pylist() == [None, "y"]


def test_a_plan_of_many_tables_reads_each_of_them_once_and_alters_none(lake: Lake) -> None:
    """Opening a home that is up to date reads the newest schema of each table, and nothing else of it."""
    opened: Counter[str] = Counter()
    real = Lake.handle

    def counted(self: Lake, name: str, version: int | None = None) -> DeltaTable:
        opened[name] += 1
        return real(self, name, version)

    with planted(LIST, NOTES):
        evolve.absorb(lake, NOW)
        with patch.object(Lake, "handle", counted), patch.object(Lake, "dataset", lambda *a: pytest.fail("rows were read")):
            assert evolve.absorb(lake, NOW) == []
        assert set(opened.values()) == {1}
