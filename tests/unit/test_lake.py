"""The lake's promises with planted faults: what the audit refuses, who wins a commit, what a hash, a manifest and a view mean."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmrec import schema
from mmrec.errors import InputError, QualityError, TransientError
from mmrec.lake import audit, commit, sql, stage
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake

LIST, USERS = "gold.recommendations", "silver.users"
D1, D2, D3 = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PLAIN: dict[str, Any] = {"STRING": "x", "INT": 1, "BIGINT": 1, "FLOAT": 1.0, "DOUBLE": 1.0, "BOOLEAN": False,
                         "TIMESTAMP": NOON, "DATE": D1, "BINARY": b""}  # fmt: skip


def rows_of(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Arrow rows; what is left out is null, or a plain value where null is not allowed."""
    t = schema.table(name)
    nullable = pa.schema([f.with_nullable(True) for f in t.arrow])
    return pa.Table.from_pylist([{c.name: r.get(c.name, None if c.nullable else PLAIN.get(c.type, [])) for c in t.columns} for r in rows], nullable)


def slates(*users: str | None, day: date | None = D1, **more: Any) -> pa.Table:
    return rows_of(LIST, [{"user_id": u, "run_date": day, "arm": "main"} | more for u in users])


def people(*hashes: str, **more: Any) -> pa.Table:
    return rows_of(USERS, [{"row_hash": h} | more for h in hashes])


def put(lake: Lake, rows: Any, run_id: str = "r", day: date | None = D1, name: str = LIST, **more: Any) -> commit.Committed:
    pinned = more.pop("pinned", commit.fence(lake, name, day))
    return commit.write(lake, name, rows, run_id=run_id, pinned=pinned, partition=day, **more)


def by_hand(lake: Lake, *files: pa.Table, name: str = LIST, day: date | None = D1) -> stage.Stage:
    """A stage no door would write; a partition's column is not in its files."""
    part = schema.table(name).partition
    folder, listed = lake.path(name) / "stage-hand-0", []
    for n, rows in enumerate(files):
        path = folder / f"{n}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows.drop_columns([part]) if part in rows.column_names else rows, path)
        listed.append(stage.StagedFile(path.name, path.stat().st_size, {part: str(day)} if part else {}, "{}", 0))
    return stage.Stage(name, folder, tuple(listed))


def state(lake: Lake) -> dict[str, Any]:
    """What readers see: version and rows of every table."""
    return {n: (v, Counter(map(repr, lake.arrow(n).to_pylist()))) for n, v in lake.versions().items()}


def on_disk(lake: Lake) -> set[str]:
    return {str(p.relative_to(lake.root)) for p in lake.root.rglob("*.parquet")} | {str(p.relative_to(lake.root)) for p in lake.root.rglob("stage-*")}


def users_of(lake: Lake, day: date = D1) -> list[str]:
    return sorted(lake.day(LIST, day)["user_id"].to_pylist())


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(tmp_path / "lake")
    for name in (LIST, USERS):
        made.create(name)
    return made


def changed(rows: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.column_names.index(column), column, values)


