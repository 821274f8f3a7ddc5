"""The gate held by each rule alone, intervals that cover the truth, slices by hand, and what a study reads and pools."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, make_items, make_log, random_shop

from mmrec.config import GateConfig
from mmrec.errors import InputError
from mmrec.evaluate.contest import Contest, measure
from mmrec.evaluate.gate import decide
from mmrec.evaluate.protocols import evaluate, pool
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.evaluate.slices import slices
from mmrec.evaluate.study import COMPARED, Study
from mmrec.models import splits
from mmrec.models.baselines import Popularity
from mmrec.models.data import Fold, Items, Log
from mmrec.models.neighbours import ItemKNN
from mmrec.models.splits import rolling

Row = dict[str, Any]
ASKED = GateConfig()
SINCE, UNTIL = datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 30, tzinfo=UTC)
GOOD = {"champion": 0.30, "popularity": 0.10, "item_knn": 0.20, "version_4": 0.25}
LISTS = {"coverage@10": 0.4, "popularity_bias@10": 1.2}


def contest(
    values: dict[str, float] = GOOD, users: int = 50, noise: float = 0.0, lists: dict[str, dict[str, float]] | None = None,
    cold: dict[str, float] | None = None, shown: dict[str, list[str]] | None = None,
) -> Contest:  # fmt: skip
    """Rankers whose users have these means; without noise all differences of two are the same for every user."""
    rng = np.random.default_rng(5)
    wave = np.linspace(-0.05, 0.05, users)
    rows: list[Row] = []
    for part, means in (("all", values), ("cold_items", cold or {})):
        for ranker, mean in means.items():
            own = rng.normal(0, noise, users) if noise else np.zeros(users)
            for n, value in enumerate(mean + wave + own - own.mean()):
                items = (shown or {}).get(ranker, ["a", "b"]) if part == "all" else None
                rows.append({"ranker": ranker, "slice": part, "user_id": f"u{n:03d}", "ndcg@10": value, "item_ids": items})
    table = pa.Table.from_pylist(rows, Contest.ROWS)
    return Contest(SINCE, UNTIL, table, {r: LISTS | (lists or {}).get(r, {}) for r in values})


def test_what_is_better_than_all_is_promoted_with_every_number_in_the_reason() -> None:
    decision, reason, numbers = decide(ASKED, contest(), "4")
    assert decision == "promoted"
    for other, more in (("popularity 0.1000", "+0.2000"), ("item_knn 0.2000", "+0.1000"), ("champion 4 0.2500", "+0.0500")):
        assert f"0.3000 against {other}, {more} [{more}, {more}] of 50 users" in reason
    for name, value in (("challenger", 0.30), ("popularity", 0.10), ("item_knn", 0.20), ("champion", 0.25), ("champion/lo", 0.05),
                        ("cases", 50), ("churn@10", 0), ("challenger/coverage@10", 0.4)):  # fmt: skip
        assert numbers[name] == pytest.approx(value), name


@pytest.mark.parametrize(
    ("values", "champion", "said"),
    [
        ({"popularity": 0.31}, "4", "0.3000 against popularity 0.3100, -0.0100 [-0.0100, -0.0100] of 50 users"),
        ({"item_knn": 0.35}, "4", "0.3000 against item_knn 0.3500, -0.0500 [-0.0500, -0.0500] of 50 users"),
        ({"version_4": 0.3159}, "4", "0.3000 against champion 4 0.3159, -0.0159 [-0.0159, -0.0159] of 50 users"),
        ({"popularity": 0.30}, "0", "0.3000 against popularity 0.3000, +0.0000 [+0.0000, +0.0000] of 50 users"),
        ({"champion": 0.96}, "4", "0.9600 is too good to be true"),
        ({"popularity": None}, "4", "no number of popularity"),
        ({"item_knn": None}, "4", "no number of item_knn"),
        ({"version_4": None}, "4", "no number of champion 4: the two were never asked for the same days"),
    ],
)
def test_each_rule_alone_holds_and_says_its_numbers(values: dict[str, float | None], champion: str, said: str) -> None:
    planted = contest({k: v for k, v in (GOOD | values).items() if v is not None})
    decision, reason, _ = decide(ASKED, planted, champion)
    # nothing but the planted fault is held against it
    assert (decision, reason) == ("held", said)


@pytest.mark.parametrize(("name", "at"), [("version_4", "4"), ("item_knn", "4"), ("popularity", "4"), ("item_knn", "0")])
def test_a_little_behind_a_rival_by_chance_is_let_through_and_surely_or_by_more_than_a_share_is_not(name: str, at: str) -> None:
    low = {"popularity": 0.1, "item_knn": 0.1, "version_4": 0.1}
    noisy = {"users": 60, "noise": 0.2}
    assert decide(ASKED, contest({"champion": 0.2376} | low | {name: 0.25}, **noisy), at)[0] == "promoted"
    assert decide(ASKED, contest({"champion": 0.2374} | low | {name: 0.25}, **noisy), at)[0] == "held"
    # every user has a hair less: that is no chance
    assert decide(ASKED, contest({"champion": 0.249} | low | {name: 0.25}), at)[0] == "held"


def test_while_popularity_serves_a_model_must_be_better_than_it() -> None:
    equal = {"champion": 0.25, "popularity": 0.25, "item_knn": 0.1}
    assert decide(ASKED, contest(equal), "0")[0] == "held"
    decision, reason, numbers = decide(ASKED, contest(equal | {"champion": 0.2501}), "0")
    assert decision == "promoted"
    assert "against champion" not in reason
    assert "champion" not in numbers


def test_a_baseline_in_the_versions_place_is_not_held_for_being_no_better_than_itself() -> None:
    equal = contest({"champion": 0.2, "popularity": 0.2, "item_knn": 0.1})
    assert decide(ASKED, equal, "0")[0] == "held"
    decision, reason, numbers = decide(ASKED, equal, "0", own_name="popularity")
    assert decision == "promoted"
    assert "popularity" not in reason
    assert "popularity" not in numbers
    assert decide(ASKED, equal, "0", own_name="item_knn")[0] == "held"


@pytest.mark.parametrize("other", [{"ranker": "version_3"}, {"ranker": "ease"}, {"slice": "cold_users"}])
def test_numbers_of_anything_else_have_no_say(other: dict[str, str]) -> None:
    more = contest({r: 1 - v for r, v in GOOD.items()}).cases.to_pylist()
    planted = contest()
    mixed = replace(planted, cases=pa.concat_tables([planted.cases, pa.Table.from_pylist([r | other for r in more], Contest.ROWS)]))
    assert decide(ASKED, mixed, "4") == decide(ASKED, planted, "4")


def test_what_was_never_measured_or_for_too_few_is_held_and_the_gate_can_be_off() -> None:
    assert decide(ASKED, None, "4")[:2] == ("held", "it was never measured on the days before its training")
    decision, reason, numbers = decide(ASKED, contest(users=29), "4")
    assert (decision, numbers) == ("held", {"cases": 29})
    assert reason == "29 users chose something new in the 28 days before it was trained; the gate needs 30"
    assert decide(ASKED, contest(users=30), "4")[0] == "promoted"
    assert decide(GateConfig(on=False), None, "4")[:2] == ("promoted", "the gate is off (mmrec.toml: gate.on)")
    assert len(decide(ASKED, contest(GOOD | {"champion": 0.05}), "4")[1].split("; ")) == 3


def test_a_champion_that_cannot_be_asked_any_more_is_no_bar_and_is_named() -> None:
    lost = contest({k: v for k, v in GOOD.items() if k != "version_4"})
    decision, reason, _ = decide(ASKED, replace(lost, unmeasured={"4": "the model was altered"}), "4")
    assert decision == "promoted"
    assert "champion 4 can't be asked: the model was altered" in reason


@pytest.mark.parametrize(
    ("metric", "own", "champion", "said"),
    [
        ("coverage@10", 0.2, 0.4, None), ("coverage@10", 0.199, 0.4, "it lists 19.9% of the catalogue, champion 4 40.0%"),
        ("coverage@10", float("nan"), 0.4, "of the catalogue"),
        ("popularity_bias@10", 1.0, 0.1, None), ("popularity_bias@10", 1.79, 1.2, None),
        ("popularity_bias@10", 1.81, 1.2, "its lists are 1.81 times as popular as what people choose, champion 4's 1.20"),
        ("popularity_bias@10", float("nan"), 1.2, "times as popular"),
    ],
)  # fmt: skip
def test_more_accurate_lists_of_the_same_few_or_the_most_popular_items_are_held(metric: str, own: float, champion: float, said: str | None) -> None:
    decision, reason, numbers = decide(ASKED, contest(lists={"champion": {metric: own}, "version_4": {metric: champion}}), "4")
    assert decision == ("promoted" if said is None else "held")
    assert said is None or said in reason
    assert numbers[f"champion/{metric}"] == champion


def test_worse_on_cold_items_than_the_champion_is_held_where_enough_were_asked() -> None:
    worse = {"champion": 0.1, "version_4": 0.2}
    decision, reason, numbers = decide(ASKED, contest(cold=worse), "4")
    assert (decision, reason) == ("held", "cold items: -0.1000 [-0.1000, -0.1000] against champion 4, 50 users")
    assert numbers["cold_items/cases"] == 50
    assert decide(ASKED, contest(cold={"champion": 0.2, "version_4": 0.2}), "4")[0] == "promoted"
    assert decide(GateConfig(least=51, on=True), contest(users=60, cold=worse), "4")[0] == "held"
    few = contest(users=60, cold=worse)
    some = few.cases.filter(pc.or_(pc.equal(few.cases["slice"], "all"), pc.less(few.cases["user_id"], "u029")))
    assert decide(ASKED, replace(few, cases=some), "4")[0] == "promoted"


def test_a_list_of_which_nothing_stays_is_held() -> None:
    ten = [f"i{n}" for n in range(20)]
    all_new = contest(shown={"champion": ten[10:], "version_4": ten[:10]})
    assert decide(ASKED, all_new, "4")[1] == "100% of a list's first ten would be others than champion 4's"
    one_stays = contest(shown={"champion": ten[9:19], "version_4": ten[:10]})
    decision, _, numbers = decide(ASKED, one_stays, "4")
    assert (decision, numbers["churn@10"]) == ("promoted", pytest.approx(0.9))


@pytest.mark.parametrize(("name", "most", "said"), [("ms_per_user", 5.0, "it takes 9.0 ms a user, champion 4 2.0"),
                                                    ("bytes", 1e8, "it has 180000000 bytes, champion 4 40000000")])  # fmt: skip
def test_what_costs_many_times_the_champion_is_held_but_for_what_costs_nothing(name: str, most: float, said: str) -> None:
    def told(own: float, champion: float) -> dict[str, dict[str, float]]:
        return {"own": {name: own * most}, "champion": {name: champion * most}}

    decision, reason, _ = decide(ASKED, contest(), "4", costs=told(1.8, 0.4))
    assert (decision, reason) == ("held", said)
    assert decide(ASKED, contest(), "4", costs=told(1.6, 0.4))[0] == "promoted"
    assert decide(ASKED, contest(), "4", costs=told(1.0, 0.001))[0] == "promoted"
    assert decide(ASKED, contest(), "0", costs=told(1.8, 0.4))[0] == "promoted"


@pytest.mark.parametrize("ranker", ["champion", "popularity", "item_knn", "version_4"])
def test_a_number_that_is_not_one_is_never_promoted(ranker: str) -> None:
    with pytest.raises(InputError, match="not finite"):
        decide(ASKED, contest(GOOD | {ranker: float("nan")}), "4")


# a contest


def test_a_contest_is_what_was_written_and_two_of_the_same_days_are_paired(tmp_path: Path) -> None:
    assert Contest.load(tmp_path) is None
    own = contest({"champion": 0.3, "popularity": 0.1}, lists={"champion": {"coverage@10": 0.7}})
    replace(own, unmeasured={"9": "gone"}).save(tmp_path)
    back = Contest.load(tmp_path)
    assert back == replace(own, unmeasured={"9": "gone"})
    paired = own.with_rows_of(contest({"champion": 0.2, "popularity": 0.1}), "version_4")
    assert paired is not None
    assert paired.difference("version_4") == pytest.approx((0.1, 0.1, 0.1, 50))
    assert paired.lists["version_4"] == LISTS
    assert own.with_rows_of(replace(own, since=SINCE + timedelta(1)), "version_4") is None
    assert own.with_rows_of(contest(users=49), "version_4") is None


def test_what_one_was_measured_beside_is_seen_from_either_side() -> None:
    own = contest()
    turned = own.turned("4", "5")
    assert turned is not None
    assert turned.rankers == ["champion", "version_5", "popularity", "item_knn"]
    assert turned.difference("version_5") == pytest.approx((-0.05, -0.05, -0.05, 50))
    assert turned.difference("item_knn")[0] == pytest.approx(0.05)  # type: ignore[index]
    assert turned.turned("5", "4").cases.sort_by("ranker") == own.cases.sort_by("ranker")  # type: ignore[union-attr]
    assert own.turned("3", "5") is None


PLANTED = {
    "constant": (lambda s: np.ones_like(s), "against champion 4"),
    "sign flipped": (lambda s: -s, "against champion 4"),
    "not a number": (lambda s: np.full_like(s, np.nan), "0.0000 against popularity"),
    "of one item": (lambda s: np.where(np.arange(s.shape[1]) < 10, s, -1e9 + 0 * s), "of the catalogue"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_challenger_is_measured_and_held(name: str) -> None:
    items, log = random_shop(3, users=60, n=200, rows=3000)
    fold = splits.window("gate", log, items, 80 * DAY, 100 * DAY)
    assert fold.n_cases >= 30
    good, popular, alike = (m.fit(items, log, fold) for m in (ItemKNN(20), Popularity(), ItemKNN(5)))
    bend, said = PLANTED[name]

    def honest(cases: slice) -> np.ndarray:  # it knows half of the truth
        known_B = np.arange(cases.start, cases.stop) % 2
        return (good.score(items, log, fold, cases) + 10 * known_B[:, None] * truth(items, fold, cases)).astype(np.float32)

    def asked(score: Any) -> Contest:
        rankers = {"champion": (good, lambda _: score), "popularity": (popular, None), "item_knn": (alike, None),
                   "version_4": (good, lambda _: honest)}  # fmt: skip
        return measure(items, log, fold, rankers, SINCE, UNTIL, {})

    def scorer(cases: slice) -> np.ndarray:
        return bend(honest(cases))

    assert decide(ASKED, asked(honest), "4")[0] == "promoted"
    decision, reason, _ = decide(ASKED, asked(scorer), "4")
    assert decision == "held"
    assert said in reason
    rows = {(r["slice"], r["model"], r["metric"]): r for r in asked(scorer).rows(200)}
    assert rows["vs_version_4", "champion", "churn@10"]["value"] > 0
    assert rows["all", "version_4", "ndcg@10"]["n"] == fold.n_cases


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
