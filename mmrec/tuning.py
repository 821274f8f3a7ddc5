"""`mmrec tune`: a search for a better recipe, within minutes, on validation alone.

In: a home as of a run_date, or a folder of sequences; the recipe it starts from. Out: every trial as a run in MLflow,
below one run of the study; a recipe file for a person to read, if the best beats the start by more than chance.
No test case can be looked at: what a trial gets is validation folds, and a log without any row that these don't use.
The first trial is the start as it is. The others are drawn by a tree-structured Parzen estimator (Bergstra et al.,
NeurIPS 2011, section 4) and ended early by the median rule (Golovin et al., KDD 2017, section 3.2), both Optuna's.
Killed, a study leaves its finished trials in MLflow and no file; nothing goes on where it ended.
Trade-off: a trial is measured on the cases that chose its epochs and its blend, and the best of many on those that it
was the best of; the difference flatters it, the more the more trials there are. A later training or benchmark reads the
test, once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mmrec
from mmrec.config import Config
from mmrec.errors import InputError, QualityError
from mmrec.evaluate.protocols import CaseMetrics, evaluate, pool
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.models.data import Fold, Items, Log, events_a_user

if TYPE_CHECKING:
    from mmrec.train.recipe import Recipe

_METRIC = "ndcg@10"
_TENTHS = 10  # trials are compared at the same share of their schedules, whose lengths differ
_DRAWN_BLINDLY = 5  # trials before the estimator says anything; Optuna's 10 are most of half an hour's
_COMPLETE, _FROM = 3, 3  # trials that the median rule needs, and tenths of a schedule before it looks
_BETTER = "better than the start"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Data:
    """What trials learn from and are measured on, and tags of where it came from."""

    items: Items
    log: Log
    folds: list[Fold]
    tags: dict[str, str]


@dataclass(frozen=True)
class _Done:
    """A trial that ended. `state`: complete, pruned or failed; `value_C`: ndcg@10 of every case, None where it isn't
    complete; `why`: it isn't."""

    number: int
    recipe: Recipe
    state: str
    seconds: float
    value_C: np.ndarray | None = None
    user_C: np.ndarray | None = None
    why: str = ""

    @property
    def ndcg(self) -> float:
        return float(self.value_C.mean()) if self.value_C is not None else float("nan")


