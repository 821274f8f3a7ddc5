"""Who serves, and who may: promotions, rollbacks, and aliases that people set in MLflow.

In: a request; what the version's bundle says of the days before its training. Out: a change or a refusal in ops.serving
(bundle/serving.py), aliases that follow it, the gate's words on the version's tags.
A request is decided over a state and made only if that is still the newest: of two at once, one is made and the other
is told so; both are on record. Whoever overrules the gate says why, and that is on record as well.
Trade-off: an alias set by hand counts at the next `reconcile`, which each planned night begins with, not at once.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow.dataset as ds

from mmrec import schema
from mmrec.bundle import registry
from mmrec.bundle.bundle import Bundle, load
from mmrec.bundle.serving import ZERO, Outrun, Served, Serving
from mmrec.config import Config
from mmrec.errors import InputError, QualityError, TransientError
from mmrec.evaluate.contest import SELF, Contest, version_named
from mmrec.evaluate.gate import decide
from mmrec.lake.store import Lake

_KNOWN = 0.5  # share of the items on offer, as of the training, that a version's item map must know


def promote(
    config: Config, version: str, *, by: str, through: str = "command", override: str = "", why: str = "",
    share: float | None = None, seen: Serving | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Ask that a version serve; the gate decides, unless it is overruled.

    Args:
        by: who asks. through: gate, command or mlflow. override: why the gate is overruled; empty: it is not.
        why: in the asker's words. share: of the users that it is to serve first, as a canary beside what serves; None:
            all of them. seen: the state that is decided over; None: the newest.

    Returns: model_version, decision (promoted or held), reason, numbers, before, change (None: none was made),
        overruled: whether the gate had held it, and it serves, share.

    Raises: InputError: it serves already, there is no such version or share, or it is not on this disk. QualityError:
        its bundle was altered since it was sealed.
    """
    seen = registry.state(config) if seen is None else seen
    if version == seen.version:
        raise InputError("this version serves already", where="mmrec models promote", value=version,
                         valid="another version", next="mmrec models list")  # fmt: skip
    to = _registered(config, version)
    if share is not None and not 0 < share < 1:
        raise InputError("no such share of the users", where="--share", value=share, valid="above 0, below 1",
                         next=f"mmrec models promote {version} --share 0.1")  # fmt: skip
    decision, reason, numbers = _gate(config, to, seen.stack[-1] if seen.stack else None)
    told = {"asked_by": by, "through": through, "why": override or why, "said": reason,
            "numbers": json.dumps(numbers, sort_keys=True)}  # fmt: skip
    overruled = decision == "held" and bool(override)
    made: int | None = None
    if decision == "promoted" or overruled:
        try:
            now, row = registry.change(config, seen, "promoted", to, overridden=overruled, share=share, **told)
            decision, made = "promoted", row["change"]
            if not registry.mirror(config, now):
                reason += "; the registry does not answer: its aliases follow at the next reconcile"
        except Outrun as error:
            decision, reason = "held", f"{error.what}: {error.valid}"
            told["said"] = reason
    if made is None:
        registry.change(config, registry.state(config), "refused", to, **told)
    _tag(config, version, f"{decision}: {reason}" + (f" (overruled by {by}: {override})" if overruled else ""))
    return {"model_version": version, "decision": decision, "reason": reason, "numbers": numbers,
            "before": seen.version, "change": made, "overruled": overruled and made is not None,
            "share": share}  # fmt: skip


def rollback(config: Config, *, by: str, why: str = "") -> dict[str, Any]:
    """Let serve again what served before; as often as versions served. Where a canary serves a share, that ends first.

    Returns: model_version (what serves now; 0: popularity), before, change.

    Raises: InputError: nothing was promoted, or the version before is not on this disk. QualityError: that was altered.
        Outrun: another change was made meanwhile.
    """
    seen = registry.state(config)
    if not seen.stack and seen.trial is None:
        raise InputError("nothing serves that could be rolled back", where="mmrec models rollback",
                         value="version 0, popularity", valid="a promoted version",
                         next="mmrec models list")  # fmt: skip
    left = seen.stack if seen.trial is not None else seen.stack[:-1]
    to, gone = left[-1] if left else None, seen.version if seen.trial is None else seen.trial.version
    if to is not None and seen.trial is None:
        load(config.bundles / to.version, to.sha256)
    told = {"asked_by": by, "through": "command", "why": why, "before": gone}
    now, row = registry.change(config, seen, "rolled_back", to, **told)
    registry.mirror(config, now)
    _tag(config, gone, f"rolled back by {by}: {why}")
    return {"model_version": now.version, "before": gone, "change": row["change"]}


def reconcile(config: Config) -> dict[str, Any]:
    """Make aliases and lake agree: what a person asked for in MLflow goes through the gate.

    Returns: model_version that serves; asked: the decision on a version that was given the alias by hand, if one was;
        restored: whether an alias was put back; answers: whether the registry did.
    """
    out: dict[str, Any] = {"answers": True}
    try:
        version = registry.asked(config)
    except TransientError:
        return {"model_version": registry.state(config).version, "answers": False}
    if version:
        try:
            out["asked"] = promote(config, version, by="a user of MLflow", through="mlflow",
                                   why="the alias champion was set in MLflow")  # fmt: skip
        except (InputError, QualityError) as error:  # its bundle is not here, or not what was registered
            _refused(config, version, str(error))
            out["asked"] = {"model_version": version, "decision": "held", "reason": error.what}
    now = registry.state(config)
    if version is not None and version != now.version:
        out["restored"] = True
        if not version and now.version != ZERO:
            _tag(config, now.version, "the alias champion was taken away in MLflow and put back: mmrec models rollback "
                                      "is how another serves")  # fmt: skip
    if now.change:
        out["answers"] = registry.mirror(config, now)
    return {"model_version": now.version} | out


