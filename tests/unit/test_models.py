"""The parts of the model against what they must be: known answers, causality, invariants."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from shops import random_shop

from mmrec.models import linear
from mmrec.models.baselines import history_matrix, train_matrix
from mmrec.models.ease import EASE
from mmrec.models.fusion import ItemEncoder
from mmrec.models.linear import Likeness, fit_appeal, fit_linear, history_weights
from mmrec.models.losses import sampled_softmax
from mmrec.models.splits import per_user
from mmrec.models.tables import latest
from mmrec.models.towers import UserEncoder
from mmrec.train.batches import Batches

NO_CONTENT = np.zeros((40, 1), np.float32)


def matrix(seed: int = 0) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.random.default_rng(seed).random((25, 40)) < 0.2).astype(np.float32))


def test_the_linear_head_without_content_and_at_full_rank_is_ease() -> None:
    x = matrix()
    head = fit_linear(x, NO_CONTENT, lam=7.0, rank=26, content=0.0)
    history, offer = head.factors(NO_CONTENT)
    p = np.linalg.inv((x.T @ x).toarray() + 7.0 * np.eye(40))
    b = -p / np.diag(p)[None]
    np.fill_diagonal(b, 0)
    got = history @ offer.T
    np.fill_diagonal(got, 0)
    # fp32 factors of an fp64 solution
    np.testing.assert_allclose(got, b, atol=2e-6)


def test_content_in_the_linear_head_is_further_rows_of_the_matrix() -> None:
    x, rng = matrix(), np.random.default_rng(1)
    z = rng.normal(size=(40, 6)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    x[:, 39] = 0  # an item nobody had
    head = fit_linear(x, z, lam=7.0, rank=31, content=9.0)
    history, offer = head.factors(z)
    both = np.concatenate([x.toarray(), 3.0 * z.T])
    p = np.linalg.inv(both.T @ both + 7.0 * np.eye(40))
    b = -p / np.diag(p)[None]
    got = history @ offer.T
    off = ~np.eye(40, dtype=bool)
    np.testing.assert_allclose(got[off], b[off], atol=5e-6)
    assert np.abs(got[:39, 39]).max() > 0.01  # content alone gives it neighbours
    assert np.allclose(head.factors(z, known=False)[0], z @ head.content_CR)


def test_many_users_give_the_directions_of_the_exact_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    z = rng.normal(size=(40, 3)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    exact = fit_linear(matrix(), z, lam=7.0, rank=8, content=2.0)
    monkeypatch.setattr(linear, "_EXACT", 5)
    head, again = (fit_linear(matrix(), z, lam=7.0, rank=8, content=2.0) for _ in range(2))
    assert np.array_equal(head.behaviour_NR, again.behaviour_NR)
    h, o = head.factors(z)
    wanted_h, wanted_o = exact.factors(z)
    # vectors of close eigenvalues may turn; the product of all of them may not. fp32, five power iterations
    np.testing.assert_allclose(h @ o.T, wanted_h @ wanted_o.T, atol=2e-3)
    assert np.abs(wanted_h @ wanted_o.T).max() > 0.05


def test_appeal_finds_what_popularity_follows_in_content() -> None:
    rng = np.random.default_rng(0)
    like = rng.normal(size=(500, 4)).astype(np.float32)
    users = np.exp(2 + like[:, 0]).round()
    users[::5] = 0
    there = np.ones((500, 1), bool)
    weights = fit_appeal(like, there, users, lam=0.1)
    # log1p bends the line a little for the small ones
    assert weights[0] == pytest.approx(0.9, abs=0.08)
    assert np.abs(weights[1:4]).max() < 0.05


def test_likeness_is_of_unit_length_and_empty_where_there_is_no_content() -> None:
    items, _ = random_shop(3)
    v = Likeness.fit(items, 8).vectors(items)
    any_content = np.any([items.present[m] for m in items.content], 0)
    assert np.allclose(np.linalg.norm(v[any_content], axis=1), 1, atol=1e-5)
    assert not v[~any_content].any()
    alone = Likeness.fit(items, 8).vectors(items, drop=frozenset(items.content))
    assert not alone.any()


def test_a_direction_counts_by_its_variance_to_the_power_and_rounding_counts_nothing() -> None:
    items, _ = random_shop(3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(items.n, 3)) * [10.0, 1.0, 0.0]
    x[:, 2] = 1e-9 * rng.normal(size=items.n)
    items = replace(items, content={"text": x.astype(np.float32)}, present={"text": np.ones(items.n, bool)})
    ((mean, directions),) = Likeness.fit(items, 3).maps.values()
    spread = ((items.content["text"] - mean) @ directions).std(0)
    variance = items.content["text"].var(0)[:2]
    # the two are nearly axes: what is across is a chance correlation of some hundredths
    assert spread[1] / spread[0] == pytest.approx((variance[1] / variance[0]) ** (0.5 - 0.35), rel=0.05)
    assert not directions[:, 2].any()


def test_weights_of_a_history_fall_with_age_to_their_base() -> None:
    w = history_weights(100, tau=5.0, base=0.1)
    assert w[-1] == pytest.approx(1.1)
    assert w[0] == pytest.approx(0.1, abs=1e-6)
    assert (np.diff(w) >= 0).all()


@given(st.lists(st.lists(st.integers(0, 5), min_size=0, max_size=12), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_only_the_last_event_of_an_item_counts(rows: list[list[int]]) -> None:
    width = max(1, *(len(r) for r in rows))
    item, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), bool)
    for b, r in enumerate(rows):
        item[b, width - len(r) :], mask[b, width - len(r) :] = r, True
    got = latest(item, mask)
    for b, r in enumerate(rows):
        naive = [i for i in range(len(r)) if r[i] not in r[i + 1 :]]
        assert np.flatnonzero(got[b]).tolist() == [width - len(r) + i for i in naive]


def test_an_item_has_a_vector_from_whatever_it_has() -> None:
    torch.manual_seed(0)
    tower = ItemEncoder(3, {"image": 5, "text": 4}, 8).eval()
    content = {"image": torch.randn(4, 5), "text": torch.randn(4, 4)}
    index = torch.tensor([1, 0, 2, 0])
    present = {"image": torch.tensor([1.0, 1, 0, 0]), "text": torch.tensor([1.0, 0, 0, 0])}
    v = tower(index, content, present)
    assert v[1].abs().sum() > 0  # nobody touched it
    assert torch.equal(v[3], torch.zeros(8))  # it has nothing at all
    assert torch.allclose(v[2], tower.id(index[2]) * tower.scale)  # its id alone
    changed = {"image": content["image"], "text": content["text"] + (torch.arange(4) > 0).float()[:, None]}
    assert torch.equal(tower(index, changed, present), v)  # what is masked is not read


def test_a_position_sees_nothing_that_comes_later_and_nothing_behind_the_mask() -> None:
    torch.manual_seed(0)
    tower = UserEncoder(8, 2, layers=2, heads=2, context=10, dropout=0.5).eval()
    item, event = torch.randn(1, 10, 8), torch.ones(1, 10, dtype=torch.int64)
    gap, weight, mask = torch.rand(1, 10), torch.rand(1, 10), torch.ones(1, 10)
    out = tower(item, event, gap, weight, mask)
    later = item.clone()
    later[:, 6:] += 1
    assert torch.equal(tower(later, event, gap, weight, mask)[:, :6], out[:, :6])
    mask[:, :4] = 0
    kept = tower(item, event, gap, weight, mask)[:, -1]
    hidden = item.clone()
    hidden[:, :4] *= 50
    assert torch.allclose(tower(hidden, event, gap, weight, mask)[:, -1], kept, atol=1e-6)


def test_sampled_softmax_with_every_item_as_a_negative_is_the_softmax() -> None:
    torch.manual_seed(0)
    user, item = torch.randn(6, 4), torch.randn(9, 4)
    target = torch.tensor([0, 3, 8, 2, 2, 5])
    got = sampled_softmax(user, item[target], target, item, torch.arange(9), torch.zeros(9))
    want = torch.nn.functional.cross_entropy(user @ item.T, target)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)


def test_every_new_item_is_asked_for_once_an_epoch_and_a_repeat_never() -> None:
    _, log = random_shop(5)
    train = np.ones(len(log.user), bool)
    train[::7] = False
    asked: list[int] = []
    for batch in Batches(log, train, context=8, tokens=64, seed=1).epoch(2):
        real = batch.rows_BL >= 0
        assert (log.user[batch.rows_BL[real]] == log.user[batch.next_BL[real]]).all()
        assert (batch.next_BL[real] > batch.rows_BL[real]).all()
        assert train[batch.rows_BL[real]].all()
        asked += batch.next_BL[batch.asked_BL].tolist()
    naive, had = [], set()
    first_of_user: dict[int, int] = {}
    for row in np.flatnonzero(train):
        key = (int(log.user[row]), int(log.item[row]))
        if key not in had and int(log.user[row]) in first_of_user:
            naive.append(int(row))
        had.add(key)
        first_of_user.setdefault(int(log.user[row]), int(row))
    assert sorted(asked) == naive


def test_batches_are_the_same_for_a_seed_and_others_for_another_epoch() -> None:
    _, log = random_shop(5)
    train = np.ones(len(log.user), bool)
    one, two, three = ([b.rows_BL.tolist() for b in Batches(log, train, context=8, tokens=64, seed=1).epoch(e)]
                       for e in (0, 0, 1))  # fmt: skip
    assert one == two
    assert one != three


def test_the_head_ranks_as_the_baseline_does() -> None:
    items, log = random_shop(2)
    fold = per_user(log, items)
    ease = EASE(20.0).fit(items, log, fold)
    none = np.zeros((items.n, 1), np.float32)
    head = fit_linear(train_matrix(log, fold, items.n), none, lam=20.0, rank=10_000, content=0.0)
    history, offer = head.factors(none)
    cases = slice(0, fold.n_cases)
    x = history_matrix(log, fold, cases, items.n)
    got, want = np.asarray(x @ history) @ offer.T, ease.score(items, log, fold, cases)
    unseen = np.asarray(x.todense()) == 0
    np.testing.assert_allclose(got[unseen], want[unseen], atol=1e-5)