HUNDRED = {"previous_rows": 100, "min_share": 0.5}
PLANTED: list[tuple[str, str, str, Callable[[], list[pa.Table]], dict[str, Any]]] = [
    *(("check", "a rank of 0", door, lambda: [slates("a"), slates("b", rank=0)], {}) for door in ("engine", "arrow", "hand")),
    *(("check", "a score that is NaN", door, lambda: [slates("a", score=math.nan)], {}) for door in ("engine", "arrow", "hand")),
    *(("null", "a key without its user", door, lambda: [slates("a"), slates(None)], {}) for door in ("engine", "hand")),
    *(("wrong_partition", "a row of the day after", door, lambda: [slates("a"), slates("b", day=D2)], {}) for door in ("engine", "arrow")),
    ("wrong_partition", "a row of no day", "engine", lambda: [slates("a"), slates("b", day=None)], {}),
    ("wrong_type", "a rank of 64 bits", "hand", lambda: [slates("a"), changed(slates("b"), "rank", pa.array([1]))], {}),
    ("wrong_type", "a score in text", "hand", lambda: [changed(slates("a"), "score", pa.array(["1.0"]))], {}),
    ("missing_column", "no reason", "hand", lambda: [slates("a"), slates("b").drop_columns(["reason"])], {}),
    *(("no_files", "an empty list", door, lambda: [slates("a").slice(0, 0)], {}) for door in ("engine", "arrow")),
    ("empty", "a file without rows", "hand", lambda: [slates("a").slice(0, 0)], {}),
    *(("collapsed", "one row after a hundred", door, lambda: [slates("a")], HUNDRED) for door in ("engine", "arrow", "hand")),
    *(("duplicate_key", "a place given twice", door, lambda: [slates("a", item_id="i"), slates("a", item_id="j")], {}) for door in ("engine", "arrow", "hand")),
]  # fmt: skip


@pytest.mark.parametrize(("refusal", "what", "door", "make", "more"), PLANTED, ids=[f"{p[1]}-{p[2]}" for p in PLANTED])
def test_a_stage_that_breaks_the_contract_is_refused_by_name_and_changes_nothing(lake: Lake, spark: Any, refusal: str, what: str, door: str, make: Callable[[], list[pa.Table]], more: dict[str, Any]) -> None:
    put(lake, slates("old"))
    before, files, parts = state(lake), on_disk(lake), make()
    attempt = {
        "hand": lambda: audit.audit(lake, by_hand(lake, *parts), partition=str(D1), **more),
        "arrow": lambda: put(lake, pa.concat_tables(parts), "bad", **more),
        "engine": lambda: put(lake, spark.createDataFrame(pa.concat_tables(parts), schema.table(LIST).ddl), "bad", **more),
    }[door]
    with pytest.raises(QualityError) as refused:
        attempt()
    assert set(refused.value.report["refused"]) == {refusal}
    assert refusal in str(refused.value)
    assert str(D1) in refused.value.where
    assert state(lake) == before
    if door != "hand":
        assert on_disk(lake) == files


def test_a_listed_file_that_is_not_there_is_refused(lake: Lake) -> None:
    planted = by_hand(lake, slates("a"), slates("b"))
    (planted.folder / "1.parquet").unlink()
    with pytest.raises(QualityError) as refused:
        audit.audit(lake, planted, partition=str(D1))
    assert set(refused.value.report["refused"]) == {"missing_file"}
    assert "1.parquet" in refused.value.report["refused"]["missing_file"]


@pytest.mark.parametrize("left", [0, 200])
def test_a_listed_file_that_was_torn_is_refused(lake: Lake, left: int) -> None:
    planted = by_hand(lake, slates("a"), slates("b"))
    os.truncate(planted.folder / "1.parquet", left)
    with pytest.raises(QualityError) as refused:
        audit.audit(lake, planted, partition=str(D1))
    assert set(refused.value.report["refused"]) == {"unreadable_file"}
    assert f"1.parquet, {left} bytes" in refused.value.report["refused"]["unreadable_file"]


@pytest.mark.parametrize("door", ["engine", "arrow"])
def test_a_key_that_the_table_holds_already_is_not_appended_again(lake: Lake, spark: Any, door: str) -> None:
    for n, day in enumerate(("one", "two")):
        put(lake, people(f"h{n}"), day, None, USERS)
    before, files, rows = state(lake), on_disk(lake), people("h9", "h0")
    with pytest.raises(QualityError) as refused:
        put(lake, spark.createDataFrame(rows) if door == "engine" else rows, "bad", None, USERS)
    assert set(refused.value.report["refused"]) == {"existing_key"}
    assert "h0" in refused.value.report["refused"]["existing_key"]
    assert (state(lake), on_disk(lake)) == (before, files)


