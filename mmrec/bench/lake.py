"""`mmrec bench lake`: what a commit through mmrec costs beside the engine's own plain Delta write of the same frame.

In: rounds, rows. Out: medians of seconds, their ratio on either engine, and where mmrec's time goes. Both sides append
one run_date of recommendations to a table that has some, from one Parquet file; mmrec's side is audited, fenced, and on
the disk when it returns, the plain one is neither. Before anything is timed, both tables must read back the same rows.
Trade-off: the limit is the plain write, which no audited one can beat: what is measured is the price of the promises.
An engine runs in a process of its own (`python -m mmrec.bench.lake ENGINE ROWS ROUNDS`), warmed by the checked round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from mmrec import schema
from mmrec.errors import QualityError, TransientError
from mmrec.lake import audit, commit, stage
from mmrec.lake.content import content_hash
from mmrec.lake.session import ENGINES, session, stop
from mmrec.lake.store import Lake

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TABLE = "gold.recommendations"
FIRST = date(2026, 1, 1)
PLACES = 20  # of a list
ITEMS = 20_000


def bench(rounds: int, tell: Callable[[str, int, int], None], rows: int = 1_000_000) -> dict[str, Any]:
    """Medians over `rounds` of each side, interleaved, on both engines.

    Returns: rows, rounds; plain_s, mmrec_s, ratio and parts (stage_s, audit_s, commit_s, of which fsync_s, and fsyncs);
        the same with spark_ in front.

    Raises: QualityError: the two tables did not read back to the same rows. TransientError: an engine failed.
    """
    told: dict[str, Any] = {"rows": rows, "rounds": rounds}
    for n, engine in enumerate(ENGINES):
        tell(f"bench lake, {engine}", n, len(ENGINES))
        found = _half(engine, rows, rounds)
        if found["plain_hash"] != found["mmrec_hash"]:
            raise QualityError("the two writes gave other rows", where=f"bench lake, {engine}",
                               value=[found["plain_hash"], found["mmrec_hash"]], valid="one content hash",
                               next="mmrec bench lake")  # fmt: skip
        prefix = "" if engine == "local" else f"{engine}_"
        plain, ours = (statistics.median(found[k]) for k in ("plain_s", "mmrec_s"))
        told |= {f"{prefix}plain_s": round(plain, 3), f"{prefix}mmrec_s": round(ours, 3),
                 f"{prefix}ratio": round(ours / plain, 3),
                 f"{prefix}parts": {k: round(statistics.median(p[k] for p in found["parts"]), 3)
                                    for k in found["parts"][0]}}  # fmt: skip
    tell("bench lake", len(ENGINES), len(ENGINES))
    return told


def measure(spark: SparkSession, folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """One engine's half: the checked round, then `rounds` of the plain write, mmrec's, and mmrec's in parts.

    Returns: plain_s, mmrec_s, parts: an entry a round; plain_hash, mmrec_hash: of the checked round's rows.
    """
    source, plain = folder / "rows.parquet", folder / "plain"
    pq.write_table(made(rows), source)
    lake = Lake(folder / "lake")
    lake.create(TABLE)
    told: dict[str, Any] = {"plain_s": [], "mmrec_s": [], "parts": []}

    def frame(day: date) -> DataFrame:
        return _of_day(spark, source, day)

    def engine_write(day: date) -> None:
        frame(day).write.format("delta").mode("append").partitionBy("run_date").save(str(plain))

    def our_write(day: date) -> None:
        commit.write(lake, TABLE, frame(day), run_id=f"bench-{day}", pinned=0, partition=day)

    engine_write(FIRST)
    our_write(FIRST)
    told["plain_hash"] = content_hash(_plain_rows(plain), TABLE)
    told["mmrec_hash"] = content_hash(lake.day(TABLE, FIRST), TABLE)
    for n in range(rounds):
        day = FIRST + timedelta(days=1 + 2 * n)
        sides: list[tuple[str, Callable[[date], None]]] = [("plain_s", engine_write), ("mmrec_s", our_write)]
        for key, write in sides if n % 2 else reversed(sides):
            begun = time.perf_counter()
            write(day)
            told[key].append(time.perf_counter() - begun)
        told["parts"].append(_parts(lake, frame(day + timedelta(days=1)), day + timedelta(days=1)))
    return told


def made(rows: int) -> pa.Table:
    """Recommendations without their run_date, as a night makes them: 20 places a user, in the order of users.

    Ids are as long as a shop's; each reason has the title of one of the user's last 20 items.
    """
    n = np.arange(rows)
    rng = np.random.default_rng(0)
    letters = np.array([*"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"])
    names = rng.choice(letters, (rows // PLACES + 1, 7))
    users = sorted(f"A{''.join(name)}{i:06d}" for i, name in enumerate(names))
    items = [f"B{i:05d}" + "".join(word) for i, word in enumerate(rng.choice(letters, (ITEMS, 4)))]
    words = ["".join(word).lower() for word in rng.choice(letters, (4000, 6))]
    titles = [" ".join(words[w] for w in picked) for picked in rng.integers(0, len(words), (ITEMS, 7))]
    history = rng.integers(0, ITEMS, (len(users), PLACES))
    rank = (n % PLACES + 1).astype(np.int32)
    because = history[n // PLACES, rng.integers(0, PLACES, rows)]
    columns = {
        "arm": pa.repeat("main", rows),
        "user_id": pa.array(users).take(pa.array(n // PLACES)),
        "rank": pa.array(rank),
        "item_id": pa.array(items).take(pa.array(rng.integers(0, ITEMS, rows))),
        "score": pa.array((rng.random(rows) / rank).astype(np.float32)),
        "source": pa.repeat("model", rows),
        "reason": pa.array([f"because of {title}" for title in titles]).take(pa.array(because)),
        "propensity": pa.array(np.ones(rows)),
        "model_version": pa.repeat("7", rows),
        "run_id": pa.repeat("b" * 16, rows),
    }
    return pa.table(columns)


def _half(engine: str, rows: int, rounds: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "mmrec.bench.lake", engine, str(rows), str(rounds)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise TransientError("an engine failed", where=f"bench lake, {engine}", value=done.stderr.strip()[-800:],
                             next="mmrec doctor")  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def _of_day(spark: SparkSession, source: Path, day: date) -> DataFrame:
    from pyspark.sql import functions as F

    t = schema.table(TABLE)
    ddl = ", ".join(f"{c.name} {c.type}" for c in t.columns if c.name != t.partition)
    read = spark.read.schema(ddl).parquet(str(source)).withColumn("run_date", F.lit(day))
    return read.select([F.col(c.name).cast(c.type.lower()).alias(c.name) for c in t.columns])


def _plain_rows(folder: Path) -> pa.Table:
    handle, t = DeltaTable(str(folder)), schema.table(TABLE)
    files = pa.table(handle.get_add_actions(flatten=True)).to_pydict()
    parts = []
    for path, day in zip(files["path"], files["partition.run_date"], strict=True):
        rows = pq.read_table(folder / path, partitioning=None)
        rows = rows.append_column("run_date", pa.repeat(pa.scalar(day), rows.num_rows))
        parts.append(rows.select(t.arrow.names).cast(t.arrow))
    return pa.concat_tables(parts)


def _parts(lake: Lake, frame: DataFrame, day: date) -> dict[str, float]:
    """One write, door by door."""
    begun = time.perf_counter()
    staged = stage.stage(lake, TABLE, frame, f"parts-{day}")
    at_stage = time.perf_counter()
    checked = audit.audit(lake, staged, partition=str(day))
    at_audit = time.perf_counter()
    with _fsyncs() as spent:
        commit.adopt(lake, checked, run_id=f"parts-{day}", pinned=0, partition=day, metadata={})
    return {"stage_s": at_stage - begun, "audit_s": at_audit - at_stage, "commit_s": time.perf_counter() - at_audit,
            "fsync_s": sum(spent), "fsyncs": len(spent)}  # fmt: skip


@contextmanager
def _fsyncs() -> Iterator[list[float]]:
    """Seconds of every os.fsync inside; those of two threads at once are each counted whole."""
    real, spent = os.fsync, list[float]()

    def timed(fd: int) -> None:
        begun = time.perf_counter()
        real(fd)
        spent.append(time.perf_counter() - begun)

    os.fsync = timed  # type: ignore[assignment]
    try:
        yield spent
    finally:
        os.fsync = real


def main(engine: str, rows: str, rounds: str) -> None:
    """One engine's half, as a line of JSON."""
    with tempfile.TemporaryDirectory(prefix="mmrec-bench-") as folder:
        told = measure(session(engine), Path(folder), int(rows), int(rounds))
        stop(engine)
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
