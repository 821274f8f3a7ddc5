"""Targets that weigh by how seldom their item is chosen: losses against autograd, weights by hand, and what a fit sees."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, random_shop

from mmrec.models.losses import full_softmax, gbce, sampled_softmax
from mmrec.models.splits import rolling
from mmrec.train.feed import Feed, propensities
from mmrec.train.fit import Champion
from mmrec.train.recipe import RECIPES, Recipe

TINY = replace(RECIPES["small"], d=8, epochs=2, schedule=2, context=8, length=12, tokens=64, negatives=16, rank=12, lam=20.0)


def made(seed: int, t: int, s: int, own: bool) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    item, user = (torch.from_numpy(rng.normal(size=(n, 3))).requires_grad_() for n in (6, t))  # fp64: to the last digits
    ids, drawn = torch.from_numpy(rng.integers(0, 6, t)), torch.from_numpy(rng.integers(0, 6, (t, s) if own else s))
    expected = torch.from_numpy(rng.normal(size=drawn.shape))
    return item, user, ids, drawn, expected, torch.from_numpy(rng.uniform(0.1, 5, t))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 7), st.booleans(), st.sampled_from(["sampled", "full", "gbce"]))
def test_a_weighted_loss_and_its_gradients_are_those_of_each_position_times_its_weight(seed: int, t: int, s: int, own: bool, which: str) -> None:
    item, user, ids, drawn, expected, weight = made(seed, t, s, own)

    def loss(rows: slice, weights: torch.Tensor | None) -> torch.Tensor:
        negative = drawn[rows] if own else drawn
        if which == "full":
            return full_softmax(user[rows], item, ids[rows], weights)
        both = user[rows], item[ids[rows]], ids[rows], item[negative], negative
        if which == "gbce":
            return gbce(*both, 6, weight_T=weights)
        return sampled_softmax(*both, expected[rows] if own else expected, weights)

    got = loss(slice(None), weight)
    found = torch.autograd.grad(got, (user, item))
    want = sum(loss(slice(i, i + 1), None) * weight[i] for i in range(t)) / t
    wanted = torch.autograd.grad(want, (user, item))
    assert got.item() == pytest.approx(want.item(), rel=1e-12, abs=1e-14)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    alike = loss(slice(None), torch.ones(t, dtype=torch.float64))
    assert alike.item() == loss(slice(None), None).item()


def test_weights_by_hand_with_a_mean_of_one_over_events_and_none_where_all_weigh_alike() -> None:
    count = np.array([16.0, 0, 1, 4])
    got = propensities(count, 0.5)
    # 1/4, -, 1, 1/2, whose mean over 21 events is (4 + 1 + 2) / 21 = 1/3
    assert got.tolist() == [0.75, 0, 3, 1.5]
    assert propensities(count, 0) is None


def test_what_is_hardly_ever_chosen_weighs_no_more_than_ten_times_the_mean() -> None:
    count = np.array([1e6, 1.0])
    got = propensities(count, 1.0)
    assert got[1] / got[0] == pytest.approx(10 * (2 / 1_000_001) / 1e-6, rel=1e-6)  # of 1e-6 and 1; the mean is 2 of 1,000,001
    assert np.average(got, weights=count) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("more", [{}, {"loss": "full"}, {"loss": "gbce"}, {"own_negatives": True}])
def test_a_fit_is_fed_the_weight_of_each_target(more: dict[str, Any]) -> None:
    items, log = random_shop(3, users=40, n=40, rows=900)
    fold = rolling(log, items, 100 * DAY, days=20, cuts=1, min_history=2)[0]
    weight = propensities(np.bincount(log.item[fold.train], minlength=items.n).astype(np.float64), 0.5)
    warm = np.unique(log.item[fold.train])
    model = Champion(TINY, 0)
    model._sides(items, log, fold)
    fed = {power: Feed(log, fold.train, model._tensors(items), replace(TINY, propensity=power, **more), seed=1) for power in (0.0, 0.5)}
    for plain, step in zip(fed[0.0].epoch(0), fed[0.5].epoch(0), strict=True):
        for one, part in zip(plain.parts, step.parts, strict=True):
            assert one.weight_T is None
            assert torch.equal(one.target_id_T, part.target_id_T)
            at = part.target_id_T.numpy()
            assert part.weight_T.tolist() == weight[warm[at] if more.get("loss") == "full" else at].tolist()


def test_a_fit_with_weights_learns_and_is_another_one() -> None:
    items, log = random_shop(3, users=40, n=40, rows=900)
    fold = rolling(log, items, 100 * DAY, days=20, cuts=1, min_history=2)[0]
    curves = {power: Champion(replace(TINY, propensity=power), 0).fit(items, log, fold).curves for power in (0.0, 0.5)}
    losses = {power: [row["loss"] for row in curve] for power, curve in curves.items()}
    assert losses[0.0] != losses[0.5]
    assert losses[0.5][-1] < losses[0.5][0]


def test_a_recipe_of_before_there_were_weights_is_the_same_recipe_by_now() -> None:
    now = asdict(RECIPES["small"])
    before = {k: v for k, v in now.items() if k != "propensity"}
    assert Recipe.recorded(before) == now
    assert Recipe.recorded(before | {"propensity": 0.5}) == now | {"propensity": 0.5}
