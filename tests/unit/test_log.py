"""A log that is not whole is never read, is told by verify's checks, and is mended byte for byte where there is a copy."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mmrec.errors import QualityError, TransientError
from mmrec.lake import commit, log
from mmrec.lake.repair import repair
from mmrec.lake.store import Lake
from tests.unit.test_lake import D1, LIST, USERS, people, put, slates, users_of


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(tmp_path / "lake")
    for name in (LIST, USERS):
        made.create(name)
    return made


def newest(lake: Lake, name: str = LIST) -> Path:
    return max((lake.path(name) / "_delta_log").glob("*[0-9].json"))


def two(lake: Lake) -> Path:
    """Two commits of one date; the entry of the second."""
    put(lake, slates("a", run_id="one"), "one")
    put(lake, slates("b", run_id="two"), "two")
    return newest(lake)


def test_an_entry_cut_anywhere_is_refused_by_the_reader_and_put_back_by_repair(lake: Lake) -> None:
    entry = two(lake)
    whole = entry.read_bytes()
    ends = {0, 1, len(whole) // 2, len(whole) - 1} | {n for n, c in enumerate(whole) if c == 10} | {n + 1 for n, c in enumerate(whole) if c == 10}
    for end in sorted(ends):
        entry.write_bytes(whole[:end])
        with pytest.raises(QualityError, match="log is damaged") as told:
            lake.day(LIST, D1)
        assert told.value.report["versions"] == [lake_version(entry)]
        with pytest.raises(QualityError):
            put(lake, slates("c", run_id="three"), "three", pinned=2)
        (mended,) = repair(lake)
        assert mended.mended
        assert "copy" in mended.done
        assert entry.read_bytes() == whole
        assert users_of(lake) == ["b"]


def lake_version(entry: Path) -> int:
    return int(entry.stem)


def test_a_flipped_byte_anywhere_in_an_entry_is_refused_or_names_a_file_that_is_not_there(lake: Lake) -> None:
    entry = two(lake)
    whole = entry.read_bytes()
    path = slice(whole.index(b'"path":"stage-two') + 8, whole.index(b".parquet"))
    for at in range(0, len(whole), 7):
        entry.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        if path.start <= at < path.stop:  # then its copy can't be found either
            with pytest.raises((QualityError, FileNotFoundError)):
                lake.day(LIST, D1)
        else:
            assert log.damage(lake.path(LIST), LIST), f"byte {at} of {len(whole)}"
    entry.write_bytes(whole)
    assert log.damage(lake.path(LIST), LIST) == []


def test_without_its_copy_the_newest_entry_is_moved_aside_and_the_table_stands_as_before(lake: Lake) -> None:
    entry = two(lake)
    for copy in lake.path(LIST).glob(f"stage-two*/_entry-{entry.stem}-*"):
        copy.unlink()
    damaged = entry.read_bytes()[:50]
    entry.write_bytes(damaged)
    assert [r.done for r in repair(lake, dry_run=True)] == [r.done for r in repair(lake)]
    assert not entry.exists()
    assert [p.read_bytes() for p in (lake.path(LIST) / "_damaged").iterdir()] == [damaged]
    assert users_of(lake) == ["a"]
    assert put(lake, slates("b", run_id="two"), "two").changed
    assert users_of(lake) == ["b"]
    assert repair(lake) == []


def test_an_entry_that_others_stand_on_is_mended_from_its_copy_or_left_and_said_so(lake: Lake) -> None:
    put(lake, slates("a", run_id="one"), "one")
    middle = newest(lake)
    put(lake, slates("b", run_id="two"), "two")
    whole = middle.read_bytes()
    middle.write_bytes(b"")
    (told,) = repair(lake)
    assert told.mended
    assert middle.read_bytes() == whole
    for copy in lake.path(LIST).glob(f"stage-*/_entry-{middle.stem}-*"):
        copy.unlink()
    middle.write_bytes(b"")
    (told,) = repair(lake)
    assert not told.mended
    assert "backup" in told.done
    with pytest.raises(QualityError):
        lake.version(LIST)


def test_a_missing_entry_in_between_is_a_damage_too(lake: Lake) -> None:
    put(lake, slates("a", run_id="one"), "one")
    middle = newest(lake)
    put(lake, slates("b", run_id="two"), "two")
    whole = middle.read_bytes()
    middle.unlink()
    with pytest.raises(QualityError, match="missing"):
        lake.version(LIST)
    assert repair(lake)[0].mended
    assert middle.read_bytes() == whole


def test_damage_behind_a_checkpoint_stops_no_reader_of_today_and_every_reader_of_then(lake: Lake) -> None:
    put(lake, slates("a", run_id="one"), "one")
    old = newest(lake)
    put(lake, slates("b", run_id="two"), "two")
    lake.handle(LIST).create_checkpoint()
    put(lake, slates("c", run_id="three"), "three")
    old.write_bytes(b"")
    assert users_of(lake) == ["c"]
    with pytest.raises(QualityError):
        lake.day(LIST, D1, int(old.stem))
    assert [d.version for d in log.damage(lake.path(LIST), LIST, all_of_it=True)] == [int(old.stem)]


def test_entries_that_a_checkpoint_stands_for_may_be_cleaned_up(lake: Lake) -> None:
    two(lake)
    lake.handle(LIST).create_checkpoint()
    put(lake, slates("c", run_id="three"), "three")
    for n in range(3):
        (lake.path(LIST) / "_delta_log" / f"{n:020}.json").unlink()
    assert log.damage(lake.path(LIST), LIST, all_of_it=True) == []
    assert users_of(lake) == ["c"]


def test_a_table_whose_only_entry_is_lost_is_made_again(lake: Lake) -> None:
    shutil.rmtree(lake.path(USERS) / "_entries")
    entry = newest(lake, USERS)
    while entry.stem != "0" * 20:
        entry.unlink()
        entry = newest(lake, USERS)
    entry.write_bytes(b"")
    assert lake.exists(USERS)
    assert [r.mended for r in repair(lake)] == [True]
    assert not lake.exists(USERS)
    lake.create(USERS)
    put(lake, people("h"), "r", None, USERS)
    assert lake.arrow(USERS).num_rows == 1


def test_repair_of_a_whole_lake_touches_nothing(lake: Lake) -> None:
    two(lake)
    before = {p: p.read_bytes() for p in lake.root.rglob("*") if p.is_file()}
    assert repair(lake) == []
    assert {p: p.read_bytes() for p in lake.root.rglob("*") if p.is_file()} == before


# what a commit says of itself


def info(lake: Lake, name: str = LIST) -> dict[str, Any]:
    lines = [json.loads(line) for line in newest(lake, name).read_text().splitlines()]
    return next(line["commitInfo"] for line in lines if "commitInfo" in line)


def test_a_commit_says_run_attempt_settings_and_the_versions_it_read(lake: Lake) -> None:
    put(lake, people("h"), "r", None, USERS)
    lake.stamp = {"attempt": "3", "step": "features", "config_sha256": "c0ffee"}
    lake.read.clear()
    read = lake.arrow(USERS)
    put(lake, slates(*read["row_hash"].to_pylist(), run_id="run"), "run")
    told = info(lake)
    assert (told["run_id"], told["attempt"], told["step"], told["config_sha256"]) == ("run", "3", "features", "c0ffee")
    assert json.loads(told["inputs"]) == {USERS: lake.version(USERS)}


def test_files_and_their_digests_are_recorded_beside_them(lake: Lake) -> None:
    import hashlib

    put(lake, slates("a", "b", run_id="one"), "one")
    (record,) = lake.path(LIST).glob("stage-one-*/_stage.json")
    about = json.loads(record.read_text())
    assert (about["table"], about["run_id"]) == (LIST, "one")
    for name, told in about["files"].items():
        data = (record.parent / name).read_bytes()
        assert told == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": 2}


# who may commit


def attempt(lake: Lake, n: int) -> Lake:
    other = Lake(lake.root)
    other.stamp = {"attempt": str(n)}
    return other


@pytest.mark.parametrize(("name", "day"), [(LIST, D1), (USERS, None)], ids=["replace_partition", "append_new"])
def test_a_later_attempt_finds_the_work_done_and_an_older_one_is_refused(lake: Lake, name: str, day: date | None) -> None:
    rows = slates("a", run_id="run") if day else people("h")
    done = put(attempt(lake, 2), rows, "run", day, name, pinned=0)
    assert done.changed
    before = lake.version(name), lake.arrow(name)
    retried = put(attempt(lake, 3), rows, "run", day, name, pinned=0)
    assert (retried.changed, retried.version) == (False, done.version)
    with pytest.raises(commit.Fenced, match="came back too late"):
        put(attempt(lake, 1), rows, "run", day, name, pinned=0)
    assert (lake.version(name), lake.arrow(name)) == before
    assert len(list(lake.path(name).glob("stage-*"))) == 1


@pytest.mark.parametrize(("name", "day"), [(LIST, D1), (USERS, None)], ids=["replace_partition", "append_new"])
def test_another_run_with_the_same_pin_is_refused_and_told_who_was_first(lake: Lake, name: str, day: date | None) -> None:
    put(lake, slates("a", run_id="one") if day else people("h"), "one", day, name, pinned=0)
    with pytest.raises(commit.Fenced, match="moved by run one"):
        put(lake, slates("b", run_id="two") if day else people("i"), "two", day, name, pinned=0)


def test_a_run_that_a_third_one_has_replaced_since_is_not_told_that_it_is_published(lake: Lake) -> None:
    put(lake, slates("a", run_id="one"), "one", pinned=0)
    put(lake, slates("b", run_id="two"), "two", pinned=1)
    with pytest.raises(commit.Fenced):
        put(lake, slates("a", run_id="one"), "one", pinned=0)
    assert users_of(lake) == ["b"]


def test_work_that_was_outrun_is_done_again_with_a_fresh_read_and_no_more_than_six_times(lake: Lake) -> None:
    turns = []

    def work(always: bool) -> commit.Committed:
        pinned = commit.fence(lake, USERS)
        turns.append(pinned)
        if always or len(turns) < 3:
            name = f"other {always} {len(turns)}"
            put(lake, people(name), name, None, USERS)
        return commit.write(lake, USERS, people("mine"), run_id="mine", pinned=pinned)

    assert commit.again(lambda: work(False)).changed
    assert turns == [0, 1, 2]
    assert sorted(lake.arrow(USERS)["row_hash"].to_pylist()) == ["mine", "other False 1", "other False 2"]
    turns.clear()
    with pytest.raises(TransientError):
        commit.again(lambda: work(True))
    assert len(turns) == 6


def test_equal_work_has_one_id_and_other_work_another() -> None:
    assert commit.work_id("validate", {"a": 1}, date(2026, 3, 1)) == commit.work_id("validate", {"a": 1}, date(2026, 3, 1))
    assert len({commit.work_id("validate", x) for x in ({"a": 1}, {"a": 2}, ["a", 1], "a1", None)}) == 5


def test_every_read_through_a_handle_is_remembered_with_its_version(lake: Lake) -> None:
    put(lake, people("h"), "r", None, USERS)
    fresh = Lake(lake.root)
    assert fresh.read == {}
    fresh.arrow(USERS, 0 if fresh.version(USERS) == 0 else fresh.version(USERS) - 1)
    assert fresh.read == {USERS: fresh.version(USERS) - 1}
    fresh.day(LIST, D1)
    assert fresh.read[LIST] == fresh.version(LIST)