def tune(
    config: Config, tell: Tell, *, minutes: float, when: date | None = None, source: Path | None = None,
    cache: Path = Path("encoders"), start: str | None = None, seed: int = 0, name: str | None = None,
    out: Path | None = None, threads: int | None = None, trials: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:  # fmt: skip
    """Search from a recipe on.

    Args:
        config: a home's settings; beside `source` those of the folder that MLflow's store is kept in.
        minutes: no trial begins that might end later, by the longest so far, and one that is under way ends with its
            epoch; only the blend of a last trial may run over.
        when, source: one of the two: the run_date of the home, or a folder as `mmrec benchmark` reads it, with
            `cache` for its encoders.
        start: a recipe's name or file; None: the home's own, of a folder "default". seed: of draws and of every fit.
        name, out: of the recipe file: NAME.toml among the home's recipes, of a folder here; or a path. Neither: the
            next free of tuned, tuned-2, ...
        trials: at most. clock: seconds that only go up.

    Returns: start: recipe, ndcg@10; best: trial, ndcg@10, and the fields it changes; difference: mean, low, high of
        ndcg@10, best less start, 95% over users; trials: how many of each state; failed: trial -> error; verdict;
        recipe: the file, None where none was written; minutes; mlflow_run.

    Raises: InputError: no such data, recipe or name, a name that is taken, or minutes that the start doesn't fit in.
        QualityError: nobody can be asked on validation. What makes the start's fit fail is raised as it is.
    """
    import torch

    from mmrec.train.recipe import recipe_named, recipe_text

    if (when is None) == (source is None):
        raise InputError("there is one place to learn from", where="mmrec tune", valid="either --date D, of a home, or "
                         "--source FOLDER", next="mmrec tune --home HOME --date D")  # fmt: skip
    if not minutes > 0:
        raise InputError("a search takes time", where="--minutes", value=minutes, valid="above 0",
                         next="mmrec tune --minutes 30")  # fmt: skip
    if source is None and config.train.model != "champion":
        raise InputError("only mmrec's own model has recipes", where="config: train.model", value=config.train.model,
                         valid="champion", next="edit mmrec.toml")  # fmt: skip
    asked = start or ("default" if source else config.train.recipe)
    begins = recipe_named(asked, "--recipe", "mmrec tune --recipe NAME", None if source else config.recipes)
    target = _target(Path() if source else config.recipes, name, out)
    torch.set_num_threads(threads or config.threads)
    begun = clock()
    data = _of_home(config, when, tell) if when else _of_folder(source, cache, threads or config.threads, tell)
    begins = begins.fixed(begins.pace(events_a_user(data.log, data.folds[0].train)))
    record = _Record(config, target.stem, data.tags | {"start": asked, "seed": str(seed), "minutes": f"{minutes:g}"})
    search = _Search(data, begins, seed, record, tell, clock, begun, minutes * 60, config.device)
    status = "KILLED"
    try:
        while search.goes_on(trials):
            search.step()
        told = search.told(config.evaluate.bootstrap)
        record.numbers(told)
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        record.end(status)
    told["start"]["recipe"] = asked
    told |= {"recipe": None, "minutes": round((clock() - begun) / 60, 2), "mlflow_run": record.parent}
    if told["verdict"] == _BETTER:
        told["recipe"] = str(target)
        _write(target, recipe_text(search.best.recipe, asked, begins, _header(told, minutes, seed, data.tags)))
    return told


class _Search:
    """Draws trials, fits and measures each, and keeps what became of it."""

    def __init__(
        self, data: _Data, start: Recipe, seed: int, record: _Record, tell: Tell, clock: Callable[[], float],
        begun: float, seconds: float, device: str,
    ) -> None:  # fmt: skip
        import optuna

        from mmrec.train.space import SEARCHED

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.data, self.start, self.seed, self.record, self.tell = data, start, seed, record, tell
        self.clock, self.begun, self.seconds, self.device = clock, begun, seconds, device
        self.done: list[_Done] = []
        self.study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_DRAWN_BLINDLY),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_COMPLETE, n_warmup_steps=_FROM),
        )  # fmt: skip
        self.study.enqueue_trial({f: getattr(start, f) for f in SEARCHED})

    @property
    def left(self) -> float:
        """Seconds."""
        return self.begun + self.seconds - self.clock()

    @property
    def best(self) -> _Done:
        """Of complete trials; a tie keeps the earlier."""
        return max((d for d in self.done if d.state == "complete"), key=lambda d: d.ndcg)

    def goes_on(self, most: int | None) -> bool:
        """Whether one more trial fits. The first always does, in hope."""
        longest = max((d.seconds for d in self.done), default=0.0)
        return (most is None or len(self.done) < max(most, 1)) and (not self.done or self.left >= longest)

    def step(self) -> None:
        """One trial, recorded whatever becomes of it."""
        from optuna import TrialPruned
        from optuna.trial import TrialState

        from mmrec.train.fit import Champion
        from mmrec.train.space import drawn

        data, trial = self.data, self.study.ask()
        first, recipe = trial.number == 0, drawn(trial, self.start, bool(data.items.content))
        if first:  # as it is: what is drawn is rounded, and learns for its whole schedule
            recipe = self.start
        label = self._label(trial.number)
        reported = -1

        def watch(_what: str, row: dict[str, Any]) -> None:
            nonlocal reported
            self.tell(label, row["epoch"], recipe.epochs)
            tenth = row["epoch"] * _TENTHS // recipe.schedule
            if f"val_{_METRIC}" in row and tenth > reported:
                # the tower's alone: a blend can still lift it, so only the lower half goes
                trial.report(row[f"val_{_METRIC}"], tenth)
                reported = tenth
                if not first and trial.should_prune():
                    raise TrialPruned(f"worse than the median of others after {row['epoch']} epochs")
            if self.left < 0:
                raise TrialPruned(f"the minutes were over after {row['epoch']} of {recipe.epochs} epochs")

        run, since = self.record.begin(trial.number, recipe), self.clock()
        model, fault = Champion(recipe, self.seed, watch, device=self.device), None
        made: dict[str, Any] = {"state": "complete"}
        try:
            model.fit(data.items, data.log, data.folds[0], data.folds)
            found = _measured(model, data)
            made |= {"value_C": found.values[_METRIC], "user_C": found.user}
        except TrialPruned as stop:
            made = {"state": "pruned", "why": str(stop)}
        except Exception as error:  # its text is on record, and the others go on
            made, fault = {"state": "failed", "why": f"{type(error).__name__}: {error}"}, error
        except BaseException:
            self.record.trial(run, "KILLED", {}, model.curves, None)
            raise
        done = _Done(trial.number, recipe, seconds=self.clock() - since, **made)
        ended = done.ndcg if done.state == "complete" else None
        status = "FAILED" if fault else "FINISHED"
        self.record.trial(run, status, {"state": done.state, "why": done.why}, model.curves, ended)
        self.done.append(done)
        if first and fault:
            raise fault
        if first and done.state == "pruned":
            raise InputError("the minutes were over before the start was measured", where="--minutes",
                             value=round(self.seconds / 60, 2), valid=f"enough for one fit; {done.why}",
                             next=f"mmrec tune --minutes {max(1, round(self.seconds / 30))}")  # fmt: skip
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        self.study.tell(trial, ended, state=states[done.state])
        self.tell(f"{self._label(trial.number)}: {done.state}", int(done.seconds * 1000), -1)

    def told(self, samples: int) -> dict[str, Any]:
        """What `tune` returns of its trials."""
        first, best = self.done[0], self.best
        mean, low, high = paired_bootstrap(best.value_C, first.value_C, first.user_C, samples)  # type: ignore[arg-type]
        changed = {f: v for f, v in asdict(best.recipe).items() if v != getattr(first.recipe, f)}
        return {
            "start": {_METRIC: round(first.ndcg, 4)},
            "best": {"trial": best.number, _METRIC: round(best.ndcg, 4)} | changed,
            "difference": {"mean": round(mean, 5), "low": round(low, 5), "high": round(high, 5)},
            "trials": {s: sum(d.state == s for d in self.done) for s in ("complete", "pruned", "failed")},
            "failed": {d.number: d.why for d in self.done if d.state == "failed"},
            "verdict": _BETTER if low > 0 else "no trial is better than the start by more than chance",
        }

    def _label(self, number: int) -> str:
        best = f"best {self.best.ndcg:.4f}" if any(d.state == "complete" for d in self.done) else "the start"
        return f"tune: trial {number}, {best}, {max(self.left, 0) / 60:.0f} min left"