def test_a_key_that_came_in_since_the_fence_was_pinned_is_the_other_writers_win_not_bad_data(lake: Lake) -> None:
    pinned = commit.fence(lake, USERS)
    put(lake, people("h"), "faster", None, USERS)
    before, files = state(lake), on_disk(lake)
    with pytest.raises(TransientError, match="fenced"):
        put(lake, people("h", "i"), "slower", None, USERS, pinned=pinned)
    # a stage that is bad by itself stays bad, whoever was faster
    with pytest.raises(QualityError) as refused:
        put(lake, people("h", "i", "i"), "bad", None, USERS, pinned=pinned)
    assert set(refused.value.report["refused"]) == {"existing_key", "duplicate_key"}
    assert (state(lake), on_disk(lake)) == (before, files)


def test_a_file_that_names_another_day_than_its_log_is_refused(lake: Lake) -> None:
    # readers that trust the file and readers that trust the log would see different days
    planted = by_hand(lake, slates("a"))
    pq.write_table(slates("a", day=D2), planted.folder / "0.parquet")
    with pytest.raises(QualityError) as refused:
        audit.audit(lake, planted, partition=str(D1))
    assert set(refused.value.report["refused"]) == {"wrong_partition"}


def test_every_broken_promise_of_a_stage_is_named_at_once(lake: Lake) -> None:
    bad = by_hand(lake, slates("a", "a", rank=0, reason=None))
    with pytest.raises(QualityError) as refused:
        audit.audit(lake, bad, partition=str(D1), previous_rows=9, min_share=0.5)
    assert set(refused.value.report["refused"]) == {"check", "null", "duplicate_key", "collapsed"}
    assert "reason in 2 rows" in refused.value.report["refused"]["null"]


ROW = st.fixed_dictionaries({"user_id": st.sampled_from(["a", "b", "c", "", None]), "rank": st.sampled_from([1, 2, 3, 4, 0]),
                             "score": st.sampled_from([0.5, -1.0, math.inf, math.nan]), "propensity": st.sampled_from([1.0, 0.25, 1.5]),
                             "source": st.sampled_from(["model", None])})  # fmt: skip
NAMED = {"user_named": lambda r: r["user_id"] == "", "rank_from_1": lambda r: r["rank"] < 1, "score_is_number": lambda r: math.isnan(r["score"]),
         "propensity_is_share": lambda r: not 0 < r["propensity"] <= 1}  # fmt: skip


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = Lake(tmp_path_factory.mktemp("idle"))
    made.create(LIST)
    return made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, min_size=1, max_size=5), st.integers(0, 5))
@example([{"user_id": "a", "rank": 1, "score": 0.5, "propensity": 1.0, "source": "model"}], 0)
def test_the_audit_finds_what_a_naive_reading_of_the_schema_finds(idle: Lake, rows: list[dict[str, Any]], cut: int) -> None:
    whole = rows_of(LIST, rows)
    want: dict[str, set[str]] = {"null": {c for c in ("user_id", "source") if any(r[c] is None for r in rows)},
                                 "check": {c for c, broken in NAMED.items() if any(broken(r) for r in rows)},
                                 "duplicate_key": {"key"} if len({(r["user_id"], r["rank"]) for r in rows}) < len(rows) else set()}  # fmt: skip
    want = {k: v for k, v in want.items() if v}
    planted = by_hand(idle, whole.slice(0, cut), whole.slice(cut))
    try:
        assert audit.audit(idle, planted, partition=str(D1)).rows == len(rows)
        found = {}
    except QualityError as error:
        found = error.report["refused"]
    finally:
        planted.discard()
    assert set(found) == set(want)
    assert {c for c in NAMED if c in found.get("check", "")} == want.get("check", set())
    assert {c for c in ("user_id", "source") if c in found.get("null", "")} == want.get("null", set())


