"""`mmrec bench features`: the feature job beside SQL written by hand for DuckDB.

In: interactions of a made-up shop whose busiest users and items are far ahead of the rest, some delivered twice. Out:
seconds of either engine and of DuckDB, from the files of the silver tables to files of gold.user_sequences and
gold.item_features, interleaved; ratios; how the time grows with the rows; and how evenly Spark's tasks share the work.
Each side is a process of its own with two threads, and must first give the same rows, by their content hash.
Trade-off: audit and commit are not in it (`mmrec bench lake` has them), nor suspects, which have no counterpart in the
SQL: what is measured is what a person would write instead of the two frames.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmrec import schema
from mmrec.bench.sides import Side
from mmrec.config import SparkConfig
from mmrec.dates import micros
from mmrec.errors import QualityError
from mmrec.lake import commit, stage
from mmrec.lake.content import content_hash
from mmrec.lake.session import session
from mmrec.lake.store import Lake

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SETTINGS = {"sequence_length": 50, "half_life_days": 30.0}
SIDES = ("duckdb", "local", "spark")
_KINDS = ("interactions", "items", "users")
_PARTITIONS = 8  # of a shuffle: with one a thread, no task could be much longer than the median
_TARGETS = ("gold.user_sequences", "gold.item_features")
_DAY_US = 86_400_000_000
_MOMENT = pa.timestamp("us", tz="UTC")
_COUNTS = ("n_interactions", "n_users", "n_7d", "n_30d", "n_90d", "popularity_micro")
_Tell = Callable[[str, int, int], None]


def bench(rounds: int, tell: _Tell, *, rows: tuple[int, ...] = (1_000_000, 10_000_000)) -> dict[str, Any]:
    """Medians over `rounds` of each side, interleaved, at each number of interactions.

    Returns: cases: an entry a number of rows: rows, duckdb_s, local_s, spark_s, ratio_local and ratio_spark (of
        DuckDB's time), slowest_task (of Spark's stages that take a tenth of a round or more, the longest task over the
        median one); growth: name of a side -> time of the largest case over that of the smallest, by their rows;
        rounds, settings.

    Raises: QualityError: a side's rows are not those of the SQL. TransientError: a side failed.
    """
    cases: list[dict[str, Any]] = []
    total, done = len(rows) * (rounds + 1) * len(SIDES), 0
    for n in rows:
        with tempfile.TemporaryDirectory(prefix="mmrec-bench-") as name, ExitStack() as open_sides:
            folder = Path(name)
            shop(folder / "lake", n)
            words = [sys.executable, "-m", "mmrec.bench.features"]
            sides = {s: open_sides.enter_context(Side(f"bench features, {s}", [*words, s, name], folder / f"{s}.log"))
                     for s in SIDES}  # fmt: skip
            found: dict[str, dict[str, str]] = {}
            for s, side in sides.items():
                found[s] = side.ask({"check": True})
                done += 1
                tell(f"bench features, {n:,} rows", done, total)
            wrong = [s for s in SIDES if found[s] != found["duckdb"]]
            if wrong:
                raise QualityError("a side made other rows", where=f"bench features, {n:,} rows", value=wrong,
                                   valid="the content hashes of the SQL's rows", next="mmrec verify")  # fmt: skip
            spent: dict[str, list[dict[str, Any]]] = {s: [] for s in SIDES}
            for turn in range(rounds):
                for s in SIDES[turn % 3 :] + SIDES[: turn % 3]:
                    spent[s].append(sides[s].ask({}))
                    done += 1
                    tell(f"bench features, {n:,} rows", done, total)
            took = {s: statistics.median(r["seconds"] for r in spent[s]) for s in SIDES}
            cases.append({
                "rows": n, **{f"{s}_s": round(t, 3) for s, t in took.items()},
                **{f"ratio_{s}": round(took[s] / took["duckdb"], 3) for s in ("local", "spark")},
                "slowest_task": round(statistics.median(r["slowest_task"] for r in spent["spark"]), 3),
            })  # fmt: skip
    first, last = cases[0], cases[-1]
    growth = {s: round(last[f"{s}_s"] / first[f"{s}_s"] / (last["rows"] / first["rows"]), 3) for s in SIDES}
    return {"cases": cases, "growth": growth, "rounds": rounds, "settings": SETTINGS}


def shop(root: Path, rows: int, seed: int = 0) -> None:
    """A lake with `rows` interactions of `rows` / 25 users and `rows` / 100 items, and their attributes and titles.

    The busiest user has some half percent of all rows at 10^6, the most wanted item some two; a twentieth of either has
    none. One row in fifty is a second delivery of another, with another weight; events are of the year before `NOW`,
    and a few after it.
    """
    rng = np.random.default_rng(seed)
    n_users, n_items = max(rows // 25, 4), max(rows // 100, 4)
    user, item = (_skewed(rng, n - n // 20, rows, power) for n, power in ((n_users, 0.8), (n_items, 0.9)))
    us = micros(NOW) + _DAY_US - rng.integers(0, 366 * _DAY_US, rows)
    kind = rng.integers(0, 3, rows)
    # a correction is of an earlier row
    again = np.flatnonzero(rng.random(rows) < 0.02)
    again = again[again > 0]
    of = (rng.random(len(again)) * again).astype(np.int64)
    for values in (user, item, us, kind):
        values[again] = values[of]
    late = rng.integers(1, 3600, rows) * 1_000_000
    late[again] += _DAY_US
    hashes = rng.integers(0, 256, (rows, 32), np.uint8)
    lake = Lake(root)
    _put(lake, "silver.interactions", {
        "user_id": _names("u", n_users).take(pa.array(user)), "item_id": _names("i", n_items).take(pa.array(item)),
        "event_type": pa.array(["view", "click", "purchase"]).take(pa.array(kind)), "event_ts": _moments(us),
        "available_at": _moments(us + late), "weight": pa.array(rng.integers(1, 11, rows) / 2),
        "context": pa.repeat("{}", rows), "text": pa.nulls(rows, pa.string()), "source": pa.repeat("shop", rows),
        "row_hash": _hex(hashes)})  # fmt: skip
    began, never = pa.scalar(datetime(2025, 1, 1, tzinfo=UTC), _MOMENT), pa.scalar(None, _MOMENT)
    words = pa.array(["red", "old", "tall", "warm", "plain", "soft", "late"])
    picked = [words.take(pa.array(rng.integers(0, 7, n_items))) for _ in range(3)]
    title = pa.compute.binary_join_element_wise(*picked, _names("n", n_items), " ")
    keys = _hex(rng.integers(0, 256, (n_items, 32), np.uint8))
    _put(lake, "silver.items", {
        "item_id": _names("i", n_items), "available_at": pa.repeat(began, n_items),
        "valid_from": pa.repeat(began, n_items), "withdrawn_at": pa.repeat(never, n_items), "title": title,
        "text": picked[0],
        "categories": pa.ListArray.from_arrays(pa.array(np.arange(n_items + 1), pa.int32()), picked[1]),
        "attributes": pa.repeat('{"price":3}', n_items), "image": pa.nulls(n_items, pa.string()), "image_sha256": keys,
        "images_sha256": pa.nulls(n_items, pa.list_(pa.string())), "audio": pa.nulls(n_items, pa.string()),
        "audio_sha256": pa.nulls(n_items, pa.string()), "source": pa.repeat("shop", n_items),
        "row_hash": _hex(rng.integers(0, 256, (n_items, 32), np.uint8))})  # fmt: skip
    _put(lake, "silver.users", {
        "user_id": _names("u", n_users), "available_at": pa.repeat(began, n_users),
        "withdrawn_at": pa.repeat(never, n_users), "attributes": pa.repeat('{"age":"25-34"}', n_users),
        "source": pa.repeat("shop", n_users),
        "row_hash": _hex(rng.integers(0, 256, (n_users, 32), np.uint8))})  # fmt: skip


def _skewed(rng: np.random.Generator, n: int, rows: int, power: float) -> np.ndarray:
    """(rows,) int64 below n: what has rank r is drawn by (r + 10) ** -power; ranks are no order of names."""
    sums = np.cumsum((np.arange(n) + 10.0) ** -power)
    return rng.permutation(n)[np.searchsorted(sums, rng.random(rows) * sums[-1])]


def _names(letter: str, n: int) -> pa.Array:
    return pa.array([f"{letter}{i:09d}" for i in range(n)])


def _moments(us: np.ndarray) -> pa.Array:
    return pa.array(us, _MOMENT)


def _hex(bytes_N32: np.ndarray) -> pa.Array:
    """(N, 32) bytes as 64 hexadecimal digits each."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.stack([digits[bytes_N32 >> 4], digits[bytes_N32 & 15]], 2).reshape(len(bytes_N32), 64)
    ends = pa.array(np.arange(len(text) + 1) * 64, pa.int32())
    return pa.StringArray.from_buffers(len(text), ends.buffers()[1], pa.py_buffer(text.tobytes()))


