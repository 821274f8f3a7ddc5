"""The gate held by each rule alone, intervals that cover the truth, slices by hand, and what a study reads and pools."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, make_items, make_log, random_shop

from mmrec.errors import InputError
from mmrec.evaluate.gate import decide
from mmrec.evaluate.protocols import evaluate, pool
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.evaluate.slices import slices
from mmrec.evaluate.study import COMPARED, Study
from mmrec.models.baselines import Popularity
from mmrec.models.data import Fold, Items, Log
from mmrec.models.neighbours import ItemKNN
from mmrec.models.splits import rolling

Row = dict[str, Any]
PROTOCOLS = ("rolling", "per_user")


def row(version: str, protocol: str, model: str, value: float, **other: Any) -> Row:
    return {"model_version": version, "protocol": protocol, "model": model, "split": "validation", "slice": "all",
            "metric": "ndcg@10", "value": value} | other  # fmt: skip


def rows(own: float = 0.30, popularity: float = 0.10, item_knn: float = 0.20, champion: float | None = 0.25) -> list[Row]:
    """Version 5 and its baselines, and the champion 4, the same in both protocols."""
    found = []
    for p in PROTOCOLS:
        found += [row("5", p, "champion", own), row("5", p, "popularity", popularity), row("5", p, "item_knn", item_knn)]
        if champion is not None:
            found += [row("4", p, "champion", champion), row("4", p, "popularity", 0.9), row("4", p, "item_knn", 0.9)]
    return found


def changed(found: list[Row], value: float | None, **where: Any) -> list[Row]:
    """One number replaced, or taken away."""
    hit = [r for r in found if all(r[k] == v for k, v in where.items())]
    assert len(hit) == 1
    return [r for r in found if r is not hit[0]] + ([] if value is None else [hit[0] | {"value": value}])


def test_what_is_better_than_all_is_promoted_with_every_number_in_the_reason() -> None:
    decision, reason, numbers = decide(rows(), "5", "4")
    assert decision == "promoted"
    for p in PROTOCOLS:
        for other in ("popularity 0.1000", "item_knn 0.2000", "champion 4 0.2500"):
            assert f"{p}: 0.3000 against {other}" in reason
    assert numbers == {f"{p}/{n}": v for p in PROTOCOLS for n, v in (
        ("challenger", 0.30), ("popularity", 0.10), ("item_knn", 0.20), ("champion", 0.25))}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("version", "model", "value", "said"),
    [
        ("5", "popularity", 0.31, "0.3000 against popularity 0.3100"),
        ("5", "popularity", 0.30, "0.3000 against popularity 0.3000"),
        ("5", "item_knn", 0.35, "0.3000 against item_knn 0.3500"),
        ("5", "item_knn", 0.30, "0.3000 against item_knn 0.3000"),
        ("4", "champion", 0.3159, "0.3000 against champion 4 0.3159"),
        ("5", "champion", 0.96, "0.9600 is too good to be true"),
        ("5", "champion", None, "no validation ndcg@10 of version 5"),
        ("5", "popularity", None, "no number of popularity"),
        ("5", "item_knn", None, "no number of item_knn"),
    ],
)
def test_each_rule_alone_holds_in_either_protocol_and_says_its_numbers(
    protocol: str, version: str, model: str, value: float | None, said: str
) -> None:
    planted = changed(rows(), value, model_version=version, protocol=protocol, model=model)
    decision, reason, _ = decide(planted, "5", "4")
    assert decision == "held"
    # nothing but the planted fault is held against it
    assert reason == f"{protocol}: {said}"


def test_a_little_behind_the_champion_is_within_the_tolerance_and_more_is_not() -> None:
    assert decide(rows(own=0.2375, champion=0.25), "5", "4")[0] == "promoted"
    assert decide(rows(own=0.2374, champion=0.25), "5", "4")[0] == "held"


def test_the_champions_numbers_decide_and_not_those_of_its_baselines_or_of_other_versions() -> None:
    more = [row(v, p, m, 0.99) for v in ("3", "6", "night") for p in PROTOCOLS for m in ("champion", "popularity", "item_knn")]
    assert decide(rows() + more, "5", "4") == decide(rows(), "5", "4")


@pytest.mark.parametrize("other", [{"split": "test"}, {"slice": "cold_items"}, {"metric": "recall@10"}, {"metric": "ndcg@20"},
                                   {"protocol": "leave_one_out"}, {"model": "ease"}, {"model": "oracle"}])  # fmt: skip
def test_numbers_of_the_test_and_of_anything_else_have_no_say(other: dict[str, str]) -> None:
    alone = [r | other for r in rows()]
    assert decide(alone, "5", "4")[0] == "held"
    worse = [r | other | {"value": 1 - r["value"]} for r in rows()]
    assert decide(worse + rows(), "5", "4") == decide(rows(), "5", "4") == decide(rows() + worse, "5", "4")


def test_the_first_model_meets_popularity_alone() -> None:
    decision, reason, numbers = decide(rows(champion=None), "5", "0")
    assert decision == "promoted"
    assert "against champion" not in reason
    assert not any(n.endswith("/champion") for n in numbers)


def test_no_number_at_all_is_held_and_every_fault_is_said_at_once() -> None:
    decision, reason, numbers = decide([], "5", "4")
    assert (decision, numbers) == ("held", {})
    assert reason == "; ".join(f"{p}: no validation ndcg@10 of version 5" for p in PROTOCOLS)
    reason = decide(rows(own=0.05), "5", "4")[1]
    assert len(reason.split("; ")) == 6


def guarded(metric: str, own: float | None, champion: float) -> list[Row]:
    found = [row("4", p, "champion", champion, metric=metric) for p in PROTOCOLS]
    return rows() + found + ([] if own is None else [row("5", p, "champion", own, metric=metric) for p in PROTOCOLS])


@pytest.mark.parametrize(
    ("metric", "own", "champion", "said"),
    [
        ("coverage@10", 0.2, 0.4, None), ("coverage@10", 0.199, 0.4, "it lists 19.9% of the catalogue, champion 4 40.0%"),
        ("coverage@10", None, 0.4, "it lists 0.0% of the catalogue"), ("coverage@10", float("nan"), 0.4, "of the catalogue"),
        ("popularity_bias@10", 1.0, 0.1, None), ("popularity_bias@10", 1.79, 1.2, None),
        ("popularity_bias@10", 1.81, 1.2, "its lists are 1.81 times as popular as what people choose, champion 4's 1.20"),
        ("popularity_bias@10", float("nan"), 1.2, "times as popular"),
    ],
)  # fmt: skip
def test_more_accurate_lists_of_the_same_few_or_the_most_popular_items_are_held(metric: str, own: float | None, champion: float, said: str | None) -> None:
    decision, reason, numbers = decide(guarded(metric, own, champion), "5", "4")
    assert decision == ("promoted" if said is None else "held")
    assert said is None or all(f"{p}: " in reason and said in reason for p in PROTOCOLS)
    assert numbers[f"rolling/champion/{metric}"] == champion


@pytest.mark.parametrize("model", ["champion", "popularity", "item_knn"])
def test_a_number_that_is_not_one_is_held(model: str) -> None:
    planted = changed(rows(), float("nan"), model_version="5", protocol="rolling", model=model)
    assert decide(planted, "5", "4")[0] == "held"


def test_a_champion_that_was_never_measured_on_a_protocol_is_not_overruled_by_silence() -> None:
    planted = changed(rows(), None, model_version="4", protocol="rolling", model="champion")
    decision, reason, _ = decide(planted, "5", "4")
    assert decision == "held"
    assert "champion 4" in reason


# intervals


def test_an_interval_of_equal_differences_is_a_point() -> None:
    rng = np.random.default_rng(0)
    b, user = rng.integers(0, 8, 90) / 8, rng.integers(0, 20, 90)
    assert paired_bootstrap(b + 0.25, b, user) == (0.25, 0.25, 0.25)
    assert paired_bootstrap(b, b, user) == (0, 0, 0)
    assert paired_bootstrap(b, b + 0.5, np.zeros(90, int)) == (-0.5, -0.5, -0.5)


def test_two_users_give_the_four_draws_there_are() -> None:
    # both draws of one user are a quarter each, one of each a half: 2.5% and 97.5% lie in the extremes
    mean, lo, hi = paired_bootstrap(np.array([1.0, 1.0, 1.0, 0.0]), np.zeros(4), np.array(["a", "a", "a", "b"]))
    assert (mean, lo, hi) == (0.75, 0.0, 1.0)


def test_intervals_of_clustered_users_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    by_user, by_case, trials = 0, 0, 300
    for trial in range(trials):
        size = rng.integers(1, 9, 60)
        user = np.repeat(np.arange(60), size)
        delta = np.repeat(rng.normal(0, 1, 60), size) + rng.normal(0, 0.3, len(user))
        nothing = np.zeros(len(user))
        _, lo, hi = paired_bootstrap(delta, nothing, user, samples=300, seed=trial)
        by_user += lo <= 0 <= hi
        _, lo, hi = paired_bootstrap(delta, nothing, np.arange(len(user)), samples=300, seed=trial)
        by_case += lo <= 0 <= hi
    # 300 trials of 95% have a standard error of 1.3%, and percentile intervals of 60 users run a point or two short
    assert 0.90 <= by_user / trials <= 0.985
    # drawing cases takes one taste for several: half the noise is missing
    assert by_case / trials < 0.80


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 40))
def test_an_interval_is_the_same_for_a_seed_and_names_of_users_do_not_matter(seed: int, users: int, cases: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, user = rng.random(cases), rng.random(cases), rng.integers(0, users, cases)
    got = paired_bootstrap(a, b, user, samples=40, seed=seed)
    assert got == paired_bootstrap(a, b, user, samples=40, seed=seed)
    # renamed in the same order
    assert got == paired_bootstrap(a, b, np.array([f"user-{u:03d}" for u in user]), samples=40, seed=seed)
    assert (a - b).min() - 1e-12 <= got[1] <= got[2] <= (a - b).max() + 1e-12


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"b": np.zeros(1)}, {"a": np.array([np.inf, 0.0])}])
def test_what_has_no_interval_is_refused(wrong: dict[str, Any]) -> None:
    given = {"a": np.zeros(2), "b": np.zeros(2), "user": np.arange(2)} | wrong
    with pytest.raises(InputError):
        paired_bootstrap(**given)


# slices


def hand_made() -> tuple[Items, Log, Fold]:
    """Items 0..5: 0 to 2 in train, 3 and 4 cold, 5 cold and withdrawn; no picture of 1 and 4."""
    picture = np.ones((6, 2), np.float32)
    picture[[1, 4]] = 0
    items = make_items(6, content={"image": picture, "text": np.ones((6, 3), np.float32)})
    log = make_log([(0, 0, 1), (1, 0, 1), (1, 1, 2), (2, 0, 1), (2, 1, 2), (2, 2, 3), (3, 0, 1), (3, 1, 2), (3, 2, 3)])
    fold = Fold(
        name="by hand", train=np.ones(9, bool), fit_at_us=10 * DAY, case_user=np.arange(4, dtype=np.int32),
        case_at_us=np.full(4, 10 * DAY), hist_ptr=log.ptr, hist_row=np.arange(9),
        target_ptr=np.array([0, 2, 4, 5, 6]), target_item=np.array([1, 3, 2, 4, 3, 4], np.int32),
        catalogue=np.array([1, 1, 1, 1, 1, 0], bool),
    )  # fmt: skip
    return items, log, fold


def asked(fold: Fold) -> dict[int, list[int]]:
    return {int(u): fold.target_item[a:b].tolist()
            for u, a, b in zip(fold.case_user, fold.target_ptr[:-1], fold.target_ptr[1:], strict=True)}  # fmt: skip


def test_slices_of_a_fold_made_by_hand() -> None:
    items, log, fold = hand_made()
    found = slices(items, log, fold)
    # every item has a text, so nothing is missing one
    assert set(found) == {"cold_items", "cold_users", "missing_image"}
    assert asked(found["cold_items"]) == {0: [3], 1: [4], 2: [3], 3: [4]}
    assert found["cold_items"].catalogue.tolist() == [False, False, False, True, True, False]
    assert asked(found["cold_users"]) == {0: [1, 3]}
    assert asked(found["missing_image"]) == {0: [1], 1: [4], 3: [4]}
    for name, part in found.items():
        assert (part.train == fold.train).all()
        for n, u in enumerate(part.case_user):
            own = part.hist_row[part.hist_ptr[n] : part.hist_ptr[n + 1]]
            assert own.tolist() == list(range(log.ptr[u], log.ptr[u + 1])), name


def test_a_slice_nobody_is_in_is_not_there() -> None:
    items, log, fold = hand_made()
    warm = replace(fold, target_item=np.array([1, 2, 2, 2, 0, 0], np.int32))
    assert set(slices(items, log, warm)) == {"cold_users", "missing_image"}
    nobody = replace(fold, case_user=fold.case_user[:0], case_at_us=fold.case_at_us[:0], hist_ptr=np.zeros(1, np.int64),
                     hist_row=fold.hist_row[:0], target_ptr=np.zeros(1, np.int64), target_item=fold.target_item[:0])  # fmt: skip
    assert slices(items, log, nobody) == {}


# a study


class Counting(Popularity):
    """Popularity under the champion's name, which remembers what it was asked."""

    name = "champion"

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[tuple[str, frozenset[str]]] = Counter()
        self.order: list[str] = []

    def refresh(self, items: Items, log: Log, fold: Fold) -> None:
        self.order.append(fold.name)
        self.fit(items, log, fold)

    def score(self, items: Items, log: Log, fold: Fold, cases: slice, drop: frozenset[str] = frozenset()) -> np.ndarray:
        for case in range(cases.start, cases.stop):
            self.asked[f"{fold.name}/{case}", drop] += 1
        return super().score(items, log, fold, cases) * (-1 if "id" in drop else 1)


