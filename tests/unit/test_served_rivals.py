"""Every rival as a bundle: its night's lists are its own scores', and what it does not know it does not list."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from shops import DAY, make_items, make_log, random_shop
from test_slate import embeddings, items_of, users_of

from mmrec import schema, trained
from mmrec.bundle.bundle import Bundle, load, seal
from mmrec.bundle.graphs import check_graphs
from mmrec.config import Config, TrainConfig
from mmrec.errors import InputError, QualityError
from mmrec.evaluate.protocols import tune
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.models import stored
from mmrec.models.baselines import Popularity, history_matrix
from mmrec.models.data import Fold, Items, Log
from mmrec.models.rivals import STOPPED, published_rivals
from mmrec.models.splits import per_user
from mmrec.recommend import scorers
from mmrec.recommend.packed import Job, opened, pack
from mmrec.recommend.score import item_side
from mmrec.recommend.slate import FALLBACK, MODEL
from mmrec.recommend.spread import lists_of, vectors_of
from mmrec.topk.exact import select
from mmrec.train.rival import Plan, Rival

K = 8
NEVER_HAD = 4  # the last items of the catalogue: on offer at the fit, and nobody had them
SMALL: dict[str, dict[str, Any]] = {
    "popularity": {"half_life_days": 20.0}, "content_nn": {}, "item_knn": {"k": 5}, "user_knn": {"k": 4}, "ease": {"lam": 5.0},
    "als": {"factors": 8}, "bpr": {"factors": 8, "iterations": 30}, "lightgcn": {"d": 8, "epochs": 5},
    "gru4rec": {"d": 8, "epochs": 3, "negatives": 16, "max_len": 12}, "sasrec": {"d": 8, "epochs": 3, "max_len": 12},
}  # fmt: skip
KIND = dict.fromkeys(("content_nn", "gru4rec", "sasrec"), "two_tower") | dict.fromkeys(stored.FACTORS, "factors") | dict.fromkeys(stored.SPARSE, "sparse")


@dataclass(frozen=True)
class World:
    items: Items
    log: Log
    fold: Fold
    lake: Lake
    m: Manifest
    offered: pa.Table
    users: pa.Table
    histories: list[list[str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """40 items, of which a day offers all but two and one that is new; the users of the fit, and some it never saw."""
    rng, n, people = np.random.default_rng(5), 40, 36
    text = rng.normal(size=(n, 6)).astype(np.float32)
    text[7] = 0  # nothing is written about it
    items = make_items(n, content={"text": text})
    rows = []
    for u in range(people):  # people of a block have much the same, in an order of their own, and some of it twice
        own = rng.permutation(np.arange(u % 2, n - NEVER_HAD, 2))[: rng.integers(2, 16)]
        rows += [(u, int(i), d) for d, i in enumerate([*own, *own[:2]])]
    log = make_log(rows, people)
    every = np.arange(people)
    fold = replace(per_user(log, items), train=np.ones(len(log.user), bool), fit_at_us=40 * DAY, case_user=every.astype(np.int32),
                   case_at_us=np.full(people, 40 * DAY), hist_ptr=log.ptr, hist_row=np.arange(len(log.user)),
                   target_ptr=np.zeros(people + 1, np.int64), target_item=np.zeros(0, np.int32))  # fmt: skip
    shas = [f"sha{i}" if text[i].any() else None for i in range(n)]
    vector = {s: v for s, v in zip(shas, text, strict=True) if s} | {"shanew": text[3] + 0.1}
    lake, m = embeddings(tmp_path_factory.mktemp("lake"), vector, "toy-1")
    ids = [str(i) for i in items.ids]
    gone = {ids[2], ids[5]}
    offered = [(i, s) for i, s in zip(ids, shas, strict=True) if i not in gone] + [("z-new", "shanew")]
    own = [[ids[i] for i in log.item[log.ptr[u] : log.ptr[u + 1]]] for u in every]
    histories = [*own, ids[:9:2], [ids[3], "z-new", ids[11]], [], ["gone"]]
    users = users_of(histories)
    names = [*log.user_ids, *(f"unseen{n}" for n in range(4))]
    users = users.set_column(0, "user_id", pa.array(names, pa.string()))
    popularity = list(range(len(offered)))
    return World(items, log, fold, lake, m, items_of([i for i, _ in offered], popularity, [s for _, s in offered]), users, histories)


def bundled(world: World, name: str, folder: Path) -> tuple[Rival, Bundle]:
    model = Rival(Plan(name, SMALL[name]), seed=3).fit(world.items, world.log, world.fold)
    spec = trained.exported(model, world.items, world.log, world.fold, folder, length=64)
    seal(folder, spec | {"encoders": {"text": "toy-1"} if name == "content_nn" else {}, "features": schema.features_fingerprint()})
    return model, load(folder)


def night(world: World, bundle: Bundle, folder: Path, batch: int = 1000, k: int = K) -> list[dict[str, Any]]:
    """A day's lists by the functions that a night calls, users in batches."""
    side = item_side(bundle, world.offered, world.lake, world.m.tables, device="cpu", threads=1)
    assert (side is None) == (bundle.kind == "sparse")
    job = Job(str(bundle.folder), bundle.digest, "cpu", 1, k, "2026-03-01", "run", "7", bundle.kind)
    packed, users = str(pack(folder, job, world.offered, side)), world.users
    opened.cache_clear()
    if side is not None:
        vectors = pa.Table.from_batches(vectors_of(packed, iter(users.to_batches(max_chunksize=batch))))
        users = users.append_column("vector", vectors["vector"].combine_chunks())
    lists = pa.Table.from_batches(lists_of(packed, iter(users.combine_chunks().to_batches(max_chunksize=batch))))
    return lists.to_pylist()


