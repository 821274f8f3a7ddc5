"""A version trained again from what its bundle says, and held against what was recorded of it.

In: a version's bundle (tables and their versions, settings, seed, as_of), its numbers in ops.metrics. Out: how far the
numbers of the second training lie from them, and which files of the two bundles are the same.
Nothing of the home is changed: the second training has a folder of its own, no run in MLflow, and is not registered.
Trade-off: it costs what the training did; a training can be repeated as long as the lake keeps the versions it read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.dataset as ds

import mmrec
from mmrec import config as room
from mmrec import learn, trained
from mmrec.bundle.bundle import load
from mmrec.config import Config
from mmrec.context import Again, Night
from mmrec.errors import InputError
from mmrec.evaluate.contest import Contest, is_version
from mmrec.lake.store import Lake
from mmrec.train.recipe import Recipe

_KEY = ("protocol", "split", "slice", "model", "metric")
WITHIN = 1e-6  # of a metric; threads and instructions of another class of machine may add in another order


def reproduce(config: Config, version: str, tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Train a version again, and compare.

    Returns: version, numbers (compared), largest (difference), where (its key), missing (numbers that only one of the
        two has), same_files and other_files of the bundles, code (then and now, where they differ), seconds.

    Raises: InputError: its bundle does not say how it was trained, or the recipe of that name is another by now.
        Expired: the lake does not keep the versions any more. QualityError: the bundle was altered.
    """
    bundle = load(config.bundles / version)
    told = bundle.about.get("settings")
    if told is None:
        raise InputError("this version can't be trained again: its bundle does not say its settings",
                         where=str(bundle.folder), value=bundle.kind, valid="a version that this release trained",
                         next="mmrec models list")  # fmt: skip
    told = dict(told)
    recipe = Recipe.recorded(told.pop("recipe"))
    if "second_stage" in told:  # where it names no sources, it is of before a second stage looked at any
        told["second_stage"] = {"sources": []} | told["second_stage"]
    again = room.load(config.home, **told, engine=config.engine, mlflow_uri=config.mlflow_uri)
    now = asdict(trained.new(again)({}).recipe)
    if json.loads(json.dumps(now)) != recipe:
        apart = sorted(k for k in {*now, *recipe} if json.loads(json.dumps(now.get(k))) != recipe.get(k))
        raise InputError("the recipe of this name is another by now", where=f"recipe {told['train']['recipe']}",
                         value=", ".join(f"{k} {now.get(k)}" for k in apart),
                         valid=", ".join(f"{k} {recipe.get(k)}" for k in apart),
                         next="put the recipe back")  # fmt: skip
    folder = config.home / "training" / f"again-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    as_of, contest = datetime.fromisoformat(bundle.about["as_of"]), Contest.load(bundle.folder)
    night = Night(again, as_of.astimezone(ZoneInfo(again.zone)).date(), tell,
                  again=Again(folder, bundle.about["data_versions"], contest.since if contest else None))  # fmt: skip
    begun = datetime.now(UTC)
    for station in (learn.train, learn.evaluate, learn.export):
        station(night)
    made = load(folder / "bundle")
    rows = [r for r in json.loads((folder / "metrics.json").read_text()) if contest or r["protocol"] != "gate"]
    out = {"version": version} | _apart(config, version, rows)
    files, others = (json.loads((b.folder / "digest.json").read_text())["files"] for b in (bundle, made))
    out["same_files"] = sorted(n for n in files if files[n] == others.get(n))
    out["other_files"] = sorted(n for n in {*files, *others} if files.get(n) != others.get(n))
    if bundle.about["code"] != mmrec.__version__:
        out["code"] = [bundle.about["code"], mmrec.__version__]
    shutil.rmtree(folder)
    return out | {"seconds": round((datetime.now(UTC) - begun).total_seconds(), 1)}


def _apart(config: Config, version: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How far numbers lie from those on record."""
    found = {tuple(r[c] for c in _KEY): r["value"] for r in rows if r["value"] == r["value"]}
    table = Lake(config.lake).arrow("ops.metrics", where=ds.field("model_version") == version).to_pylist()
    # other versions are not asked again, and time is another each time
    alone = [r for r in table if r["metric"] != "ms_per_user"
             and not any(is_version(r[c].removeprefix("vs_")) for c in ("model", "slice"))]  # fmt: skip
    kept = {key: r["value"] for r in alone if (key := tuple(r[c] for c in _KEY))[0] in {k[0] for k in found}}
    gaps = {key: abs(value - kept[key]) for key, value in found.items() if key in kept}
    worst = max(gaps, key=lambda k: gaps[k], default=None)
    return {"numbers": len(gaps), "largest": gaps.get(worst, 0.0), "where": list(worst) if worst else None,
            "missing": len(found.keys() ^ kept.keys())}  # fmt: skip
