"""Blocks of users: what a cut-off attempt finished is kept and not made again, and two attempts never mix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec import schema
from mmrec.errors import InputError, QualityError, TransientError
from mmrec.lake import audit, blocks, commit, stage
from mmrec.lake.blocks import Blocks, Overtaken
from mmrec.lake.content import content_hash
from mmrec.lake.store import Lake

LIST, DAY, PLACES = "gold.recommendations", date(2026, 3, 1), 3
ARROW = schema.table(LIST).arrow


class Shop:
    """Users u000, u001, …, three rows each; it knows for whom rows were made, and stops before a user if told to."""

    def __init__(self, n: int, stop: BaseException | None = None, before: str = "") -> None:
        self.names = [f"u{i:03d}" for i in range(n)]
        self.stop, self.before = stop, before
        self.made: list[str] = []

    def users(self, behind: str | None) -> Iterator[pa.RecordBatch]:
        names = [u for u in self.names if behind is None or u > behind]
        yield from pa.table({"user_id": pa.array(names, pa.string())}).to_batches(max_chunksize=3)

    def rows(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            users = batch["user_id"].to_pylist()
            if self.stop is not None and self.before in users:
                raise self.stop
            self.made += users
            yield lists(users)

    def blocks(self) -> Blocks:
        return Blocks(self.users, self.rows, len(self.names))


def lists(users: list[str], run_id: str = "r") -> pa.RecordBatch:
    same = {"run_date": DAY, "arm": "main", "score": 1.0, "source": "model", "reason": "", "propensity": 1.0, "model_version": "0", "run_id": run_id}
    rows = [same | {"user_id": u, "rank": place + 1, "item_id": f"i{place}"} for u in users for place in range(PLACES)]
    return pa.RecordBatch.from_pylist(rows, ARROW)


def elsewhere(work: Callable[[], Any]) -> Any:
    """Done by another thread: delta-rs, in whose thread rows are made, does not begin anew within itself."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def held(staged: stage.Stage) -> list[str]:
    """User of every row that the stage lists, in order."""
    return [u for f in staged.files for u in pq.ParquetFile(staged.folder / f.path).read(columns=["user_id"])["user_id"].to_pylist()]


def publish(lake: Lake, staged: stage.Stage) -> commit.Committed:
    checked = audit.audit(lake, staged, partition=str(DAY))
    return commit.adopt(lake, checked, run_id="r", pinned=0, partition=DAY, metadata={})


def stages(lake: Lake) -> list[Path]:
    return sorted(lake.path(LIST).glob("stage-*"))


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setattr(blocks, "_USERS", 7)
    made = Lake(tmp_path / "lake")
    made.create(LIST)
    return made