NO_FIT = {"a text for a number": ("rank", pa.array(["x"])), "a fraction": ("rank", pa.array([1.5])), "too great": ("rank", pa.array([2**31])),
          "a list for a text": ("reason", pa.array([["a"]])), "no user": ("user_id", pa.array([None], pa.string()))}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["table", "batches"])
@pytest.mark.parametrize("what", [*NO_FIT, "no such column"])
def test_arrow_rows_that_do_not_fit_are_an_input_error_that_leaves_no_file(lake: Lake, what: str, stream: bool) -> None:
    bad = changed(slates("b"), *NO_FIT[what]) if what in NO_FIT else slates("b").drop_columns(["reason"])
    files = on_disk(lake)
    with pytest.raises(InputError) as refused:
        stage.stage_arrow(lake, LIST, iter([*slates("a").to_batches(), *bad.to_batches()]) if stream else bad, "bad")
    assert refused.value.where == LIST
    assert on_disk(lake) == files


@pytest.mark.parametrize("kind", [OSError, QualityError, TransientError, KeyboardInterrupt])
def test_what_a_stream_of_rows_raises_itself_keeps_its_kind_and_leaves_no_file(lake: Lake, kind: type[BaseException]) -> None:
    # the kind decides whether a person is called or the step tried again
    def broken() -> Iterator[pa.RecordBatch]:
        yield from slates("a").to_batches()
        raise kind("the source stopped")

    before, files = state(lake), on_disk(lake)
    with pytest.raises(kind, match="the source stopped"):
        put(lake, broken(), "bad")
    assert (state(lake), on_disk(lake)) == (before, files)


@pytest.mark.parametrize("since", [1, 3])
def test_a_zombie_that_wakes_after_its_successors_is_fenced_and_changes_nothing(lake: Lake, since: int) -> None:
    planned = commit.fence(lake, LIST, D1)
    zombie = audit.audit(lake, stage.stage_arrow(lake, LIST, slates("z"), "zombie"), partition=str(D1))
    for n in range(since):
        put(lake, slates(f"u{n}"), f"run{n}")
    before, files = state(lake), on_disk(lake)
    with pytest.raises(TransientError, match="fenced") as refused:
        commit.adopt(lake, zombie, run_id="zombie", pinned=planned, partition=D1, metadata={})
    assert refused.value.exit_code == 75
    zombie.stage.discard()
    with pytest.raises(TransientError):
        put(lake, slates("z"), "zombie", pinned=planned)
    assert state(lake) == before
    assert on_disk(lake) <= files
    assert users_of(lake) == [f"u{since - 1}"]


def test_a_retry_of_the_run_that_published_is_a_no_op(lake: Lake) -> None:
    first = put(lake, slates("a", "b", run_id="run"), "run", pinned=0)
    before, files = state(lake), on_disk(lake)
    again = put(lake, slates("a", "b", run_id="run"), "run", pinned=0)
    assert (first.changed, again.changed, again.rows, again.version) == (True, False, 2, first.version)
    assert (state(lake), on_disk(lake)) == (before, files)


