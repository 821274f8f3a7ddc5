"""Baselines: a known answer every recommender must give, naive oracles, and that nothing outside train is looked at."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, make_items, make_log, random_shop

from mmrec.errors import InputError
from mmrec.models.baselines import Popularity
from mmrec.models.ease import EASE
from mmrec.models.neighbours import ContentNN, ItemKNN, UserKNN
from mmrec.models.splits import rolling

ALL = [Popularity, ItemKNN, UserKNN, EASE, ContentNN]


def fold_of(log, items, cut=70):
    return rolling(log, items, 100 * DAY, days=100 - cut, cuts=1, min_history=1)[0]


def scores(model, items, log, fold):
    return model.fit(items, log, fold).score(items, log, fold, slice(0, fold.n_cases))


def dense(log, fold, n):
    x = np.zeros((log.n_users, n))
    x[log.user[fold.train], log.item[fold.train]] = 1
    return x


def history(log, fold, n):
    x = np.zeros((fold.n_cases, n))
    for c in range(fold.n_cases):
        x[c, log.item[fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]]]] = 1
    return x


@pytest.mark.parametrize("n", [20, 31], ids=["fewer users than items", "as many"])
@pytest.mark.parametrize("model", [ItemKNN(), ItemKNN(5), ItemKNN(shrinkage=3), EASE(1.0), EASE(100.0)])
def test_checkerboard(model, n):
    # even users have the even items, odd users the odd ones, and each misses one: that one comes first
    users = 20 if n == 20 else 40
    rows = [(u, i, 1) for u in range(users) for i in range(n) if u % 2 == i % 2 and i != u % n]
    items, log = make_items(n), make_log([*rows, *((u, (u % n) ^ 0, 80) for u in range(users))])
    fold = fold_of(log, items)
    score = scores(model, items, log, fold)
    score[history(log, fold, n) > 0] = -np.inf
    for c, u in enumerate(fold.case_user):
        if (u % n) % 2 == u % 2:
            assert score[c].argmax() == u % n


def test_popularity_by_hand():
    rows = [(0, 0, 10), (0, 0, 60), (1, 0, 50), (2, 1, 70 - 1e-9), (3, 1, 40), (3, 2, 1), (0, 3, 80), (1, 3, 90)]
    items, log = make_items(4), make_log(rows)
    fold = fold_of(log, items)
    flat = scores(Popularity(), items, log, fold)
    np.testing.assert_array_equal(flat, np.repeat([[2, 2, 1, 0]], fold.n_cases, 0))
    # a repeat counts once, at its last time; ages at the cut are 10 and 20, then 0 and 30 days
    decayed = Popularity(10).fit(items, log, fold).score_N
    np.testing.assert_allclose(decayed, [0.5 + 0.25, 1 + 0.125, 2**-6.9, 0], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 4.0]), st.integers(1, 12))
def test_item_knn_is_the_naive_one(seed, shrinkage, k):
    items, log = random_shop(seed)
    fold = fold_of(log, items)
    x = dense(log, fold, items.n)
    users = x.sum(0)
    want = np.zeros((items.n, items.n))  # [history item, candidate]
    for j in range(items.n):
        sim = np.array([
            0.0 if i == j else (x[:, i] * x[:, j]).sum() / max(np.sqrt(users[i] * users[j]) + shrinkage, 1)
            for i in range(items.n)
        ])  # fmt: skip
        kth = np.sort(sim)[::-1][k - 1]
        want[:, j] = np.where(sim >= kth - 1e-6, sim, 0)
    got = scores(ItemKNN(k, shrinkage), items, log, fold)
    np.testing.assert_allclose(got, history(log, fold, items.n) @ want, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 20.0, 500.0]), st.sampled_from([6, 60]))
def test_ease_is_the_closed_form_in_both_shapes(seed, lam, users):
    items, log = random_shop(seed, users=users, rows=users * 12)
    fold = fold_of(log, items)
    x = dense(log, fold, items.n)
    p = np.linalg.inv(x.T @ x + lam * np.eye(items.n))
    b = -p / np.diag(p)
    b[np.diag_indices(items.n)] = 0
    h = history(log, fold, items.n)
    model = EASE(lam)
    got = scores(model, items, log, fold)
    assert (model.x_RN is not None) == (users < items.n), "both forms must be tried"
    new = h == 0
    np.testing.assert_allclose(got[new], (h @ b)[new], rtol=2e-3, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_user_knn_is_the_naive_one(seed, k):
    items, log = random_shop(seed)
    fold = fold_of(log, items)
    x, h = dense(log, fold, items.n), history(log, fold, items.n)
    want = np.zeros_like(h)
    for c, own in enumerate(fold.case_user):
        sim = np.array([
            0.0 if u == own or not x[u].any() else (h[c] * x[u]).sum() / np.sqrt(h[c].sum() * x[u].sum())
            for u in range(log.n_users)
        ])  # fmt: skip
        kth = np.sort(sim)[::-1][k - 1]
        want[c] = np.where(sim >= kth - 1e-6, sim, 0) @ x
    np.testing.assert_allclose(scores(UserKNN(k), items, log, fold), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        scores(UserKNN(3), items, log, fold),
        UserKNN(k).fit(items, log, fold).narrow(3).score(items, log, fold, slice(0, fold.n_cases)),
    )


def tasteful(seed=0, users=200, n=120, kinds=6):
    """Users of two kinds of taste each, items of one kind: what EASE has something to learn from."""
    rng = np.random.default_rng(seed)
    rows = []
    for u in range(users):
        weight = np.where(np.isin(np.arange(n) % kinds, rng.choice(kinds, 2, replace=False)), 1.0, 0.05)
        rows += [(u, i, d) for d, i in enumerate(rng.choice(n, 22, replace=False, p=weight / weight.sum()))]
    return make_items(n), make_log(rows)


@pytest.mark.parametrize("users", [60, 200], ids=["solved by users", "solved by items"])
def test_the_strongest_weights_of_an_item_keep_most_of_the_list_and_all_of_them_all(users):
    items, log = tasteful(users=users)
    fold = fold_of(log, items, 15)
    model = EASE(20.0).fit(items, log, fold)
    assert (model.x_RN is not None) == (users < items.n)
    h = history(log, fold, items.n)
    whole = model.score(items, log, fold, slice(0, fold.n_cases))
    every = model.top(items.n)
    assert every.diagonal().sum() == 0
    np.testing.assert_allclose((h @ every)[h == 0], whole[h == 0], rtol=1e-4, atol=1e-5)

    def lists(score):
        return np.argsort(-np.where(h > 0, -np.inf, score), axis=1, kind="stable")[:, :10]

    def recall(ranked):
        hits = np.take_along_axis(wanted, ranked, 1).sum(1)
        return (hits / np.minimum(10, wanted.sum(1))).mean()

    wanted = np.zeros_like(h)
    wanted[np.repeat(np.arange(fold.n_cases), np.diff(fold.target_ptr)), fold.target_item] = 1
    overlap, found = {}, {}
    for k in (5, 20, 60):
        kept = model.top(k)
        assert np.diff(kept.indptr).max() == k
        # by magnitude: what is left out of a row is no stronger than what is kept
        row = np.abs(every[7].toarray().ravel())
        assert row[kept[7].indices].min() >= np.delete(row, kept[7].indices).max()
        cut = lists(h @ kept)
        found[k] = recall(cut)
        overlap[k] = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(lists(whole), cut, strict=True)])
    assert overlap[5] < overlap[20] < overlap[60]
    # with half of the weights more than four places in five are the same, and a sixth of them finds as much as all
    assert overlap[60] > 0.8
    assert found[20] > 0.95 * recall(lists(whole)) > found[5] > 0.75 * recall(lists(whole))


def test_ease_refuses_a_catalogue_beyond_its_bound_and_says_what_to_do():
    items, log = random_shop(0)
    fold = fold_of(log, items)
    with pytest.raises(InputError) as refused:
        EASE(max_items=items.n - 1).fit(items, log, fold)
    for part in ("too large for EASE", f"value: {items.n}", f"at most {items.n - 1}", "leave EASE out"):
        assert part in str(refused.value)
    assert EASE(max_items=items.n).fit(items, log, fold).out.shape[1] == items.n


def test_content_prefers_what_looks_like_the_history_and_needs_no_interaction():
    rng = np.random.default_rng(0)
    kinds = np.arange(40) % 2
    text = (rng.standard_normal((40, 8)) * 0.3 + np.where(kinds[:, None], 2, -2) * np.eye(8)[0]).astype(np.float32)
    text[38:] = 0
    items = make_items(40, content={"text": text})
    log = make_log([(u, 2 * i + u % 2, i) for u in range(6) for i in range(5)] + [(u, 20, 80) for u in range(6)])
    fold = fold_of(log, items)
    score = scores(ContentNN(), items, log, fold)
    for c, u in enumerate(fold.case_user):
        alike, other = score[c, :38][kinds[:38] == u % 2], score[c, :38][kinds[:38] != u % 2]
        assert alike.min() > other.max()
    assert (score[:, 38:] == 0).all()


def test_content_uses_the_modalities_an_item_has():
    vectors = np.eye(4, dtype=np.float32)
    image, text = vectors.copy(), vectors.copy()
    image[1], text[2] = 0, 0
    items = make_items(4, content={"image": image, "text": text})
    log = make_log([(0, 0, 1), (0, 3, 80)])
    fold = fold_of(log, items)
    both, only = scores(ContentNN(), items, log, fold), scores(ContentNN(("text",)), items, log, fold)
    assert np.isfinite(both).all()
    assert only[0, 2] == 0
    assert both[0, 0] == pytest.approx(1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(ALL))
def test_rows_outside_train_and_history_change_no_score(seed, model):
    items, log = random_shop(seed)
    fold = fold_of(log, items)
    hidden = ~fold.train
    hidden[fold.hist_row] = False
    rng = np.random.default_rng(seed)
    other = replace(log, item=np.where(hidden, rng.integers(0, items.n, len(log.item)), log.item).astype(np.int32))
    assert (other.item != log.item).any()
    np.testing.assert_array_equal(scores(model(), items, log, fold), scores(model(), items, other, fold))


@pytest.mark.parametrize("model", ALL)
def test_a_slice_of_cases_is_scored_as_in_the_whole(model):
    items, log = random_shop(3, users=30, rows=600)
    fold = fold_of(log, items)
    fitted = model().fit(items, log, fold)
    whole = fitted.score(items, log, fold, slice(0, fold.n_cases))
    assert whole.shape == (fold.n_cases, items.n)
    parts = [fitted.score(items, log, fold, slice(s, min(s + 7, fold.n_cases))) for s in range(0, fold.n_cases, 7)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ALL)
def test_nothing_to_learn_from_is_no_crash(model):
    items, log = random_shop(4)
    fold = replace(fold_of(log, items), train=np.zeros(len(log.user), bool))
    assert np.isfinite(scores(model(), items, log, fold)).all()