@pytest.fixture(scope="module")
def studied() -> tuple[Items, Log, list[Fold], Counting, list[Row]]:
    items, log = random_shop(3, users=30, n=40, rows=900)
    windows = rolling(log, items, 100 * DAY, days=15, cuts=3)
    model = Counting()
    study = Study(items, log, [Popularity(30), ItemKNN(20)], oracle=lambda fold, cases: truth(items, fold, cases))
    for split, window in zip(("validation", "test", "test"), windows, strict=True):
        study.read(split, model, window)
    return items, log, list(windows), model, study.rows("champion", ["popularity", "item_knn"], samples=200)


def truth(items: Items, fold: Fold, cases: slice) -> np.ndarray:
    out = np.zeros((cases.stop - cases.start, items.n), np.float32)
    for n, c in enumerate(range(cases.start, cases.stop)):
        out[n, fold.target_item[fold.target_ptr[c] : fold.target_ptr[c + 1]]] = 1
    return out


def test_every_case_of_a_window_is_scored_once_whole_and_on_test_once_for_each_mask(
    studied: tuple[Items, Log, list[Fold], Counting, list[Row]],
) -> None:
    _, _, windows, model, _ = studied
    want: Counter[tuple[str, frozenset[str]]] = Counter()
    for n, window in enumerate(windows):
        masks = [frozenset(), *(frozenset([m]) for m in ("id", "image", "text"))] if n else [frozenset()]
        want.update((f"{window.name}/{c}", m) for c in range(window.n_cases) for m in masks)
    assert model.asked == want
    assert model.order == [w.name for w in windows]