def _put(lake: Lake, name: str, columns: dict[str, pa.Array]) -> None:
    lake.create(name)
    t = schema.table(name)
    commit.append(lake, name, pa.table({c: columns[c] for c in t.arrow.names}, schema=t.arrow), "bench")


# the sides


def by_hand(lake: Lake, out: Path, threads: int = 2) -> None:
    """DuckDB's side: what the two frames say, in SQL; a Parquet file a table in `out`."""
    import duckdb

    files = {k: lake.handle(f"silver.{k}").file_uris() for k in _KINDS}
    length, half_life = SETTINGS["sequence_length"], SETTINGS["half_life_days"]
    reach = int(half_life * 21) + 2
    now = micros(NOW)
    counts = ", ".join(f"count(*) FILTER ({now} - us <= {d * _DAY_US}) AS n_{d}d" for d in (7, 30, 90))
    with duckdb.connect(config={"threads": threads}) as db:
        db.execute("SET TimeZone = 'UTC'")
        db.execute("SET preserve_insertion_order = false")
        db.execute("CREATE TEMP TABLE weights AS SELECT unnest(?::BIGINT[]) AS w, unnest(range(?)) AS day",
                   [[int(1e6 * 0.5 ** (d / half_life)) for d in range(reach - 1)], reach - 1])  # fmt: skip
        db.execute(f"""
            CREATE TEMP TABLE events AS
            SELECT user_id, item_id, event_type, epoch_us(event_ts) AS us,
                   floor(weight * 1e6 + 0.5)::BIGINT AS weight_micro
            FROM read_parquet(?) WHERE epoch_us(event_ts) < {now} AND epoch_us(available_at) < {now}
            QUALIFY row_number() OVER (PARTITION BY user_id, item_id, event_type, event_ts
                                       ORDER BY available_at DESC, row_hash DESC) = 1""", [files["interactions"]])
        db.execute(f"""
            COPY (
            WITH known AS (
                SELECT user_id, attributes, withdrawn_at FROM read_parquet(?) WHERE epoch_us(available_at) < {now}
                QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY available_at DESC, row_hash DESC) = 1),
            last AS (
                SELECT *, row_number() OVER w AS n, coalesce(lag(us) OVER w, {now}) - us AS gap FROM events
                WINDOW w AS (PARTITION BY user_id ORDER BY us DESC, item_id DESC, event_type DESC)
                QUALIFY n <= {length}),
            kept AS (
                SELECT user_id, list(item_id ORDER BY n DESC) AS item_ids,
                       list(event_type ORDER BY n DESC) AS event_types,
                       list(us ORDER BY n DESC) AS event_us, list(gap // 1000000 ORDER BY n DESC) AS gap_s,
                       list(weight_micro ORDER BY n DESC) AS weight_micro
                FROM last GROUP BY user_id),
            counts AS (
                SELECT user_id, list_sort(list(DISTINCT item_id)) AS seen_item_ids, count(*) AS n_interactions, {counts}
                FROM events GROUP BY user_id),
            here AS (SELECT user_id, attributes FROM known WHERE NOT coalesce(epoch_us(withdrawn_at) < {now}, false))
            SELECT user_id, coalesce(item_ids, []) AS item_ids, coalesce(event_types, []) AS event_types,
                   coalesce(event_us, []) AS event_us, coalesce(gap_s, []) AS gap_s,
                   coalesce(weight_micro, []) AS weight_micro, coalesce(seen_item_ids, []) AS seen_item_ids,
                   coalesce(n_interactions, 0) AS n_interactions, coalesce(n_7d, 0) AS n_7d,
                   coalesce(n_30d, 0) AS n_30d, coalesce(n_90d, 0) AS n_90d, coalesce(attributes, '{{}}') AS attributes
            FROM counts JOIN kept USING (user_id) FULL JOIN here USING (user_id)
            WHERE user_id NOT IN (SELECT user_id FROM known WHERE coalesce(epoch_us(withdrawn_at) < {now}, false))
            ) TO '{out / _TARGETS[0]}.parquet' (FORMAT parquet, COMPRESSION snappy)""", [files["users"]])
        db.execute(f"""
            COPY (
            WITH known AS (
                SELECT * FROM read_parquet(?) WHERE epoch_us(available_at) < {now}
                QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY available_at DESC, row_hash DESC) = 1),
            pairs AS (
                SELECT user_id, item_id, max(us) AS us, count(*) AS n,
                       {counts}
                FROM events GROUP BY ALL),
            counts AS (
                SELECT item_id, sum(n) AS n_interactions, count(*) AS n_users, sum(n_7d) AS n_7d, sum(n_30d) AS n_30d,
                       sum(n_90d) AS n_90d, sum(coalesce(w, 0)) AS popularity_micro
                FROM pairs LEFT JOIN weights ON day = ({now} - us) // {_DAY_US} GROUP BY item_id)
            SELECT item_id, title, categories,
                   nullif(concat_ws('. ', nullif(title, ''), nullif(array_to_string(categories, ', '), ''),
                                    nullif(text, '')), '') AS said, sha256(said) AS text_sha256,
                   image_sha256, images_sha256, audio_sha256,
                   {", ".join(f"coalesce({c}, 0)::BIGINT AS {c}" for c in _COUNTS)},
                   epoch_us(valid_from) AS available_us
            FROM known LEFT JOIN counts USING (item_id)
            WHERE epoch_us(valid_from) < {now} AND NOT coalesce(epoch_us(withdrawn_at) < {now}, false)
            ) TO '{out / _TARGETS[1]}.parquet' (FORMAT parquet, COMPRESSION snappy)""", [files["items"]])