def race(jobs: list[Callable[[], commit.Committed]]) -> list[commit.Committed | Exception]:
    gate, ends = threading.Barrier(len(jobs)), list[Any]([None] * len(jobs))

    def run(n: int) -> None:
        gate.wait()
        try:
            ends[n] = jobs[n]()
        except Exception as error:
            ends[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.mark.parametrize(("name", "day"), [(LIST, D1), (USERS, None)], ids=["replace_partition", "append_new"])
def test_of_three_writers_with_one_fence_exactly_one_wins(lake: Lake, name: str, day: date | None) -> None:
    for turn in range(8):
        pinned, before = commit.fence(lake, name, day), lake.arrow(name).num_rows
        who = [f"{turn}-{n}" for n in range(3)]
        ends = race([partial(put, lake, slates(w, run_id=w) if day else people(w), w, day, name, pinned=pinned) for w in who])
        won = [w for w, end in zip(who, ends, strict=True) if isinstance(end, commit.Committed)]
        assert len(won) == 1, ends
        assert sum(isinstance(end, TransientError) for end in ends) == 2, ends
        assert commit.fence(lake, name, day) == pinned + 1
        seen = lake.arrow(name)["user_id" if day else "row_hash"].to_pylist()
        assert set(seen) & set(who) == set(won)
        assert len(seen) == (1 if day else before + 1)
        assert len(list(lake.path(name).glob("stage-*"))) == pinned + 1, "a loser left its files"


@pytest.mark.parametrize("door", ["arrow", "engine"])
@pytest.mark.parametrize(("name", "day"), [(LIST, D1), (USERS, None)], ids=["replace_partition", "append_new"])
def test_an_attempt_that_its_own_successor_overtakes_takes_none_of_its_files_away(lake: Lake, spark: Any, monkeypatch: pytest.MonkeyPatch, name: str, day: date | None, door: str) -> None:
    # the zombie and its successor carry one run_id: what either removes must be its own
    rows = slates("a", run_id="run") if day else people("h")
    data = spark.createDataFrame(rows, schema.table(name).ddl) if door == "engine" else rows
    named, overtaken = stage._fresh, list[commit.Committed]()

    def slow(*args: Any) -> Path:
        folder = named(*args)
        monkeypatch.setattr(stage, "_fresh", named)
        overtaken.append(put(lake, data, "run", day, name, pinned=0))
        return folder

    monkeypatch.setattr(stage, "_fresh", slow)
    with suppress(TransientError):
        assert put(lake, data, "run", day, name, pinned=0) == replace(overtaken[0], changed=False)
    assert [done.changed for done in overtaken] == [True]
    assert Counter(map(repr, lake.arrow(name).to_pylist())) == Counter(map(repr, rows.to_pylist()))
    assert len(list(lake.path(name).glob("stage-*"))) == 1


def test_writers_of_different_days_do_not_fence_each_other(lake: Lake) -> None:
    days = [D1, D2, D3]
    ends = race([partial(put, lake, slates(f"u{d.day}", day=d), f"r{d}", d, pinned=0) for d in days])
    assert [getattr(end, "changed", end) for end in ends] == [True, True, True]
    assert [users_of(lake, d) for d in days] == [["u1"], ["u2"], ["u3"]]


def test_replacing_a_day_leaves_the_others_alone_and_nothing_of_the_old_list(lake: Lake) -> None:
    for day in (D1, D2, D3):
        put(lake, slates("a", "b", "c", day=day), f"r{day}", day)
    before = lake.version(LIST)
    put(lake, slates("b", day=D2, item_id="new"), "again", D2)
    assert [users_of(lake, d) for d in (D1, D2, D3)] == [["a", "b", "c"], ["b"], ["a", "b", "c"]]
    assert lake.version(LIST) == before + 1
    assert lake.run_dates() == [D1, D2, D3]
    assert commit.published_run_id(lake, LIST, date(2020, 1, 1)) is None


@pytest.mark.parametrize("door", ["table", "batches", "engine"])
def test_appending_nothing_commits_nothing(lake: Lake, spark: Any, door: str) -> None:
    put(lake, people("h"), "r", None, USERS)
    before, files = state(lake), on_disk(lake)
    none: Any = {"table": people(), "batches": iter([]), "engine": spark.createDataFrame(people("h")).where("false")}[door]
    done = put(lake, none, "s", None, USERS)
    assert (done.changed, done.rows, done.version) == (False, 0, lake.version(USERS))
    assert (state(lake), on_disk(lake), commit.fence(lake, USERS)) == (before, files, 1)


@pytest.mark.parametrize("door", ["arrow", "engine"])
def test_staged_rows_are_invisible_until_they_are_adopted(lake: Lake, spark: Any, door: str) -> None:
    for name in ("silver.interactions", "silver.impressions"):
        lake.create(name)
    put(lake, slates("old"))
    before = state(lake)
    staged = stage.stage_arrow(lake, LIST, slates("new"), "s") if door == "arrow" else stage.stage_frame(lake, LIST, spark.createDataFrame(slates("new")), "s")

    def seen() -> list[list[str]]:
        return [users_of(lake), sql.query(lake, "select user_id from recommendations")["user_id"].to_pylist(),
                lake.frame(spark, LIST, lake.version(LIST)).toArrow()["user_id"].to_pylist()]  # fmt: skip

    assert state(lake) == before
    assert seen() == [["old"]] * 3
    checked = audit.audit(lake, staged, partition=str(D1))
    done = commit.adopt(lake, checked, run_id="s", pinned=1, partition=D1, metadata={"attempt": 2})
    assert seen() == [["new"]] * 3
    assert (lake.handle(LIST).history(1)[0]["run_id"], lake.handle(LIST).history(1)[0]["attempt"]) == ("s", "2")
    assert lake.day(LIST, D1, done.version - 1)["user_id"].to_pylist() == ["old"]


def test_a_fence_outlives_checkpoints_and_the_log_before_them(lake: Lake) -> None:
    for n in range(6):
        put(lake, slates("a", run_id=f"r{n}"), f"r{n}")
    put(lake, slates("a", day=D2), "other", D2)
    DeltaTable(str(lake.path(LIST))).create_checkpoint()
    logs = sorted((lake.path(LIST) / "_delta_log").glob("0*.json"))
    for log in logs[:-1]:
        log.unlink()
    assert (commit.fence(lake, LIST, D1), commit.fence(lake, LIST, D2), commit.fence(lake, LIST, D3)) == (6, 1, 0)
    assert not put(lake, slates("a", run_id="r5"), "r5", pinned=5).changed
    with pytest.raises(TransientError):
        put(lake, slates("z"), "zombie", pinned=5)
    assert put(lake, slates("b"), "r6", pinned=6).changed


class Blind(Lake):
    """The store stops answering once the commit is in."""

    def version(self, name: str) -> int:
        raise OSError("the store is gone")


@pytest.mark.parametrize("fault", ["store gone", "acknowledgement lost", "taken for a conflict", "interrupted"])
def test_a_fault_after_the_commit_never_takes_the_committed_files_away(lake: Lake, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    put(lake, slates("old", run_id="first"), "first")
    real = DeltaTable.create_write_transaction

    def lost(*args: Any, **more: Any) -> None:
        real(*args, **more)
        raise {"interrupted": KeyboardInterrupt(), "taken for a conflict": CommitFailedError("this version is there")}.get(fault, OSError("no answer"))

    with monkeypatch.context() as patched:
        if fault != "store gone":
            patched.setattr(DeltaTable, "create_write_transaction", lost)
        with suppress(OSError, TransientError, KeyboardInterrupt):
            put(Blind(lake.root) if fault == "store gone" else lake, slates("new", run_id="second"), "second", pinned=1)
    assert users_of(lake) == ["new"]
    assert not put(lake, slates("new", run_id="second"), "second", pinned=1).changed
    assert users_of(lake) == ["new"]


def test_a_commit_taken_for_a_conflict_keeps_its_version_readable_after_a_successor_replaced_it(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DeltaTable.create_write_transaction

    def lost(*args: Any, **more: Any) -> None:
        real(*args, **more)
        monkeypatch.setattr(DeltaTable, "create_write_transaction", real)
        put(lake, slates("newer", run_id="second"), "second", pinned=1)
        raise CommitFailedError("this version is there")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lost)
    with suppress(TransientError):
        put(lake, slates("new", run_id="first"), "first", pinned=0)
    assert users_of(lake) == ["newer"]
    assert lake.day(LIST, D1, lake.version(LIST) - 1)["user_id"].to_pylist() == ["new"]


MANIFEST = Manifest("2026-03-02", "2026-03-02T00:00:00+00:00", {"silver.items": 4, "silver.users": 5}, "7", "d" * 64, {"text": "e1"}, {"k": 10, "rules": [1, None]}, {LIST: 3}, "1.0")


@pytest.mark.parametrize("name", [f.name for f in fields(Manifest)])
def test_the_same_inputs_have_one_run_id_and_any_changed_field_has_another(name: str) -> None:
    value = getattr(MANIFEST, name)
    assert replace(MANIFEST, **{name: dict(reversed(value.items())) if isinstance(value, dict) else value}).run_id == MANIFEST.run_id
    if isinstance(value, list):
        others: list[Any] = [["a"], ["a", "b"]]
    else:
        others = [value + "0"] if isinstance(value, str) else [{}, value | {"new": 1}, {k: 99 for k in value}]
    ids = {replace(MANIFEST, **{name: other}).run_id for other in others} | {MANIFEST.run_id}
    assert len(ids) == len(others) + 1


@given(st.dictionaries(st.text(max_size=4), st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda c: st.lists(c, max_size=3), max_leaves=5), max_size=4), st.dictionaries(st.text(max_size=4), st.integers(0, 2**40), max_size=3))
def test_a_manifest_comes_back_from_its_json_the_same(config: dict[str, Any], fences: dict[str, int]) -> None:
    made = replace(MANIFEST, config=config, fences=fences)
    back = Manifest.from_json(made.to_json())
    assert (back, back.run_id, back.day, back.moment) == (made, made.run_id, D2, datetime(2026, 3, 2, tzinfo=UTC))


def test_a_manifest_is_saved_whole_under_its_run_id_and_anything_else_is_an_input_error(tmp_path: Path) -> None:
    assert MANIFEST.save(tmp_path) == MANIFEST.save(tmp_path) == tmp_path / MANIFEST.run_id / "manifest.json"
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["manifest.json"]
    assert Manifest.from_json((tmp_path / MANIFEST.run_id / "manifest.json").read_text()) == MANIFEST
    whole = json.loads(MANIFEST.to_json())
    for text in ("", "[]", "null", "{}", MANIFEST.to_json()[:-1], json.dumps(whole | {"now": 1}), json.dumps({k: v for k, v in whole.items() if k != "fences"})):
        with pytest.raises(InputError, match="manifest"):
            Manifest.from_json(text)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = Lake(tmp_path_factory.mktemp("shop"))
    made.create_all()
    return made


def test_a_read_at_a_pinned_version_is_the_same_after_later_commits(lake: Lake, spark: Any) -> None:
    for name in ("silver.interactions", "silver.impressions"):
        lake.create(name)
    put(lake, slates("a"), "one")
    pinned = lake.versions()
    put(lake, slates("b"), "two")
    put(lake, slates("c", day=D2), "three", D2)
    assert sql.query(lake, "select user_id from recommendations", pinned).to_pylist() == [{"user_id": "a"}]
    assert lake.frame(spark, LIST, pinned[LIST]).toArrow()["user_id"].to_pylist() == ["a"]
    assert [b["user_id"].to_pylist() for b in lake.batches(LIST, pinned[LIST], columns=["user_id"])] == [["a"]]
    assert lake.arrow(LIST, pinned[LIST])["user_id"].to_pylist() == ["a"]
    assert sql.query(lake, "select user_id from recommendations order by 1")["user_id"].to_pylist() == ["b", "c"]


def test_a_manifests_own_versions_are_enough_for_a_query(shop: Lake) -> None:
    assert sql.query(shop, "select count(*) n from users", {USERS: shop.version(USERS)}).to_pylist() == [{"n": 0}]
    # a pin on nothing is not a pin on whatever is there now
    with pytest.raises(InputError, match="users"):
        sql.query(shop, "select * from users", {})


def test_the_latest_list_is_the_greatest_run_date_whatever_was_committed_last(shop: Lake) -> None:
    assert sql.query(shop, "select * from latest_recommendations").num_rows == 0
    for day in (D2, D3, D1):
        put(shop, slates("a", "b", day=day), f"r{day}", day)
    assert sql.query(shop, "select distinct run_date d from latest_recommendations").to_pylist() == [{"d": D3}]


def test_what_followed_a_showing_is_the_first_interaction_in_the_day_after_it(shop: Lake) -> None:
    us, day = timedelta(microseconds=1), timedelta(hours=24)
    when = {"before": [(-us, "view")], "at once": [(timedelta(0), "view")], "last": [(day - us, "buy")], "too late": [(day, "buy")],
            "first": [(2 * us, "view"), (us, "click"), (-us, "buy")], "tie": [(us, "view"), (us, "click")], "never": []}  # fmt: skip
    events = [{"user_id": u, "item_id": "i", "event_ts": NOON + d, "event_type": e} for u, all_ in when.items() for d, e in all_]
    events += [{"user_id": "never", "item_id": "another", "event_ts": NOON}, {"user_id": "nobody", "item_id": "i", "event_ts": NOON}]
    put(shop, rows_of("silver.interactions", [r | {"row_hash": str(n)} for n, r in enumerate(events)]), "r", None, "silver.interactions")
    shown = [{"user_id": u, "item_id": "i", "shown_at": NOON, "row_hash": u} for u in when]
    put(shop, rows_of("silver.impressions", shown), "r", None, "silver.impressions")
    found = {r["user_id"]: (r["followed_by"], r["followed_at"]) for r in sql.query(shop, "select * from impression_outcomes").to_pylist()}
    assert found == {"before": (None, None), "at once": ("view", NOON), "last": ("buy", NOON + day - us), "too late": (None, None),
                     "first": ("click", NOON + us), "tie": ("click", NOON + us), "never": (None, None)}  # fmt: skip


def test_a_query_that_cannot_run_says_what_where_the_value_the_views_and_what_to_type(shop: Lake) -> None:
    for bad in ("select nope from users", "selec 1", "select * from bronze.items", "select cast('x' as int)"):
        with pytest.raises(InputError) as refused:
            sql.query(shop, bad)
        assert (refused.value.exit_code, refused.value.where, refused.value.value) == (2, "sql", bad)
        assert {t.view for t in schema.TABLES.values()} | {"latest_recommendations", "impression_outcomes"} == set(refused.value.valid)
        assert "mmrec sql" in str(refused.value)


def test_a_table_or_version_that_is_not_there_is_an_input_error_and_opening_makes_nothing(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "none")
    assert (lake.versions(), lake.run_dates(), lake.root.exists()) == ({}, [], False)
    with pytest.raises(InputError, match="mmrec init"):
        lake.arrow(USERS)
    with pytest.raises(InputError, match="no such table"):
        lake.path("silver.nope")
    assert not lake.root.exists()
    lake.create(USERS)
    put(lake, people("h"), "r", None, USERS)
    lake.create(USERS)
    assert lake.arrow(USERS).num_rows == 1
    for version in (99, -1):
        with pytest.raises(InputError, match=str(version)):
            lake.handle(USERS, version)


def test_a_stage_that_is_published_twice_is_published_once_and_keeps_its_files(lake: Lake) -> None:
    staged = stage.stage_arrow(lake, LIST, slates("new", run_id="r"), "r")
    checked = audit.audit(lake, staged, partition=str(D1))
    assert commit.adopt(lake, checked, run_id="r", pinned=0, partition=D1, metadata={}).changed
    assert not commit.adopt(lake, checked, run_id="r", pinned=0, partition=D1, metadata={}).changed
    assert users_of(lake) == ["new"]
    version = lake.version(LIST)
    put(lake, slates("later", run_id="s"), "s", pinned=1)
    with pytest.raises(TransientError):
        commit.adopt(lake, checked, run_id="r", pinned=0, partition=D1, metadata={})
    assert lake.day(LIST, D1, version)["user_id"].to_pylist() == ["new"]
    assert users_of(lake) == ["later"]
