"""A night from end to end, its replay, and the demo: stations in order, timed.

In: settings and a run_date. Out: a summary a program can read; tables, models and reports are the result.
Training runs in a process of its own, so that the process that scores never loads torch.
Trade-off: a night whose training fails still publishes with the champion it has; the failure is in the summary
and in the exit code of `mmrec learn`, not in the night's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec import config as settings
from mmrec import dates
from mmrec.config import Config
from mmrec.context import Night, call, note
from mmrec.errors import InputError, QualityError
from mmrec.holding import approved
from mmrec.lake import commit, content
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.learn import caught_up
from mmrec.memory import Peak
from mmrec.night import due
from mmrec.recommend.arms import MAIN
from mmrec.steps import step

Tell = Callable[[str, int, int], None]
_BEFORE, _AFTER = ("world", "ingest", "validate", "embed"), ("plan", "features", "recommend", "publish", "monitor")


def make_home(
    home: Path,
    *,
    source: str = "builtin",
    root: Path | None = None,
    zone: str = "UTC",
    seed: int = 0,
    size: str = "small",
) -> Config:
    """Write mmrec.toml, create every table, make version 0. A home that exists is completed, never overwritten."""
    from mmrec.bundle.registry import init_version_zero

    if root is not None and not root.is_dir():
        raise InputError(
            "the source folder does not exist",
            where="--root",
            value=str(root),
            valid="a folder",
            next="mmrec init --help",
        )
    if not (home / "mmrec.toml").is_file():
        _check_choices(source, size, zone)
        more: dict[str, Any] = {}
        if source == "builtin":  # two months of history: short windows, a small model
            more = {"evaluate": {"rolling_days": 3, "rolling_cuts": 3, "rolling_fits": 1}, "gate": {"days": 3},
                    "train": {"recipe": "small"}}  # fmt: skip
        about: dict[str, Any] = {"spec": source, "root": root.absolute() if root else None}
        if source == "builtin":
            about |= {"seed": seed, "size": size}
        settings.write(home, {"zone": zone, "source": about} | more)
    config = settings.load(home)
    Lake(config.lake).create_all()
    init_version_zero(config)
    return config


def _world(seed: int, size: str) -> Any:
    from mmrec.worlds.builtin import World

    return World(seed, size)


def _check_choices(source: str, size: str, zone: str) -> None:
    from mmrec.worlds.sources import SPECS

    dates.as_of(date(2026, 1, 1), zone)
    if source not in SPECS:
        raise InputError("no such source", where="source.spec", value=source, valid=SPECS, next="mmrec init --help")
    if source == "builtin":
        _world(0, size)


def station(config: Config, name: str, when: date, tell: Tell) -> dict[str, Any]:
    """Run one station of one run_date; returns its counts."""
    night = Night(config, when, tell)
    try:
        return call(name, night)
    finally:
        note(night)


def stations(config: Config, names: list[str], when: date, *, force: bool = False, tell: Tell) -> dict[str, Any]:
    """Run stations of one run_date in the order given, sharing one engine session.

    Of a published date the stations from `plan` on do nothing, as in `run`, unless `force`: a list is published once.

    Returns: counts by station, `seconds` by station, `skipped`: stations that had nothing to do.
    """
    known = [step(name) for name in names]
    night = Night(config, when, tell)
    counts: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    skipped: list[str] = []
    night.seconds = seconds  # type: ignore[attr-defined]
    try:
        for s in known:
            if not force and _settled(night, s.name):
                skipped.append(s.name)
            else:
                _timed(s.name, night, counts, seconds, tell)
    finally:
        note(night)
    return counts | {"run_date": str(when), "seconds": seconds, "skipped": skipped}


def _settled(night: Night, name: str) -> bool:
    """Whether a published list leaves station `name` nothing to do; publish and monitor complete their own run."""
    published = commit.published_run_id(night.lake, "gold.recommendations", night.run_date)
    if published is None or name not in _AFTER:
        return False
    if name not in ("publish", "monitor"):
        return True
    try:
        return night.manifest.run_id != published
    except InputError:  # published long ago, and its plan is no longer on this disk
        return True


def _published(night: Night, begun: float, peak: Peak, tell: Tell) -> dict[str, Any]:
    """The summary of a date that is published; what a kill left undone after its commit is done first."""
    lake, counts, seconds = night.lake, {}, {}
    run_id = str(commit.published_run_id(lake, "gold.recommendations", night.run_date))
    told = [lake.dataset(t).count_rows(filter=ds.field("run_id") == run_id) for t in ("ops.runs", "ops.metrics")]
    if not all(told) and not _settled(night, "publish"):
        try:
            for name in ("publish", "monitor"):
                _timed(name, night, counts, seconds, tell)
        finally:
            note(night)
    return _summary(night, run_id, counts, seconds | {"total": round(time.monotonic() - begun, 2)}, peak)


def run(config: Config, when: date, *, force: bool = False, train: bool | None = None, tell: Tell) -> dict[str, Any]:
    """Training if due, then the night of `when`.

    Args:
        force: publish again what is published, under a new run_id.
        train: True now, False not at all, None when the champion is older than `train.every_days`. What an earlier
            training could not hand to MLflow is handed over first.

    Returns: run_date, run_id, users, items, lists, metrics, seconds, peak_memory_mb, counts, published.
    """
    begun = time.monotonic()
    night = Night(config, when, tell)
    counts: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    with Peak() as peak:
        night.seconds = seconds  # type: ignore[attr-defined]
        if when in night.lake.run_dates() and not force:
            return _published(night, begun, peak, tell)
        try:
            held = not force and approved(night)  # its lists are there, and somebody has let them through
            for name in () if held else _BEFORE:
                _timed(name, night, counts, seconds, tell)
            if held:
                train = False
            if not held and (late := caught_up(config, tell)):
                counts["caught_up"] = late
            if train or (train is None and due(night)):
                counts["training"] = _learn(config, when, seconds, quiet=tell is _silent)
            for name in _AFTER[_AFTER.index("publish") :] if held else _AFTER:
                _timed(name, night, counts, seconds, tell)
                # fences are pinned: who published before is seen now, who does later is refused
                if name == "plan" and not force and when in night.lake.run_dates():
                    return _published(night, begun, peak, tell)
        finally:
            note(night)
    seconds["total"] = round(time.monotonic() - begun, 2)
    return _summary(night, night.manifest.run_id, counts, seconds, peak) | {"published": True}


def replay(config: Config, when: date, tell: Tell) -> dict[str, Any]:
    """Repeat a published night from its recorded manifest, beside the lake, and compare content hashes.

    Raises: QualityError: the lists came out different. InputError: the date was never published.
    """
    begun = time.monotonic()
    lake = Lake(config.lake)
    run_id = commit.published_run_id(lake, "gold.recommendations", when)
    recorded = lake.arrow("ops.runs", where=ds.field("run_id") == run_id).to_pylist() if run_id else []
    if not recorded:
        raise InputError(
            "this run_date was never published",
            where="--date",
            value=str(when),
            valid=[str(d) for d in lake.run_dates()] or "none yet",
            next=f"mmrec run --date {when}",
        )
    night = Night(config, when, tell, replayed=Manifest.from_json(recorded[0]["manifest"]))
    scratch = config.runs / f"replay-{run_id}"
    shutil.rmtree(scratch, ignore_errors=True)
    night.out = Lake(scratch)
    night.out.create_all()
    seconds: dict[str, float] = {}
    counts: dict[str, Any] = {}
    try:
        with Peak() as peak:
            for name in ("features", "recommend", "publish"):
                _timed(name, night, counts, seconds, tell)
        hashes = {
            t: [content.content_hash(lk.day(t, when), t) for lk in (lake, night.out)]
            for t in ("gold.user_sequences", "gold.item_features", "gold.user_profiles", "gold.recommendations")
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    differ = [t for t, (old, new) in hashes.items() if old != new]
    if differ or hashes["gold.recommendations"][0] != recorded[0]["content_hash"]:
        raise QualityError(
            "the replay gave other rows than were published",
            where=f"run_date {when}, run {run_id}",
            value=differ or "ops.runs records another hash",
            valid="the same content hash",
            next="mmrec verify",
        )
    seconds["total"] = round(time.monotonic() - begun, 2)
    return _summary(night, str(run_id), counts, seconds, peak) | {
        "replayed": True,
        "content_hash": hashes["gold.recommendations"][1],
    }


def demo(home: Path, *, data: str, source: Path | None, nights: int, seed: int, tell: Tell) -> dict[str, Any]:
    """Nights in a row in a fresh home; returns the last night's summary with all nights under `nights`."""
    if data == "builtin":
        first = _world(seed, "small").first_run_date
    else:
        from mmrec.worlds.sources import open_source

        opened = open_source(data, source, home / "cache")
        last: date | None = getattr(opened, "last_day", lambda: None)()
        if last is None:
            raise InputError(
                "a demo needs data whose last day is known",
                where="--data",
                value=data,
                valid=["builtin", "movielens-small", "amazon"],
                next=f"mmrec init --source {data} --root FOLDER, then mmrec run --date D",
            )
        first = last - timedelta(days=nights - 2)
    config = make_home(home, source=data, root=source, seed=seed)
    done = [run(config, first + timedelta(days=n), tell=tell) for n in range(nights)]
    peak = max(n["peak_memory_mb"] for n in done)
    return done[-1] | {"nights": done, "peak_memory_mb": peak, "home": str(home)}


