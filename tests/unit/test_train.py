"""Batches, the loss, the blend and the export: naive oracles, and a future that must change nothing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from shops import DAY, make_items, make_log, random_shop
from torch.utils._python_dispatch import TorchDispatchMode

from mmrec import metrics
from mmrec.errors import InputError, QualityError
from mmrec.models import losses
from mmrec.models.data import Fold, Items, Log
from mmrec.models.losses import full_softmax, gbce, sampled_softmax
from mmrec.models.splits import hidden, leave_one_out, per_user, rolling
from mmrec.ort import session
from mmrec.train import blend as room
from mmrec.train import cold as colding
from mmrec.train import measure
from mmrec.train import recipe as recipes
from mmrec.train.batches import Batch, Batches
from mmrec.train.export import export, item_feeds, user_feeds
from mmrec.train.fit import Champion
from mmrec.train.recipe import RECIPES

TINY = replace(RECIPES["small"], d=8, epochs=2, schedule=2, context=8, length=12, tokens=64, negatives=16, rank=12, lam=20.0)


# batches


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 80), st.integers(0, 3), st.floats(0, 1))
def test_batches_are_whole_histories_of_train_rows_cut_into_windows(
    seed: int, context: int, tokens: int, epoch: int, share: float
) -> None:
    _, log = random_shop(seed, users=9, rows=150)
    train = np.random.default_rng(seed).random(len(log.user)) < share
    follows: list[tuple[int, int]] = []
    for batch in Batches(log, train, context=context, tokens=tokens, seed=seed).epoch(epoch):
        rows, real = batch.rows_BL, batch.rows_BL >= 0
        assert rows.shape[1] <= context
        # one window may be longer than the budget, several may not
        assert rows.size <= max(tokens, rows.shape[1])
        assert real[:, -1].all()
        assert (np.diff(real.astype(int), axis=1) >= 0).all(), "padding comes first"
        assert ((batch.next_BL >= 0) == real).all()
        assert not batch.asked_BL[~real].any()
        assert train[rows[real]].all()
        assert train[batch.next_BL[real]].all()
        # a window is contiguous: what follows an event is the next input
        assert (batch.next_BL[:, :-1][real[:, :-1]] == rows[:, 1:][real[:, :-1]]).all()
        # half as long again as the first, which may be the longest of the shortest bucket
        length = real.sum(1)
        assert length.max() <= 1.5 * np.sqrt(2) * length.min() + 1
        follows += zip(rows[real].tolist(), batch.next_BL[real].tolist(), strict=True)
    naive = []
    for u in range(log.n_users):
        own = [int(r) for r in np.flatnonzero(train) if log.user[r] == u]
        naive += pairwise(own)
    assert Counter(follows) == Counter(naive)


def test_real_tokens_fill_three_quarters_of_every_epoch() -> None:
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.geometric(0.03, 400) + 1, 300)
    log = make_log([(u, int(i), d) for u, n in enumerate(sizes) for d, i in enumerate(rng.integers(0, 500, n))])
    made = list(Batches(log, np.ones(len(log.user), bool), context=64, tokens=1024, seed=0).epoch(0))
    real, all_places = sum(int((b.rows_BL >= 0).sum()) for b in made), sum(b.rows_BL.size for b in made)
    assert real / all_places > 0.75
    # and there are few batches: at most twice what a perfect packing would take
    assert len(made) <= 2 * real / 1024 + 1


def test_a_seed_gives_the_same_batches_and_cuts_move_with_the_epoch() -> None:
    log = make_log([(u, i, i) for u in range(3) for i in range(40)])
    train = np.ones(120, bool)

    def made(**more: int) -> list[Batch]:
        asked = {"context": 8, "tokens": 64, "seed": 1, "epoch": 0} | more
        epoch = asked.pop("epoch")
        return list(Batches(log, train, **asked).epoch(epoch))

    def starts(found: list[Batch]) -> set[int]:
        return {int(row[row >= 0][0]) for b in found for row in b.rows_BL}

    for one, two in zip(made(), made(), strict=True):
        assert (one.rows_BL == two.rows_BL).all()
        assert (one.next_BL == two.next_BL).all()
        assert (one.asked_BL == two.asked_BL).all()
    assert starts(made(epoch=1)) != starts(made()) != starts(made(seed=2))
    # over the epochs every event is a window's first sometime
    ever = set().union(*(starts(made(epoch=e)) for e in range(60)))
    assert len(ever & set(range(39))) > 35


# the loss


def naive_loss(user: Any, target: Any, ids: list[int], negative: Any, drawn: list[int], expected: Any) -> float:
    """One position and one negative at a time."""
    total = 0.0
    for t, mine in enumerate(ids):
        positive = sum(float(a) * float(b) for a, b in zip(user[t], target[t], strict=True))
        partition = np.exp(positive)
        for s, other in enumerate(drawn):
            if other != mine:
                partition += np.exp(sum(float(a) * float(b) for a, b in zip(user[t], negative[s], strict=True))) / expected[s]
        total += np.log(partition) - positive
    return total / len(ids)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 7))
def test_the_loss_is_the_naive_loop_with_corrections_and_accidental_hits_left_out(seed: int, t: int, s: int) -> None:
    rng = np.random.default_rng(seed)
    item = rng.normal(size=(4, 3)).astype(np.float32)
    ids, drawn, expected = rng.integers(0, 4, t), rng.integers(0, 4, s), rng.uniform(0.1, 5, s)
    user = rng.normal(size=(t, 3)).astype(np.float32)
    got = sampled_softmax(*(torch.from_numpy(x) for x in (
        user, item[ids], ids, item[drawn], drawn, np.log(expected).astype(np.float32))))  # fmt: skip
    want = naive_loss(user, item[ids], ids.tolist(), item[drawn], drawn.tolist(), expected)
    assert got.item() == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_a_loss_whose_every_negative_is_the_target_is_nothing_and_pulls_nowhere() -> None:
    user, item = torch.randn(2, 3, requires_grad=True), torch.randn(3)
    loss = sampled_softmax(user, item.repeat(2, 1), torch.tensor([1, 1]), item.repeat(5, 1), torch.ones(5, dtype=torch.long), torch.zeros(5))
    loss.backward()
    assert loss.item() == 0
    assert not user.grad.any()


def test_the_correction_makes_a_sample_stand_for_the_whole_softmax() -> None:
    rng = np.random.default_rng(0)
    n, draws = 30, 64
    item, user = rng.normal(size=(n, 4)).astype(np.float32), rng.normal(size=(1, 4)).astype(np.float32)
    share = rng.dirichlet(np.ones(n) * 2)
    odds = np.exp(item @ user[0])
    found = []
    for _ in range(400):
        drawn = rng.choice(n, draws, p=share)
        loss = sampled_softmax(*(torch.from_numpy(x) for x in (
            user, item[:1], np.zeros(1, int), item[drawn], drawn, np.log(share[drawn] * draws).astype(np.float32))))  # fmt: skip
        found.append(np.exp(loss.item()) * odds[0])
    # the partition sum is unbiased; five standard errors
    assert np.mean(found) == pytest.approx(odds.sum(), abs=5 * np.std(found) / 20)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 7))
def test_negatives_of_ones_own_are_the_shared_loss_of_each_position(seed: int, t: int, s: int) -> None:
    rng = np.random.default_rng(seed)
    item, user = (torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32)) for n in (6, t))
    ids, drawn = torch.from_numpy(rng.integers(0, 6, t)), torch.from_numpy(rng.integers(0, 6, (t, s)))
    expected = torch.from_numpy(rng.normal(size=(t, s)).astype(np.float32))
    for loss, more in ((sampled_softmax, [(e,) for e in expected]), (gbce, [(6,)] * t)):
        whole = (expected,) if loss is sampled_softmax else (6,)
        got = loss(user, item[ids], ids, item[drawn], drawn, *whole)
        each = [loss(user[i : i + 1], item[ids[i : i + 1]], ids[i : i + 1], item[drawn[i]], drawn[i], *more[i]) for i in range(t)]
        assert got.item() == pytest.approx(float(sum(each)) / t, rel=1e-5, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 7), st.sampled_from([1, 5, 1 << 20]))
def test_the_whole_softmax_in_chunks_is_cross_entropy_with_its_gradients(seed: int, t: int, n: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    user, item = (torch.from_numpy(rng.normal(size=(m, 3))).requires_grad_() for m in (t, n))  # fp64: to the last digits
    target = torch.from_numpy(rng.integers(0, n, t))
    want = torch.nn.functional.cross_entropy(user @ item.T, target)
    wanted = torch.autograd.grad(3 * want, (user, item))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_CHUNK", chunk)
        got = full_softmax(user, item, target)
        found = torch.autograd.grad(3 * got, (user, item))
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_whole_softmax_never_holds_positions_times_items() -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    user, item = torch.randn(4000, 4, requires_grad=True), torch.randn(20_000, 4, requires_grad=True)
    with Watch():
        full_softmax(user, item, torch.zeros(4000, dtype=torch.long)).backward()
    assert 20_000 <= largest <= losses._CHUNK < 4000 * 20_000 / 10


def test_gbce_by_its_formula_and_plain_where_nothing_is_calibrated() -> None:
    user, item = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.1], [0.3, -0.4], [-1.0, 0.2]])
    ids, drawn = torch.tensor([0]), torch.tensor([1, 2, 0])  # the last is the target: no negative
    s = [float(user[0] @ item[i]) for i in range(3)]

    def sigmoid(x: float) -> float:
        return 1 / (1 + np.exp(-x))

    rate = 3 / 10
    for t in (0.0, 0.75, 1.0):
        beta = rate * (t * (1 - 1 / rate) + 1 / rate)
        want = -(beta * np.log(sigmoid(s[0])) + np.log(1 - sigmoid(s[1])) + np.log(1 - sigmoid(s[2])))
        assert gbce(user, item[ids], ids, item[drawn], drawn, 11, t).item() == pytest.approx(want, rel=1e-5)
    assert beta == pytest.approx(rate)  # at one, the target weighs what was sampled of the rest


@pytest.mark.parametrize("more", [{"loss": "full"}, {"loss": "gbce"}, {"own_negatives": True}, {"loss": "gbce", "own_negatives": True}])
def test_every_loss_learns_what_follows_what(more: dict[str, Any]) -> None:
    # a ring: item i + 1 follows item i, from wherever one begins
    log = make_log([(u, (u + d) % 12, d) for u in range(48) for d in range(8)])
    items = make_items(12)
    fold = leave_one_out(log, items)
    recipe = replace(TINY, d=16, epochs=40, schedule=40, dropout=0.0, part_dropout=0.0, lr=1e-2, tokens=128, every=100, **more)
    model = Champion(recipe, 0).fit(items, log, fold)
    scores = measure.mask(fold, log, model.sequence_scores(items, log, fold, slice(0, fold.n_cases)))
    assert (scores.argmax(1) == fold.target_item).mean() > 0.9


def test_a_loss_nobody_knows_is_refused() -> None:
    items, log = shop()
    with pytest.raises(InputError, match="no such loss"):
        Champion(replace(TINY, loss="hinge"), 0).fit(items, log, per_user(log, items))


# the champion


def shop(seed: int = 0) -> tuple[Items, Log]:
    return random_shop(seed, users=40, n=40, rows=900)


@pytest.fixture(scope="module")
def fitted() -> tuple[Items, Log, Fold, list[Fold], Champion]:
    items, log = shop()
    *vals, fold = rolling(log, items, 100 * DAY, days=20, cuts=3, min_history=2)
    return items, log, fold, list(vals), Champion(TINY, seed=1).fit(items, log, fold, vals)


Fitted = tuple[Items, Log, Fold, list[Fold], Champion]


@pytest.fixture
def own(fitted: Fitted, tmp_path: Path) -> Champion:
    """The fitted one, to be changed by one test alone."""
    fitted[-1].save(tmp_path / "saved")
    return Champion.load(tmp_path / "saved")


def whole_ndcg(model: Champion, items: Items, log: Log, vals: list[Fold]) -> float:
    """Naive: sort everything, every case of every fold the same."""
    found = []
    for v in vals:
        scores = model.refresh(items, log, v).score(items, log, v, slice(0, v.n_cases))
        for c in range(v.n_cases):
            seen = set(log.item[v.hist_row[v.hist_ptr[c] : v.hist_ptr[c + 1]]].tolist())
            may = [i for i in range(items.n) if v.catalogue[i] and i not in seen]
            top = sorted(may, key=lambda i: (-scores[c, i], i))[:10]
            wanted = v.target_item[v.target_ptr[c] : v.target_ptr[c + 1]]
            gain = sum(1 / np.log2(place + 2) for place, i in enumerate(top) if i in wanted)
            found.append(gain / sum(1 / np.log2(place + 2) for place in range(min(10, len(wanted)))))
    return float(np.mean(found))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_search_never_ends_below_where_it_began(seed: int) -> None:
    items, log = shop(seed)
    *vals, _ = rolling(log, items, 100 * DAY, days=20, cuts=3, min_history=2)
    model = Champion(TINY, seed=1).fit(items, log, vals[0])
    search = room.Search(model, items, log, vals)
    begin = {"tau": 10.0, "base": 0.1, "linear": 0.0, "half_life_days": 365.0, "popularity": 0.0, "content": 0.0, "image_share": 1.0}
    begin["linear"] = search.units(begin)["linear"]
    started = search.ndcg(begin)
    chosen = room.blend(search)
    assert search.ndcg(chosen) >= started
    # what the search measured is what the settled model scores, here and in a naive evaluation
    model.settle(chosen)
    assert whole_ndcg(model, items, log, vals) == pytest.approx(search.ndcg(chosen), abs=1e-6)
    best = search.ndcg(chosen)
    cold = colding.blend_cold(search)
    own = {f: getattr(model.recipe, f) for f in colding._WARM}
    zero = room.Search(model, items, log, vals).ndcg(own | cold | {"cold_offset": 0.0})
    # cold items may cost the whole half a percent of the best offset there is
    assert room.Search(model, items, log, vals).ndcg(own | cold) >= colding._SLACK * zero
    assert set(chosen) | set(cold) <= set(TINY.__dataclass_fields__)
    assert best >= started


def test_where_nothing_is_described_content_has_no_say_and_cold_items_drown_nobody() -> None:
    items, log = shop(0)
    items = replace(items, content={}, present={})
    val = hidden(log, items, validation=True)
    model = Champion(TINY, seed=1).fit(items, log, val, [val])
    assert (val.catalogue & val.cold_items(items, log)).any()
    assert (model.recipe.content, model.recipe.content_cold, model.recipe.appeal_cold) == (0, 0, 0)
    assert np.abs(model.score(items, log, val, slice(0, val.n_cases))).max() < 1e6
    tower = ndcg_of(val, log, model.sequence_scores(items, log, val, slice(0, val.n_cases)))
    assert whole_ndcg(model, items, log, [val]) >= tower > 0


def ndcg_of(v: Fold, log: Log, scores: np.ndarray) -> float:
    return measure.ndcg(v, measure.mask(v, log, scores))


def test_scores_of_a_search_are_masked_as_the_kernel_would_and_its_ndcg_is_the_metric(
    fitted: Fitted,
) -> None:
    items, log, fold, _, _ = fitted
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(fold.n_cases, items.n)).astype(np.float32)
    masked = measure.mask(fold, log, scores.copy())
    for c in range(fold.n_cases):
        gone = ~fold.catalogue.copy()
        gone[log.item[fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]]]] = True
        assert (np.isneginf(masked[c]) == gone).all()
        assert (masked[c][~gone] == scores[c][~gone]).all()
    top = np.argsort(-masked, axis=1, kind="stable")[:, :10]
    top = np.where(np.isneginf(np.take_along_axis(masked, top, 1)), -1, top)
    want = metrics.ranking(top, fold.target_ptr, fold.target_item, (10,))["ndcg@10"].mean()
    assert measure.ndcg(fold, masked) == pytest.approx(want)


def test_rows_after_the_cut_change_neither_vectors_nor_scores_by_a_bit(
    fitted: Fitted,
) -> None:
    items, log, fold, _, _ = fitted
    cut = fold.fit_at_us
    late = (log.ts_us >= cut) | (log.available_us >= cut)
    rng = np.random.default_rng(5)
    assert late.sum() > 50
    # the same past, with another future: other items at other times by the same users
    days = np.concatenate([log.ts_us[~late] / DAY, cut / DAY + rng.integers(0, 19, 200)])
    there = np.concatenate([log.available_us[~late] / DAY, np.full(200, cut / DAY + 19)])
    users = np.concatenate([log.user[~late], rng.integers(0, log.n_users, 200)])
    what = np.concatenate([log.item[~late], rng.integers(0, items.n, 200)])
    # a late delivery of an old event is the future too
    days[-20:] = 1.0
    other = make_log(list(zip(users, what, days, there, strict=True)), log.n_users)
    other_fold = rolling(other, items, 100 * DAY, days=20, cuts=1, min_history=2)[0]
    assert other_fold.fit_at_us == cut
    assert other_fold.target_item.tolist() != fold.target_item.tolist()
    one, two = (Champion(TINY, seed=1).fit(items, *past) for past in ((log, fold), (other, other_fold)))
    assert torch.equal(one.item_vectors(items), two.item_vectors(items))
    assert (one.popularity_N == two.popularity_N).all()
    assert (one.head.behaviour_NR == two.head.behaviour_NR).all()
    both = sorted({*fold.case_user.tolist()} & {*other_fold.case_user.tolist()})
    assert len(both) > 5
    here, theirs = (np.flatnonzero(np.isin(f.case_user, both)) for f in (fold, other_fold))
    for a, b in zip(here, theirs, strict=True):
        got = one.score(items, log, fold, slice(a, a + 1)), two.score(items, other, other_fold, slice(b, b + 1))
        assert (got[0] == got[1]).all()


def test_a_saved_champion_comes_back_to_the_bit_and_can_be_refreshed(
    fitted: Fitted, tmp_path: Path
) -> None:
    items, log, fold, vals, model = fitted
    model.save(tmp_path / "one")
    again = Champion.load(tmp_path / "one")
    again.save(tmp_path / "two")
    one, two = (load_file(tmp_path / f / "model.safetensors") for f in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)
    told = [json.loads((tmp_path / f / "model.json").read_text()) for f in ("one", "two")]
    assert told[0] == told[1]
    assert (again.recipe, again.seed, again.chosen, again.event_types) == (model.recipe, 1, model.chosen, log.event_types)
    cases = slice(0, fold.n_cases)
    for drop in (frozenset(), frozenset(["id"]), frozenset(["image"]), frozenset(["text", "id"])):
        assert (again.score(items, log, fold, cases, drop) == model.score(items, log, fold, cases, drop)).all()
    assert torch.equal(again.item_vectors(items), model.item_vectors(items))
    assert (again.appeal(items) == model.appeal(items)).all()
    third = Champion.load(tmp_path / "two")
    for each in (third, again):
        each.refresh(items, log, vals[0])
    assert (again.score(items, log, fold, cases) == third.score(items, log, fold, cases)).all()


def test_an_item_without_its_id_has_the_vector_of_one_the_model_has_never_met(
    fitted: Fitted,
) -> None:
    items, _, _, _, model = fitted
    met = items.ids[[items.index[i] for i in model.item_map]]
    assert len(met) > 20
    strangers = replace(items, ids=np.array([f"new-{i}" for i in items.ids], object))
    masked = model.item_vectors(items, frozenset(["id"]))
    assert torch.equal(masked, model.item_vectors(strangers))
    known, there = np.isin(items.ids, met), np.any([items.present[m] for m in items.content], 0)
    assert (masked != model.item_vectors(items)).any(1).numpy()[known].all()
    # nothing is left of an item that has neither
    nothing = model.item_vectors(items, frozenset(["id", *items.content]))
    assert not nothing.any()
    assert not masked[~there].any()
    # and what is masked is not read
    history, offer = model.head.factors(model.likeness.vectors(items), known=False)
    assert (history == model.likeness.vectors(items) @ model.head.content_CR).all()
    assert np.isfinite(offer).all()


# the export


def test_an_exported_stranger_is_the_same_item_without_its_id(fitted: Fitted, tmp_path: Path) -> None:
    items, log, fold, _, model = fitted
    spec = export(model, items, log, fold, tmp_path)
    assert set(spec["parity"]) == {"hard_histories", "real_histories"}
    feeds = item_feeds(model, items)
    opened = session(tmp_path / "item_encoder.onnx")
    strange_in, strange_vec = opened.run(["item_in", "item_vec"], feeds | {"id_index": np.zeros(items.n, np.int64)})
    d = model.recipe.d
    masked = model.item_vectors(items, frozenset(["id"])).numpy()
    np.testing.assert_allclose(strange_in[:, :d], masked, atol=1e-5)
    np.testing.assert_allclose(strange_vec[:, :d], masked * model.recipe.sequence_cold, atol=1e-5)
    history, _ = model.head.factors(model.likeness.vectors(items), known=False)
    np.testing.assert_allclose(strange_in[:, d : d + history.shape[1]], history, atol=1e-5)
    fed = user_feeds(model, log, fold, slice(0, 3), opened.run(["item_in"], feeds)[0])
    assert model.recipe.context <= fed["item_in"].shape[1] <= model.recipe.length
    assert not fed["item_in"][fed["mask"] == 0].any()


def test_a_model_whose_head_met_other_items_than_its_tower_is_not_exported(
    fitted: Fitted, own: Champion, tmp_path: Path
) -> None:
    items, log, fold, _, _ = fitted
    few = fold.train & (log.item != log.item[fold.train][0])
    own.refresh(items, log, replace(fold, train=few))
    with pytest.raises(QualityError, match="different items"):
        export(own, items, log, fold, tmp_path / "bundle")
    assert not list((tmp_path / "bundle").iterdir())


def test_a_shop_without_any_content_can_be_fitted_and_exported(tmp_path: Path) -> None:
    log = shop(4)[1]
    items = make_items(40)
    fold = per_user(log, items)
    model = Champion(replace(TINY, epochs=1), seed=1).fit(items, log, fold)
    spec = export(model, items, log, fold, tmp_path)
    assert spec["content_dims"] == {}
    assert session(tmp_path / "item_encoder.onnx").get_inputs()[-1].name == "popularity"


def test_the_pace_follows_the_data_once() -> None:
    r = RECIPES["default"]
    paced = r.fixed(r.pace(8.0))
    assert (paced.dropout, paced.epochs, paced.sparse_under) == (0.5, 50, 0.0)
    # what it learns with is the same on all data
    for field in ("d", "layers", "heads", "context", "length", "fusion", "part_dropout", "loss", "rank"):
        assert getattr(paced, field) == getattr(r, field)
    # decided once: what a refit's data would ask for no longer counts
    assert r.pace(30.0) == paced.pace(8.0) == RECIPES["small"].pace(1.0) == {"sparse_under": 0.0}


def test_a_fit_on_short_histories_keeps_its_pace_for_the_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes._SPARSE, "epochs", 2)
    monkeypatch.setitem(recipes._SPARSE, "schedule", 2)
    items, log = random_shop(0)
    fold = leave_one_out(log, items, validation=True)
    start = replace(TINY, sparse_under=1e6)
    chosen = Champion(start).fit(items, log, fold, [fold]).chosen
    assert chosen["sparse_under"] == 0.0
    assert Champion(start.fixed(chosen)).recipe.dropout == 0.5
