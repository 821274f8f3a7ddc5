"""Clicks against naive oracles: what earlier impressions tell, the head and its looks, calibration, AUCs, the bench."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import roc_auc_score

from mmrec.bench import clicks as bench
from mmrec.bench.showcase import PLACES, Showcase, showcase
from mmrec.errors import InputError, QualityError
from mmrec.evaluate.chances import auc_apart, calibration_error, reliability
from mmrec.models.shown import NEVER, Impressions, Shown
from mmrec.ort import session
from mmrec.train import click as room
from mmrec.train import small
from mmrec.train.click import ClickHead, fit_click
from mmrec.worlds.builtin import World

LOOKS = np.array([[1.0, 0.7, 0.45, 0.3, 0.15], [0.6, 0.4, 0.3, 0.2, 0.1]])
NAMES = ("user_taste", "user_noise", "item_kind", "item_noise")


def planted(seed: int, n: int, surfaces: int = 1, base: float = 0.5) -> tuple[Shown, np.ndarray]:
    """Wishes are a product of what user and item are, looks are `LOOKS`; better pairs stand higher. With the truth."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 4)).astype(np.float32)
    odds = base + 1.5 * x[:, 0] * x[:, 2]
    relevant = 1 / (1 + np.exp(-odds))
    # place and wish are confounded, as a policy that knows something makes them
    place = 1 + np.clip((2.0 - 0.7 * (odds - base) + rng.normal(0, 1.2, n)).astype(int), 0, 4)
    surface = rng.integers(0, surfaces, n)
    p = LOOKS[surface, place - 1] * relevant
    return Shown(x, NAMES, 2, rng.integers(0, 200, n), place, surface, rng.random(n) < p, ("home", "mail")[:surfaces]), p


def impressions(seed: int, n: int = 60) -> Impressions:
    rng = np.random.default_rng(seed)
    day = np.sort(rng.integers(100, 106, n))
    known = np.where(rng.random(n) < 0.4, day + rng.integers(1, 4, n), NEVER)
    return Impressions(rng.integers(0, 5, n), rng.integers(0, 6, n), rng.integers(1, 5, n), rng.integers(0, 2, n), day, known, ("a", "b"))


def naive_rates(m: Impressions, q: int) -> list[float]:
    """Of one impression, in plain loops over those before its day."""
    past = [e for e in range(len(m.day)) if m.day[e] < m.day[q]]
    came = {e: m.known[e] <= m.day[q] for e in past}
    if not any(came.values()):
        return [0.0, 0.0, 0.0]
    mean = sum(came.values()) / len(past)

    def rate(surface: int, place: int) -> float:
        own = [e for e in past if (m.surface[e], m.place[e]) == (surface, place)]
        return (sum(came[e] for e in own) + mean) / (len(own) + 1)

    due = {e: rate(m.surface[e], m.place[e]) for e in past}
    most = max([*due.values(), mean])  # a place that nobody saw has everybody's rate
    told = []
    for own in ([e for e in past if m.user[e] == m.user[q]], [e for e in past if m.item[e] == m.item[q]]):
        told.append(np.log((sum(came[e] for e in own) + 3) / (sum(due[e] for e in own) + 3)))
    pair = [e for e in past if (m.user[e], m.item[e]) == (m.user[q], m.item[q])]
    return [*told, np.log(1 + sum(due[e] for e in pair) / most)]


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_rates_are_what_plain_loops_make_of_earlier_days(seed: int) -> None:
    m = impressions(seed)
    np.testing.assert_allclose(m.rates(), [naive_rates(m, q) for q in range(len(m.day))], atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.integers(101, 105))
def test_nothing_of_a_day_or_after_it_reaches_what_is_told_of_its_impressions(seed: int, day: int) -> None:
    m = impressions(seed)
    later, rng = m.day >= day, np.random.default_rng(seed)
    # whatever is clicked from then on, and whatever of earlier clicks is heard of later only
    other = replace(m, known=np.where(later | (m.known > day), np.where(rng.random(len(later)) < 0.5, NEVER, np.maximum(m.known, day + 1)), m.known))
    np.testing.assert_array_equal(m.rates()[m.day <= day], other.rates()[m.day <= day])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1, 4, 15]))
