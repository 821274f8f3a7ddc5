"""Nights that are killed: `python -m tests.soak.kills [--kills N] [--seed S] [--engine E] [--out FILE]`.

In: a fresh ten-second world. Out: figures as JSON; an AssertionError where a promise does not hold.
Before each night the home gets a twin, a copy in which the night goes undisturbed. In the home itself the whole process
group of `mmrec run` gets SIGKILL at random moments of the night, several times, until a last run is let through. After
every kill each table is read: of the date there is no list or the whole list. After every night the home holds the same
rows as its twin, and in the end `mmrec verify` finds nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

from mmrec import schema
from mmrec.lake.content import content_hash
from mmrec.lake.store import Lake
from tests.soak.evidence import keep

FIRST = date(2026, 3, 2)
LEAST, MOST = 3, 5  # kills of one night before it is let through
AGAIN = 0.7  # a run after a kill has less to do: this share of a night is where it is struck
# the rest of ops tells how each home came there: attempts, pinned versions
SAME = tuple(n for n in schema.TABLES if not n.startswith("ops.") or n in ("ops.quarantine", "ops.metrics"))


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mmrec", *words]


def mmrec(*words: str, ok: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(command(*words), capture_output=True, text=True)
    assert done.returncode in ok, f"mmrec {' '.join(words)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def night(home: Path, day: date, engine: str) -> tuple[str, ...]:
    return ("run", "--home", str(home), "--date", str(day), "--no-train", "--engine", engine, "--json")


def make_home(home: Path, encoders: Path | None) -> None:
    mmrec("init", "--home", str(home), "--size", "tiny")
    if encoders:
        (home / "cache").mkdir(parents=True, exist_ok=True)
        (home / "cache" / "encoders").symlink_to(encoders)


def killed(home: Path, day: date, engine: str, after_s: float) -> bool:
    """Start the night and kill it and its children after so many seconds; False where it had ended by then."""
    process = subprocess.Popen(command(*night(home, day, engine)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, told = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0, told.decode()[-2000:]
    return False


def contents(home: Path) -> dict[str, str]:
    """Content hash of every table."""
    lake = Lake(home / "lake")
    return {name: content_hash(lake.arrow(name), name) for name in schema.TABLES}


def lists(home: Path) -> dict[date, str]:
    """Content hash of every published date's lists."""
    lake = Lake(home / "lake")
    return {day: content_hash(lake.day("gold.recommendations", day), "gold.recommendations") for day in lake.run_dates()}


def life(folder: Path, kills: int, *, seed: int, engine: str = "local", encoders: Path | None = None,
         tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:  # fmt: skip
    """Nights until so many kills struck; see the module."""
    rng, struck, nights, too_late, completed = Random(seed), list[dict[str, Any]](), 0, 0, 0
    calm, hit = folder / "calm", folder / "hit"
    make_home(hit, encoders)
    stages = Counter[str]()
    while len(struck) < kills:
        day = FIRST + timedelta(days=nights)
        shutil.rmtree(calm, ignore_errors=True)
        shutil.copytree(hit, calm, symlinks=True)
        begun = time.monotonic()
        told = json.loads(mmrec(*night(calm, day, engine)))
        assert told["published"]
        lasts = time.monotonic() - begun
        before, wanted = lists(hit), lists(calm)
        planned, ended = rng.randint(LEAST, MOST), False
        for n in range(min(planned, kills - len(struck))):
            after_s = rng.uniform(0, lasts if n == 0 else AGAIN * lasts)
            if not killed(hit, day, engine, after_s):
                too_late, ended = too_late + 1, True
                break
            contents(hit)
            seen = lists(hit)
            assert seen in (before, wanted), f"after a kill of the night of {day} at {after_s:.2f} s: {seen.keys()}"
            stages["published" if day in seen else "not yet published"] += 1
            struck.append({"run_date": str(day), "after_s": round(after_s, 2), "of_s": round(lasts, 2), "published": day in seen})
            tell(json.dumps(struck[-1]))
            if day in seen and len(struck) % 2:  # what is left to do then is short: every other such run is killed too
                break
        if not ended:
            mmrec(*night(hit, day, engine))
        if not (hit / "reports" / str(day) / "report.html").is_file():  # the kill came after the lists were published
            completed += 1
            mmrec("steps", "publish", "monitor", "--home", str(hit), "--date", str(day), "--engine", engine)
        assert lists(hit) == wanted, f"the night of {day} gave other lists after the kills"
        mine, theirs = contents(hit), contents(calm)
        other = {name: [Lake(home / "lake").arrow(name).num_rows for home in (hit, calm)] for name in SAME if mine[name] != theirs[name]}
        assert not other, f"after the night of {day}, killed {[k for k in struck if k['run_date'] == str(day)]}, other rows than its twin's: {other}"
        nights += 1
        if len(struck) >= kills or nights % 10 == 0:
            found = json.loads(mmrec("verify", "--home", str(hit), "--json", ok=(0, 3)))
            assert found["ok"], [c for c in found["checks"] if not c["ok"]]
    return {"seed": seed, "engine": engine, "kills": len(struck), "nights": nights, "ended_before_the_kill": too_late, "completed_by_stations": completed, "seen_after_a_kill": dict(stages),
            "lost_doubled_or_torn_rows": 0, "verify": f"{len(found['checks'])} checks hold", "struck": struck}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("local", "spark"), default="local")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mmrec-kills-"))
    begun = time.monotonic()
    told = life(folder, asked.kills, seed=asked.seed, engine=asked.engine, tell=lambda line: print(line, flush=True))
    told |= {"seconds": round(time.monotonic() - begun)}
    keep(told, ["tests.soak.kills", *sys.argv[1:]], asked.out)
    shutil.rmtree(folder)
    print("all green")


if __name__ == "__main__":
    main()
