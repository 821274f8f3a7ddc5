"""A frame that is computed once for several others: its rows, and that nothing of it stays."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmrec.errors import QualityError, TransientError
from mmrec.lake import scratch
from mmrec.lake.store import Lake
from mmrec.lake.vacuum import vacuum

NAME = "gold.user_sequences"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
ROWS = pa.table({
    "user_id": ["a", "😀", "c"], "event_ts": pa.array([NOW, NOW - timedelta(days=9), NOW], pa.timestamp("us", tz="UTC")), "weight": [1.5, -0.0, 1 / 3],
})  # fmt: skip


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(tmp_path / "lake")
    made.create(NAME)
    return made


def shared(lake: Lake) -> list[Path]:
    return sorted(lake.path(NAME).glob("stage-*"))


def test_the_rows_are_there_as_long_as_the_block_lasts(spark: Any, lake: Lake) -> None:
    with scratch.kept(lake, NAME, spark.createDataFrame(ROWS), "night") as frame:
        assert len(shared(lake)) == 1
        for _ in range(2):
            got = frame.toArrow().select(ROWS.column_names).cast(ROWS.schema)
            assert got.sort_by("user_id").equals(ROWS.sort_by("user_id"))
        with scratch.kept(lake, NAME, frame, "night") as again:  # another attempt beside it
            assert again.toArrow().num_rows == 3
            assert len(shared(lake)) == 2
    assert shared(lake) == []


def test_work_that_fails_leaves_nothing(spark: Any, lake: Lake) -> None:
    with pytest.raises(QualityError, match="planted"), scratch.kept(lake, NAME, spark.createDataFrame(ROWS), "night"):
        raise QualityError("planted", where="here")
    assert shared(lake) == []


def test_a_full_disk_is_worth_another_try_and_leaves_nothing(lake: Lake) -> None:
    class Writer:
        def format(self, _: str) -> Writer:
            return self

        mode = format

        def save(self, folder: str) -> None:
            Path(folder).mkdir()
            (Path(folder) / "part-0.parquet").write_bytes(b"PAR1")
            raise OSError(28, "No space left on device")

    class Frame:
        write = Writer()

    with pytest.raises(TransientError), scratch.kept(lake, NAME, Frame(), "night"):  # type: ignore[arg-type]
        pass
    assert shared(lake) == []


def test_what_a_killed_process_left_goes_with_the_stages_nobody_adopted(spark: Any, lake: Lake) -> None:
    with scratch.kept(lake, NAME, spark.createDataFrame(ROWS), "night"):
        (folder,) = shared(lake)
        shutil.copytree(folder, folder.with_name("stage-killed-shared-0"))
    grace = timedelta(days=7)
    vacuum(lake, NAME, [], datetime.now(UTC), grace)
    assert len(shared(lake)) == 1, "it may be at work"
    vacuum(lake, NAME, [], datetime.now(UTC) + 2 * grace, grace)
    assert shared(lake) == []
