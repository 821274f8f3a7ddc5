"""What a training measures for the gate: bundles ranked as their models rank, the window, the users that are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, make_items, random_shop
from test_served_rivals import SMALL
from test_slate import embeddings

from mmrec import contested, schema, trained
from mmrec.bundle import registry
from mmrec.bundle.bundle import Bundle, load, seal
from mmrec.bundle.serving import Served, Serving
from mmrec.config import Config, EvaluateConfig, GateConfig
from mmrec.context import Again
from mmrec.errors import QualityError, TransientError
from mmrec.evaluate.contest import SELF, Contest, measure
from mmrec.evaluate.protocols import evaluate
from mmrec.lake.store import Lake
from mmrec.models import splits
from mmrec.models.data import Fold, Items, Log
from mmrec.recommend.asking import asking
from mmrec.train.fit import Champion
from mmrec.train.recipe import RECIPES
from mmrec.train.rival import Plan, Rival

END = datetime.fromtimestamp(100 * DAY / 1e6, UTC)
Place = tuple[Items, Log, Fold, pa.Table, Lake, dict[str, int]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A shop in which the last month is asked for; nothing that came new in it is on offer."""
    _, log = random_shop(4, users=50, n=90, rows=2600)
    text = np.random.default_rng(1).normal(size=(90, 6)).astype(np.float32)
    text[7] = 0
    items = make_items(90, content={"text": text})
    fold = splits.window("gate", log, items, 70 * DAY, 100 * DAY)
    had_N = np.bincount(log.item[fold.train], minlength=items.n) > 0
    fold = replace(fold, catalogue=fold.catalogue & had_N & items.present["text"])
    shas = [f"sha{i}" if items.present["text"][i] else None for i in range(items.n)]
    lake, m = embeddings(tmp_path_factory.mktemp("lake"), {s: v for s, v in zip(shas, text, strict=True) if s}, "toy-1")
    rows = pa.table({"item_id": [str(i) for i in items.ids], "text_sha256": pa.array(shas, pa.string())})
    return items, log, fold, rows, lake, m.tables


def sealed(model: Any, place: Place, folder: Path, encoders: dict[str, str]) -> Bundle:
    items, log, fold = place[:3]
    spec = trained.exported(model, items, log, fold, folder, length=64)
    seal(folder, spec | {"encoders": encoders, "features": schema.features_fingerprint()})
    return load(folder)


def asked(bundle: Bundle, place: Place) -> Callable[[slice], np.ndarray]:
    return asking(bundle, *place, length=64, half_life_days=30, device="cpu", threads=1)(place[2])


def same_lists(model: Any, bundle: Bundle, place: Place, score: Callable[[slice], np.ndarray] | None = None) -> None:
    """Both lists are of the same scores; where two items have equal ones, either may come first."""
    items, log, fold = place[:3]
    own = evaluate(model, items, log, fold)
    told = evaluate(model, items, log, fold, scorer=asked(bundle, place))
    assert fold.n_cases >= 30
    score_CN = np.asarray((score or (lambda c: model.score(items, log, fold, c)))(slice(0, fold.n_cases)), np.float64)
    took_CK = [np.take_along_axis(score_CN, np.maximum(r.ranked, 0), 1) for r in (own, told)]
    # graphs and torch add in other orders; ALS and BPR round factors once more
    np.testing.assert_allclose(took_CK[1], took_CK[0], rtol=2e-4, atol=2e-5)
    assert (own.ranked == told.ranked).mean() > 0.97
    assert told.mean("ndcg@10") == pytest.approx(own.mean("ndcg@10"), abs=0.01)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"gru4rec", "sasrec", "lightgcn"}))
def test_a_rivals_bundle_asked_for_cases_ranks_as_the_rival_does(place: Place, name: str, tmp_path: Path) -> None:
    items, log, fold = place[:3]
    model = Rival(Plan(name, SMALL[name]), seed=3).fit(items, log, fold)
    bundle = sealed(model, place, tmp_path / "bundle", {"text": "toy-1"} if name == "content_nn" else {})
    same_lists(model, bundle, place)


@pytest.mark.parametrize("blend", ["scores", "ranks"])
def test_the_main_models_bundle_asked_for_cases_ranks_as_the_model_does(place: Place, blend: str, tmp_path: Path) -> None:
    items, log, fold = place[:3]
    recipe = replace(RECIPES["small"], d=8, epochs=1, schedule=1, context=16, length=64, tokens=256, negatives=32, rank=16,
                     popularity=0.7, content=0.5, blend=blend, blend_weights=(0.5, 0.3, 0.2) if blend == "ranks" else ())  # fmt: skip
    model = Champion(recipe, seed=1).fit(items, log, fold)
    same_lists(model, sealed(model, place, tmp_path / "bundle", {"text": "toy-1"}), place)


def test_the_same_model_as_a_bundle_and_as_a_stand_in_is_ahead_of_itself_nowhere(place: Place, tmp_path: Path) -> None:
    """On cold items too, which are few and far down in a list of everything."""
    items, log, fold = place[:3]
    cold_N = np.arange(items.n) % 3 == 0
    train = fold.train & ~cold_N[log.item]
    fold = splits.window("gate", log, items, 70 * DAY, 100 * DAY)
    fold = replace(fold, train=train, catalogue=fold.catalogue & items.present["text"])
    recipe = replace(RECIPES["small"], d=8, epochs=1, schedule=1, context=16, length=64, tokens=256, negatives=32, rank=16,
                     popularity=0.7, content=0.5, content_cold=0.5, cold_offset=3.0)  # fmt: skip
    model = Champion(recipe, seed=1).fit(items, log, fold)
    here: Place = (items, log, fold, *place[3:])
    bundle = sealed(model, here, tmp_path / "bundle", {"text": "toy-1"})
    asked_for = asking(bundle, *here, length=64, half_life_days=30, device="cpu", threads=1)
    found = measure(items, log, fold, {SELF: (model, None), "version_1": (model, asked_for)}, END, END, {})
    for part in ("all", "cold_items"):
        assert found.of(SELF, part).num_rows >= 30
        # graphs and torch part in some places of some lists
        assert found.difference("version_1", part, 200)[0] == pytest.approx(0, abs=0.01), part  # type: ignore[index]
    assert found.of("version_1", "cold_items")["ndcg@10"].to_numpy().mean() > 0.02


