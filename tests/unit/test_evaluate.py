"""Evaluation: an oracle wins, a constant scores like random, and slices, pools and intervals are what they say."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, films, make_items, make_log, random_shop

from mmrec.errors import InputError
from mmrec.evaluate.protocols import CaseMetrics, evaluate, evaluate_parts, pool, restrict, tune
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.evaluate.slices import slices
from mmrec.models.baselines import Popularity
from mmrec.models.data import group_codes
from mmrec.models.ease import EASE
from mmrec.models.neighbours import ItemKNN
from mmrec.models.splits import leave_one_out, per_user, rolling


class Named:
    """A recommender that is only a name and a function of (items, log, fold, cases)."""

    def __init__(self, name, function):
        self.name, self.score = name, function


def oracle(items, log, fold, cases):
    score = np.zeros((cases.stop - cases.start, items.n), np.float32)
    for b, c in enumerate(range(cases.start, cases.stop)):
        score[b, fold.target_item[fold.target_ptr[c] : fold.target_ptr[c + 1]]] = 1
    return score


def constant(items, log, fold, cases):
    return np.zeros((cases.stop - cases.start, items.n), np.float32)


def one_fold(seed, **kw):
    items, log = random_shop(seed, **kw)
    return items, log, rolling(log, items, 100 * DAY, days=30, cuts=1)[0]


def targets(fold, c):
    return fold.target_item[fold.target_ptr[c] : fold.target_ptr[c + 1]].tolist()


def seen(log, fold, c):
    return log.item[fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]]].tolist()


def test_an_oracle_gets_everything():
    items, log, fold = one_fold(0)
    got = evaluate(Named("oracle", oracle), items, log, fold)
    wanted = np.diff(fold.target_ptr)
    assert (got.values["ndcg@10"] == 1).all()
    assert (got.values["mrr@10"] == 1).all()
    np.testing.assert_allclose(got.values["recall@10"], np.minimum(10, wanted) / wanted)


def test_a_constant_scores_like_random():
    # targets are drawn without regard to ids; 1500 cases of 3 targets among about 190 candidates
    rng = np.random.default_rng(0)
    n, users = 200, 1500
    rows = []
    for u in range(users):
        drawn = rng.permutation(n)[:13]
        rows += [(u, int(i), 1 + p) for p, i in enumerate(drawn[:10])] + [(u, int(i), 80) for i in drawn[10:]]
    items, log = make_items(n), make_log(rows)
    fold = rolling(log, items, 100 * DAY, days=30, cuts=1)[0]

    def random(items, log, fold, cases):
        return np.random.default_rng(cases.start).random((cases.stop - cases.start, items.n), np.float32)

    expected = 10 / 190
    deviation = np.sqrt(expected * (1 - expected) / (3 * users))
    for model in (Named("constant", constant), Named("random", random)):
        got = evaluate(model, items, log, fold)
        assert abs(got.mean("recall@10") - expected) < 4 * deviation, model.name
    a, b = (evaluate(m, items, log, fold).values["ndcg@10"] for m in (Named("c", constant), Named("r", random)))
    difference, low, high = paired_bootstrap(a, b, fold.case_user)
    assert abs(difference) < high - low


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20))
def test_lists_hold_nothing_seen_or_off_the_catalogue_and_blocks_change_nothing(seed, block):
    items, log, fold = one_fold(seed)
    model = ItemKNN().fit(items, log, fold)
    got, again = evaluate(model, items, log, fold), evaluate(model, items, log, fold, block=block)
    np.testing.assert_array_equal(got.ranked, again.ranked)
    for c in range(fold.n_cases):
        row = got.ranked[c][got.ranked[c] >= 0]
        assert not set(row.tolist()) & set(seen(log, fold, c))
        assert fold.catalogue[row].all()
        free = int(fold.catalogue.sum()) - len({i for i in seen(log, fold, c) if fold.catalogue[i]})
        assert len(row) == min(20, free)


def test_ties_go_to_the_smaller_item_id():
    items, log, fold = one_fold(1)
    got = evaluate(Named("constant", constant), items, log, fold)
    for c in range(fold.n_cases):
        free = [i for i in range(items.n) if fold.catalogue[i] and i not in seen(log, fold, c)]
        assert got.ranked[c][got.ranked[c] >= 0].tolist() == free[:20]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([rolling, per_user, leave_one_out]))
def test_near_duplicates_are_cold_together_or_not_at_all(seed, n_groups, protocol):
    items, log = random_shop(seed, users=8, n=40, rows=60)
    grouped = replace(items, group=np.random.default_rng(seed).integers(0, n_groups, items.n))
    fold = rolling(log, items, 100 * DAY, days=30, cuts=1, min_history=1)[0] if protocol is rolling else protocol(log, items)
    touched = {int(log.item[r]) for r in np.flatnonzero(fold.train)}
    for shop in (items, grouped):
        group = range(items.n) if shop.group is None else shop.group.tolist()
        warm = {group[i] for i in touched}
        want = [bool(fold.catalogue[i]) and group[i] not in warm for i in range(items.n)]
        assert fold.cold_items(shop, log).tolist() == want
        part = slices(shop, log, fold).get("cold_items")
        asked = [i for c in range(fold.n_cases) for i in targets(fold, c) if want[i]]
        assert (part.target_item.tolist() if part else []) == asked
        assert part is None or part.catalogue.tolist() == want


def test_a_cold_item_that_only_its_twin_gives_away_is_not_asked_for():
    # item 3 is new and is item 0 listed again, item 4 is new and like nothing
    items = replace(make_items(5), group=group_codes(list("abcde"), {"a": "a", "d": "a"}))
    log = make_log([(0, 0, 1), (0, 1, 2), (1, 1, 1), (1, 2, 2), (0, 4, 80), (1, 3, 80), (1, 4, 81)])
    (fold,) = rolling(log, items, 100 * DAY, days=30, cuts=1, min_history=1)
    assert sorted(fold.target_item.tolist()) == [3, 4, 4]
    part = slices(items, log, fold)["cold_items"]
    assert (part.target_item.tolist(), np.flatnonzero(part.catalogue).tolist()) == ([4, 4], [4])
    assert sorted(slices(replace(items, group=None), log, fold)["cold_items"].target_item.tolist()) == [3, 4, 4]


def test_group_codes_are_equal_within_a_group_alone():
    codes = group_codes(["a", "b", "c", "d", "x"], {"b": "x", "d": "x", "elsewhere": "a"})
    # an item that has the name of a group is not of it
    assert len(set(codes.tolist())) == 4
    assert codes[1] == codes[3]


def test_scores_that_are_not_finite_are_counted_and_disturb_no_other_case():
    items, log, fold = one_fold(2)

    def broken(items, log, fold, cases):
        score = oracle(items, log, fold, cases)
        score[0] = np.nan
        return score

    got, clean = evaluate(Named("broken", broken), items, log, fold), evaluate(Named("o", oracle), items, log, fold)
    assert got.not_finite == fold.catalogue.sum()
    assert clean.not_finite == 0
    assert got.values["recall@10"][0] == 0
    np.testing.assert_array_equal(got.ranked[1:], clean.ranked[1:])


def test_a_scorer_takes_the_models_place():
    items, log, fold = one_fold(3)
    worst = Named("worst", lambda *a: -oracle(*a))
    got = evaluate(worst, items, log, fold, scorer=lambda cases: oracle(items, log, fold, cases))
    assert (got.values["ndcg@10"] == 1).all()


def test_scores_of_another_shape_are_refused():
    items, log, fold = one_fold(4)
    with pytest.raises(InputError, match="fit"):
        evaluate(Named("short", lambda *a: np.zeros((1, 2))), items, log, fold)


def test_a_fold_without_cases_gives_no_numbers_and_pools():
    items, log, fold = one_fold(5)
    empty = restrict(fold, np.zeros(items.n, bool))
    got = evaluate(Popularity().fit(items, log, empty), items, log, empty)
    assert len(got.user) == 0
    full = evaluate(Popularity().fit(items, log, fold), items, log, fold)
    both = pool([got, full])
    assert both.mean("recall@10") == full.mean("recall@10")
    assert both.lists == full.lists


def test_pooled_cases_count_the_same():
    items, log = random_shop(6, users=20, rows=600)
    folds = rolling(log, items, 100 * DAY, days=20, cuts=3)
    model = Popularity()
    parts = [evaluate(model.fit(items, log, f), items, log, f) for f in folds]
    together = pool(parts)
    flat = np.concatenate([p.values["ndcg@10"] for p in parts])
    assert len(together.user) == sum(f.n_cases for f in folds) == len(together.ranked)
    assert together.mean("ndcg@10") == pytest.approx(flat.mean())
    sizes = [len(p.user) for p in parts]
    want = np.average([p.lists["coverage@10"] for p in parts], weights=sizes)
    assert together.lists["coverage@10"] == pytest.approx(want)
    with pytest.raises(InputError):
        pool([parts[0], replace(parts[1], name="another")])
    with pytest.raises(InputError):
        pool([])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_slices_are_what_they_are_called(seed):
    items, log = random_shop(seed, users=25, n=60, rows=500)
    fold = per_user(log, items)
    touched = set(log.item[fold.train].tolist())
    found = slices(items, log, fold)
    assert {"cold_users", "missing_text", "missing_image"} <= set(found)
    wanted = {
        "cold_items": lambda i: i not in touched,
        "missing_text": lambda i: not items.present["text"][i],
        "missing_image": lambda i: not items.present["image"][i],
    }
    for name, slice_ in found.items():
        if name == "cold_users":
            continue
        want = {int(u): [i for i in targets(fold, c) if wanted[name](i)] for c, u in enumerate(fold.case_user)}
        got = {int(u): targets(slice_, c) for c, u in enumerate(slice_.case_user)}
        assert got == {u: t for u, t in want.items() if t}
        histories = {int(u): seen(log, fold, c) for c, u in enumerate(fold.case_user)}
        assert all(seen(log, slice_, c) == histories[int(u)] for c, u in enumerate(slice_.case_user))
        np.testing.assert_array_equal(slice_.train, fold.train)
    if "cold_items" in found:
        assert not set(np.flatnonzero(found["cold_items"].catalogue).tolist()) & touched
        assert found["cold_items"].catalogue.any()
    length = dict(zip(fold.case_user.tolist(), np.diff(fold.hist_ptr).tolist(), strict=True))
    cold = [length[u] for u in found["cold_users"].case_user.tolist()]
    rest = [n for u, n in length.items() if u not in set(found["cold_users"].case_user.tolist())]
    assert not rest or max(cold) < min(rest)


def test_tuning_takes_the_best_of_the_validation_folds():
    items, log = random_shop(8, users=30, n=40, rows=900)
    folds = rolling(log, items, 100 * DAY, days=20, cuts=2)
    best, found = tune(items, log, folds)
    assert set(best) == {"popularity", "item_knn", "user_knn", "ease"}
    assert len(found) == 16
    kinds = {"popularity": "Popularity", "item_knn": "ItemKNN", "user_knn": "UserKNN", "ease": "EASE"}
    for name, kind in kinds.items():
        rivals = {label: value for label, value in found.items() if label.startswith(kind)}
        assert found[repr(best[name])] == max(rivals.values())
    again = pool([evaluate(EASE(100).fit(items, log, f), items, log, f) for f in folds]).mean("ndcg@10")
    assert found["EASE(lam=100)"] == pytest.approx(again)
    best, found = tune(items, log, folds, ease_items=items.n - 1)
    assert set(best) == {"popularity", "item_knn", "user_knn"}
    assert len(found) == 11
    assert tune(items, log, folds, ease_items=items.n)[0]["ease"].max_items == items.n


def test_bootstrap_by_hand():
    # every user's cases differ by the same: no draw can give another mean
    user = np.array([0, 0, 1, 2, 2, 2])
    assert paired_bootstrap(np.full(6, 0.75), np.full(6, 0.5), user) == (0.25, 0.25, 0.25)
    # one user holds all that differs: some draws leave it out
    difference, low, high = paired_bootstrap(np.array([1.0, 0, 0, 0]), np.zeros(4), np.arange(4))
    assert difference == 0.25
    assert low == 0
    assert high == 0.75


def test_bootstrap_interval_is_the_normal_one_for_many_users():
    rng = np.random.default_rng(0)
    delta = rng.normal(0.1, 1, 3000)
    got = paired_bootstrap(delta, np.zeros(3000), np.arange(3000), samples=4000)
    half = 1.96 * delta.std() / np.sqrt(3000)
    assert got[0] == pytest.approx(delta.mean())
    assert got[1] == pytest.approx(delta.mean() - half, abs=0.1 * half)
    assert got[2] == pytest.approx(delta.mean() + half, abs=0.1 * half)


def test_cases_of_one_user_are_not_independent_evidence():
    rng = np.random.default_rng(1)
    per = rng.normal(0, 1, 40)
    delta, user = np.repeat(per, 25), np.repeat(np.arange(40), 25)
    _, low, high = paired_bootstrap(delta, np.zeros(1000), user)
    _, low_case, high_case = paired_bootstrap(delta, np.zeros(1000), np.arange(1000))
    assert high - low > 3 * (high_case - low_case)


def test_bootstrap_repeats_to_the_bit_in_any_order():
    rng = np.random.default_rng(2)
    a, b, user = rng.random(500), rng.random(500), rng.integers(0, 60, 500)
    first = paired_bootstrap(a, b, user)
    shuffled = rng.permutation(500)
    assert paired_bootstrap(a[shuffled], b[shuffled], user[shuffled])[1:] == first[1:]
    assert paired_bootstrap(a, b, user) == first
    assert paired_bootstrap(a, b, user, seed=1) != first
    back = paired_bootstrap(b, a, user)
    assert back == pytest.approx((-first[0], -first[2], -first[1]))


@pytest.mark.parametrize(
    ("a", "user"), [([], []), ([1.0, np.nan], [0, 1]), ([1.0, 2.0], [0])], ids=["none", "nan", "shapes"]
)
def test_bootstrap_refuses_what_does_not_fit(a, user):
    with pytest.raises(InputError):
        paired_bootstrap(np.array(a), np.zeros(len(a)), np.array(user))


@pytest.mark.films
def test_on_films_every_baseline_beats_what_it_should():
    items, log = films()
    fold = per_user(log, items)
    got: dict[str, CaseMetrics] = {}
    for model in (Popularity(), ItemKNN(), EASE(), Named("constant", constant)):
        fitted = model.fit(items, log, fold) if hasattr(model, "fit") else model
        got[model.name] = evaluate(fitted, items, log, fold)
    order = ["constant", "popularity", "item_knn", "ease"]
    means = [got[name].mean("ndcg@10") for name in order]
    assert means == sorted(means)
    # measured once and kept: a change of a split, metric or baseline shows here
    assert means[1:] == pytest.approx([0.0867, 0.1207, 0.1284], abs=2e-4)
    _, low, _ = paired_bootstrap(got["ease"].values["ndcg@10"], got["popularity"].values["ndcg@10"], got["ease"].user)
    assert low > 0
    assert got["popularity"].lists["popularity_bias@10"] > got["ease"].lists["popularity_bias@10"] > 1
    assert got["ease"].lists["coverage@10"] > got["popularity"].lists["coverage@10"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_parts_scored_with_their_fold_are_as_if_scored_alone(seed, block):
    items, log = random_shop(seed, users=25, n=60, rows=500)
    fold = per_user(log, items)
    model = EASE(100).fit(items, log, fold)
    parts = slices(items, log, fold)
    together = evaluate_parts(model, items, log, fold, parts, block=block)
    for name, part in {"all": fold, **parts}.items():
        alone = evaluate(model, items, log, part)
        np.testing.assert_array_equal(together[name].ranked, alone.ranked)
        np.testing.assert_array_equal(together[name].user, alone.user)
    assert together["all"].lists == evaluate(model, items, log, fold).lists


def test_fewer_neighbours_of_a_fit_are_those_of_a_fit_of_their_own():
    items, log = random_shop(4, users=40, n=60, rows=900)
    fold = per_user(log, items)
    wide = ItemKNN(30).fit(items, log, fold)
    for k in (1, 5, 30):
        own = ItemKNN(k).fit(items, log, fold)
        assert (wide.narrow(k).sim != own.sim).nnz == 0
    assert (wide.sim != ItemKNN(30).fit(items, log, fold).sim).nnz == 0
