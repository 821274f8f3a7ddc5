"""The stations of training: fit, evaluate, export, register, promote. Run in a process of their own.

In: silver and the embedding cache at their versions of now, as of a run_date. Out: an MLflow run, ops.metrics, a
sealed bundle, a registered challenger, a decision in ops.promotions.
Settings are chosen on validation windows that end before the first test window; each test window is read once,
after that; what is served is refitted on everything up to as_of with the chosen settings.
Trade-off: the stations hand each other files under `<home>/training/<run_date>`, so each can be run alone; the
models of the evaluation are kept there until the next training.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

import mmrec
from mmrec import contested, dates, schema, staged, trained
from mmrec.bundle import registry
from mmrec.bundle.bundle import Bundle
from mmrec.config import Config
from mmrec.context import Night, call, note
from mmrec.dataset import Data, dataset, everything, folds
from mmrec.errors import InputError, TransientError
from mmrec.evaluate.contest import FILE as GATE
from mmrec.evaluate.contest import Contest
from mmrec.evaluate.gate import BASELINES
from mmrec.files import put
from mmrec.lake import commit
from mmrec.lake.store import Lake
from mmrec.models.data import Fold

_SECOND = "second"  # folder of a training's second stages
_SECTIONS = ("night", "content", "train", "suspects", "evaluate", "gate", "second_stage", "candidates")
_COSTS, _REGISTERED, _DECIDED = "costs.json", "registered.json", "decided.json"  # each is there once its step ended
_AGAIN = "again-"  # folder of a training that is repeated
CHAIN = ("train", "evaluate", "export", "register", "promote")


def chain(config: Config, when: date, tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    """All five stations of `when`, after what earlier ones left; returns their counts and seconds, and `waits` where
    MLflow did not answer: `caught_up` goes on."""
    night = Night(config, when, tell)
    seconds: dict[str, float] = {}
    counts: dict[str, Any] = {}
    try:
        for name in CHAIN:
            begun = time.monotonic()
            if name == "register" and (late := caught_up(config, tell, when)):
                counts["caught_up"] = late
            counts[name] = call(name, night)
            seconds[name] = round(time.monotonic() - begun, 2)
            tell(name, int(seconds[name] * 1000), -1)
    except TransientError as error:
        if "export" not in counts:
            raise
        counts["waits"] = f"{error.what} ({error.where}): {error.value}"
    finally:
        note(night)
    return counts | {"seconds": seconds}


def train(night: Night) -> dict[str, Any]:
    """Choose settings on validation, fit what the test needs, refit what is served; go on from what a kill left."""
    from mmrec.recorded import watched

    with nullcontext() if night.again else watched(_folder(night)):
        return _train(night)


def _train(night: Night) -> dict[str, Any]:
    import torch

    from mmrec.train.world import alone

    config, began_ms = night.config, int(time.time() * 1000)
    alone(f"mmrec train --date {night.run_date}")
    torch.set_num_threads(config.threads)
    started = trained.new(config)
    recipe = started({}).recipe
    staged.may_have(config)
    data = dataset(night)
    made = folds(night, data)
    folder = _folder(night)
    if (folder / "state.json").is_file():
        shutil.rmtree(folder)
    total = 2 + config.evaluate.rolling_fits + 3  # two validations, the tests, the gate's stand-in, the refit
    done = 0

    def fit(name: str, settings: dict[str, Any], fold: Fold, vals: list[Fold]) -> Any:
        nonlocal done
        model = trained.fitted(started(settings), folder / name, data.items, data.log, fold, vals)
        done += 1
        night.progress("train", done, total)
        return model

    chosen: dict[str, Any] = {}
    for protocol, (validation, test) in made.items():
        model = fit(f"{protocol}-validation", {}, validation[0], validation)
        chosen[protocol] = model.chosen
        if protocol == "rolling":
            staged.fitted(config, model, data, validation, folder / _SECOND)
        for n, group in enumerate(_groups(test, config.evaluate.rolling_fits)):
            fit(f"{protocol}-{n}", chosen[protocol], group[0], [])
    begin = contested.since(night)
    fit("gate", chosen["rolling"], contested.window(night, data, begin), [])
    final = fit("final", chosen["rolling"], everything(data, night), [])
    state = {"run_date": str(night.run_date), "model": config.train.model, "chosen": chosen, "tables": data.tables,
             "encoders": data.encoders, "fields": data.fields, "left_out": data.left_out, "curves": final.curves,
             "since": begin.isoformat(), "began_ms": began_ms,
             "settings": settings_of(config, asdict(recipe))}  # fmt: skip
    put(folder / "state.json", json.dumps(state))
    if night.again is None:
        config.runs.mkdir(parents=True, exist_ok=True)
        (config.runs / "last-training.json").write_text(json.dumps({"as_of": night.as_of.isoformat()}))
    told = {"fits": done, "chosen": chosen["rolling"], "model": config.train.model}
    told |= {"recipe": config.train.recipe} if state["model"] == "champion" else {}
    return told | ({"left_out": data.left_out} if data.left_out else {})


def evaluate(night: Night) -> dict[str, Any]:
    """Read every test window once: champion, baselines, slices, masked modalities, differences with intervals; and the
    window of the gate."""
    from mmrec.evaluate.protocols import tune
    from mmrec.evaluate.study import COMPARED, Study
    from mmrec.models.neighbours import ContentNN
    from mmrec.train.fit import Champion
    from mmrec.worlds.oracle import oracle

    data = dataset(night)
    made = folds(night, data)
    fits = night.config.evaluate.rolling_fits
    done, total = 0, sum(len(v) + len(t) for v, t in made.values()) + 1
    truth = oracle(night.config.source, data.items, data.log)
    rows: list[dict[str, Any]] = []
    told: dict[str, Any] = {}
    for protocol, (validation, test) in made.items():
        best, _ = tune(data.items, data.log, validation, ease_items=night.config.evaluate.ease_items)
        baselines = [*best.values(), *([ContentNN()] if data.items.content else [])]
        # features are of one cut, which per_user has not
        again = staged.scorers(_folder(night) / _SECOND, data) if protocol == "rolling" else None
        study = Study(data.items, data.log, baselines, truth, None if _state(night)["model"] == Champion.name else (),
                      again)  # fmt: skip
        # validation numbers are those of the fit that was chosen there: for the gate, not for a report
        groups = [("validation", "validation", validation)]
        groups += [("test", str(n), group) for n, group in enumerate(_groups(test, fits))]
        for split, name, group in groups:
            model = trained.kept(_folder(night) / f"{protocol}-{name}")
            for window in group:
                study.read(split, model, window)
                done += 1
                night.progress("evaluate", done, total)
        own = study.rows(Champion.name, list(best), night.config.evaluate.bootstrap)
        whole = [r for r in own if r["split"] == "test" and r["slice"] == "all" and r["metric"] in COMPARED]
        for r in whole:
            told.setdefault(protocol, {}).setdefault(r["model"], {})[r["metric"]] = round(r["value"], 4)
        rows += _blank(night, protocol, own)
        if protocol == "rolling":
            contest = _contest(night, data, {name: best[name] for name in BASELINES})
            contest.save(_folder(night))
            rows += _blank(night, "gate", contest.rows(night.config.evaluate.bootstrap))
            night.progress("evaluate", done := done + 1, total)
    (_folder(night) / "metrics.json").write_text(json.dumps(rows))
    return told


def export(night: Night) -> dict[str, Any]:
    """Seal the refitted model as a bundle, after its graphs were compared with torch."""
    from mmrec.bundle.bundle import load, seal
    from mmrec.bundle.card import FILE, card
    from mmrec.bundle.mlmodel import GRAPH, describe
    from mmrec.evaluate.study import COMPARED

    data, folder = dataset(night), _folder(night)
    state = _state(night)
    model = trained.kept(folder / "final")
    bundle = folder / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    length = night.config.night.sequence_length
    spec = trained.exported(model, data.items, data.log, served(data, night), bundle, length, data.knowledge)
    second = staged.exported(folder / _SECOND, data, everything(data, night), bundle)
    used = {m: v for m, v in data.encoders.items() if m in spec.get("content_dims", {})}
    metrics = {f"{r['protocol']}/{r['model']}/{r['metric']}": r["value"] for r in _metrics(night)
               if r["split"] == "test" and r["slice"] == "all" and r["metric"] in COMPARED}  # fmt: skip
    about = spec | second | {
        "name": state.get("model", "champion"), "as_of": night.as_of.isoformat(),
        "encoders": used, "encoder_names": {m: name for m, name in night.config.encoder_names.items() if m in used},
        "fields": data.fields,
        "config": state["chosen"]["rolling"], "features": schema.features_fingerprint(), "data_versions": data.tables,
        "metrics": metrics, "code": mmrec.__version__,
        "refit": "on everything before as_of, with the settings that validation chose", "settings": state["settings"],
    }  # fmt: skip
    (bundle / FILE).write_text(card(about, _metrics(night)), encoding="utf-8")
    shutil.copy(folder / GATE, bundle)
    if (bundle / GRAPH).is_file():
        describe(bundle, night.as_of)
    digest = seal(bundle, about)
    if night.again is None:
        (folder / _COSTS).write_text(json.dumps(_blank(night, "gate", _seconds(night, load(bundle)))))
    return {"sha256": digest, "parity": spec["parity"], "bytes": sum(p.stat().st_size for p in bundle.rglob("*"))}


def register(night: Night) -> dict[str, Any]:
    """Tell MLflow of the training, and register its bundle as challenger; asked again, to the same end."""
    from mmrec.bundle.bundle import load
    from mmrec.recorded import recorded

    folder = _folder(night)
    bundle = load(folder / "bundle")
    found = _metrics(night) + json.loads((folder / _COSTS).read_text())
    run, version = recorded(night.config, folder, bundle, found)
    rows = [r | {"model_version": version, "run_date": night.run_date} for r in found]
    commit.append(night.lake, "ops.metrics", pa.Table.from_pylist(rows, schema.table("ops.metrics").arrow), run)
    put(folder / _REGISTERED, json.dumps({"model_version": version, "mlflow_run": run}))
    return {"model_version": version, "sha256": bundle.digest, "mlflow_run": run}


def caught_up(config: Config, tell: Callable[[str, int, int], None], but: date | None = None) -> dict[str, Any]:
    """Register, and put before the gate, what earlier trainings could not; run_date -> what came of it: register and
    promote, `waits`: MLflow does not answer, `failed`: why it can't be handed over. None of it stops who called.

    Args:
        but: a run_date that is left alone.
    """
    told: dict[str, Any] = {}
    for costs in sorted((config.home / "training").glob(f"*/{_COSTS}")):
        name, folder = costs.parent.name, costs.parent
        whole = (folder / "bundle" / "digest.json").is_file()
        if not whole or (folder / _DECIDED).is_file() or name == str(but) or name.startswith(_AGAIN):
            continue
        told[name] = of_it = {}
        try:
            night = Night(config, date.fromisoformat(name), tell)
            try:
                if not (folder / _REGISTERED).is_file():
                    of_it["register"] = call("register", night)
                of_it["promote"] = call("promote", night)
            finally:
                note(night)
        except TransientError as error:  # the next one would wait as long
            of_it["waits"] = f"{error.what} ({error.where}): {error.value}"
            break
        except Exception as error:  # whatever it is, a night goes on
            of_it["failed"] = f"{type(error).__name__}: {error}".split("\n")[0]
    return told


def promote(night: Night) -> dict[str, Any]:
    """The gate: the challenger becomes champion, or is held with the reasons on its tags and in ops.promotions."""
    from mmrec import promotion

    config, folder = night.config, _folder(night)
    promotion.reconcile(config)
    own = json.loads((folder / _REGISTERED).read_text()) if (folder / _REGISTERED).is_file() else {}
    version = own.get("model_version") or registry.challenger(config)
    if version is None:
        return {"decision": "none", "reason": "no challenger waits"}
    told = _decided(night, version) if own else None
    if told is None and (said := _passed_over(config, version)):
        told = {"model_version": version, "decision": "none", "reason": said}
        if own:
            put(folder / _DECIDED, json.dumps(told))
        return told
    share = config.gate.canary or None
    told = told or promotion.promote(config, version, by="mmrec", through="gate", share=share)
    record = {"model_version": version, "decided_for": night.run_date, "decision": told["decision"],
              "reason": told["reason"], "champion_before": told["before"],
              "numbers": json.dumps(told["numbers"], sort_keys=True), "decided_at": datetime.now(UTC)}  # fmt: skip
    table = pa.Table.from_pylist([record], schema.table("ops.promotions").arrow)
    commit.append(night.lake, "ops.promotions", table, f"promote-{version}")
    said = {"model_version": version, "decision": told["decision"], "reason": told["reason"]}
    said |= {"share": told["share"]} if told["share"] else {}
    if own:
        put(folder / _DECIDED, json.dumps(said))
    return said


def _decided(night: Night, version: str) -> dict[str, Any] | None:
    """What the gate decided of a training before it was cut off, as of `promotion.promote`; None: nothing."""
    lake = Lake(night.config.lake)  # what is read here is no input of a training
    if not lake.exists("ops.serving"):
        return None
    rows = lake.arrow("ops.serving", where=(ds.field("model_version") == version) & (ds.field("through") == "gate"))
    if not rows.num_rows:
        return None
    row = rows.sort_by("asked_at").to_pylist()[0]
    return {"decision": "held" if row["action"] == "refused" else "promoted", "reason": row["said"],
            "before": row["before"], "numbers": json.loads(row["numbers"]), "share": row["share"]}  # fmt: skip


def _passed_over(config: Config, version: str) -> str:
    """Why nobody is asked whether a trained version may serve; "": somebody is."""
    now, to = registry.state(config), registry.of_version(config, version)
    if version in (now.version, now.trial.version if now.trial else None):
        return "it serves already"
    newest = now.stack[-1].as_of if now.stack else None
    if newest is not None and to is not None and to.as_of is not None and to.as_of < newest:
        return f"version {now.version} serves, which knows newer days"
    return ""


def _contest(night: Night, data: Data, baselines: dict[str, Any]) -> Contest:
    begin = datetime.fromisoformat(_state(night)["since"])
    stand_in = trained.kept(_folder(night) / "gate")
    return contested.contested(night, data, contested.window(night, data, begin), begin, stand_in, baselines)


def _seconds(night: Night, bundle: Bundle) -> list[dict[str, Any]]:
    data, begin = dataset(night), datetime.fromisoformat(_state(night)["since"])
    return contested.seconds(night, data, contested.window(night, data, begin), bundle)


def _blank(night: Night, protocol: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of ops.metrics of a version that is not registered yet."""
    blank = {"run_date": str(night.run_date), "model_version": "", "protocol": protocol, "run_id": ""}
    return [blank | r for r in rows]