def own_scores(world: World, name: str, kind: str) -> np.ndarray:
    """(users, items of the fit) by the published class itself, fitted by itself, on the histories that a night reads."""
    model: Any = published_rivals(3)[name]
    for key, value in SMALL[name].items():
        setattr(model, key, value)
    model.fit(world.items, world.log, world.fold)
    at, offer = world.items.index, set(world.offered["item_id"].to_pylist())
    heard = [[at[i] for i in h if i in at and (kind != "two_tower" or i in offer)] for h in world.histories]
    ptr = np.concatenate([[0], np.cumsum([len(h) for h in heard])]).astype(np.int64)
    flat = np.array([i for h in heard for i in h], np.int32)
    n = len(heard)
    known = np.where(np.arange(n) < world.log.n_users, np.arange(n), -1)
    fold = replace(world.fold, case_user=known, hist_ptr=ptr, hist_row=np.arange(len(flat)))
    return np.array(model.score(world.items, replace(world.log, item=flat), fold, slice(0, n)), np.float64)


@pytest.mark.parametrize("name", SMALL)
def test_a_nights_lists_are_those_of_the_models_own_scores(world: World, name: str, tmp_path: Path) -> None:
    _, bundle = bundled(world, name, tmp_path / "bundle")
    assert bundle.kind == KIND[name]
    assert {p.suffix for p in bundle.folder.iterdir()} <= {".json", ".onnx", ".safetensors"}
    check_graphs(bundle.folder)
    rows = night(world, bundle, tmp_path / "packed")
    own_UN = own_scores(world, name, bundle.kind)
    had_N = np.bincount(world.log.item, minlength=world.items.n) > 0
    knows_N = world.items.present["text"] if name == "content_nn" else had_N
    offer_N = np.isin(world.items.ids, world.offered["item_id"].to_pylist())
    # fp32 in another order of operations; the sparse ones do the very sums of the class, BPR and ALS round once more
    tolerance = 2e-4 * own_UN[:, knows_N].std()
    for u, (user, history) in enumerate(zip(world.users["user_id"].to_pylist(), world.histories, strict=True)):
        mine = [r for r in rows if r["user_id"] == user]
        assert [r["rank"] for r in mine] == list(range(1, K + 1)), "fewer places than there are items"
        said = [r for r in mine if r["source"] == MODEL]
        if name != "popularity" and not [i for i in history if i in world.items.index]:
            assert not said, "nothing is known of this user"
            continue
        if name == "content_nn" and "z-new" in history:
            continue  # it hears of what the class, fitted before, has no place for
        allowed_N = knows_N & offer_N & ~np.isin(world.items.ids, history)
        if name in ("item_knn", "user_knn"):
            allowed_N &= own_UN[u] > 0  # where nothing speaks for an item, popularity does
        best = np.sort(own_UN[u][allowed_N])[::-1][:K]
        listed = [r for r in said if r["item_id"] in world.items.index]
        assert len(said) == K or len(listed) == len(said) == len(best), "popularity only fills what the model leaves"
        place = [world.items.index[r["item_id"]] for r in listed]
        assert allowed_N[place].all(), "an item that it does not know, that is not on offer, or that was had"
        np.testing.assert_allclose([r["score"] for r in listed], own_UN[u][place], atol=tolerance, rtol=1e-6)
        np.testing.assert_allclose(own_UN[u][place], best[: len(place)], atol=tolerance, rtol=1e-6)
        gaps = np.flatnonzero(np.diff(np.sort(own_UN[u][allowed_N])[::-1][: K + 1]) > -2 * tolerance)
        if not len(gaps) and len(listed) == len(said):
            order = np.flatnonzero(allowed_N)[np.argsort(-own_UN[u][allowed_N], kind="stable")]
            assert place == order[:K].tolist()
    listed = {r["item_id"] for r in rows if r["source"] == MODEL}
    never_had = set(world.items.ids[-NEVER_HAD:])
    if name == "content_nn":  # which reads what it has never seen
        assert "z-new" in listed
        assert str(world.items.ids[7]) not in listed
    else:
        assert not listed & {"z-new", *never_had}
    assert {r["source"] for r in rows} <= {MODEL, FALLBACK}
    reasons = {r["reason"][:10] for r in rows if r["source"] == MODEL}
    assert reasons <= ({"popular la"} if name == "popularity" else {"because of", "what newco"})
    assert {r["user_id"] for r in rows if r["source"] == FALLBACK} >= ({"unseen3"} if name != "popularity" else set())