def met(config: Config, bundle: Bundle, other: Served | None) -> Contest | None:
    """What a version was measured beside, another version among it, if they were asked for the same days, before the
    training of the one or of the other; None: nothing. `other`: None: version 0."""
    contest = Contest.load(bundle.folder)
    if contest is None or other is None or version_named(other.version) in contest.rankers:
        return contest
    try:
        theirs = Contest.load(load(config.bundles / other.version, other.sha256).folder)
    except (InputError, QualityError) as error:
        return replace(contest, unmeasured=contest.unmeasured | {other.version: error.what})
    if theirs is None:
        return contest
    paired = contest.with_rows_of(theirs, version_named(other.version))
    return paired or theirs.turned(bundle.folder.name, other.version) or contest


def _registered(config: Config, version: str) -> Served:
    """Raises: InputError: there is no such version to promote."""
    to = registry.of_version(config, version) if version.isdigit() and (config.bundles / version).is_dir() else None
    if to is None:
        there = sorted((p.name for p in config.bundles.glob("*") if p.name.isdigit() and p.name != ZERO), key=int)
        raise InputError("there is no such version to promote", where=str(config.bundles), value=version,
                         valid=there or "a trained version", next="mmrec models list")  # fmt: skip
    return to


def _gate(config: Config, to: Served, before: Served | None) -> tuple[str, str, dict[str, float]]:
    """As of `decide`, and what no number tells: whether the version can serve at all."""
    bundle = load(config.bundles / to.version, to.sha256)
    about = bundle.about
    wrong = []
    if about.get("features") != schema.features_fingerprint():
        wrong.append(f"trained on features {about.get('features')}, and a night has {schema.features_fingerprint()}")
    if bundle.kind == "two_tower" and not about.get("parity"):
        wrong.append("its graphs were never compared with what was trained")
    lake = Lake(config.lake)  # what is read here is no input of a night
    contest = met(config, bundle, before)
    if contest is not None and to.as_of is not None and to.as_of > contest.until:
        wrong.append(f"it says that it knows all before {to.as_of:%Y-%m-%d %H:%M}, and was measured up to "
                     f"{contest.until:%Y-%m-%d %H:%M}")  # fmt: skip
    wrong += _stale(config, lake, to)
    champion = ZERO if before is None else before.version
    costs = _costs(config, lake, to, before)
    decision, reason, numbers = decide(config.gate, contest, champion, own_name=about.get("name", SELF),
                                       samples=config.evaluate.bootstrap, costs=costs)  # fmt: skip
    if wrong:
        return "held", "; ".join([*wrong, *([reason] if decision == "held" else [])]), numbers
    return decision, reason, numbers


def _costs(config: Config, lake: Lake, to: Served, before: Served | None) -> dict[str, dict[str, float]]:
    """ "own" and "champion" -> ms_per_user, as they were measured side by side, and bytes."""
    out: dict[str, dict[str, float]] = {"own": {}, "champion": {}}
    sides = {"own": to} | ({} if before is None else {"champion": before})
    timed = (ds.field("model_version") == to.version) & (ds.field("metric") == "ms_per_user")
    rows = {r["model"]: r["value"] for r in lake.arrow("ops.metrics", where=timed).to_pylist()}
    for side, served in sides.items():
        name = SELF if side == "own" else version_named(served.version)
        if name in rows:
            out[side]["ms_per_user"] = rows[name]
        files = (config.bundles / served.version).rglob("*")
        out[side]["bytes"] = float(sum(p.stat().st_size for p in files if p.is_file()))
    return out


def _stale(config: Config, lake: Lake, to: Served) -> list[str]:
    """Whether its item map is of another catalogue than was there when it was trained."""
    path = config.bundles / to.version / "item_map.json"
    if not path.is_file() or to.as_of is None:
        return []
    known = set(json.loads(path.read_text()))
    items = lake.arrow("silver.items", columns=["item_id", "available_at"])
    offered = {i for i, at in zip(items["item_id"].to_pylist(), items["available_at"].to_pylist(), strict=True)
               if isinstance(at, datetime) and at < to.as_of}  # fmt: skip
    if len(offered & known) >= _KNOWN * len(offered):
        return []
    share = len(offered & known) / len(offered)
    return [f"its item map knows {share:.0%} of the {len(offered)} items that were there"]


def _refused(config: Config, version: str, said: str) -> None:
    """A request for a version that can't even be looked at."""
    registry.change(config, registry.state(config), "refused", Served(version, "", None), asked_by="a user of MLflow",
                    through="mlflow", why="the alias champion was set in MLflow", said=said)  # fmt: skip
    _tag(config, version, f"held: {said}")


def _tag(config: Config, version: str, said: str) -> None:
    """Where its users look for it; if the registry does not answer, it stands in the lake alone."""
    try:
        registry.tag(config, version, "gate", said)
    except TransientError:
        return
