"""Weights of cold items: what many cases say is found, what few say stays near the start, and what a search measures."""

from __future__ import annotations

import numpy as np
import pytest

from mmrec.train import cold
from mmrec.train.cold import _better, _Cases, _learned
from mmrec.train.listwise import weights


def planted(n: int, truth: np.ndarray, seed: int = 0) -> _Cases:
    """Cases whose wanted item is drawn by the softmax of a known weighted sum."""
    rng = np.random.default_rng(seed)
    x_FBC = rng.standard_normal((len(truth), n, 40)).astype(np.float32)
    score_BC = np.tensordot(truth, x_FBC, 1) + rng.gumbel(size=(n, 40))
    wanted_BC = score_BC == score_BC.max(1, keepdims=True)
    return _Cases(x_FBC, np.ones((n, 40), bool), wanted_BC, rng.random(n) < 0.5)


def test_many_cases_are_heard_and_few_are_not() -> None:
    truth = np.array([0.0, 1.5, 0.2, 0.5])
    many = _learned(planted(4000, truth), np.ones(4000, bool))
    # the prior counts as 50 of 4,000 cases, each weight's standard error is about .03
    np.testing.assert_allclose(many, truth, atol=0.12)
    few = _learned(planted(3, truth), np.ones(3, bool))
    direction = few / np.linalg.norm(few) @ (cold._START / np.linalg.norm(cold._START))
    assert direction > 0.97


def test_no_case_leaves_the_start() -> None:
    cases = planted(8, np.ones(4))
    nobody = _Cases(cases.x_FBC, cases.there_BC, np.zeros_like(cases.wanted_BC), cases.half_B)
    np.testing.assert_array_equal(_learned(nobody, np.ones(8, bool)), cold._START)


def test_a_start_is_left_for_what_is_better_by_two_standard_errors() -> None:
    assert not _better(np.array([1.0]))
    assert not _better(np.array([1.0, -0.5, 0.2, 0.1]))
    assert not _better(np.zeros(9))
    assert _better(np.array([0.1, 0.2, 0.1, 0.2]))


def test_recall_is_of_the_three_lengths_and_what_is_not_there_is_in_no_list() -> None:
    score = np.arange(60, 0, -1, dtype=np.float32)[None]
    wanted = np.zeros((1, 60), bool)
    wanted[0, [0, 15, 55, 59]] = True
    there = np.ones((1, 60), bool)
    cases = _Cases(np.zeros((4, 1, 60), np.float32), there, wanted, np.zeros(1, bool))
    assert cases.recall(score) == pytest.approx([(1 + 2 + 2) / 3 / 4])
    there[0, 10:20] = False  # the second leaves the lists, and the last two move up into the longest
    assert cases.recall(score) == pytest.approx([(1 + 1 + 3) / 3 / 4])


def test_a_prior_pulls_to_its_centre_and_a_bound_holds() -> None:
    cases = planted(500, np.array([1.0, -0.6]), seed=3)
    given = cases.x_FBC, cases.there_BC, cases.wanted_BC
    free = weights(*given, [(None, None)] * 2, ridge=0.0)
    np.testing.assert_allclose(free, [1.0, -0.6], atol=0.25)  # a standard error of about .06
    assert weights(*given, [(0.0, None)] * 2, ridge=0.0)[1] == 0
    held = weights(*given, [(None, None)] * 2, ridge=1e4, about_F=np.array([3.0, 2.0]))
    np.testing.assert_allclose(held, [3.0, 2.0], atol=0.01)