def settings_of(config: Config, recipe: dict[str, Any]) -> dict[str, Any]:
    """What a training hangs on besides its data: sections of the settings, and the recipe that a name meant."""
    sections = {name: getattr(config, name).model_dump(mode="json") for name in _SECTIONS}
    return sections | {"device": config.device, "threads": config.threads, "zone": config.zone, "recipe": recipe}


def served(data: Data, night: Night) -> Fold:
    """Every user with their whole history, as tonight's scorer sees them: for the comparison with torch."""
    ptr = data.log.ptr
    users = np.flatnonzero(np.diff(ptr))
    rows = np.arange(len(data.log.user))
    size = np.diff(ptr)[users]
    return replace(everything(data, night), case_user=users.astype(np.int32),
                   case_at_us=np.full(len(users), dates.micros(night.as_of)),
                   hist_ptr=np.concatenate([[0], np.cumsum(size)]).astype(np.int64), hist_row=rows,
                   target_ptr=np.zeros(len(users) + 1, np.int64))  # fmt: skip


def _groups(windows: list[Fold], fits: int) -> list[list[Fold]]:
    """Windows in order, in at most `fits` groups that share a fit at the first one's cut."""
    size = -(-len(windows) // fits)
    return [windows[i : i + size] for i in range(0, len(windows), size)]


def _metrics(night: Night) -> list[dict[str, Any]]:
    path = _folder(night) / "metrics.json"
    if not path.is_file():
        raise InputError(
            "nothing was evaluated for this run_date",
            where=f"run_date {night.run_date}",
            next=f"mmrec evaluate --date {night.run_date}",
        )
    return [r for r in json.loads(path.read_text()) if r["value"] == r["value"]]


def _state(night: Night) -> dict[str, Any]:
    path = _folder(night) / "state.json"
    if not path.is_file():
        raise InputError(
            "nothing was trained for this run_date",
            where=f"run_date {night.run_date}",
            next=f"mmrec train --date {night.run_date}",
        )
    return json.loads(path.read_text())


def _folder(night: Night) -> Path:
    if night.again is not None:
        return night.again.folder
    return night.config.home / "training" / str(night.run_date)
