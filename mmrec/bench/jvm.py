"""`mmrec bench jvm`: what the class archive saves of a cold start.

In: rounds. Out: seconds of a plain start and of one from the archive, a session and the first commit together, each in
a process of its own, interleaved; their ratio. Both must commit the same rows.
Trade-off: the limit is not a peer's but the work itself: what a start costs when every class is there already, which a
second commit in the same session shows.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from mmrec.config import SparkConfig
from mmrec.errors import QualityError, TransientError
from mmrec.lake import jvm


def bench(rounds: int, tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Medians over `rounds` of each, interleaved.

    Returns: plain_s, archive_s, ratio, and the same of the session alone; rounds, archive_mb.

    Raises: QualityError: the two did not commit the same rows. TransientError: a start failed.
    """
    archive = jvm.archive(SparkConfig())
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "quick": []}
    for n in range(2 * rounds):
        how = ("plain", "quick")[n % 2]
        runs[how].append(_start(how))
        tell("bench jvm", n + 1, 2 * rounds)
    found = {r["hash"] for rs in runs.values() for r in rs}
    if len(found) != 1:
        raise QualityError("the two starts committed other rows", where="bench jvm", value=sorted(found),
                           valid="one content hash", next="mmrec bench jvm")  # fmt: skip
    plain, quick = ({k: statistics.median(r[k] for r in runs[how]) for k in ("session_s", "commit_s")}
                    for how in ("plain", "quick"))  # fmt: skip
    return {
        "plain_s": round(plain["commit_s"], 2), "archive_s": round(quick["commit_s"], 2),
        "ratio": round(quick["commit_s"] / plain["commit_s"], 3),
        "session_plain_s": round(plain["session_s"], 2), "session_archive_s": round(quick["session_s"], 2),
        "session_ratio": round(quick["session_s"] / plain["session_s"], 3),
        "rounds": rounds, "archive_mb": round(archive.stat().st_size / 1e6),
    }  # fmt: skip


def _start(how: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mmrec-bench-") as folder:
        done = subprocess.run([sys.executable, "-m", "mmrec.bench.cold", how, folder], capture_output=True, text=True)
    if done.returncode:
        raise TransientError("a start failed", where=f"bench jvm, {how}", value=done.stderr.strip()[-800:],
                             next="mmrec doctor")  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])
