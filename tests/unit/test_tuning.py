"""`mmrec tune`: what trials may look at, what becomes of each, when it ends, and recipe files in and out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from shops import DAY, random_shop
from test_benchmark import folder, nobody
from test_suspects import EPOCH, event

from mmrec import benchmark, dataset, dates, schema, trained, tuning
from mmrec.config import Config, EvaluateConfig, NightConfig, TrainConfig
from mmrec.context import Night
from mmrec.errors import InputError, QualityError
from mmrec.lake import commit
from mmrec.lake.store import Lake
from mmrec.models.splits import leave_one_out, rolling
from mmrec.train import recipe as recipes
from mmrec.train import space
from mmrec.train.fit import Champion
from mmrec.train.recipe import RECIPES, Recipe, recipe_named, recipe_text

WHEN = date(2026, 3, 1)
TINY = replace(RECIPES["small"], d=16, epochs=4, schedule=4, context=16, length=24, tokens=256, negatives=32, rank=32)
TEXT = recipe_text(TINY, "small", RECIPES["small"], [])


@pytest.fixture
def home(tmp_path: Path, blank: Path) -> Path:
    """A home of 40 users, who have items of one half of the catalogue each, over 80 days before WHEN."""
    rng, as_of, home = np.random.default_rng(1), dates.as_of(WHEN, "UTC"), tmp_path / "home"
    rows = [event(f"u{u:02d}", f"i{i:02d}", as_of - timedelta(days=float(d)))
            for u in range(40) for i, d in zip(rng.permutation(np.arange(u % 2, 30, 2))[:12], 80 * rng.random(12), strict=True)]  # fmt: skip
    items = [{"item_id": f"i{n:02d}", "available_at": EPOCH, "valid_from": EPOCH, "withdrawn_at": None, "title": "", "text": None, "categories": [], "attributes": "{}",
              "image": None, "image_sha256": None, "audio": None, "audio_sha256": None, "source": "s", "row_hash": f"i{n}"} for n in range(30)]  # fmt: skip
    lake = Lake(home / "lake")
    lake.create_all()
    for name, table in (("silver.interactions", rows), ("silver.items", items)):
        commit.write(lake, name, pa.Table.from_pylist(table, schema.table(name).arrow), run_id="r", pinned=commit.fence(lake, name))
    shutil.copy(blank, home / "mlflow.db")
    (home / "recipes").mkdir()
    (home / "recipes" / "tiny.toml").write_text(TEXT)
    return home


def settings(home: Path, engine: str = "local") -> Config:
    return Config(home=home, engine=engine, threads=1, night=NightConfig(text="", image="", audio=""), train=TrainConfig(recipe="tiny"),
                  evaluate=EvaluateConfig(rolling_days=10, rolling_cuts=2, min_history=2))  # fmt: skip


@pytest.fixture
def sequences(tmp_path: Path, blank: Path) -> Callable[..., dict[str, Any]]:
    """A search on a folder of sequences that starts at TINY, with what else it is told."""
    (tmp_path / "source").mkdir()
    source = folder(tmp_path / "source", described=False)
    (tmp_path / "kept").mkdir()
    shutil.copy(blank, tmp_path / "kept" / "mlflow.db")
    (tmp_path / "tiny.toml").write_text(TEXT)

    def search(tell: Any = nobody, **more: Any) -> dict[str, Any]:
        asked = {"minutes": 60, "source": source, "start": str(tmp_path / "tiny.toml"), "out": tmp_path / "found.toml", "threads": 1}
        return tuning.tune(Config(home=tmp_path / "kept"), tell, **(asked | more))

    return search


def planted(monkeypatch: pytest.MonkeyPatch, *drawn: Recipe) -> None:
    """Trials after the start get these, in order, and the last one again."""
    monkeypatch.setattr(space, "drawn", lambda trial, start, content: drawn[min(max(trial.number - 1, 0), len(drawn) - 1)])


def kept(home: Path, parent: str) -> list[Any]:
    """Runs of a study's trials, in order."""
    client = MlflowClient(Config(home=home).tracking)
    runs = client.search_runs([client.get_experiment_by_name("mmrec/tune").experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'")
    return sorted(runs, key=lambda r: int(r.data.tags["trial"]))


class Spied(AssertionError):
    pass


def spy(monkeypatch: pytest.MonkeyPatch, before: int) -> list[str]:
    """Whatever a model is fitted on or asked must lie before a moment, microseconds; -> the folds it saw."""
    seen: list[str] = []

    def watched(method: str) -> None:
        real = getattr(Champion, method)

        def call(self: Champion, *given: Any, **more: Any) -> Any:
            logs = [a for a in given if hasattr(a, "ts_us")]
            for f in [a for a in given if hasattr(a, "hist_row")] + [f for a in given if isinstance(a, list) for f in a]:
                if f.case_at_us.max(initial=0) >= before or f.fit_at_us >= before:
                    raise Spied(f.name)
                seen.append(f.name)
            if any(log.ts_us.max() >= before for log in logs):
                raise Spied("log")
            return real(self, *given, **more)

        monkeypatch.setattr(Champion, method, call)

    for method in ("fit", "refresh", "score", "user_side", "sequence_scores"):
        watched(method)
    return seen


def test_a_home_is_searched_on_its_validation_windows_and_nothing_later(
    home: Path, engine: str, spark: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(home, engine)
    night = Night(config, WHEN)
    validation, test = dataset.folds(night, dataset.dataset(night))["rolling"]
    cut = min(f.fit_at_us for f in test)
    seen = spy(monkeypatch, cut)
    told = tuning.tune(config, nobody, minutes=60, when=WHEN, trials=3)
    assert set(seen) == {f.name for f in validation}
    assert sum(told["trials"].values()) == 3
    assert told["start"]["recipe"] == "tiny"
    parent = MlflowClient(config.tracking).get_run(told["mlflow_run"])
    assert parent.info.status == "FINISHED"
    assert {"run_date": "2026-03-01", "start": "tiny", "verdict": told["verdict"]}.items() <= parent.data.tags.items()
    assert parent.data.metrics["start.ndcg_at_10"] == told["start"]["ndcg@10"]
    runs = kept(home, told["mlflow_run"])
    assert runs[0].data.params == {k: str(v) for k, v in asdict(TINY).items()}
    assert len({r.data.params["lr"] for r in runs}) == 3
    # the same by hand, on the whole log
    monkeypatch.undo()
    items, log = dataset.dataset(night).items, dataset.dataset(night).log
    model, values = Champion(TINY, 0).fit(items, log, validation[0], validation), []
    for fold in validation:
        scores = model.refresh(items, log, fold).score(items, log, fold, slice(0, fold.n_cases))
        for c in range(fold.n_cases):
            had = set(log.item[fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]]])
            wanted = set(fold.target_item[fold.target_ptr[c] : fold.target_ptr[c + 1]])
            order = sorted((i for i in range(items.n) if i not in had and fold.catalogue[i]), key=lambda i: (-scores[c, i], i))
            gain = [1 / np.log2(place + 2) for place in range(10)]
            values.append(sum(g for g, i in zip(gain, order, strict=False) if i in wanted) / sum(gain[: len(wanted)]))
    assert len(validation) == 2
    assert runs[0].data.metrics["ndcg_at_10"] == pytest.approx(np.mean(values))
    for run in runs:
        history = MlflowClient(config.tracking).get_metric_history(run.info.run_id, "val_ndcg_at_10")
        assert [m.step for m in history] == list(range(1, len(history) + 1))
        assert run.data.tags["state"] in ("complete", "pruned")


def test_the_spy_tells_where_a_test_window_is_passed_on(home: Path, engine: str, spark: object, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(home, engine)
    night = Night(config, WHEN)
    data = dataset.dataset(night)
    validation, test = dataset.folds(night, data)["rolling"]
    spy(monkeypatch, min(f.fit_at_us for f in test))
    for folds, log, where in ((test, data.log, test[0].name), ([*validation, test[0]], data.log, test[0].name), (validation, data.log, "log")):
        monkeypatch.setattr(tuning, "_of_home", lambda *_, f=folds, g=log: tuning._Data(data.items, g, f, {}))
        with pytest.raises(Spied, match=where):
            tuning.tune(config, nobody, minutes=60, when=WHEN, trials=1)


def test_what_is_found_does_not_depend_on_test_items(sequences: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    one = sequences(trials=2)
    path = tmp_path / "source" / "sequences.txt"
    lines = [line.split() for line in path.read_text().splitlines()]
    other = [[*line[:-1], next(str(i) for i in range(1, 26) if str(i) not in line)] for line in lines]
    path.write_text("\n".join(" ".join(line) for line in other) + "\n")
    two = sequences(trials=2)
    own = {"mlflow_run", "minutes"}
    assert {k: v for k, v in one.items() if k not in own} == {k: v for k, v in two.items() if k not in own}


@pytest.mark.parametrize("seed", range(4))
def test_without_later_rows_a_fit_is_the_same_to_the_bit(seed: int) -> None:
    items, log = random_shop(seed, users=20, rows=400)
    end = int(60 * DAY)
    folds = [f for f in rolling(log, items, end, days=10, cuts=3, min_history=2) if f.n_cases]
    folds = folds if seed % 2 else [leave_one_out(log, items, validation=True)]
    data = tuning._blind(items, log, folds, {})
    used = {int(r) for f in folds for r in (*np.flatnonzero(f.train), *f.hist_row)}
    assert len(data.log.user) == len(used) < len(log.user)
    for column in ("user", "item", "ts_us", "weight", "event", "available_us"):
        np.testing.assert_array_equal(getattr(data.log, column), getattr(log, column)[sorted(used)])
    if seed % 2:
        assert data.log.ts_us.max() < max(f.fit_at_us for f in folds) < end
    quick = replace(TINY, epochs=1, schedule=1)
    whole, cut = Champion(quick, 0).fit(items, log, folds[0], folds), Champion(quick, 0).fit(items, data.log, data.folds[0], data.folds)
    assert whole.chosen == cut.chosen
    for before, after in zip(folds, data.folds, strict=True):
        every = slice(0, before.n_cases)
        np.testing.assert_array_equal(whole.refresh(items, log, before).score(items, log, before, every),
                                      cut.refresh(items, data.log, after).score(items, data.log, after, every))  # fmt: skip


def test_a_bad_recipe_ends_early_and_a_broken_one_is_on_record(
    sequences: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steady = replace(TINY, epochs=10, schedule=10, patience=10)
    (tmp_path / "steady.toml").write_text(recipe_text(steady, "small", steady, []))
    bad, broken = replace(steady, lr=1e-6, warm=0.0), replace(steady, fusion="none")
    planted(monkeypatch, replace(steady, lr=5e-3), broken, replace(steady, lr=4e-3), bad)
    told = sequences(start=str(tmp_path / "steady.toml"), trials=5)
    assert told["trials"] == {"complete": 3, "pruned": 1, "failed": 1}
    assert list(told["failed"]) == [2]
    runs = kept(tmp_path / "kept", told["mlflow_run"])
    assert [r.data.tags["state"] for r in runs] == ["complete", "complete", "failed", "complete", "pruned"]
    assert [r.info.status for r in runs] == ["FINISHED", "FINISHED", "FAILED", "FINISHED", "FINISHED"]
    assert "no such fusion" in runs[2].data.tags["why"]
    assert runs[4].data.tags["why"] == "worse than the median of others after 3 epochs"
    client = MlflowClient(Config(home=tmp_path / "kept").tracking)
    epochs = [len(client.get_metric_history(r.info.run_id, "val_ndcg_at_10")) for r in runs]
    assert epochs == [10, 10, 0, 10, 3]
    assert "ndcg_at_10" not in runs[4].data.metrics


def test_a_start_that_can_not_be_fitted_ends_the_search_with_its_own_error(
    sequences: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fit(*_: Any) -> None:
        raise QualityError("planted")

    monkeypatch.setattr(Champion, "fit", fit)
    with pytest.raises(QualityError, match="planted"):
        sequences(trials=3)
    client = MlflowClient(Config(home=tmp_path / "kept").tracking)
    runs = client.search_runs([client.get_experiment_by_name("mmrec/tune").experiment_id])
    assert {r.info.status for r in runs} == {"FAILED"}
    assert len(runs) == 2  # the study and its only trial


def test_a_search_that_is_interrupted_leaves_what_was_finished(sequences: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    def stop(what: str, done: int, of: int) -> None:
        if what.startswith("tune: trial 1") and done == 2 and of > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sequences(stop, trials=3)
    client = MlflowClient(Config(home=tmp_path / "kept").tracking)
    runs = client.search_runs([client.get_experiment_by_name("mmrec/tune").experiment_id])
    study = next(r for r in runs if MLFLOW_PARENT_RUN_ID not in r.data.tags)
    first, second = kept(tmp_path / "kept", study.info.run_id)
    assert [r.info.status for r in (study, first, second)] == ["KILLED", "FINISHED", "KILLED"]
    assert first.data.metrics["ndcg_at_10"] > 0
    assert len(client.get_metric_history(second.info.run_id, "val_ndcg_at_10")) == 2
    assert not (tmp_path / "found.toml").exists()


class Clock:
    """Ten seconds an epoch, and none for anything else."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def tell(self, what: str, done: int, of: int) -> None:
        self.now += 10 * (of > 0 and what.startswith("tune"))


def test_no_trial_begins_that_would_not_end_in_time(
    sequences: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, replace(TINY, patience=9))  # 40 s each
    for minutes, trials in ((2.0, 3), (119 / 60, 2), (159 / 60, 3)):
        clock = Clock()
        told = sequences(clock.tell, minutes=minutes, clock=clock)
        assert told["trials"] == {"complete": trials, "pruned": 0, "failed": 0}
        assert told["minutes"] == pytest.approx(trials * 40 / 60, abs=0.01)


def test_the_end_of_the_minutes_ends_a_longer_trial_with_its_epoch(
    sequences: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planted(monkeypatch, replace(TINY, epochs=40, schedule=40, patience=40))
    clock = Clock()
    told = sequences(clock.tell, minutes=95 / 60, clock=clock)
    assert told["trials"] == {"complete": 1, "pruned": 1, "failed": 0}
    assert clock.now == 100
    runs = kept(tmp_path / "kept", told["mlflow_run"])
    assert runs[1].data.tags["why"] == "the minutes were over after 6 of 40 epochs"


def test_minutes_that_the_start_does_not_fit_in_are_refused(sequences: Callable[..., dict[str, Any]]) -> None:
    clock = Clock()
    with pytest.raises(InputError, match="before the start was measured") as refused:
        sequences(clock.tell, minutes=0.25, clock=clock)
    assert "after 2 of 4 epochs" in str(refused.value)


def test_the_better_recipe_becomes_a_file_that_homes_and_benchmarks_name(
    sequences: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    poor = replace(TINY, lr=1e-6, warm=0.0, rank=1, lam=1e6)
    (tmp_path / "poor.toml").write_text(recipe_text(poor, "small", poor, []))
    good = replace(TINY, lr=0.00567, fusion="gate")
    planted(monkeypatch, good)
    # six kinds of people, each with a sixth of the catalogue: one direction can't tell them apart
    source, rng = tmp_path / "source", np.random.default_rng(0)
    lines = [[u + 1, *rng.permutation(np.arange(1 + u % 6, 61, 6))[:8]] for u in range(150)]
    (source / "sequences.txt").write_text("\n".join(" ".join(map(str, line)) for line in lines) + "\n")
    file = tmp_path / "home" / "recipes" / "found.toml"
    told = sequences(start=str(tmp_path / "poor.toml"), out=file, trials=2)
    assert told["verdict"] == "better than the start"
    assert told["difference"]["low"] > 0
    assert told["recipe"] == str(file)
    assert told["best"] == {"trial": 1, "ndcg@10": told["best"]["ndcg@10"], "lr": 0.00567, "fusion": "gate", "warm": TINY.warm,
                            "rank": TINY.rank, "lam": TINY.lam}  # fmt: skip
    lines = file.read_text().splitlines()
    assert told["mlflow_run"] in lines[1]
    assert f"{told['start']['ndcg@10']:.4f} of the start" in file.read_text()
    assert f"{told['best']['ndcg@10']:.4f} of this" in file.read_text()
    assert "lr = 0.00567  # was 1e-06" in lines
    assert "d = 16" in lines  # the start's own, so that the file needs no other
    named = Config(home=tmp_path / "home", train=TrainConfig(recipe="found"))
    assert trained.new(named)({}).recipe == good
    found = benchmark.benchmark("mine", source, tmp_path / "cache", nobody, seeds=[0], recipe=str(file), threads=1, ablation=False, test=False)
    assert found["validation"]["ndcg@10"] == pytest.approx(told["best"]["ndcg@10"], abs=1e-4)


def test_where_nothing_is_better_nothing_is_written(sequences: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    told = sequences(trials=1)
    assert told["recipe"] is None
    assert told["verdict"] == "no trial is better than the start by more than chance"
    assert told["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert not (tmp_path / "found.toml").exists()


def test_a_taken_name_is_refused_before_anything_is_fitted(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_of_home", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(tuning, "_of_folder", lambda *_: pytest.fail("it began"))
    (home / "recipes" / "tiny-2.toml").write_text(TEXT)
    with pytest.raises(InputError, match="mmrec tune --name tiny-3") as refused:
        tuning.tune(settings(home), nobody, minutes=1, when=WHEN, name="tiny")
    assert str(home / "recipes" / "tiny.toml") in str(refused.value)
    with pytest.raises(InputError, match=r"mmrec tune --out .*/recipes/tiny-3\.toml"):
        tuning.tune(settings(home), nobody, minutes=1, when=WHEN, out=home / "recipes" / "tiny.toml")
    for name in ("default", "../up", "a b", "", "-x"):
        with pytest.raises(InputError, match="can't have this name"):
            tuning.tune(settings(home), nobody, minutes=1, when=WHEN, name=name)
    for out in ("x.json", "x", "default.toml"):
        with pytest.raises(InputError, match="can't have this name"):
            tuning.tune(settings(home), nobody, minutes=1, when=WHEN, out=tmp_path / out)
    assert tuning._target(home / "recipes", None, None).name == "tuned.toml"
    (home / "recipes" / "tuned.toml").write_text(TEXT)
    assert tuning._target(home / "recipes", None, None).name == "tuned-2.toml"
    (home / "recipes" / "raced.toml").write_text("mine")
    with pytest.raises(InputError, match="another search has taken the name"):
        tuning._write(home / "recipes" / "raced.toml", TEXT)
    assert (home / "recipes" / "raced.toml").read_text() == "mine"


@pytest.mark.parametrize(("more", "what"), [
    ({}, "one place"), ({"when": WHEN, "source": Path("x")}, "one place"), ({"when": WHEN, "minutes": 0}, "takes time"),
    ({"when": WHEN, "minutes": float("nan")}, "takes time"), ({"when": WHEN, "start": "none"}, "no such recipe"),
])  # fmt: skip
def test_what_can_not_be_searched_is_refused(tmp_path: Path, more: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        tuning.tune(Config(home=tmp_path), nobody, **({"minutes": 1} | more))


def test_a_rival_has_no_recipe_to_search(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only mmrec's own model"):
        tuning.tune(Config(home=tmp_path, train=TrainConfig(model="ease")), nobody, minutes=1, when=WHEN)


# recipe files


@st.composite
def any_recipe(draw: st.DrawFn) -> Recipe:
    more: dict[str, Any] = {"fusion": draw(st.sampled_from(["sum", "gate", "late"])), "loss": draw(st.sampled_from(["full", "gbce"])),
                            "own_negatives": draw(st.booleans())}  # fmt: skip
    for field, (low, high) in recipes._BOUNDS.items():
        whole = type(getattr(RECIPES["default"], field)) is int
        more[field] = draw(st.integers(int(low), int(high)) if whole else st.floats(low, high))
    more["length"] = max(more["length"], more["context"] + 3)
    return replace(Recipe(), **more | {"heads": 2, "d": 2 * (more["d"] // 2)})


@given(any_recipe(), st.sampled_from([*RECIPES, "a-file"]))
def test_a_recipe_written_and_read_is_the_same(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, start: str) -> None:
    place = tmp_path_factory.mktemp("recipes")
    (place / "own.toml").write_text(recipe_text(recipe, start, RECIPES["small"], ["why", 'a "quote" #', "of two\nlr = 0.5\0"]))
    assert recipe_named("own", "here", "do", place) == recipe
    assert recipe_named("own.toml", "here", "do", place) == recipe
    assert recipe_named(str(place / "own.toml"), "here", "do") == recipe
    assert recipe_named(str(place / "own.toml"), "here", "do", place / "elsewhere") == recipe


@pytest.mark.parametrize(("text", "told"), [
    ("", ["own.toml: start", "default, small"]), ("start = 3", ["own.toml: start", "value: 3"]), ('start = "own"', ["own.toml: start"]),
    ("start =", ["own.toml", "TOML"]), ('start = "small"\nlearning_rate = 1.0', ["own.toml: learning_rate", "1.0", "lr"]),
    ('start = "small"\nlr = 2.0', ["own.toml: lr", "2.0", "a number from 1e-06 to 1"]), ('start = "small"\nlr = nan', ["own.toml: lr"]),
    ('start = "small"\nlr = true', ["own.toml: lr", "True"]), ('start = "small"\nlr = "fast"', ["own.toml: lr", "'fast'"]),
    ('start = "small"\ntokens = 512.0', ["own.toml: tokens", "a whole number from 16"]), ('start = "small"\ntokens = 0', ["own.toml: tokens"]),
    ('start = "small"\nd = true', ["own.toml: d", "True"]), ('start = "small"\nd = 33', ["own.toml: d", "33", "a multiple of heads, 2"]),
    ('start = "small"\nfusion = "glue"', ["own.toml: fusion", "gate"]), ('start = "small"\nfusion = ["sum"]', ["own.toml: fusion", "sum"]),
    ('start = "small"\nown_negatives = 1', ["own.toml: own_negatives", "true or false"]), ('start = "small"\nblend = "vote"', ["own.toml: blend"]),
    ('start = "small"\n[recipe]\nlr = 0.1', ["own.toml: recipe"]),
    ('start = "small"\nlength = 34', ["own.toml: length", "34", "context, 32, and 3 or more"]),
])  # fmt: skip
def test_a_wrong_file_is_refused_at_its_field(tmp_path: Path, text: str, told: list[str]) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(InputError) as refused:
        recipe_named("own", "here", "do", tmp_path)
    assert all(part in str(refused.value) for part in [*told, f"next:  edit {tmp_path / 'own.toml'}"]), refused.value


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="can't be read"):
        recipe_named("own", "here", "do", tmp_path)


def test_names_are_those_of_mmrec_then_of_files(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('start = "small"\nlr = 1\n')
    assert recipe_named("own", "here", "do", tmp_path) == replace(RECIPES["small"], lr=1.0)
    assert isinstance(recipe_named("own", "here", "do", tmp_path).lr, float)
    assert recipe_named("small", "here", "do", tmp_path) == RECIPES["small"]
    with pytest.raises(InputError, match="default, small, own"):
        recipe_named("other", "here", "do", tmp_path)
    with pytest.raises(InputError, match="no such recipe"):
        recipe_named(str(tmp_path / "own"), "here", "do")  # without a folder only what ends in .toml is a file
    (tmp_path / "small.toml").write_text('start = "default"\n')
    with pytest.raises(InputError, match="has the name of a recipe that mmrec has"):
        recipe_named("small", "here", "do", tmp_path)


def test_every_field_has_bounds_and_every_recipe_keeps_them(tmp_path: Path) -> None:
    known = {*recipes._BOUNDS, *recipes._OTHERS}
    assert known | {"blend", "blend_weights"} == {f.name for f in fields(Recipe)}
    for name, recipe in RECIPES.items():
        lines = [f'start = "{name}"', *(f"{f} = {recipes._toml(getattr(recipe, f))}" for f in known)]
        (tmp_path / "own.toml").write_text("\n".join(lines))
        assert recipe_named("own", "here", "do", tmp_path) == recipe


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("start", [*RECIPES.values(), replace(Recipe(), heads=3, d=48, weight_decay=0.0, head_content=0.0, warm=0.07, lam=1e4)])
def test_what_is_drawn_begins_with_the_start_and_can_be_written(tmp_path: Path, start: Recipe, content: bool) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    start = replace(start, sparse_under=0.0)  # a search begins at a pace that is settled
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({f: getattr(start, f) for f in space.SEARCHED})
    assert space.drawn(study.ask(), start, content) == replace(start, epochs=start.schedule)
    drawn = [space.drawn(study.ask(), start, content) for _ in range(40)]
    changed = {f for d in drawn for f in asdict(start) if getattr(d, f) != getattr(start, f)}
    of_content = {"head_content", "part_dropout", "fusion"}
    off = {f for f in ("weight_decay", "head_content") if getattr(start, f) == 0} | ({"d"} if start.heads == 3 else set())
    assert changed == {*space.SEARCHED, "epochs"} - off - (set() if content else of_content)
    for recipe in drawn:
        (tmp_path / "own.toml").write_text(recipe_text(recipe, "default", start, []))
        assert recipe_named("own", "here", "do", tmp_path) == recipe


def test_the_command_searches_a_folder_and_says_what_it_found(tmp_path: Path, blank: Path) -> None:
    (tmp_path / "source").mkdir()
    folder(tmp_path / "source", described=False)
    (tmp_path / "tiny.toml").write_text(TEXT)
    store = tmp_path / "cache" / "mmrec" / "tune"
    store.mkdir(parents=True)
    shutil.copy(blank, store / "mlflow.db")
    words = ["tune", "--source", "source", "--recipe", "tiny.toml", "--trials", "2", "--threads", "1", "--minutes", "5", "--json"]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-m", "mmrec", *words], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["start"]["recipe"] == "tiny.toml"
    assert sum(told["trials"].values()) == 2
    assert (told["recipe"] is None) == (not (tmp_path / "tuned.toml").exists())
    assert len(kept(store, told["mlflow_run"])) == 2
    wrong = subprocess.run([sys.executable, "-m", "mmrec", "tune", "--json"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert wrong.returncode == 2
    assert "--date D" in wrong.stderr
