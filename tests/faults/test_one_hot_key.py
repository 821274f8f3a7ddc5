"""A user with a third of all rows, an item with a third of all rows: right, in bounded memory, no task much longer than others.

`TEST_HOT_ROWS` sets the hot key's rows (10^6 by hand: `TEST_HOT_ROWS=1000000 pytest tests/faults/test_one_hot_key.py`).
Work is counted, not timed: rows a task reads, from Spark's own books; memory is the peak of a process that does nothing else,
beside the same number of rows spread evenly.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F

from mmrec.dates import micros
from mmrec.features import asof, sequences, windows
from mmrec.lake.session import session, stop
from mmrec.memory import Peak

HOT = int(os.environ.get("TEST_HOT_ROWS", "60000"))
DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
US_DAY = 86_400_000_000
LENGTH, HALF_LIFE = 1024, 30.0
ITEMS = 5000
PARTITIONS = 8
LIMIT = 6 * 2**30  # of a process's memory: beyond it an allocation fails


def shop(kind: str, hot: int, seed: int = 0) -> pa.Table:
    """Silver interactions, ten thirds of `hot` rows: of `kind` "user" or "item" one has `hot` of them, of "even" none."""
    rng, total = np.random.default_rng(seed), hot * 10 // 3
    n = np.arange(total)
    few = total // 50 + 2
    users = np.where((n < hot) & (kind == "user"), 0, rng.integers(1, few, total))
    items = np.where((n < hot) & (kind == "item"), 0, rng.integers(1, ITEMS, total))
    # every moment once, so that no event is a correction of another
    us = micros(NOW) - 1 - rng.permutation(total).astype(np.int64) * (400 * US_DAY // total)
    when = pa.array(us, pa.timestamp("us", tz="UTC"))
    return pa.table({
        "user_id": pa.array([f"u{u}" for u in users]), "item_id": pa.array([f"i{i}" for i in items]), "event_type": pa.repeat("view", total),
        "event_ts": when, "available_at": when, "weight": pa.array(np.ones(total)), "row_hash": pa.array([f"{i:09d}" for i in n]),
    })  # fmt: skip


def written(folder: Path, kind: str, hot: int) -> pa.Table:
    rows = shop(kind, hot)
    pq.write_table(rows, folder / "interactions.parquet", row_group_size=len(rows) // PARTITIONS)
    users = {"user_id": ["u0", "cold"], "attributes": ["{}", '{"a": 1}']}
    items = {"item_id": [f"i{n}" for n in range(ITEMS)], "title": [f"title {n}" for n in range(ITEMS)]}
    extra = {"categories": pa.array([[]] * ITEMS, pa.list_(pa.string())), "images_sha256": pa.nulls(ITEMS, pa.list_(pa.string())), **dict.fromkeys(("text", "image_sha256", "audio_sha256"), pa.nulls(ITEMS, pa.string()))}
    pq.write_table(pa.table(users), folder / "users.parquet")
    pq.write_table(pa.table(items | extra | {"valid_from": pa.repeat(pa.scalar(NOW, pa.timestamp("us", tz="UTC")), ITEMS)}), folder / "items.parquet")
    return rows


def frames(spark: Any, folder: Path) -> dict[str, Any]:
    read = {n: spark.read.parquet(str(folder / f"{n}.parquet")) for n in ("interactions", "users", "items")}
    events = asof.events(read["interactions"], NOW)
    return {"user": sequences.user_sequences(events, read["users"].withColumn("left", F.lit(False)), DAY, NOW, LENGTH, "r"),
            "item": windows.item_features(events, read["items"], DAY, NOW, HALF_LIFE, "r")}  # fmt: skip


@pytest.fixture(scope="module", params=["user", "item"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, pa.Table]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, written(folder, request.param, HOT)


def naive_user(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A user's sequence by one sort in Python."""
    rows = sorted(rows, key=lambda r: (r["us"], r["item_id"]))
    kept, now = rows[-LENGTH:], micros(NOW)
    us = [r["us"] for r in kept]
    return {"item_ids": [r["item_id"] for r in kept], "event_us": us, "gap_s": [(b - a) // 10**6 for a, b in zip(us, [*us[1:], now], strict=True)],
            "seen_item_ids": sorted({r["item_id"] for r in rows}), "n_interactions": len(rows),
            **{f"n_{d}d": sum(now - r["us"] <= d * US_DAY for r in rows) for d in (7, 30, 90)}}  # fmt: skip


def naive_item(rows: list[dict[str, Any]]) -> dict[str, Any]:
    now, latest = micros(NOW), dict[str, int]()
    for r in rows:
        latest[r["user_id"]] = max(latest.get(r["user_id"], r["us"]), r["us"])
    return {"n_interactions": len(rows), "n_users": len(latest), **{f"n_{d}d": sum(now - r["us"] <= d * US_DAY for r in rows) for d in (7, 30, 90)},
            "popularity_micro": sum(int(1e6 * 0.5 ** ((now - us) // US_DAY / HALF_LIFE)) for us in latest.values())}  # fmt: skip


def test_the_hot_key_and_its_neighbours_get_what_a_naive_reading_gives(world: tuple[str, Path, pa.Table], spark: Any) -> None:
    kind, folder, rows = world
    key = f"{kind}_id"
    keys = [f"{kind[0]}{n}" for n in (0, 1, 2, 3)]
    made = frames(spark, folder)[kind]
    found = {r[key]: r for r in made.where(made[key].isin([*keys, "cold"])).toArrow().to_pylist()}
    naive = naive_user if kind == "user" else naive_item
    plain = rows.append_column("us", rows["event_ts"].cast(pa.int64()))
    for name in keys:
        mine = plain.filter(pa.compute.equal(plain[key], name)).select(["user_id", "item_id", "us"]).to_pylist()
        assert len(mine) == HOT if name == keys[0] else 0 < len(mine) < HOT / 100
        right = naive(mine)
        assert {c: found[name][c] for c in right} == right, name
    if kind == "user":
        assert (found["cold"]["item_ids"], found["cold"]["n_interactions"]) == ([], 0)


def peak_of(kind: str, rows: int) -> int:
    """Peak memory of a process that makes both features of a shop on the embedded engine, MB; it may take `LIMIT`."""
    done = subprocess.run([sys.executable, "-m", "tests.faults.test_one_hot_key", kind, str(rows)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["peak_mb"]


@pytest.fixture(scope="module")
def even_peak() -> int:
    return peak_of("even", HOT)


@pytest.mark.parametrize("kind", ["user", "item"])
def test_a_hot_key_takes_no_more_memory_than_the_same_rows_spread_evenly(kind: str, even_peak: int, tried: Callable[[str, object], None]) -> None:
    hot = peak_of(kind, HOT)
    tried(f"peak memory with one hot {kind} of {HOT} rows", f"{hot} MB, {even_peak} MB spread evenly")
    assert hot < 1.5 * even_peak


def stages(spark: Any, work: Callable[[], object]) -> list[list[int]]:
    """Rows that each task of each stage of `work` read."""
    context = spark.sparkContext
    group = f"hot key {uuid4()}"
    context.setJobGroup(group, "rows a task")
    try:
        work()
    finally:
        context._jsc.clearJobGroup()
    tracker, store = context.statusTracker(), context._jsc.sc().statusStore()
    found = []
    for job in tracker.getJobIdsForGroup(group):
        for stage_id in tracker.getJobInfo(job).stageIds:
            tasks = store.taskList(stage_id, 0, 10_000)
            read = []
            for n in range(tasks.size()):
                about = tasks.apply(n).taskMetrics()
                if about.isDefined():
                    read.append(about.get().inputMetrics().recordsRead() + about.get().shuffleReadMetrics().recordsRead())
            if read:
                found.append(read)
    return found


@pytest.mark.engines
@pytest.mark.parametrize("kind", ["user", "item"])
def test_no_spark_task_reads_more_than_twice_the_median(kind: str, tmp_path: Path, tried: Callable[[str, object], None]) -> None:
    spark = session("spark")
    rows = written(tmp_path, kind, HOT).num_rows
    asked = {"spark.sql.shuffle.partitions": str(PARTITIONS), "spark.sql.adaptive.coalescePartitions.enabled": "false"}
    before = {k: spark.conf.get(k) for k in asked}
    for key, value in asked.items():
        spark.conf.set(key, value)
    try:
        found = stages(spark, lambda: frames(spark, tmp_path)[kind].write.format("noop").mode("overwrite").save())
    finally:
        for key, value in before.items():
            spark.conf.set(key, value)
    # a stage of few rows ends at once, however they lie
    long = [read for read in found if sum(read) > rows / 5 and len(read) >= PARTITIONS]
    worst = max(max(read) / statistics.median(read) for read in long)
    tried(f"rows of the longest Spark task beside the median, hot {kind}", f"{worst:.2f} in {len(long)} stages: {[max(r) for r in long]}")
    assert len(long) >= 1
    assert worst <= 2


def child(kind: str, rows: str) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder, kind, int(rows))
        spark = session("local")
        with Peak() as peak:
            for key, frame in frames(spark, folder).items():
                frame.write.format("delta").save(str(folder / key))
        stop("local")
    print(json.dumps({"peak_mb": peak.megabytes}))


if __name__ == "__main__":
    child(*sys.argv[1:])
