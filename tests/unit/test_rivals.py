"""Every rival: a known answer all must give, naive oracles, causality, one outcome a seed, and edges."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, sparse
from shops import DAY, make_items, make_log, random_shop

from mmrec.errors import QualityError
from mmrec.models.baselines import Popularity, history_matrix, train_matrix
from mmrec.models.ease import EASE
from mmrec.models.factors import ALS, BPR
from mmrec.models.graph import LightGCN
from mmrec.models.learning import EarlyStop, Unseen
from mmrec.models.neighbours import ContentNN, ItemKNN, UserKNN
from mmrec.models.rivals import STOPPED, published_rivals
from mmrec.models.sequential import GRU4Rec, SASRec, _batches
from mmrec.models.splits import leave_one_out, rolling

# as published, but small: the shops of this file have some tens of items
SMALL = {
    "popularity": lambda seed: Popularity(),
    "content_nn": lambda seed: ContentNN(),
    "item_knn": lambda seed: ItemKNN(),
    "user_knn": lambda seed: UserKNN(),
    "ease": lambda seed: EASE(10.0),
    "als": lambda seed: ALS(8, iterations=10, seed=seed),
    "bpr": lambda seed: BPR(8, iterations=200, seed=seed),
    "lightgcn": lambda seed: LightGCN(seed=seed, d=16, lr=0.02, epochs=30),
    "gru4rec": lambda seed: GRU4Rec(seed=seed, d=16, negatives=32, lr=0.01, epochs=80, max_len=12),
    "sasrec": lambda seed: SASRec(seed=seed, d=16, dropout=0.2, lr=0.01, epochs=60, max_len=12),
}
LEARNT = ("als", "bpr", *STOPPED)
SEQUENCES = ("gru4rec", "sasrec")


def test_all_are_here_and_named_by_their_names():
    made = published_rivals(3)
    assert list(made) == list(SMALL)
    assert {name: type(m) for name, m in made.items()} == {name: type(m(3)) for name, m in SMALL.items()}
    assert {name: made[name].seed for name in LEARNT} == dict.fromkeys(LEARNT, 3)
    assert all(repr(m).startswith(type(m).__name__) for m in made.values())


def fold_of(log, items, cut=70):
    return rolling(log, items, 100 * DAY, days=100 - cut, cuts=1, min_history=1)[0]


def whole(model, items, log, fold):
    return model.score(items, log, fold, slice(0, fold.n_cases))


def fitted(name, items, log, fold, seed=0):
    return SMALL[name](seed).fit(items, log, fold)


def checkerboard(seed=0, users=40, n=20):
    """Even users have the even items, odd users the odd ones, in any order; each misses one of theirs, and has it after
    the cut. What an item looks like follows its block."""
    rng = np.random.default_rng(seed)
    rows = []
    for u in range(users):
        block = rng.permutation(np.arange(u % 2, n, 2))
        rows += [*((u, i, 1 + d) for d, i in enumerate(block[1:])), (u, block[0], 80)]
    look = (np.eye(4)[np.arange(n) % 2] + 0.1 * rng.standard_normal((n, 4))).astype(np.float32)
    return make_items(n, content={"image": look}), make_log(rows)


@pytest.mark.parametrize("name", [n for n in SMALL if n != "popularity"])
def test_checkerboard(name):
    items, log = checkerboard()
    fold = fold_of(log, items)
    assert fold.n_cases == 40
    score = whole(fitted(name, items, log, fold), items, log, fold)
    for c, u in enumerate(fold.case_user):
        (target,) = fold.target_item[fold.target_ptr[c] : fold.target_ptr[c + 1]]
        assert target % 2 == u % 2
        assert score[c, target] > score[c, (1 - u % 2) :: 2].max(), f"case {c}"


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_order_of_a_ring_is_learnt(name):
    # every user goes round a ring of items from a place of their own: what comes next depends on the last item alone
    n = 40
    rows = [(u, (u + d) % n, d) for u in range(120) for d in range(6)] + [(u, (u + 6) % n, 80) for u in range(120)]
    items, log = make_items(n), make_log(rows)
    fold = fold_of(log, items)
    score = whole(fitted(name, items, log, fold), items, log, fold)
    score[history_matrix(log, fold, slice(0, fold.n_cases), n).toarray() > 0] = -np.inf
    np.testing.assert_array_equal(score.argmax(1), (fold.case_user + 6) % n)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 12.0]), st.sampled_from([0.1, 5.0]))
def test_als_solves_the_normal_equations_of_items_and_of_histories(seed, alpha, reg):
    items, log = random_shop(seed)
    fold = fold_of(log, items)
    model = ALS(5, alpha=alpha, reg=reg, seed=seed).fit(items, log, fold)
    x = train_matrix(log, fold, items.n).toarray()
    x = x[x.any(1)]

    def solved(rows_PQ, other_QK):
        """Of each row of P the factors, item by item, with the confidences written out."""
        found = []
        for row in rows_PQ:
            c = np.diag(np.where(row > 0, alpha, 1.0))
            found.append(np.linalg.solve(other_QK.T @ c @ other_QK + reg * np.eye(5), other_QK.T @ c @ (row > 0)))
        return np.array(found)

    np.testing.assert_allclose(model.item_NK, solved(x.T, model.user_RK), rtol=1e-2, atol=1e-4)
    h = history_matrix(log, fold, slice(0, fold.n_cases), items.n)
    want = solved(h.toarray(), model.item_NK)
    np.testing.assert_allclose(model.fold_in(h), want, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(whole(model, items, log, fold), want @ model.item_NK.T, rtol=1e-4, atol=1e-6)


def test_als_folds_in_as_implicit_does():
    from implicit.cpu.als import AlternatingLeastSquares

    items, log = random_shop(5)
    fold = fold_of(log, items)
    model = ALS(5, seed=1).fit(items, log, fold)
    h = history_matrix(log, fold, slice(0, fold.n_cases), items.n)
    theirs = AlternatingLeastSquares(5, model.reg, model.alpha, num_threads=1)
    theirs.item_factors = model.item_NK.astype(np.float32)
    np.testing.assert_allclose(
        model.fold_in(h), theirs.recalculate_user(np.arange(fold.n_cases), h), rtol=1e-3, atol=1e-5
    )


def test_bpr_has_the_factors_and_biases_of_implicit():
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    items, log = random_shop(6)
    fold = fold_of(log, items)
    model = BPR(5, iterations=20, seed=4).fit(items, log, fold)
    x = train_matrix(log, fold, items.n)
    theirs = BayesianPersonalizedRanking(5, model.lr, model.reg, iterations=20, num_threads=1, random_state=4)
    theirs.fit(x[np.diff(x.indptr) > 0], show_progress=False)
    assert theirs.item_factors.shape == (items.n, 6)
    assert (theirs.user_factors[:, -1] == 1).all(), "the last column is the bias"
    np.testing.assert_array_equal(np.c_[model.item_NK, model.bias_N], theirs.item_factors.astype(np.float64))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.3]))
def test_bpr_folds_in_what_maximises_the_users_part_of_its_objective(seed, reg):
    items, log = random_shop(seed)
    fold = fold_of(log, items)
    model = BPR(4, reg=reg, iterations=60, seed=seed).fit(items, log, fold)
    h = history_matrix(log, fold, slice(0, fold.n_cases), items.n)
    x = train_matrix(log, fold, items.n).toarray()
    share = x.sum(0) / x.sum()
    y, b = model.item_NK - share @ model.item_NK, model.bias_N - share @ model.bias_N
    for row, got in zip(h.toarray() > 0, model.fold_in(h), strict=True):

        def loss(u, row=row):
            return np.logaddexp(0, -(y[row] @ u + b[row])).mean() + reg / 2 * u @ u

        best = optimize.minimize(loss, np.zeros(4), tol=1e-10)
        assert loss(got) - best.fun <= 1e-2 * (loss(np.zeros(4)) - best.fun) + 1e-9


def dense_layers(weight, x, k):
    """E, AE, AAE, ... with A written out."""
    users, n = x.shape
    a = np.block([[np.zeros((users, users)), x], [x.T, np.zeros((n, n))]])
    with np.errstate(divide="ignore"):
        root = np.where(a.sum(1) > 0, a.sum(1) ** -0.5, 0)
    a = root[:, None] * a * root
    return [np.linalg.matrix_power(a, i) @ weight for i in range(k + 1)], a


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_lightgcn_propagates_and_folds_in_as_the_dense_graph_does(seed, k):
    items, log = random_shop(seed)
    fold = fold_of(log, items)
    model = LightGCN(seed=seed, d=6, layers=k, epochs=2).fit(items, log, fold)
    x = train_matrix(log, fold, items.n).toarray().astype(np.float64)
    weight = model.net.weight.detach().numpy().astype(np.float64)
    layers, _ = dense_layers(weight, x, k)
    final = sum(layers) / (k + 1)
    np.testing.assert_allclose(model.offer_ND, final[len(x) :], rtol=1e-4, atol=1e-6)
    # a history that is a user's train row gives their vector, less what is their own
    same = replace(
        fold,
        case_user=np.arange(log.n_users, dtype=np.int32),
        case_at_us=np.zeros(log.n_users, np.int64),
        hist_ptr=np.concatenate([[0], np.cumsum(np.bincount(log.user[fold.train], minlength=log.n_users))]),
        hist_row=np.flatnonzero(fold.train),
        target_ptr=np.zeros(log.n_users + 1, np.int64),
        target_item=np.zeros(0, np.int32),
    )
    folded = final[: len(x)] - weight[: len(x)] / (k + 1)
    np.testing.assert_allclose(whole(model, items, log, same), folded @ final[len(x) :].T, rtol=1e-3, atol=1e-6)


def test_lightgcns_gradient_is_that_of_the_dense_graph():
    items, log = random_shop(2)
    fold = fold_of(log, items)
    model = LightGCN(d=4, layers=3, reg=0.1, epochs=1).fit(items, log, fold)
    u, i, j = np.array([0, 3, 3]), np.array([1, 2, 5]), np.array([7, 7, 0])
    model.net.zero_grad()
    model._loss(u, i, j).backward()
    weight = model.net.weight.detach().double().requires_grad_()
    _, a = dense_layers(weight.detach().numpy(), train_matrix(log, fold, items.n).toarray().astype(float), 0)
    a = torch.from_numpy(a)
    node = (weight + a @ weight + a @ a @ weight + a @ a @ a @ weight) / 4
    at = [torch.from_numpy(t) for t in (u, i + log.n_users, j + log.n_users)]
    margin = (node[at[0]] * (node[at[1]] - node[at[2]])).sum(1)
    loss = -torch.nn.functional.logsigmoid(margin).mean() + 0.1 * sum((weight[t] ** 2).sum() for t in at) / 6
    loss.backward()
    np.testing.assert_allclose(model.net.weight.grad.numpy(), weight.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_later_event_changes_no_earlier_output_and_padding_changes_none(name):
    items, log = random_shop(0)
    net = fitted(name, items, log, fold_of(log, items)).net
    rng = np.random.default_rng(0)
    code = torch.from_numpy(rng.integers(1, items.n + 1, (5, 9)))
    with torch.no_grad():
        base = net(code)
        for at in (3, 8):
            other = code.clone()
            other[:, at] = other[:, at] % items.n + 1
            changed = net(other)
            torch.testing.assert_close(changed[:, :at], base[:, :at], rtol=0, atol=1e-6)
            assert ((changed[:, at:] - base[:, at:]).abs().amax(2) > 1e-4).all()
        padded = net(torch.cat([torch.zeros(5, 3, dtype=torch.int64), code], 1))
        torch.testing.assert_close(padded[:, 3:], base, rtol=0, atol=1e-5)


def test_an_epoch_holds_each_user_once_with_their_last_events():
    items, log = random_shop(9, users=300, rows=2400)
    fold = fold_of(log, items)
    found = {}
    for users, codes in _batches(log, fold.train, 6, 32, np.random.default_rng(1)):
        assert len(users) <= 32
        assert (codes > 0).any(0).all(), "no column is padding alone"
        for u, row in zip(users, codes, strict=True):
            assert int(u) not in found
            found[int(u)] = row[row > 0].tolist()
            assert not row[: (row == 0).sum()].any(), "padding comes first"
    had = {u: (log.item[fold.train & (log.user == u)] + 1).tolist()[-7:] for u in range(log.n_users)}
    assert found == {u: row for u, row in had.items() if len(row) > 1}


@pytest.mark.parametrize("name", STOPPED)
def test_the_epoch_that_is_kept_is_the_best_on_validation_and_a_fit_of_as_many_is_the_same(name):
    items, log = checkerboard()
    val, test = leave_one_out(log, items, validation=True), leave_one_out(log, items)
    model = SMALL[name](1)
    model.patience = 2
    model.fit(items, log, test, [val])
    best = dict(model.curve)[model.best_epoch]
    assert best == max(v for _, v in model.curve)
    assert model.best_epoch == next(e for e, v in model.curve if v == best), "the earliest of equals"
    assert len([e for e, _ in model.curve if e > model.best_epoch]) <= 2
    again = SMALL[name](1)
    again.epochs = model.best_epoch
    again.fit(items, log, test)
    np.testing.assert_array_equal(whole(again, items, log, test), whole(model, items, log, test))


def test_stopping_by_hand():
    # the model's one weight says at which item it points; only item 1 is asked for
    items, log = make_items(3), make_log([(0, 0, 1), (0, 1, 80)])
    fold = fold_of(log, items)
    net = torch.nn.Linear(1, 1, bias=False)

    class Pointing:
        name = "pointing"

        def score(self, items, log, fold, cases):
            return np.eye(3, dtype=np.float32)[[int(net.weight.item())]]

    def run(points, **kw):
        stop = EarlyStop(Pointing(), net, items, log, [fold], **kw)
        for epoch, point in enumerate(points, 1):
            net.weight.data.fill_(point)
            if stop.after(epoch, 0.5):
                return stop, epoch
        return stop, None

    stop, ended = run([2, 1, 2, 2, 1], patience=2, every=1)
    assert (ended, stop.restore(), net.weight.item()) == (4, 2, 1)
    second = 1 / np.log2(3)
    assert [v for _, v in stop.curve] == pytest.approx([second, 1, second, second])
    stop, ended = run([1, 2, 1, 2], patience=1, every=2)
    assert (ended, stop.restore(), net.weight.item()) == (4, 2, 2)
    with pytest.raises(QualityError, match="pointing, epoch 3"):
        stop.after(3, float("nan"))
    blind = EarlyStop(Pointing(), net, items, log, [], patience=1, every=1)
    assert [blind.after(e, 0.5) for e in (1, 2, 3)] == [False] * 3
    assert blind.restore() == 3


def test_a_loss_that_is_not_a_number_stops_a_fit():
    items, log = checkerboard()
    model = SASRec(lr=1e30, epochs=9)
    with pytest.raises(QualityError, match="the loss is not a number\n  where: sasrec, epoch"):
        model.fit(items, log, fold_of(log, items))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_negatives_are_what_a_user_has_not_had_each_as_often(seed):
    rng = np.random.default_rng(seed)
    x = (rng.random((5, 8)) < rng.random((5, 1))).astype(np.float32)
    x[0], x[1] = 1, 0
    item, there = Unseen(sparse.csr_matrix(x)).draw(np.repeat(np.arange(5), 2000), rng)
    assert ((item >= 0) & (item < 8)).all()
    for u in range(5):
        own = slice(2000 * u, 2000 * (u + 1))
        left = np.flatnonzero(x[u] == 0)
        assert (there[own] == (len(left) > 0)).all()
        if len(left):
            share = np.bincount(item[own], minlength=8) / 2000
            assert (share[x[u] > 0] == 0).all()
            np.testing.assert_allclose(share[left], 1 / len(left), atol=0.06)


@pytest.mark.parametrize("name", LEARNT)
def test_a_seed_decides_everything(name):
    items, log = random_shop(3)
    fold = fold_of(log, items)
    torch.manual_seed(1)
    one = whole(fitted(name, items, log, fold, 7), items, log, fold)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = whole(fitted(name, items, log, fold, 7), items, log, fold)
    np.testing.assert_array_equal(one, two)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's draws are moved"
    assert not np.array_equal(one, whole(fitted(name, items, log, fold, 8), items, log, fold))


@pytest.mark.parametrize("name", SMALL)
def test_scores_come_from_train_and_history_whoever_asks_and_a_slice_is_scored_as_in_the_whole(name):
    items, log = random_shop(11, users=30, rows=600)
    fold = fold_of(log, items)
    model = fitted(name, items, log, fold)
    score = whole(model, items, log, fold)
    assert score.shape == (fold.n_cases, items.n)
    assert score.dtype == np.float32
    parts = [model.score(items, log, fold, slice(s, min(s + 7, fold.n_cases))) for s in range(0, fold.n_cases, 7)]
    np.testing.assert_allclose(np.concatenate(parts), score, rtol=1e-3, atol=1e-5)
    if name != "user_knn":  # which leaves out the row of whoever asks
        others = replace(fold, case_user=np.roll(fold.case_user, 1))
        np.testing.assert_array_equal(whole(model, items, log, others), score)
    hidden = ~fold.train
    hidden[fold.hist_row] = False
    rng = np.random.default_rng(0)
    other = replace(log, item=np.where(hidden, rng.integers(0, items.n, len(log.item)), log.item).astype(np.int32))
    assert (other.item != log.item).any()
    np.testing.assert_array_equal(whole(fitted(name, items, other, fold), items, other, fold), score)
    # nor does a weight count, be it a number or not
    blank = replace(log, weight=np.full_like(log.weight, np.nan))
    np.testing.assert_array_equal(whole(fitted(name, items, blank, fold), items, blank, fold), score)


@pytest.mark.parametrize("name", SMALL)
def test_a_history_that_has_grown_is_scored_as_it_is_now(name):
    items, log = checkerboard()
    fold = fold_of(log, items)
    model = fitted(name, items, log, fold)
    # the first case gets the whole history of the second, who is of the other block
    ptr = fold.hist_ptr
    first, second = fold.hist_row[ptr[0] : ptr[1]], fold.hist_row[ptr[1] : ptr[2]]
    turned = replace(fold, hist_ptr=ptr + np.where(np.arange(len(ptr)) > 0, len(second) - len(first), 0),
                     hist_row=np.concatenate([second, fold.hist_row[ptr[1] :]]))  # fmt: skip
    before, after = whole(model, items, log, fold), whole(model, items, log, turned)
    if name == "popularity":
        np.testing.assert_array_equal(after, before)
        return
    assert (before[0, 0::2].mean() > before[0, 1::2].mean()) != (after[0, 0::2].mean() > after[0, 1::2].mean())
    np.testing.assert_allclose(after[1:], before[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_an_empty_history_gets_numbers(name):
    items, log = random_shop(12)
    fold = fold_of(log, items)
    model = fitted(name, items, log, fold)
    empty = replace(fold, hist_ptr=np.zeros_like(fold.hist_ptr), hist_row=fold.hist_row[:0])
    score = whole(model, items, log, empty)
    assert score.shape == (fold.n_cases, items.n)
    assert np.isfinite(score).all()
    assert (score == score[:1]).all(), "who has no history is like anybody without one"


@pytest.mark.parametrize("name", SMALL)
def test_nothing_to_learn_from_is_no_crash(name):
    items, log = random_shop(4)
    fold = replace(fold_of(log, items), train=np.zeros(len(log.user), bool))
    assert np.isfinite(whole(fitted(name, items, log, fold), items, log, fold)).all()


@pytest.mark.parametrize("name", SMALL)
def test_a_catalogue_of_one_item(name):
    items = make_items(1, content={"text": np.ones((1, 3), np.float32)})
    log = make_log([(u, 0, d) for u in range(3) for d in range(1, 4)])
    fold = fold_of(log, items)
    assert fold.n_cases == 0, "everybody has had it"
    fold = replace(
        fold, case_user=np.arange(2, dtype=np.int32), case_at_us=np.zeros(2, np.int64), hist_ptr=np.array([0, 0, 3]),
        hist_row=np.arange(3, 6), target_ptr=np.array([0, 1, 1]), target_item=np.zeros(1, np.int32),
    )  # fmt: skip
    score = whole(fitted(name, items, log, fold), items, log, fold)
    assert score.shape == (2, 1)
    assert np.isfinite(score).all()