def test_calibration_error_is_what_a_plain_loop_makes_of_bins(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(80), 2)
    y = rng.random(80) < p**2
    total = 0.0
    for b in range(bins):
        own = [c for c in range(80) if b / bins <= p[c] < (b + 1) / bins or (b == bins - 1 and p[c] == 1)]
        if own:
            total += len(own) / 80 * abs(sum(p[c] for c in own) / len(own) - sum(y[c] for c in own) / len(own))
    assert calibration_error(p, y, bins=bins) == pytest.approx(total, abs=1e-12)
    table = reliability(p, y, even="count", bins=bins)
    assert sum(row["count"] for row in table) == 80
    assert all(a["high"] < b["low"] for a, b in pairwise(table))
    assert max(row["count"] for row in table) <= 80 / bins + max(np.unique(p, return_counts=True)[1]) + 1
    assert sum(row["count"] * row["observed"] for row in table) == pytest.approx(y.sum())


def test_chances_that_are_true_are_calibrated_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1, 20, 50_000)
    y = rng.random(len(p)) < p
    for even in ("width", "count"):
        assert calibration_error(p, y, even=even) < 0.004
        assert calibration_error(2 * p.clip(0, 0.5), y, even=even) == pytest.approx(p.mean(), abs=0.01)


def test_an_aucs_interval_is_that_of_scikit_learn_over_draws_of_users() -> None:
    rng = np.random.default_rng(1)
    user, y = rng.integers(0, 20, 300), rng.random(300) < 0.3
    a, b = np.round(y + rng.normal(0, 1, 300), 1), np.round(y + rng.normal(0, 2, 300), 1)  # with ties
    apart, low, high = auc_apart(a, b, y, user, samples=50, seed=3)
    assert apart == pytest.approx(roc_auc_score(y, a) - roc_auc_score(y, b), abs=1e-12)
    draw, names = np.random.default_rng(3), np.unique(user)
    drawn = []
    for _ in range(50):
        rows = np.concatenate([np.flatnonzero(user == names[k]) for k in draw.integers(0, 20, 20)])
        drawn.append(roc_auc_score(y[rows], a[rows]) - roc_auc_score(y[rows], b[rows]))
    np.testing.assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=1e-12)
    assert auc_apart(a, a, y, user, samples=20)[:3] == (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def worlds() -> tuple[Shown, Shown, Shown, np.ndarray]:
    test, true = planted(2, 15_000)
    return planted(0, 15_000)[0], planted(1, 5_000)[0], test, true


@pytest.fixture(scope="module")
def heads(worlds: tuple) -> dict[str, ClickHead]:
    train, valid, *_ = worlds
    return {form: fit_click(train, valid, form=form) for form in room.FORMS}


@pytest.mark.parametrize("form", room.FORMS)
def test_looks_that_were_planted_are_found_though_better_pairs_stood_higher(worlds: tuple, heads: dict, form: str) -> None:
    train, _, test, true = worlds
    head = heads[form]
    got = np.array(head.told.examined["home"])
    assert got[0] == 1
    np.testing.assert_allclose(got, LOOKS[0], atol=0.06)
    # what a count by place makes of it is further off: what stood high was wanted, too
    rate = np.array([train.clicked[train.place == p].mean() for p in range(1, 6)])
    assert np.abs(rate / rate[0] - LOOKS[0]).max() > 2 * np.abs(got - LOOKS[0]).max()
    p = head.chance(test)
    assert calibration_error(p, test.clicked) < 0.02
    assert roc_auc_score(test.clicked, p) > roc_auc_score(test.clicked, true) - 0.01
    relevant = true / LOOKS[0, test.place - 1]
    assert np.corrcoef(head.relevance(test.x_QF), relevant)[0, 1] > 0.97
    assert head.told.loss[1] < head.told.loss[0]


def test_each_surface_has_looks_of_its_own_in_units_of_the_best_first_place() -> None:
    head = fit_click(planted(3, 20_000, 2)[0], planted(4, 5_000, 2)[0])
    got = np.array([head.told.examined[s] for s in ("home", "mail")])
    assert got[0, 0] == 1
    np.testing.assert_allclose(got, LOOKS, atol=0.07)


@pytest.mark.parametrize("form", room.FORMS)
def test_of_a_tenth_of_the_negatives_chances_are_still_those_of_all(form: str) -> None:
    train, valid, (test, true) = planted(5, 50_000, base=-4.0)[0], planted(6, 8_000, base=-4.0)[0], planted(7, 30_000, base=-4.0)
    assert train.clicked.mean() < 0.1
    head = fit_click(train, valid, form=form, keep=0.1)
    p = head.chance(test)
    raw = head.looked(test.surfaces, test.surface, test.place) * head.relevance(test.x_QF)
    for chance in (p, raw):  # before validation has its say, too
        assert chance.mean() == pytest.approx(true.mean(), rel=0.1)
        assert calibration_error(chance, test.clicked, even="count") < 0.01
    assert (head.told.keep, roc_auc_score(test.clicked, p) > roc_auc_score(test.clicked, true) - 0.02) == (0.1, True)


def test_stretching_helps_or_is_left_and_never_turns_an_order_round() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(-2, 1, 4000)
    side = planted(0, 4000)[0]
    for true, wanted in ((odds, (1, 0)), (0.5 * odds - 1, (0.5, -1)), (-2 * odds - 4, (1, 0))):  # the last: upside down
        got = room._platt(odds, replace(side, clicked=rng.random(4000) < 1 / (1 + np.exp(-true))))
        np.testing.assert_allclose(got, wanted, atol=0.25)
    # a half of the users without a click says nothing of the other
    assert room._platt(odds, replace(side, clicked=odds == odds.min())) == (1, 0)


def test_the_loss_is_the_cross_entropy_of_a_look_times_a_wish() -> None:
    x, cell = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 1, 0])
    net = room._Net(room._Pair("bilinear", 4, 2), np.array([[1.0, 0.7, 0.5, 0.3, 0.2]]), 0)
    torch.nn.init.normal_(net.pair.item.weight, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        p = [float((1.0 if c == 0 else torch.sigmoid(net.odds()[c])) * net.pair(x[n : n + 1])[0]) for n, c in enumerate(cell)]
        np.testing.assert_allclose(torch.sigmoid(net(x, cell)), p, atol=1e-6)
        np.testing.assert_allclose(p[1] / float(net.pair(x[1:2])[0]), 0.7, atol=1e-6)


def test_before_anything_is_learned_the_head_is_the_rates_of_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PACE", replace(room._PACE, epochs=0))
    train, valid = planted(8, 5000, 2)[0], planted(9, 1000, 2)[0]
    for form in room.FORMS:
        head = fit_click(train, valid, form=form, keep=0.5)
        assert (head.told.epochs, head.told.loss[0]) == (0, head.told.loss[1])
        rate = []
        for s, p in zip(valid.surface, valid.place, strict=True):
            own = (train.surface == s) & (train.place == p)
            rate.append((train.clicked[own].sum() + train.clicked.mean()) / (own.sum() + 1))
        got = head.looked(valid.surfaces, valid.surface, valid.place) * head.relevance(valid.x_QF)
        np.testing.assert_allclose(got, rate, rtol=1e-4)


def test_the_seed_decides_the_head(worlds: tuple, heads: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PACE", replace(room._PACE, epochs=2))
    some, held = worlds[0].some(np.arange(4000)), worlds[1]
    one, two, other = (fit_click(some, held, seed=s) for s in (0, 0, 1))
    assert one.told == two.told
    assert (one.chance(held) == two.chance(held)).all()
    assert (one.chance(held) != other.chance(held)).any()


@pytest.mark.parametrize("form", room.FORMS)
def test_a_head_is_saved_and_exported_to_the_same_numbers(worlds: tuple, heads: dict, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, head = worlds[2].some(np.arange(500)), heads[form]
    head.save(tmp_path / "a")
    back = ClickHead.load(tmp_path / "a")
    assert asdict(back.told) == asdict(head.told)
    assert (back.chance(test) == head.chance(test)).all()
    told = head.export(tmp_path / "a")
    assert told["parity"] <= 1e-4
    json.dumps(told)
    (got,) = session(tmp_path / "a" / "click.onnx").run(None, {"x": test.x_QF})
    np.testing.assert_allclose(got, head.relevance(test.x_QF), atol=1e-5)
    # a list has no place yet: pairs are ranked alike wherever they stood
    assert (head.relevance(replace(test, place=test.place[::-1]).x_QF) == head.relevance(test.x_QF)).all()

    class Wrong:
        def run(self, _: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.zeros(len(feeds["x"]), np.float32)]

    monkeypatch.setattr(small, "session", lambda path: Wrong())
    with pytest.raises(QualityError, match="disagree"):
        head.export(tmp_path / "b")
    (tmp_path / "a" / "click.json").write_text(json.dumps(asdict(head.told) | {"form": "cubic"}))
    with pytest.raises(InputError, match="no such form"):
        ClickHead.load(tmp_path / "a")


def test_bad_input_says_what_where_and_what_would_do(worlds: tuple, heads: dict) -> None:
    good, held = worlds[0].some(np.arange(300)), worlds[1].some(np.arange(200))
    none, m = np.zeros(200, bool), impressions(0)
    p = np.full(3, 0.5)
    bad = {
        "no such form": lambda: fit_click(good, held, form="cubic"),
        "can't be told apart": lambda: fit_click(replace(good, of_user=0), held, form="bilinear"),
        "no such share": lambda: fit_click(good, held, keep=0.0),
        "nothing to learn from": lambda: fit_click(good, replace(held, clicked=none)),
        "nothing to learn from: all": lambda: fit_click(good, replace(held, clicked=~none)),
        "validation has places": lambda: fit_click(good, replace(held, place=held.place + 5)),
        "nothing was learned of this place": lambda: heads["pair"].chance(replace(held, place=held.place + 5)),
        "nothing was learned of this place: surface": lambda: heads["pair"].chance(replace(held, surfaces=("shelf",))),
        "pairs don't fit": lambda: heads["pair"].relevance(held.x_QF[:, :3]),
        "columns of impressions": lambda: replace(m, day=m.day[1:]),
        "no place, or no order": lambda: replace(m, day=m.day[::-1]),
        "no place, or no order: place": lambda: replace(m, place=m.place - 1),
        "outcomes don't fit": lambda: reliability(p, np.ones(2, bool)),
        "A chance is none": lambda: reliability(p + 1, np.ones(3, bool)),
        "no such bins": lambda: reliability(p, np.ones(3, bool), even="odd"),
        "can't be told apart: auc": lambda: auc_apart(p, p, np.ones(3, bool), np.arange(3)),
    }  # fmt: skip
    for words, call in bad.items():
        with pytest.raises(InputError, match=words.split(":")[0]) as caught:
            call()
        for part in ("where: ", "value: ", "valid: ", "next:  mmrec bench clicks"):
            assert part in str(caught.value), words
    with pytest.raises(InputError, match="no such size"):
        bench.bench(1, lambda *_: None, size="huge")


@pytest.fixture(scope="module")
def shop() -> Showcase:
    return showcase(3, "tiny", 12, 28, lambda *_: None)


def test_the_worlds_clicks_come_as_often_as_its_truth_says_and_slates_hold_what_may_be_shown(shop: Showcase) -> None:
    m, world = shop.shown, World(3, "tiny", history_days=12)
    spread = np.sqrt((shop.true_Q * (1 - shop.true_Q)).sum())
    assert abs(m.clicked.sum() - shop.true_Q.sum()) < 4 * spread
    assert not m.clicked[shop.true_Q == 0].any()
    assert set(m.place.tolist()) == set(range(1, PLACES + 1))
    first = (world.first_day - date(1970, 1, 1)).days
    assert (m.day.min(), m.day.max()) == (first + 12, first + 39)
    pages, size = np.unique(np.stack([m.user, m.day]), axis=1, return_counts=True)
    assert (size == PLACES).all()
    assert 0.4 < pages.shape[1] / (28 * 60) < 0.6  # half of the users open it
    for q in range(0, len(m.day), 97):
        own = (shop.log.user == m.user[q]) & (shop.log.item == m.item[q]) & (shop.log.available_us < m.day[q] * 86_400_000_000)
        assert not own.any()
        assert world.born(int(m.item[q])) < world.first_day + timedelta(int(m.day[q]) - first)
        # the item of a click is had from then on, and is known at the midnight it says
        if m.clicked[q]:
            had = (shop.log.user == m.user[q]) & (shop.log.item == m.item[q])
            assert shop.log.available_us[had].min() // 86_400_000_000 < m.known[q]


def test_what_is_seen_of_an_impression_is_of_days_before_its_own(shop: Showcase) -> None:
    whole, cut = shop.seen(lambda *_: None), int(np.unique(shop.shown.day)[20])
    m, log = shop.shown, shop.log
    kept = log.available_us < cut * 86_400_000_000
    early = replace(log, **{c: getattr(log, c)[kept] for c in ("user", "item", "ts_us", "weight", "event", "available_us")})
    past = replace(m, known=np.where(m.known <= cut, m.known, NEVER))
    again = Showcase(shop.items, early, past, shop.true_Q, shop.looks_P).seen(lambda *_: None)
    upto = m.day <= cut
    for form, (x, names, of_user) in whole.items():
        assert (x.shape, x.dtype) == ((len(m.day), len(names)), np.float32)
        np.testing.assert_array_equal(x[upto], again[form][0][upto])
        assert (x[~upto] != again[form][0][~upto]).any()
        assert (of_user == 0) == (form == "pair")
    # of a user alone: one row of a day is as good as another
    x, _, of_user = whole["bilinear"]
    page = (m.user == m.user[0]) & (m.day == m.day[0])
    assert (x[page][:, :of_user] == x[page][0, :of_user]).all()


def test_the_bench_tells_every_model_of_every_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_BEFORE", 10)
    monkeypatch.setattr(bench, "_WEEKS", {"counted": 1, "train": 2, "valid": 1, "test": 1})
    monkeypatch.setattr(bench, "_RIDGE", (0.01, 0.1))
    monkeypatch.setattr(room, "_PACE", replace(room._PACE, epochs=3))
    told = bench.bench(2, lambda *_: None, size="tiny")
    json.dumps(told)
    assert list(told["seeds"]) == ["0", "1"]
    for each in told["seeds"].values():
        assert set(each) == {*bench._MODELS, "minus", "looks", "reliability", "counts"}
        assert sum(n for n, _ in each["counts"].values()) > 5000
        assert sum(row["count"] for row in each["reliability"]) == each["counts"]["test"][0]
        for head, less in each["minus"].items():
            for model, apart in less.items():
                for e in ("auc", "log_loss"):
                    assert apart[e][0] == pytest.approx(each[head][e] - each[model][e], abs=2e-5)
                    assert apart[e][1] <= apart[e][0] <= apart[e][2]
        assert each["oracle"]["auc"] > each["place"]["auc"]
        off = np.abs(np.array(each["pair"]["examined"]) - 0.75 ** np.arange(PLACES))
        assert each["looks"]["pair"]["most"] == pytest.approx(off.max(), abs=1e-3)
    assert told["mean"]["bias"]["auc"] == pytest.approx(np.mean([s["bias"]["auc"] for s in told["seeds"].values()]), abs=1e-5)
    shown = Console(record=True, width=80)
    shown.print(bench.table(told))
    lines = shown.export_text()
    assert f"{told['seeds']['1']['pair']['auc']:.3f}"[1:] in lines
    assert "{:+.3f} (".format(told["seeds"]["0"]["minus"]["pair"]["bias"]["auc"][0]).replace("0.", ".") in lines
    assert "…" not in lines