def test_blocks_are_appended_and_hold_every_user_once_in_order(lake: Lake) -> None:
    shop, told = Shop(30), list[tuple[int, int]]()
    staged = stage.stage(lake, LIST, Blocks(shop.users, shop.rows, 30, lambda *done: told.append(done)), "r")
    assert held(staged) == [u for u in shop.names for _ in range(PLACES)]
    assert shop.made == shop.names
    assert told == [(0, 30), (7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]
    assert len(list((staged.folder / "_delta_log").glob("*.json"))) == 5
    assert not (staged.folder / "_blocks.json").exists()
    assert stages(lake) == [staged.folder]


@pytest.mark.parametrize("n", [0, 1, 7, 14, 15])
def test_any_number_of_users_gives_the_rows_of_one_stream(lake: Lake, n: int) -> None:
    staged = stage.stage(lake, LIST, Shop(n).blocks(), "r")
    assert held(staged) == [u for u in Shop(n).names for _ in range(PLACES)]
    assert sorted(pa.Table.from_batches(Shop(n).blocks(), ARROW)["user_id"].to_pylist()) == held(staged)


def test_users_of_whom_nothing_is_offered_leave_a_stage_without_rows(lake: Lake) -> None:
    staged = stage.stage(lake, LIST, Blocks(Shop(20).users, lambda batches: iter([lists([]) for _ in batches]), 20), "r")
    assert held(staged) == []
    with pytest.raises(QualityError):
        audit.audit(lake, staged, partition=str(DAY))


def test_after_an_interruption_only_the_unfinished_blocks_are_made(lake: Lake) -> None:
    first = Shop(30, KeyboardInterrupt(), before="u018")
    with pytest.raises(KeyboardInterrupt):
        stage.stage(lake, LIST, first.blocks(), "r")
    [folder] = stages(lake)
    assert json.loads((folder / "_blocks.json").read_text())["blocks"] == 2
    again, told = Shop(30), list[tuple[int, int]]()
    staged = stage.stage(lake, LIST, Blocks(again.users, again.rows, 30, lambda *done: told.append(done)), "r")
    assert staged.folder == folder
    assert again.made == again.names[14:]
    assert told[0] == (14, 30)
    assert held(staged) == [u for u in again.names for _ in range(PLACES)]
    assert publish(lake, staged).rows == 30 * PLACES
    assert content_hash(lake.day(LIST, DAY), LIST) == content_hash(pa.Table.from_batches(Shop(30).blocks(), ARROW), LIST)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_however_often_it_is_cut_off_the_rows_are_those_of_one_attempt(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 40))
    lake = Lake(tmp_path_factory.mktemp("cut") / "lake")
    lake.create(LIST)
    finished = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_USERS", data.draw(st.integers(1, 12)))
        for at in data.draw(st.lists(st.integers(0, 39), max_size=4)):
            shop = Shop(n, KeyboardInterrupt(), before=f"u{at:03d}")
            if at >= n or at < finished:
                continue
            with pytest.raises(KeyboardInterrupt):
                stage.stage(lake, LIST, shop.blocks(), "r")
            finished = at // blocks._USERS * blocks._USERS
        last = Shop(n)
        staged = stage.stage(lake, LIST, last.blocks(), "r")
        assert held(staged) == [u for u in last.names for _ in range(PLACES)]
        assert last.made == last.names[finished:]


@pytest.mark.parametrize(("fault", "told"), [(QualityError("planted"), QualityError), (ValueError("planted"), ValueError), (OSError(28, "No space left on device"), TransientError)])
def test_who_fails_by_himself_leaves_nothing(lake: Lake, fault: Exception, told: type[Exception]) -> None:
    with pytest.raises(told):
        stage.stage(lake, LIST, Shop(30, fault, before="u018").blocks(), "r")
    assert stages(lake) == []


