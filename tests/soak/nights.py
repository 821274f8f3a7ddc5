"""Nights under a real Airflow, with kills: `python -m tests.soak.nights --db sqlite|postgres [--out FILE]`.

In: a ten-second world in a fresh home. Out: figures as JSON; an AssertionError where a promise does not hold.
1. three scheduled nights, the training that they ask for, its gate;
2. one night alone, beside `mmrec run` of the same steps: what orchestration adds;
3. a backfill of a week while a nightly runs;
4. kill -9 of the scheduler, of a worker, of a task, of its command, each in the middle of a night;
5. every promise of `mmrec verify`, every date published once, nothing left over.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from mmrec.dates import airflow_range
from mmrec.lake.store import Lake
from tests.soak.airflow import Airflow
from tests.soak.evidence import keep
from tests.waiting import until

FIRST = date(2026, 3, 2)
NIGHTS, WEEK = 3, 7
KILLS = ("scheduler", "worker", "task", "command")
RECOVERY_S = 180  # on a machine that does nothing else


def make_home(home: Path, nights: int = NIGHTS, encoders: Path | None = None) -> None:
    """A tiny world whose schedule is its first nights, all of them due."""
    mmrec("init", "--home", str(home), "--size", "tiny")
    path = home / "mmrec.toml"
    text = path.read_text()
    begin, end = FIRST - timedelta(days=1), FIRST + timedelta(days=nights - 2)
    for old, new in {
        "# start = \"2026-01-01\"": f'start = "{begin}"', "# end = \n": f'end = "{end}"\n',
        "# catchup = false": "catchup = true", "# retry_delay_s = 60": "retry_delay_s = 5",
        '# training = "0 4 * * 0"': 'training = "0 4 1 7 *"',  # by the clock never: the night asks for it
    }.items():  # fmt: skip
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)
    if encoders:
        (home / "cache").mkdir()
        (home / "cache" / "encoders").symlink_to(encoders)


def mmrec(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "mmrec", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"mmrec {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def scheduled(a: Airflow, count: int) -> dict[str, Any]:
    begun = time.monotonic()
    nights = a.done("nightly", count, 900)
    assert not a.red("nightly"), a.red("nightly")
    nights_s = time.monotonic() - begun
    trainings = a.done("training", 1, 900)
    assert not a.red("training"), a.red("training")
    assert len(nights) == count
    assert all(t["run_type"] == "asset_triggered" for t in trainings)
    assert not a.red("maintenance"), a.red("maintenance")
    tries = {r["dag_run_id"]: {k: t["try_number"] for k, t in a.tasks("nightly", r["dag_run_id"]).items() if t["try_number"] > 1}
             for r in nights}  # fmt: skip
    return {"nights": len(nights), "nights_s": round(nights_s), "trainings": len(trainings),
            "with_trainings_s": round(time.monotonic() - begun), "tried_again": {k: v for k, v in tries.items() if v}}  # fmt: skip


def alone(a: Airflow, day: date, engine: str) -> dict[str, Any]:
    """One night through Airflow, one by the command line, the same steps, one after the other, with nothing beside."""
    until("nothing else runs", lambda: _quiet(a), 600)
    run = a.trigger("nightly", run_date=str(day), engine=engine)
    until("the night ends", lambda: a.run("nightly", run)["state"] in ("success", "failed"), 600)
    ended = a.run("nightly", run)
    assert ended["state"] == "success", a.red("nightly")
    tasks = {k: round(t["duration"], 1) for k, t in a.tasks("nightly", run).items()}
    begun = time.monotonic()
    told = json.loads(mmrec("run", "--home", str(a.home), "--date", str(day + timedelta(days=1)), "--engine", engine, "--no-train", "--json"))
    assert told["published"]
    plain = time.monotonic() - begun
    return {"engine": engine, "airflow_s": round(ended["duration"], 1), "run_s": round(plain, 1),
            "added_s": round(ended["duration"] - plain, 1), "tasks": tasks}  # fmt: skip


def _quiet(a: Airflow) -> bool:
    """No run of any DAG goes on, nor is one made within the next ten seconds: three events ask for training thrice."""

    def ended() -> bool:
        return all(r["state"] in ("success", "failed") for d in ("nightly", "training", "maintenance") for r in a.runs(d))

    if not ended():
        return False
    time.sleep(10)
    return ended()


def week(a: Airflow, first: date, engine: str) -> dict[str, Any]:
    """A backfill of a week while a nightly runs."""
    last = first + timedelta(days=WEEK - 1)
    before = len(a.runs("nightly"))
    begun = time.monotonic()
    run = a.trigger("nightly", run_date=str(last + timedelta(days=1)), engine=engine)
    until("the nightly works", lambda: a.tasks("nightly", run)["silver"]["state"] in ("running", "success"), 120)
    start, end = airflow_range(first, last)
    a.backfill("nightly", start, end, engine=engine)
    a.done("nightly", before + 1 + WEEK, 1800)
    assert not a.red("nightly"), a.red("nightly")
    made = [r for r in a.runs("nightly") if r["run_type"] == "backfill"]
    assert len(made) == WEEK, [r["dag_run_id"] for r in made]
    return {"engine": engine, "days": WEEK, "beside": str(last + timedelta(days=1)), "seconds": round(time.monotonic() - begun)}


def killed(a: Airflow, what: str, day: date, engine: str, within_s: float) -> dict[str, Any]:
    """kill -9 in the middle of a night; what is to be started again is started again at once."""
    run = a.trigger("nightly", run_date=str(day), engine=engine)
    until("silver works", lambda: a.tasks("nightly", run)["silver"]["state"] == "running", 120)
    a.kill(what)
    begun = time.monotonic()
    if what == "scheduler":  # as systemd would; standalone goes as a whole
        name = "standalone" if a.db == "sqlite" else "scheduler"
        if a.db == "sqlite":
            a.end(name)
        a.restart(name)
    until(f"the night recovers from the kill of the {what}", lambda: _state(a, run) in ("success", "failed"), within_s)
    seconds = time.monotonic() - begun
    assert _state(a, run) == "success", a.red("nightly")
    tries = {k: t["try_number"] for k, t in a.tasks("nightly", run).items()}
    return {"what": what, "run_date": str(day), "to_the_end_of_the_night_s": round(seconds), "tries": {k: v for k, v in tries.items() if v > 1}}


def _state(a: Airflow, run: str) -> str:
    try:
        return a.run("nightly", run)["state"]
    except OSError:  # the API is down with the rest
        return "unknown"


def clean(a: Airflow, dates: list[date]) -> dict[str, Any]:
    told = json.loads(mmrec("verify", "--home", str(a.home), "--json"))
    assert told["ok"], [c for c in told["checks"] if not c["ok"]]
    lake = Lake(a.home / "lake")
    assert lake.run_dates() == dates, lake.run_dates()
    rows = lake.arrow("gold.recommendations", columns=["run_date", "user_id", "rank"])
    assert rows.group_by(["run_date", "user_id", "rank"]).aggregate([]).num_rows == rows.num_rows
    left = [*(a.home / "runs" / "claims").glob("*.json"), *(a.home / "runs" / "scratch").glob("*")]
    assert not left, left
    return {"run_dates": len(dates), "verify": f"{len(told['checks'])} checks hold"}


def soak(db: str, folder: Path, *, engine: str, nights: int = NIGHTS, kills: tuple[str, ...] = KILLS, whole: bool = True,
         encoders: Path | None = None, recovery_s: float = RECOVERY_S, tell: Any = print) -> dict[str, Any]:  # fmt: skip
    """All of it; `whole` False leaves out the comparison and the backfill."""
    home = folder / "home"
    make_home(home, nights, encoders)
    a = Airflow(home, folder / "airflow", db)
    told: dict[str, Any] = {"db": db, "engine": engine}
    days = [FIRST + timedelta(days=n) for n in range(nights)]

    def step(name: str, value: Any) -> None:
        told[name] = value
        tell(json.dumps({name: value}))

    try:
        a.start()
        step("scheduled", scheduled(a, nights))
        if whole:
            step("orchestration", alone(a, days[-1] + timedelta(days=1), engine))
            days += [days[-1] + timedelta(days=n) for n in (1, 2)]
            step("backfill", week(a, days[-1] + timedelta(days=1), engine))
            days += [days[-1] + timedelta(days=n + 1) for n in range(WEEK + 1)]
        for what in kills:
            day = days[-1] + timedelta(days=1)
            step(f"kill_{what}", killed(a, what, day, engine, recovery_s))
            days.append(day)
        until("the last training ends", lambda: all(r["state"] in ("success", "failed") for r in a.runs("training")), 600)
        step("end", clean(a, days))
    finally:
        a.stop()
    return told


def compare(db: str, folder: Path, engine: str, rounds: int) -> dict[str, Any]:
    """Only what orchestration adds, `rounds` times, with nothing beside it."""
    make_home(folder / "home", 1)
    a = Airflow(folder / "home", folder / "airflow", db)
    try:
        a.start()
        scheduled(a, 1)
        told = [alone(a, FIRST + timedelta(days=1 + 2 * n), engine) for n in range(rounds)]
    finally:
        a.stop()
    return {"db": db, "engine": engine, "added_s": [t["added_s"] for t in told], "rounds": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", choices=("sqlite", "postgres"), required=True)
    parser.add_argument("--engine", choices=("spark", "local"), default="spark")
    parser.add_argument("--compare", type=int, metavar="ROUNDS", help="only measure what orchestration adds")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mmrec-soak-"))
    if asked.compare:
        told = compare(asked.db, folder, asked.engine, asked.compare)
        print(json.dumps(told["added_s"]))
    else:
        told = soak(asked.db, folder, engine=asked.engine, tell=lambda line: print(line, flush=True))
    keep(told, ["tests.soak.nights", *sys.argv[1:]], asked.out)
    shutil.rmtree(folder)
    print("all green")


if __name__ == "__main__":
    main()