def test_a_bundle_of_another_encoder_or_other_features_says_so(place: Place, tmp_path: Path) -> None:
    items, log, fold = place[:3]
    model = Rival(Plan("content_nn", {}), seed=3).fit(items, log, fold)
    with pytest.raises(QualityError, match="another encoder"):
        asked(sealed(model, place, tmp_path / "a", {"text": "other-2"}), place)
    bundle = sealed(model, place, tmp_path / "b", {"text": "toy-1"})
    with pytest.raises(QualityError, match="features of another definition"):
        asked(replace(bundle, about=bundle.about | {"features": "0"}), place)


# the window


def night(config: Config, again: Again | None = None) -> Any:
    return SimpleNamespace(config=config, as_of=END, again=again)


def test_a_second_training_of_the_moment_asks_for_the_window_of_what_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(home=tmp_path)
    folder = config.bundles / "1"
    folder.mkdir(parents=True)
    for until, days in ((END, 7), (END - timedelta(days=1), 28)):
        Contest(END - timedelta(days=7), until, Contest.ROWS.empty_table(), {}).save(folder)
        digest = seal(folder, {"kind": "two_tower"})
        monkeypatch.setattr(registry, "state", lambda _, d=digest: Serving(1, (Served("1", d, END),)))
        assert contested.since(night(config)) == END - timedelta(days=days)


def test_a_server_that_does_not_answer_leaves_the_whole_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = Config(home=tmp_path, mlflow_uri="http://127.0.0.1:9")
    assert contested.since(night(config)) == END - timedelta(days=28)
    assert registry.served(config, alone=True) == []
    with pytest.raises(TransientError):
        registry.served(config)


@pytest.mark.parametrize(
    ("known", "days"),
    [(None, 28), (40, 28), (28, 28), (27.5, 27.5), (3, 3), (1, 1), (0.99, 28), (0, 28), (-5, 28)],
)
def test_the_window_begins_where_what_serves_knows_no_more_but_for_a_day_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: float | None, days: float
) -> None:
    stack = () if known is None else (Served("1", "", END - timedelta(days=known)),)
    monkeypatch.setattr(registry, "state", lambda _: Serving(len(stack), stack))
    assert contested.since(night(Config(home=tmp_path))) == END - timedelta(days=days)


def test_the_window_is_no_longer_than_the_test_windows_and_a_repeated_training_has_its_own(tmp_path: Path) -> None:
    config = Config(home=tmp_path, evaluate=EvaluateConfig(rolling_days=3, rolling_cuts=4))
    assert contested.since(night(config)) == END - timedelta(days=12)
    once = END - timedelta(days=5)
    assert contested.since(night(config, Again(tmp_path, {}, once))) == once
    assert contested.since(night(config, Again(tmp_path, {}))) == END - timedelta(days=12)


def test_of_too_many_users_the_same_ones_are_asked_whoever_else_there_is(tmp_path: Path) -> None:
    items, log = random_shop(4, users=50, n=90, rows=2600)
    data: Any = SimpleNamespace(items=items, log=log)
    begin = END - timedelta(days=30)

    def people(most: int, log: Log = log) -> set[str]:
        told = night(Config(home=tmp_path, gate=GateConfig(cases=most)))
        fold = contested.window(told, SimpleNamespace(items=items, log=log), begin)  # type: ignore[arg-type]
        assert fold.n_cases <= most
        return {str(log.user_ids[u]) for u in fold.case_user}

    whole, some = people(10_000), people(20)
    assert len(some) == 20
    assert some < whole
    assert people(5) < some
    kept = log.user >= 10  # ten users fewer: who stays is asked still
    fewer = replace(log, **{c: getattr(log, c)[kept] for c in ("user", "item", "ts_us", "weight", "event", "available_us")})
    gone = {str(u) for u in log.user_ids[:10]}
    assert some - gone <= people(20, fewer)
    assert contested.window(night(Config(home=tmp_path)), data, begin).name == "gate"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2**20))
def test_some_cases_of_a_fold_keep_their_histories_and_targets(seed: int, bits: int) -> None:
    items, log = random_shop(seed % 7)
    fold = splits.window("w", log, items, 60 * DAY, 100 * DAY, min_history=2)
    keep_C = np.array([bits >> c & 1 for c in range(fold.n_cases)], bool)
    made = fold.some(keep_C)

    def cases(f: Fold) -> list[tuple[Any, ...]]:
        return [(f.case_user[c], f.case_at_us[c], f.hist_row[f.hist_ptr[c] : f.hist_ptr[c + 1]].tolist(),
                 f.target_item[f.target_ptr[c] : f.target_ptr[c + 1]].tolist()) for c in range(f.n_cases)]  # fmt: skip

    assert cases(made) == [case for case, kept in zip(cases(fold), keep_C, strict=True) if kept]