def _timed(name: str, night: Night, counts: dict[str, Any], seconds: dict[str, float], tell: Tell) -> None:
    begun = time.monotonic()
    counts[name] = call(name, night)
    seconds[name] = round(time.monotonic() - begun, 2)
    tell(name, int(seconds[name] * 1000), -1)


def _silent(_what: str, _done: int, _of: int) -> None:
    pass


def _learn(config: Config, when: date, seconds: dict[str, float], *, quiet: bool) -> dict[str, Any]:
    begun = time.monotonic()
    command = [sys.executable, "-m", "mmrec", "learn", "--home", str(config.home), "--date", str(when), "--json",
               "--engine", config.engine]  # fmt: skip
    child = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, text=True)
    if child.returncode != 0:
        seconds["training"] = round(time.monotonic() - begun, 2)
        return {"failed": child.returncode, "message": (child.stderr or "").strip()[-2000:]}
    told = json.loads(child.stdout)
    seconds.update(told["seconds"])
    return {k: v for k, v in told.items() if k != "seconds"}


def _summary(
    night: Night, run_id: str, counts: dict[str, Any], seconds: dict[str, float], peak: Peak
) -> dict[str, Any]:
    lake, day = night.lake, night.run_date
    lists = lake.day("gold.recommendations", day, columns=["user_id", "arm", "model_version"])
    ran = lists.filter(pc.equal(lists["arm"], MAIN))["model_version"]
    return {
        "run_date": str(day), "run_id": run_id, "published": False,
        "model_version": ran[0].as_py() if len(ran) else None,
        "users": lake.day("gold.user_sequences", day, columns=["user_id"]).num_rows,
        "items": lake.day("gold.item_features", day, columns=["item_id"]).num_rows,
        "lists": pc.count_distinct(lists["user_id"]).as_py(), **metrics_of(lake, day),
        "seconds": seconds, "peak_memory_mb": peak.megabytes, "counts": counts,
    }  # fmt: skip


def metrics_of(lake: Lake, day: date) -> dict[str, Any]:
    """Test metrics of the newest evaluation up to `day`: `metrics` on the default protocol, and by protocol."""
    rows = lake.arrow("ops.metrics", where=(ds.field("split") == "test") & (ds.field("slice") == "all")
                      & (ds.field("run_date") <= day)).to_pylist()  # fmt: skip
    newest = max((r["run_date"] for r in rows), default=None)
    by: dict[str, dict[str, dict[str, float]]] = {}
    for r in rows:
        if r["run_date"] == newest:
            by.setdefault(r["protocol"], {}).setdefault(r["model"], {})[r["metric"]] = r["value"]
    return {"metrics": by.get("rolling", {}), "metrics_by_protocol": by, "metrics_of": str(newest) if newest else None}