def test_rows_of_a_study_are_the_pooled_numbers_of_its_test_windows(
    studied: tuple[Items, Log, list[Fold], Counting, list[Row]],
) -> None:
    items, log, windows, _, found = studied
    key = [(r["split"], r["slice"], r["model"], r["metric"]) for r in found]
    assert len(set(key)) == len(key)
    value = dict(zip(key, found, strict=True))
    parts = {m.name: [evaluate(m.fit(items, log, w), items, log, w) for w in windows[1:]] for m in (Popularity(30), ItemKNN(20))}
    whole = {name: pool(p) for name, p in parts.items()}
    own = pool([replace(evaluate(Popularity().fit(items, log, w), items, log, w), name="champion") for w in windows[1:]])
    for name, result in (whole | {"champion": own}).items():
        for metric in (*COMPARED, "mrr@10"):
            got = value["test", "all", name, metric]
            assert (got["value"], got["n"], got["lo"]) == (result.mean(metric), len(result.user), None)
    for name, result in whole.items():
        for metric in COMPARED:
            got = value["test", f"vs_{name}", "champion", metric]
            want = paired_bootstrap(own.values[metric], result.values[metric], own.user, 200)
            assert (got["value"], got["lo"], got["hi"]) == want
    assert value["test", "all", "oracle", "ndcg@10"]["value"] == 1
    assert value["test", "without_id", "champion", "ndcg@10"]["value"] != own.mean("ndcg@10")
    assert value["test", "without_text", "champion", "ndcg@10"]["value"] == own.mean("ndcg@10")


def test_validation_has_whole_numbers_alone_and_no_intervals(
    studied: tuple[Items, Log, list[Fold], Counting, list[Row]],
) -> None:
    validation = [r for r in studied[-1] if r["split"] == "validation"]
    assert {(r["slice"], r["model"]) for r in validation} == {("all", m) for m in ("champion", "popularity", "item_knn")}
    assert all(r["lo"] is None and r["hi"] is None for r in validation)
    assert {r["n"] for r in validation} == {studied[2][0].n_cases}
