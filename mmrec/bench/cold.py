"""One cold start, timed from inside: a Spark session and the first commit of a table, in a fresh process.

In: `quick` or `plain`, and an empty folder. Out: one JSON line: seconds from the first import of Spark to the session
and to the commit, and the content hash of what was committed.
Trade-off: starting Python itself is left out, as it is the same for both.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mmrec.config import SparkConfig
from mmrec.lake import commit
from mmrec.lake.content import content_hash
from mmrec.lake.session import session, stop
from mmrec.lake.store import Lake

TABLE = "silver.relations"


def main(how: str, folder: str) -> None:
    """Start, commit a hundred rows, print."""
    lake = Lake(Path(folder))
    lake.create(TABLE)
    pinned = commit.fence(lake, TABLE)
    begun = time.monotonic()
    spark = session("spark", SparkConfig(quick_start=how == "quick"))
    started = time.monotonic() - begun
    rows = spark.range(100).selectExpr(
        "cast(id as string) row_hash", "'item' kind", "cast(id as string) subject_id", "'same' relation",
        "cast(id + 1 as string) object_id", "timestamp'2026-01-01 00:00:00' available_at", "'cold' source")  # fmt: skip
    done = commit.write(lake, TABLE, rows, run_id="cold", pinned=pinned)
    seconds = time.monotonic() - begun
    print(json.dumps({"session_s": started, "commit_s": seconds, "rows": done.rows,
                      "hash": content_hash(lake.arrow(TABLE, done.version), TABLE)}))  # fmt: skip
    stop("spark")


if __name__ == "__main__":
    main(*sys.argv[1:])