def main(side: str, folder: str) -> None:
    """One side: an order a line, an answer a line."""
    root = Path(folder)
    lake = Lake(root / "lake")
    work = _duckdb if side == "duckdb" else partial(_engine, side)
    for order in map(json.loads, sys.stdin):
        print(json.dumps(work(lake, root, order)), flush=True)


def by_frames(spark: SparkSession, lake: Lake, out: Lake) -> list[stage.Stage]:
    """mmrec's side: the night's own frames, staged in `out`."""
    from mmrec.features import asof
    from mmrec.features.fused import fused
    from mmrec.lake.scratch import kept

    silver = {k: lake.frame(spark, f"silver.{k}", lake.version(f"silver.{k}")) for k in _KINDS}
    with kept(out, _TARGETS[0], asof.events(silver["interactions"], NOW), "bench") as events:
        made = fused(events, silver, DAY, NOW, SETTINGS, "bench")
        return [stage.stage(out, name, frame, "bench") for name, frame in made.items()]


def hashes(found: list[stage.Stage] | Path) -> dict[str, str]:
    """Table -> content hash of its rows, staged, or in the folder `by_hand` wrote to; what is in no file is added."""
    if isinstance(found, Path):
        parts = {name: [found / f"{name}.parquet"] for name in _TARGETS}
    else:
        parts = {s.table: [s.folder / f.path for f in s.files] for s in found}
    told = {}
    for name, files in parts.items():
        t = schema.table(name)
        rows = pa.concat_tables([pq.read_table(f, partitioning=None) for f in files])
        plain = {"run_date": pa.scalar(DAY), "run_id": pa.scalar("bench")}
        columns = {c: rows[c] if c in rows.column_names else pa.repeat(plain.get(c, pa.scalar(None)), rows.num_rows)
                   for c in t.arrow.names}  # fmt: skip
        told[name] = content_hash(pa.table({c: v.cast(t.arrow.field(c).type) for c, v in columns.items()}), name)
    return told