class _Record:
    """The study's run in MLflow, and below it one a trial."""

    def __init__(self, config: Config, name: str, tags: dict[str, str]) -> None:
        from mmrec.bundle import server

        config.home.mkdir(parents=True, exist_ok=True)
        self.client, self.experiment = server.client(config), server.experiment(config, "mmrec/tune")
        tags = tags | {"mmrec": mmrec.__version__}
        self.parent = self.client.create_run(self.experiment, tags=tags, run_name=f"tune {name}").info.run_id

    def begin(self, number: int, recipe: Recipe) -> str:
        """The run of a trial that begins."""
        from mlflow.entities import Param
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        tags = {MLFLOW_PARENT_RUN_ID: self.parent, "trial": str(number)}
        run = self.client.create_run(self.experiment, tags=tags, run_name=f"trial {number}").info.run_id
        self.client.log_batch(run, params=[Param(k, str(v)) for k, v in asdict(recipe).items()])
        return run

    def trial(
        self, run: str, status: str, tags: dict[str, str], curves: Sequence[dict[str, Any]], ndcg: float | None
    ) -> None:
        """What became of it: a number an epoch that was validated, and that of the whole."""
        from mlflow.entities import Metric, RunTag

        now = time.time_ns() // 1_000_000
        metrics = [Metric(k.replace("@", "_at_"), row[k], now, row["epoch"]) for row in curves
                   for k in ("loss", f"val_{_METRIC}") if k in row]  # fmt: skip
        metrics += [] if ndcg is None else [Metric(_METRIC.replace("@", "_at_"), ndcg, now, 0)]
        for at in range(0, len(metrics), 1000):  # as many as MLflow takes at once
            self.client.log_batch(run, metrics=metrics[at : at + 1000])
        self.client.log_batch(run, tags=[RunTag(k, v[:5000]) for k, v in tags.items() if v])
        self.client.set_terminated(run, status)

    def numbers(self, told: dict[str, Any]) -> None:
        for part in ("start", "best", "difference"):
            for key in {_METRIC, "mean", "low", "high"} & set(told[part]):
                self.client.log_metric(self.parent, f"{part}.{key}".replace("@", "_at_"), told[part][key])
        self.client.set_tag(self.parent, "verdict", told["verdict"])

    def end(self, status: str) -> None:
        self.client.set_terminated(self.parent, status)