def test_rows_that_do_not_fit_the_table_are_refused_and_leave_nothing(lake: Lake) -> None:
    def bad(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows = lists(batch["user_id"].to_pylist())
            yield rows.set_column(rows.schema.get_field_index("rank"), "rank", pa.array(["first"] * rows.num_rows))

    with pytest.raises(InputError, match="do not fit"):
        stage.stage(lake, LIST, Blocks(Shop(9).users, bad, 9), "r")
    assert stages(lake) == []


def test_a_block_whose_end_was_not_noted_is_made_again_and_not_doubled(lake: Lake) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.stage(lake, LIST, Shop(30, KeyboardInterrupt(), before="u018").blocks(), "r")
    [folder] = stages(lake)
    ledger = json.loads((folder / "_blocks.json").read_text())
    (folder / "_blocks.json").write_text(json.dumps(ledger | {"blocks": 1}))  # as if power had gone before the note
    again = Shop(30)
    staged = stage.stage(lake, LIST, again.blocks(), "r")
    assert again.made == again.names[7:]
    assert held(staged) == [u for u in again.names for _ in range(PLACES)]


@pytest.mark.parametrize("change", [{"code": "0.0.0"}, {"blocks": 0}, None])
def test_blocks_of_another_version_or_a_torn_ledger_are_not_gone_on_from(lake: Lake, change: dict[str, object] | None) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.stage(lake, LIST, Shop(30, KeyboardInterrupt(), before="u018").blocks(), "r")
    [folder] = stages(lake)
    ledger = json.loads((folder / "_blocks.json").read_text())
    (folder / "_blocks.json").write_text(json.dumps(ledger | change) if change else "{")
    again = Shop(30)
    staged = stage.stage(lake, LIST, again.blocks(), "r")
    assert staged.folder != folder
    assert again.made == again.names


def test_blocks_of_another_run_are_left_alone(lake: Lake) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.stage(lake, LIST, Shop(30, KeyboardInterrupt(), before="u018").blocks(), "r1")
    [folder] = stages(lake)
    other = Shop(30)
    assert stage.stage(lake, LIST, other.blocks(), "r2").folder != folder
    assert other.made == other.names


def test_what_is_complete_is_made_anew_when_asked_again(lake: Lake) -> None:
    first = stage.stage(lake, LIST, Shop(30).blocks(), "r")
    again = Shop(30)
    assert stage.stage(lake, LIST, again.blocks(), "r").folder != first.folder
    assert again.made == again.names


@pytest.mark.parametrize("adopted", [False, True])
def test_an_attempt_that_wakes_up_late_is_refused_and_spoils_nothing(lake: Lake, adopted: bool) -> None:
    class Sleeper(Shop):
        staged: stage.Stage | None = None

        def rows(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in super().rows(batches):
                if "u015" in batch["user_id"].to_pylist() and self.staged is None:  # in the third block
                    self.staged = elsewhere(lambda: stage.stage(lake, LIST, successor.blocks(), "r"))
                    assert successor.made == successor.names[14:]
                    if adopted:
                        elsewhere(lambda: publish(lake, self.staged))
                yield batch

    sleeper, successor = Sleeper(30), Shop(30)
    with pytest.raises(Overtaken, match="another attempt"):
        stage.stage(lake, LIST, sleeper.blocks(), "r")
    want = [u for u in sleeper.names for _ in range(PLACES)]
    if adopted:
        assert sorted(lake.day(LIST, DAY)["user_id"].to_pylist()) == want
    else:
        assert sleeper.staged is not None
        assert held(stage.read_stage(LIST, sleeper.staged.folder)) == want


def test_of_two_attempts_at_work_one_ends_and_holds_everything(lake: Lake) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.stage(lake, LIST, Shop(30, KeyboardInterrupt(), before="u008").blocks(), "r")
    refused: list[str] = []

    class Second(Shop):
        def rows(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in super().rows(batches):
                if "u008" in batch["user_id"].to_pylist():  # another one takes over, and is cut off at once
                    with pytest.raises(KeyboardInterrupt):
                        elsewhere(lambda: stage.stage(lake, LIST, Shop(30, KeyboardInterrupt(), before="u015").blocks(), "r"))
                    refused.append("u008")
                yield batch

    with pytest.raises(Overtaken):
        stage.stage(lake, LIST, Second(30).blocks(), "r")
    assert refused
    last = Shop(30)
    staged = stage.stage(lake, LIST, last.blocks(), "r")
    assert last.made == last.names[14:]
    assert held(staged) == [u for u in last.names for _ in range(PLACES)]


def test_a_process_killed_in_its_third_block_is_gone_on_from(lake: Lake, tmp_path: Path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from mmrec.lake import blocks, stage
        from mmrec.lake.store import Lake
        from tests.unit.test_blocks import LIST, Shop

        class Killed(Shop):
            def rows(self, batches):
                for batch in super().rows(batches):
                    if "u015" in batch["user_id"].to_pylist():
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield batch

        blocks._USERS = 7
        stage.stage(Lake(Path({str(lake.root)!r})), LIST, Killed(30).blocks(), "r")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."}, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = Shop(30)
    staged = stage.stage(lake, LIST, again.blocks(), "r")
    assert again.made == again.names[14:]
    assert held(staged) == [u for u in again.names for _ in range(PLACES)]
