"""Splits: known answers on shops of a few rows, and what must hold for every shop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, films, make_items, make_log, random_shop

from mmrec.errors import InputError
from mmrec.models.splits import leave_one_out, per_user, rolling


def cases(fold, log):
    """user -> (history items in time order, targets)."""
    return {
        int(u): (
            log.item[fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]]].tolist(),
            fold.target_item[fold.target_ptr[c] : fold.target_ptr[c + 1]].tolist(),
        )
        for c, u in enumerate(fold.case_user)
    }


def naive_rolling(log, items, cut, days, min_history):
    """By the definition, row by row."""
    out, dropped = {}, 0
    for u in range(log.n_users):
        rows = range(log.ptr[u], log.ptr[u + 1])
        past = [r for r in rows if log.ts_us[r] < cut and log.available_us[r] < cut]
        had = {int(log.item[r]) for r in past}
        new = {int(log.item[r]) for r in rows if cut <= log.ts_us[r] < cut + days * DAY} - had
        if len(had) < min_history:
            continue
        asked = {i for i in new if items.available_us[i] < cut <= items.withdrawn_us[i]}
        dropped += len(new - asked)
        if asked:
            out[u] = ([int(log.item[r]) for r in past], asked)
    return out, dropped


def test_rolling_by_hand():
    # item 4 comes on the market on day 22, inside the window; item 5 was withdrawn on day 15
    items = make_items(6, available=[-1, -1, -1, -1, 22 * DAY, -1], withdrawn=[2**62] * 5 + [15 * DAY])
    log = make_log([
        (0, 0, 1), (0, 1, 2), (0, 0, 20), (0, 2, 20), (0, 4, 25), (0, 5, 25), (0, 3, 30),  # 30 is outside
        (1, 0, 1), (1, 0, 2), (1, 2, 21),  # one distinct item only
        (2, 0, 1), (2, 1, 19, 20.5), (2, 3, 2), (2, 2, 21),  # the second row came late
        (3, 1, 1), (3, 2, 19.5), (3, 1, 22),  # nothing new
        (4, 0, 1), (4, 1, 2), (4, 3, 20, 5),  # at the cut, though delivered long before
    ])  # fmt: skip
    (fold,) = rolling(log, items, 30 * DAY, days=10, cuts=1, min_history=2)
    assert fold.name == "rolling/1970-01-21"
    assert cases(fold, log) == {0: ([0, 1], [2]), 2: ([0, 3], [2]), 4: ([0, 1], [3])}
    assert fold.dropped_targets == 2
    assert fold.fit_at_us == 20 * DAY
    assert (fold.case_at_us == 20 * DAY).all()
    assert fold.catalogue.tolist() == [True, True, True, True, False, False]
    assert fold.train.sum() == 2 + 2 + 2 + 2 + 2


def test_rolling_windows_touch_and_validation_lies_before_test():
    _, log = random_shop(0)
    items = make_items(30)
    test = rolling(log, items, 100 * DAY, days=10, cuts=2, min_history=1)
    validation = rolling(log, items, 100 * DAY, days=10, cuts=3, skip=2, min_history=1)
    assert [f.fit_at_us // DAY for f in validation + test] == [50, 60, 70, 80, 90]
    assert len({f.name for f in validation + test}) == 5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 40), st.integers(1, 6))
def test_rolling_is_what_the_definition_says(seed, cuts, days, min_history):
    items, log = random_shop(seed)
    for fold in rolling(log, items, 100 * DAY, days=days, cuts=cuts, min_history=min_history):
        cut = fold.fit_at_us
        want, dropped = naive_rolling(log, items, cut, days, min_history)
        assert {u: (h, set(t)) for u, (h, t) in cases(fold, log).items()} == want
        assert fold.dropped_targets == dropped
        assert (log.ts_us[fold.train] < cut).all()
        assert (log.available_us[fold.train] < cut).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["rolling", "per_user", "per_user/v", "loo", "loo/v"]))
def test_what_holds_for_every_fold(seed, protocol):
    items, log = random_shop(seed)
    fold = {
        "rolling": lambda: rolling(log, items, 100 * DAY, days=30, cuts=1)[0],
        "per_user": lambda: per_user(log, items),
        "per_user/v": lambda: per_user(log, items, validation=True),
        "loo": lambda: leave_one_out(log, items),
        "loo/v": lambda: leave_one_out(log, items, validation=True),
    }[protocol]()
    assert fold.n_cases > 0, "a property of nothing proves nothing"
    assert (np.diff(fold.case_user) > 0).all()
    assert (log.ts_us[fold.train] < fold.fit_at_us).all()
    for c, u in enumerate(fold.case_user):
        rows = fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]]
        targets = fold.target_item[fold.target_ptr[c] : fold.target_ptr[c + 1]]
        assert (log.user[rows] == u).all()
        assert (np.diff(log.ts_us[rows]) >= 0).all()
        assert (log.ts_us[rows] <= fold.case_at_us[c]).all()
        assert len(targets) == len(set(targets.tolist())) > 0
        assert not set(targets.tolist()) & set(log.item[rows].tolist())
        assert fold.catalogue[targets].all()
        # no row of a case's own that lies behind its history may be fitted on
        own = np.flatnonzero(fold.train & (log.user == u))
        assert set(own.tolist()) <= set(rows.tolist())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_the_order_rows_arrive_in_changes_nothing(seed, random):
    rng = np.random.default_rng(seed)
    rows = [(int(rng.integers(6)), int(rng.integers(15)), int(rng.integers(40))) for _ in range(120)]
    items, log = make_items(15), make_log(rows, 6)
    random.shuffle(rows)
    again = make_log(rows, 6)
    for split in (per_user, leave_one_out, lambda x, i: rolling(x, i, 40 * DAY, days=10, cuts=1)[0]):
        a, b = split(log, items), split(again, items)
        for field in a.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_row_of_the_future_changes_no_history_and_no_fit(seed):
    items, log = random_shop(seed)
    cut = 70 * DAY
    rows = list(zip(log.user, log.item, log.ts_us / DAY, log.available_us / DAY, strict=True))
    more = make_log([*rows, (0, 3, 99.5), (1, 4, 98), (2, 7, 50, 90)], log.n_users)
    before = rolling(log, items, 100 * DAY, days=30, cuts=1)[0]
    after = rolling(more, items, 100 * DAY, days=30, cuts=1)[0]
    assert before.train.sum() == after.train.sum()
    assert (more.ts_us[after.train] < cut).all()
    for u, (history, _) in cases(before, log).items():
        assert cases(after, more)[u][0] == history


def test_per_user_by_hand():
    log = make_log([(0, i, i) for i in range(10)] + [(1, i, 5) for i in (9, 3, 7, 1, 5)] + [(2, 0, 1), (2, 1, 2)])
    items = make_items(10)
    fold = per_user(log, items, share=0.2, min_history=4)
    # equal times are ordered by item: 9 is the last of user 1
    assert cases(fold, log) == {0: (list(range(8)), [8, 9]), 1: ([1, 3, 5, 7], [9])}
    assert fold.case_at_us.tolist() == [8 * DAY, 5 * DAY]
    validation = per_user(log, items, share=0.2, min_history=4, validation=True)
    assert cases(validation, log) == {0: (list(range(7)), [7])}
    assert not (validation.train & ~fold.train).any()
    assert validation.name != fold.name


def test_a_share_that_is_a_whole_number_of_rows_stays_one():
    # 100 * 0.29 is 28.999999999999996
    log = make_log([(0, i, i) for i in range(100)])
    assert len(per_user(log, make_items(100), share=0.29).target_item) == 29


def test_leave_one_out_by_hand():
    log = make_log([(0, i, i) for i in range(5)] + [(1, 0, 0), (1, 1, 1), (1, 0, 2)] + [(2, 3, 1)])
    items = make_items(5)
    test, validation = leave_one_out(log, items), leave_one_out(log, items, validation=True)
    assert cases(test, log) == {0: ([0, 1, 2, 3], [4])}  # user 1 asks for a seen item, user 2 has no history
    assert cases(validation, log) == {0: ([0, 1, 2], [3]), 1: ([0], [1])}
    # neither the test nor the validation row is ever fitted on
    for fold in (test, validation):
        assert log.item[fold.train & (log.user == 0)].tolist() == [0, 1, 2]


def test_windows_without_anybody_are_folds_without_cases():
    log = make_log([(0, i, i) for i in range(6)])
    folds = rolling(log, make_items(6), 100 * DAY, days=10, cuts=3)
    assert [f.n_cases for f in folds] == [0, 0, 0]
    assert all(len(f.hist_ptr) == len(f.target_ptr) == 1 for f in folds)


@pytest.mark.parametrize("wrong", [{"days": 0, "cuts": 1}, {"days": 1, "cuts": 0}, {"days": 1, "cuts": 1, "skip": -1}])
def test_windows_that_can_not_be_cut_are_refused(wrong):
    with pytest.raises(InputError):
        rolling(make_log([(0, 0, 0)]), make_items(1), DAY, **wrong)


def test_a_share_out_of_range_is_refused():
    for share in (0, 1, -0.1):
        with pytest.raises(InputError):
            per_user(make_log([(0, 0, 0)]), make_items(1), share=share)


@pytest.mark.films
def test_films_have_as_many_quarterly_cases_as_measured():
    items, log = films()
    end = (int(log.ts_us.max()) // DAY + 1) * DAY
    folds = rolling(log, items, end, days=91, cuts=90)
    users = np.unique(np.concatenate([f.case_user for f in folds]))
    assert (sum(f.n_cases for f in folds), len(users)) == (894, 160)
