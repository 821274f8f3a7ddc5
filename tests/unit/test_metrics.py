"""Metrics: values worked out by hand, and a naive oracle on random lists."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec import metrics
from mmrec.errors import InputError


def csr(rows):
    ptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    return ptr, np.array([i for r in rows for i in r], np.int64)


def naive(ranked, targets, k):
    """One case, by the definitions, in plain Python."""
    hits = [place for place, item in enumerate(ranked[:k], 1) if item >= 0 and item in targets]
    recall, precision = len(hits) / len(targets), len(hits) / k
    return {
        "recall": recall,
        "precision": precision,
        "f1": 2 * recall * precision / (recall + precision) if hits else 0.0,
        "mrr": 1 / hits[0] if hits else 0.0,
        "hit": float(bool(hits)),
        "ndcg": sum(1 / math.log2(p + 1) for p in hits)
        / sum(1 / math.log2(p + 1) for p in range(1, min(k, len(targets)) + 1)),
    }


def test_values_worked_out_by_hand():
    # targets 7, 3; list 5 7 9 3: hits at places 2 and 4
    got = metrics.ranking(np.array([[5, 7, 9, 3]]), *csr([[7, 3]]), (1, 3, 4))
    assert got["recall@1"] == got["mrr@1"] == got["ndcg@1"] == got["hit@1"] == got["f1@1"] == 0
    assert got["recall@3"] == 0.5
    assert got["precision@3"] == pytest.approx(1 / 3)
    assert got["f1@3"] == pytest.approx(0.4)
    assert got["mrr@3"] == 0.5
    assert got["ndcg@3"] == pytest.approx(0.63093 / 1.63093, abs=1e-5)
    assert got["recall@4"] == got["hit@4"] == 1
    assert got["precision@4"] == 0.5
    assert got["ndcg@4"] == pytest.approx((0.63093 + 0.43068) / 1.63093, abs=1e-5)


def test_a_perfect_list_has_ndcg_one_even_with_more_targets_than_places():
    got = metrics.ranking(np.array([[4, 2]]), *csr([[2, 4, 6]]), (2,))
    assert got["ndcg@2"] == 1
    assert got["precision@2"] == 1
    assert got["recall@2"] == pytest.approx(2 / 3)


def test_a_short_list_is_measured_against_the_full_ideal():
    # two places given where five are asked for: the missing places are misses, not forgiven
    for ranked in ([[1, 2]], [[1, 2, -1, -1, -1]]):
        got = metrics.ranking(np.array(ranked), *csr([[1, 2, 3]]), (5,))
        assert got["ndcg@5"] == pytest.approx(1.63093 / 2.13093, abs=1e-5)
        assert got["precision@5"] == pytest.approx(0.4)
        assert got["recall@5"] == pytest.approx(2 / 3)


def test_empty_places_never_hit():
    got = metrics.ranking(np.full((2, 3), -1), *csr([[0], [1, 2]]), (3,))
    assert all((v == 0).all() for v in got.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000))
def test_any_lists_agree_with_the_naive_definitions(seed):
    rng = np.random.default_rng(seed)
    n, cases, places = int(rng.integers(3, 30)), int(rng.integers(1, 6)), int(rng.integers(1, 25))
    ranked = np.full((cases, places), -1, np.int32)
    targets = []
    for c in range(cases):
        items = rng.permutation(n)[: rng.integers(0, min(n, places) + 1)]
        ranked[c, : len(items)] = items
        targets.append(rng.permutation(n)[: rng.integers(1, n)].tolist())
    got = metrics.ranking(ranked, *csr(targets), (1, 5, 10))
    for k in (1, 5, 10):
        for c in range(cases):
            for name, value in naive(ranked[c].tolist(), set(targets[c]), k).items():
                assert got[f"{name}@{k}"][c] == pytest.approx(value, abs=1e-12), name


def test_metrics_do_not_see_other_cases_targets():
    got = metrics.ranking(np.array([[1], [2]]), *csr([[2], [1]]), (1,))
    assert (got["hit@1"] == 0).all()


@pytest.mark.parametrize(
    ("ranked", "targets"),
    [([[1, 1]], [[1]]), ([[1, 2]], [[1, 1]]), ([[1, 2]], [[]]), ([[1, 2]], [[1], [2]]), ([1, 2], [[1]])],
    ids=["twice in the list", "twice wanted", "no target", "cases differ", "not a table"],
)
def test_what_would_be_counted_wrongly_is_refused(ranked, targets):
    with pytest.raises(InputError):
        metrics.ranking(np.array(ranked), *csr(targets), (2,))


def test_list_metrics_worked_out_by_hand():
    ranked = np.array([[0, 1, 4], [0, 2, -1]])
    assert metrics.coverage(ranked, 8, 1) == 1 / 8
    assert metrics.coverage(ranked, 8, 3) == 4 / 8
    users = np.array([4, 2, 0, 8, 1])
    # shares of 8 users: item 0 1/2, item 1 1/4, item 2 counts as 1/8, item 4 1/8
    assert metrics.novelty(ranked, users, 8, 3) == pytest.approx((1 + 2 + 3 + 1 + 3) / 5)
    # shown: 4, 2, 1, 4, 0 -> 2.2; an interaction's item: (16 + 4 + 64 + 1) / 15
    assert metrics.popularity_bias(ranked, users, 3) == pytest.approx(2.2 / (85 / 15))
    vectors = np.array([[2.0, 0], [0, 3], [1, 1], [0, 0], [-1, 0]])
    # list 1: cos(0,1) 0, cos(0,4) -1, cos(1,4) 0; list 2: cos(0,2) sqrt(1/2)
    assert metrics.diversity(ranked, vectors, 3) == pytest.approx(((1 + 1 / 3) + (1 - math.sqrt(0.5))) / 2)


def test_popularity_bias_is_one_for_lists_drawn_like_interactions():
    users = np.array([3, 1])
    assert metrics.popularity_bias(np.array([[0], [0], [0], [1]]), users, 1) == pytest.approx(1)


def test_an_item_without_a_vector_says_nothing_about_diversity():
    vectors = np.array([[1.0, 0], [0, 1], [0, 0]])
    assert metrics.diversity(np.array([[0, 1, 2]]), vectors, 3) == pytest.approx(1)
    assert metrics.diversity(np.array([[0, 0 + 2, -1]]), np.array([[1.0, 0], [0, 1], [0, 0]]), 3) == 0
    alike = np.array([[1.0, 0], [1, 0], [0, 0]])
    assert metrics.diversity(np.array([[0, 1, 2]]), alike, 3) == pytest.approx(0)
