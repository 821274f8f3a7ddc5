"""Re-ranking against a loop over users and items, and what learning a blend's weights must find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.errors import InputError
from mmrec.topk.exact import search
from mmrec.topk.members import Offers, candidates
from mmrec.topk.rerank import Rerank, rerank
from mmrec.train.stack import _Cases, _fields, _fit, _ndcg

MEMBERS = ((0, 3), (3, 5))


def _vectors(rng: np.random.Generator, b: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    # small whole numbers: every sum is exact, and ties abound
    return rng.integers(-3, 4, (b, 5)).astype(np.float32), rng.integers(-3, 4, (n, 5)).astype(np.float32)


def _oracle(user: np.ndarray, items: np.ndarray, how: Rerank, cold: set[int], hidden: set[int]) -> list[int]:
    """One user's whole list, the plain way."""
    offer = [i for i in range(len(items)) if i not in hidden]
    named: set[int] = set(sorted((i for i in offer if i in cold), key=lambda i: (-(items[i] @ user), i))[: how.depth])
    best: list[list[int]] = []
    for a, b in how.members:
        ranked = sorted((i for i in offer if i not in cold), key=lambda i: (-(items[i, a:b] @ user[a:b]), i))
        ranked = ranked[: how.depth]
        scores = {float(items[i, a:b] @ user[a:b]) for i in ranked}
        best.append([] if len(scores) == 1 and len(ranked) > 1 else ranked)
        named |= set(best[-1])

    def total(i: int) -> float:
        parts = []
        for (a, b), ranked in zip(how.members, best, strict=True):
            score = float(items[i, a:b] @ user[a:b])
            if i in ranked:
                rank = ranked.index(i)
            elif i in cold and not ranked:
                rank = how.depth if any(j not in cold for j in offer) else 0
            elif i in cold:
                rank = sum(float(items[j, a:b] @ user[a:b]) >= score for j in ranked)
            else:
                rank = how.depth
            parts.append((score, rank))
        w, p = how.weights, len(parts)
        if how.kind == "vote":
            return sum(how.depth - r for _, r in parts)
        if how.kind == "ranks":
            return sum(w[n] / (60 + r) if r < how.depth else 0.0 for n, (_, r) in enumerate(parts))
        return sum(w[n] * s + w[p + n] * float(np.log1p(r)) for n, (s, r) in enumerate(parts))

    front = sorted(named, key=lambda i: (-np.float32(total(i)), i))
    return front + sorted((i for i in offer if i not in named), key=lambda i: (-(items[i] @ user), i))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["ranks", "vote", "stacking"]), depth=st.integers(1, 8),
       k=st.integers(1, 30))  # fmt: skip
def test_lists_are_those_of_a_plain_loop(seed: int, kind: str, depth: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = _vectors(rng, 4, 25)
    weights = {"ranks": (1.0, 0.5), "vote": (), "stacking": (1.0, 1.0, -0.7, -0.3)}[kind]
    how = Rerank(kind, depth, MEMBERS, weights)
    cold, allowed = rng.random(25) < 0.3, rng.random(25) < 0.9
    had = [np.flatnonzero(rng.random(25) < 0.2).astype(np.int32) for _ in users]
    seen = (np.concatenate([[0], np.cumsum([len(h) for h in had])]).astype(np.int64), np.concatenate(had))
    found = rerank(users, Offers(items, how.members, cold, allowed), k, how=how, seen=seen)
    for u, user in enumerate(users):
        hidden = set(had[u].tolist()) | set(np.flatnonzero(~allowed).tolist())
        want = _oracle(user, items, how, set(np.flatnonzero(cold).tolist()), hidden)[:k]
        assert found.item[u][found.item[u] >= 0].tolist() == want
        score = found.score[u][: len(want)]
        assert (np.diff(score) <= 0).all()
        assert np.isneginf(found.score[u][len(want) :]).all()


def test_a_longer_list_begins_with_the_shorter_one_and_blocks_change_nothing() -> None:
    rng = np.random.default_rng(3)
    users, items = rng.standard_normal((50, 5)).astype(np.float32), rng.standard_normal((300, 5)).astype(np.float32)
    how, cold = Rerank("stacking", 20, MEMBERS, (1.0, 1.0, -0.5, -0.5)), rng.random(300) < 0.1
    long = rerank(users, Offers(items, how.members, cold), 120, how=how)
    for k in (1, 15, 60):
        np.testing.assert_array_equal(rerank(users, Offers(items, how.members, cold), k, how=how).item, long.item[:, :k])
    alone = [rerank(users[u : u + 1], Offers(items, how.members, cold), 120, how=how, threads=1) for u in range(50)]
    np.testing.assert_array_equal(np.concatenate([a.item for a in alone]), long.item)
    np.testing.assert_array_equal(np.concatenate([a.score for a in alone]), long.score)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), kind=st.sampled_from(("ranks", "vote", "stacking")), k=st.integers(1, 90), threads=st.integers(2, 5))