def _measured(model: Any, data: _Data) -> CaseMetrics:
    """The whole model on every validation case, refreshed for each window as a night is."""
    found = []
    for fold in data.folds:
        model.refresh(data.items, data.log, fold)
        found.append(evaluate(model, data.items, data.log, fold, lists=False))
    return pool(found)


def _of_home(config: Config, when: date, tell: Tell) -> _Data:
    from mmrec.context import Night
    from mmrec.dataset import dataset, folds

    night = Night(config, when, tell)
    data = dataset(night)
    validation, _ = folds(night, data)["rolling"]
    tags = {"run_date": str(when), "as_of": night.as_of.isoformat()}
    tags |= {f"table.{n}": str(v) for n, v in data.tables.items()}
    return _blind(data.items, data.log, validation, tags)


def _of_folder(source: Path, cache: Path, threads: int, tell: Tell) -> _Data:
    from mmrec.benchmark import read
    from mmrec.models.splits import leave_one_out

    items, log = read(source, cache, threads, tell)
    fold = leave_one_out(log, items, validation=True)
    if not fold.n_cases:
        raise QualityError("there is nobody to ask on validation", where=f"{source}/sequences.txt", value=0,
                           valid="users of at least three items", next="mmrec tune --source FOLDER")  # fmt: skip
    return _blind(items, log, [fold], {"source": str(source)})


def _blind(items: Items, log: Log, folds: Sequence[Fold], tags: dict[str, str]) -> _Data:
    """The log without rows that no fold learns from or looks back on: neither what is asked nor anything later."""
    keep = np.zeros(len(log.user), bool)
    for f in folds:
        keep |= f.train
        keep[f.hist_row] = True
    at = np.cumsum(keep) - 1
    rows = {c: getattr(log, c)[keep] for c in ("user", "item", "ts_us", "weight", "event", "available_us")}
    own = [replace(f, train=f.train[keep], hist_row=at[f.hist_row]) for f in folds]
    return _Data(items, replace(log, **rows), own, tags)


def _target(folder: Path, name: str | None, out: Path | None) -> Path:
    """Where the recipe goes. InputError: a name that is none, or that is taken."""
    from mmrec.train.recipe import RECIPES

    def free(place: Path, stem: str) -> str:
        names = chain([stem], (f"{stem}-{i}" for i in count(2)))
        return next(n for n in names if not (place / f"{n}.toml").exists())

    if out is not None:
        option, folder, stem = "--out", out.parent, out.name.removesuffix(".toml")
    else:
        option, stem = "--name", free(folder, "tuned") if name is None else name
    if not _NAME.fullmatch(stem) or stem in RECIPES or (out is not None and out.suffix != ".toml"):
        raise InputError("a recipe can't have this name", where=option, value=str(out or name),
                         valid=f"letters, digits, . - _{', then .toml' if out else ''}; not {', '.join(RECIPES)}",
                         next=f"mmrec tune {option} tuned{'.toml' if out else ''}")  # fmt: skip
    target = folder / f"{stem}.toml"
    if target.exists():
        other = free(folder, stem)
        raise InputError("there is a recipe of this name, and none is overwritten", where=str(target), value=stem,
                         valid=f"a name that is free, as {other}",
                         next=f"mmrec tune {option} {folder / f'{other}.toml' if out else other}")  # fmt: skip
    return target


def _header(told: dict[str, Any], minutes: float, seed: int, tags: dict[str, str]) -> list[str]:
    start, best, d, n = told["start"], told["best"], told["difference"], told["trials"]
    learned = next(f"{k} {tags[k]}" for k in ("run_date", "source") if k in tags)
    return [
        "A recipe that `mmrec tune` found on validation. Nothing uses it until somebody names it.",
        f"study: run {told['mlflow_run']} of MLflow's experiment mmrec/tune, on {learned}, seed {seed}",
        f"minutes: {told['minutes']:g} of {minutes:g}; trials: " + ", ".join(f"{n[s]} {s}" for s in n),
        f"validation {_METRIC}: {start[_METRIC]:.4f} of the start, {start['recipe']}; {best[_METRIC]:.4f} of this, "
        f"trial {best['trial']}",
        f"difference: {d['mean']:+.5f} [{d['low']:+.5f}, {d['high']:+.5f}], 95% over users, flattered by the choice of "
        "the best",
    ]


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise InputError("another search has taken the name meanwhile; what this one found is in MLflow alone",
                         where=str(target), next="mmrec tune --name NAME") from None  # fmt: skip