def _duckdb(lake: Lake, root: Path, order: dict[str, Any]) -> dict[str, Any]:
    begun = time.perf_counter()
    by_hand(lake, root)
    spent = time.perf_counter() - begun
    return hashes(root) if order.get("check") else {"seconds": spent}


def _engine(engine: str, lake: Lake, root: Path, order: dict[str, Any]) -> dict[str, Any]:
    log = root / "events"
    log.mkdir(exist_ok=True)
    options = {"spark.eventLog.enabled": "true", "spark.eventLog.dir": log.as_uri(), "spark.eventLog.compress": "false",
               "spark.eventLog.rolling.enabled": "false"}  # fmt: skip
    spark = session(engine, SparkConfig(master="local[2]", memory="4g", quick_start=False, partitions=_PARTITIONS,
                                        options=options))  # fmt: skip
    told_before = sum(f.stat().st_size for f in log.iterdir())
    begun = time.perf_counter()
    staged = by_frames(spark, lake, Lake(root / f"out-{engine}"))
    spent = time.perf_counter() - begun
    found = hashes(staged) if order.get("check") else {}
    for s in staged:
        s.discard()
    more = {"slowest_task": slowest(log, told_before, spent)} if engine == "spark" and not found else {}
    return found or {"seconds": spent} | more


def slowest(log: Path, start: int, seconds: float) -> float:
    """Of stages whose tasks together took a tenth of `seconds` or more: the longest task over the median, the worst.

    Args:
        log: folder of the one log of a Spark application's events. start: bytes of it that are of before.
    """
    took: dict[int, list[int]] = {}
    for file in log.iterdir():
        with file.open("rb") as lines:
            lines.seek(start)
            for line in lines:
                event = json.loads(line) if line.endswith(b"\n") else {}
                if event.get("Event") == "SparkListenerTaskEnd":
                    task = event["Task Info"]
                    took.setdefault(event["Stage ID"], []).append(task["Finish Time"] - task["Launch Time"])
    long = [t for t in took.values() if len(t) > 2 and sum(t) > 100 * seconds]
    return max((max(t) / max(statistics.median(t), 1) for t in long), default=1.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