@pytest.mark.parametrize("name", ["als", "content_nn", "ease", "user_knn"])
def test_lists_do_not_depend_on_batches_nor_on_how_much_is_dense_at_a_time(
    world: World, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bundle = bundled(world, name, tmp_path / "bundle")
    whole = night(world, bundle, tmp_path / "whole")
    dense: list[tuple[int, ...]] = []
    monkeypatch.setattr(scorers, "select", lambda score_BN, *a, **more: (dense.append(score_BN.shape), select(score_BN, *a, **more))[1])
    monkeypatch.setattr(stored, "_CELLS", 3 * world.offered.num_rows)
    assert night(world, bundle, tmp_path / "parts", batch=7) == whole
    if bundle.kind == "sparse":
        assert max(dense) == (3, world.offered.num_rows)


def test_what_ease_does_not_know_does_not_pass_what_it_speaks_against(world: World, tmp_path: Path) -> None:
    _, bundle = bundled(world, "ease", tmp_path / "bundle")
    rows = [r for r in night(world, bundle, tmp_path / "packed", k=40) if r["source"] == MODEL]
    assert sum(r["score"] < 0 for r in rows) > 20
    assert not {r["item_id"] for r in rows} & {"z-new", *world.items.ids[-NEVER_HAD:]}


@pytest.mark.parametrize("name", ["ease", "user_knn"])
def test_a_reason_names_the_item_of_the_history_whose_say_is_greatest(world: World, name: str, tmp_path: Path) -> None:
    model, bundle = bundled(world, name, tmp_path / "bundle")
    assert model.stored is not None
    matrix_RM, place = model.stored.matrix_RM.toarray(), model.stored.place
    offer = set(world.offered["item_id"].to_pylist())

    def say(of: str, to: str) -> float:
        """The weight from one to the other, or the cosine of who had them, less what is the same for all of `to`."""
        if name == "ease":
            return matrix_RM[place[of], place[to]]
        return matrix_RM[:, place[of]] @ matrix_RM[:, place[to]] / np.sqrt(matrix_RM[:, place[of]].sum())

    checked = 0
    for r in night(world, bundle, tmp_path / "packed"):
        history = world.histories[world.users["user_id"].to_pylist().index(r["user_id"])]
        heard = [i for i in history if i in place and i in offer]
        if r["source"] == MODEL and heard:
            found = {i: say(i, r["item_id"]) for i in heard}
            named = [i for i in heard if r["reason"] == f"because of Title {i}"]
            assert len(set(named)) == 1
            assert found[named[0]] == pytest.approx(max(found.values()), rel=1e-5)
            checked += len(set(np.round(list(found.values()), 4))) > 1
    assert checked > 100


def test_a_bundle_of_user_knn_names_nobody_and_still_leaves_out_who_asks(world: World, tmp_path: Path) -> None:
    model, bundle = bundled(world, "user_knn", tmp_path / "bundle")
    whole = b"".join(p.read_bytes() for p in bundle.folder.iterdir())
    assert not [u for u in world.log.user_ids if str(u).encode() in whole]
    assert model.stored is not None
    h = model.stored.histories(world.histories[:36])
    same = model.stored.weights(h, [f"somebody{n}" for n in range(36)]).toarray()
    own = model.stored.weights(h, [str(u) for u in world.log.user_ids]).toarray()
    # a stranger with the same history has the user among the neighbours, at a cosine of one; the user has not
    assert (same.max(1) > 0.999).all()
    assert (own < same.max(1)[:, None] - 1e-6).any(1).sum() == 36
    assert own.max(1).min() < 0.999


@pytest.mark.parametrize("name", SMALL)
def test_what_is_saved_scores_as_it_did_and_only_what_is_closed_form_is_fitted_again(name: str, tmp_path: Path) -> None:
    items, log = random_shop(4, users=25, rows=300)
    fold = per_user(log, items, min_history=1)
    small = SMALL[name] | ({"epochs": 1} if name in STOPPED else {})
    model = Rival(Plan(name, small), seed=1, ease_items=50_000).fit(items, log, fold)
    every = slice(0, fold.n_cases)
    before = model.score(items, log, fold, every)
    assert before.shape == (fold.n_cases, items.n)
    alone: Any = model._unfitted()
    alone.fit(items, log, fold)
    own = alone.score(items, log, fold, every)  # of histories in which items are repeated
    known_N = items.present["image"] | items.present["text"]
    if name != "content_nn":
        known_N = np.isin(np.arange(items.n), log.item[fold.train])
        assert known_N[log.item[fold.hist_row]].all()
    assert (before[:, ~known_N] == -np.inf).all()
    # EASE's scores of what was had mean nothing, and differ between its two forms
    spoken = known_N & (history_matrix(log, fold, every, items.n).toarray() == 0)
    spoken &= (own > 0) | (not name.endswith("knn"))
    np.testing.assert_allclose(before[spoken], own[spoken], atol=2e-4 * own[:, known_N].std(), rtol=1e-6)
    model.save(tmp_path)
    again = Rival.load(tmp_path)
    assert (again.rival, again.chosen, again.seed, again.ease_items) == (name, small, 1, 50_000)
    np.testing.assert_array_equal(again.score(items, log, fold, every), before)
    half = replace(fold, train=fold.train & (np.arange(len(log.user)) % 2 == 0))
    after = again.refresh(items, log, half).score(items, log, fold, every)
    closed = name in ("popularity", "ease", "item_knn", "user_knn")
    assert np.array_equal(after, before) != closed
    if closed:
        np.testing.assert_array_equal(after, Rival(Plan(name, small), seed=1).fit(items, log, half).score(items, log, fold, every))


@pytest.mark.parametrize(("name", "key"), [("popularity", "half_life_days"), ("item_knn", "k"), ("user_knn", "k"), ("ease", "lam")])
def test_a_grid_takes_what_is_best_on_validation_and_a_second_fit_what_the_first_chose(name: str, key: str) -> None:
    items, log = random_shop(8, users=30, rows=500)
    val, fold = per_user(log, items, min_history=1, validation=True), per_user(log, items, min_history=1)
    best, found = tune(items, log, [val], names=(name,))
    assert set(best) == {name}
    everything, all_found = tune(items, log, [val])
    assert repr(everything[name]) == repr(best[name])
    assert found.items() <= all_found.items()
    model = Rival(Plan(name), choose=tune).fit(items, log, val, [val])
    want = getattr(best[name], key)
    assert model.chosen == {key: want if np.isfinite(want) else None}
    assert getattr(Rival(Plan(name, model.chosen))._unfitted(), key) == want
    fixed = Rival(Plan(name, model.chosen)).fit(items, log, fold)
    assert fixed.chosen == model.chosen


def test_a_half_life_without_end_is_kept_as_json_can() -> None:
    items, log = random_shop(8)
    fold = per_user(log, items, min_history=1)
    model = Rival(Plan("popularity"), choose=lambda *_, **__: ({"popularity": Popularity()}, {})).fit(items, log, fold, [fold])
    assert json.loads(json.dumps(model.chosen, allow_nan=False)) == {"half_life_days": None}
    again = Rival(Plan("popularity", model.chosen)).fit(items, log, fold)
    counts = np.bincount(np.unique(log.user[fold.train].astype(int) * items.n + log.item[fold.train]) % items.n, minlength=items.n)
    assert again.stored is not None
    np.testing.assert_array_equal(again.stored.arrays["item"][:, 0], counts[counts > 0])


def test_what_stops_early_keeps_its_best_epoch() -> None:
    items, log = random_shop(9, users=30, rows=400)
    val = per_user(log, items, min_history=1, validation=True)
    settings = SMALL["sasrec"] | {"epochs": 12}
    alone: Any = Rival(Plan("sasrec", settings))._unfitted().fit(items, log, val, [val])
    assert 0 < alone.best_epoch < 12, "or nothing is shown"
    assert Rival(Plan("sasrec", settings)).fit(items, log, val, [val]).chosen["epochs"] == alone.best_epoch


@pytest.mark.parametrize("name", ["content_nn", "gru4rec", "sasrec"])
def test_a_graph_that_is_not_the_model_is_not_sealed(world: World, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Rival.score
    off = np.zeros(world.items.n, np.float32)
    off[3] = 0.01
    monkeypatch.setattr(Rival, "score", lambda self, *a: honest(self, *a) + off)
    with pytest.raises(QualityError, match="not registered"):
        bundled(world, name, tmp_path)


def test_settings_name_every_rival_and_mmrecs_own_is_the_default(tmp_path: Path) -> None:
    field = TrainConfig.model_fields["model"]
    assert set(get_args(field.annotation)) == {"champion", *published_rivals()}
    assert all(name in (field.description or "") for name in get_args(field.annotation))
    assert type(trained.new(Config(home=tmp_path))({})).__name__ == "Champion"
    made = trained.new(Config(home=tmp_path, train=TrainConfig(model="ease", seed=4)))({"lam": 50})
    assert (made.rival, made.seed, made.chosen) == ("ease", 4, {"lam": 50})


def test_what_a_rival_cannot_do_without_is_said() -> None:
    items, log = make_items(5), make_log([(u, i, 1 + i) for u in range(3) for i in range(4)])
    fold = per_user(log, items, min_history=1)
    with pytest.raises(InputError, match="needs content"):
        Rival(Plan("content_nn")).fit(items, log, fold)
    with pytest.raises(InputError, match="too large for EASE"):
        Rival(Plan("ease"), choose=tune, ease_items=4).fit(items, log, fold)
    with pytest.raises(InputError, match="not stored as arrays"):
        stored.store(published_rivals()["sasrec"], items, log, fold)


def test_a_days_date_is_read_from_its_job(world: World, tmp_path: Path) -> None:
    _, bundle = bundled(world, "item_knn", tmp_path / "bundle")
    assert {(r["run_date"], r["model_version"]) for r in night(world, bundle, tmp_path / "packed")} == {(date(2026, 3, 1), "7")}