def test_threads_that_share_the_users_change_nothing(seed: int, kind: str, k: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    n, b = 60, int(rng.integers(1, 400))
    users, items = _vectors(rng, b, n)
    users[rng.random(b) < 0.1] = np.nan
    items[rng.random(n) < 0.1, 0] = np.inf
    cold = rng.random(n) < 0.2
    weights = {"ranks": 2, "vote": 0, "stacking": 4}[kind]
    how = Rerank(kind, int(rng.integers(1, 20)), MEMBERS, tuple(rng.normal(size=weights).tolist()))
    size = rng.integers(0, n, b)
    seen = np.concatenate([[0], np.cumsum(size)]).astype(np.int64), np.concatenate([rng.choice(n, s, replace=False) for s in size]).astype(np.int32)
    one = rerank(users, Offers(items, MEMBERS, cold), k, how=how, seen=seen, threads=1)
    more = rerank(users, Offers(items, MEMBERS, cold), k, how=how, seen=seen, threads=threads)
    np.testing.assert_array_equal(one.item, more.item)
    np.testing.assert_array_equal(one.score, more.score)
    assert (one.dropped_users, one.dropped_items) == (more.dropped_users, more.dropped_items)
    assert one.dropped_users == int(np.isnan(users).any(1).sum())


def test_weighted_scores_of_whole_depth_are_the_dot_product() -> None:
    rng = np.random.default_rng(5)
    users, items = rng.standard_normal((8, 5)).astype(np.float32), rng.standard_normal((40, 5)).astype(np.float32)
    how = Rerank("stacking", 40, MEMBERS, (1.0, 1.0, 0.0, 0.0))
    found = rerank(users, Offers(items, how.members, np.zeros(40, bool)), 10, how=how)
    np.testing.assert_array_equal(found.item, search(users, items, 10).item)


def test_rows_that_are_not_numbers_are_dropped_and_counted() -> None:
    rng = np.random.default_rng(7)
    users, items = _vectors(rng, 3, 20)
    users[1, 4], items[6, 0] = np.nan, np.inf
    how = Rerank("vote", 5, MEMBERS)
    found = rerank(users, Offers(items, how.members, np.zeros(20, bool)), 6, how=how)
    assert (found.dropped_users, found.dropped_items) == (1, 1)
    assert (found.item[1] == -1).all()
    assert not (found.item == 6).any()
    clean = rerank(users[[0, 2]], Offers(items, how.members, np.zeros(20, bool)), 6, how=how)
    np.testing.assert_array_equal(found.item[[0, 2]], clean.item)


def test_a_member_that_tells_nothing_apart_names_nobody() -> None:
    items = np.array([[1, 0], [2, 0], [3, 0], [4, 0]], np.float32)
    found = candidates(np.ones((1, 2), np.float32), Offers(items, ((0, 1), (1, 2)), np.zeros(4, bool)), 2)
    assert found.item_BC.tolist() == [[2, 3]]
    assert found.rank_BCP[0].tolist() == [[1, 2], [0, 2]]


@pytest.mark.parametrize(("kind", "weights"), [("borda", ()), ("ranks", (1.0,)), ("stacking", (1.0, 1.0))])
def test_what_does_not_fit_is_refused(kind: str, weights: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        Rerank(kind, 5, MEMBERS, weights)


def _planted(rng: np.random.Generator, weights: np.ndarray) -> tuple[_Cases, np.ndarray]:
    """Cases whose wanted candidate is drawn by the softmax of a known weighted sum."""
    x_BCF = rng.standard_normal((4000, 30, len(weights)))
    score_BC = x_BCF @ weights + rng.gumbel(size=x_BCF.shape[:2])
    wanted_BC = score_BC == score_BC.max(1, keepdims=True)
    cases = _Cases(x_BCF.astype(np.float32), np.zeros(x_BCF.shape, np.int32), np.ones(wanted_BC.shape, bool), wanted_BC,
                   np.ones(4000, np.int64), rng.random(4000) < 0.5)  # fmt: skip
    return cases, np.moveaxis(x_BCF, 2, 0).astype(np.float32)


def test_what_users_have_seen_is_refused_where_it_is_of_others() -> None:
    users, items = _vectors(np.random.default_rng(0), 300, 20)
    how = Rerank("vote", 5, MEMBERS)
    for size in (299, 400):
        with pytest.raises(InputError, match="Seen"):
            rerank(users, Offers(items, MEMBERS, np.zeros(20, bool)), 3, how=how, seen=(np.zeros(size + 1, np.int64), np.zeros(0, np.int32)), threads=3)


@pytest.mark.parametrize("threads", [0, -3])
def test_fewer_than_one_thread_is_refused(threads: int) -> None:
    users, items = _vectors(np.random.default_rng(0), 300, 20)
    with pytest.raises(InputError, match="count something"):
        rerank(users, Offers(items, MEMBERS, np.zeros(20, bool)), 3, how=Rerank("vote", 5, MEMBERS), threads=threads)


def test_planted_weights_are_found() -> None:
    truth = np.array([1.0, 0.4, 2.0])
    cases, x_FBC = _planted(np.random.default_rng(0), truth)
    found = _fit(x_FBC, [(0.1, None)] * 3, cases, np.ones(4000, bool))
    # 4,000 draws: a standard error of about .03 a weight, and the ridge pulls by less
    np.testing.assert_allclose(found, truth, atol=0.12)
    fields = _fields("scores", found, np.ones(3))
    assert fields == {"linear": pytest.approx(0.4, abs=0.1), "content": pytest.approx(2.0, abs=0.25)}


def test_padding_has_no_say() -> None:
    cases, x_FBC = _planted(np.random.default_rng(1), np.array([1.0, 0.5]))
    wide = np.concatenate([x_FBC, np.full((2, 4000, 5), 100, np.float32)], 2)
    pad = np.zeros((4000, 5), bool)
    padded = _Cases(np.moveaxis(wide, 0, 2), np.zeros((*wide.shape[1:], 2), np.int32),
                    np.concatenate([cases.there_BC, pad], 1), np.concatenate([cases.wanted_BC, pad], 1),
                    cases.targets_B, cases.half_B)  # fmt: skip
    bounds, used = [(0.1, None)] * 2, np.ones(4000, bool)
    np.testing.assert_allclose(_fit(wide, bounds, padded, used), _fit(x_FBC, bounds, cases, used), rtol=1e-4)
    np.testing.assert_array_equal(_ndcg(padded, wide[0]), _ndcg(cases, x_FBC[0]))


def test_what_is_the_same_for_all_gets_no_weight() -> None:
    cases, x_FBC = _planted(np.random.default_rng(2), np.array([1.0, 0.5]))
    flat = np.concatenate([x_FBC, np.full((1, *x_FBC.shape[1:]), 0.25, np.float32)])
    found = _fit(flat, [(0.1, None)] * 3, cases, np.ones(4000, bool))
    assert found[2] == 0
    np.testing.assert_allclose(found[:2], _fit(x_FBC, [(0.1, None)] * 2, cases, np.ones(4000, bool)), rtol=1e-3)


def test_where_ranks_alone_count_every_member_is_heard() -> None:
    assert _fields("vote", np.ones(3), np.array([1.0, 7.0, 0.0])) == {"blend": "vote", "blend_weights": (), "content": 1.0}
    assert _fields("ranks", np.ones(2), np.array([1.0, 0.0]))["linear"] == 1.0


def test_cold_items_are_no_better_under_a_member_that_says_nothing() -> None:
    items = np.array([[1, 0], [2, 0], [3, 0], [0, -5]], np.float32)
    cold = np.array([False, False, False, True])
    found = candidates(np.ones((1, 2), np.float32), Offers(items, ((0, 1), (1, 2)), cold), 2)
    assert found.item_BC.tolist() == [[1, 2, 3]]
    assert found.rank_BCP[0].tolist() == [[1, 2], [0, 2], [2, 2]]


def test_ndcg_of_known_lists() -> None:
    wanted = np.array([[True, False, True, False], [False, False, False, False]])
    cases = _Cases(np.zeros((2, 4, 1), np.float32), np.zeros((2, 4, 1), np.int32), np.ones((2, 4), bool), wanted,
                   np.array([3, 1]), np.zeros(2, bool))  # fmt: skip
    got = _ndcg(cases, np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]]))
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)  # three are wanted, one of them is no candidate
    np.testing.assert_allclose(got, [(1 + 1 / np.log2(4)) / ideal, 0])
