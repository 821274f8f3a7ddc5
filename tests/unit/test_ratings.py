"""Foretold ratings against naive oracles: models, what a head sees of a pair and what it must not, the head, the bench."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from shops import DAY

from mmrec.bench import ratings as bench
from mmrec.errors import InputError, QualityError
from mmrec.models.rated import FEATURES, Known, Parts, Sample
from mmrec.models.ratings import BiasedFactors, Biases, RatingNeighbours, Ratings
from mmrec.ort import session
from mmrec.train import rating as room
from mmrec.train import small
from mmrec.train.rating import RatingHead, fit_rating

AT = 15_000 * DAY
SMALL = Parts(Biases(2.0, 1.0), BiasedFactors(factors=3, epochs=4), RatingNeighbours(k=3, shrink=2.0, damp=0.5))


def world(seed: int, users: int = 8, items: int = 7, share: float = 0.6) -> Ratings:
    """Ratings without any sense, with equal moments and items of no genre and of no known year."""
    rng = np.random.default_rng(seed)
    u, i = np.nonzero(rng.random((users, items)) < share)
    if len(u) < 6:
        u, i = np.divmod(np.arange(6), items)
    genres = {f"i{n}": [g for g in "abc" if rng.random() < 0.4] for n in range(items)}
    years = {f"i{n}": float(rng.integers(1950, 2010)) for n in range(items) if rng.random() < 0.8}
    return Ratings.of([f"u{n}" for n in u], [f"i{n}" for n in i], rng.integers(1, 11, len(u)) / 2,
                      AT + rng.integers(0, 40, len(u)) * DAY // 200, genres, years)  # fmt: skip


def planted(seed: int, users: int = 150, items: int = 120, share: float = 0.25) -> Ratings:
    """Low rank, biases and a liking for genres that are too many for few factors, with noise."""
    rng = np.random.default_rng(seed)
    genre_NG = rng.random((items, 12)) < 0.15
    liking = rng.normal(0, 0.5, users)[:, None] + rng.normal(0, 0.4, items) + 3.5
    liking += rng.normal(0, 0.6, (users, 2)) @ rng.normal(0, 0.5, (2, items))
    liking += rng.normal(0, 1.0, (users, 12)) @ (genre_NG / np.maximum(genre_NG.sum(1, keepdims=True), 1)).T
    u, i = np.nonzero(rng.random((users, items)) < share)
    names = {f"i{n}": [f"g{g}" for g in np.flatnonzero(genre_NG[n])] for n in range(items)}
    return Ratings.of([f"u{n}" for n in u], [f"i{n}" for n in i], liking[u, i] + rng.normal(0, 0.4, len(u)),
                      AT + rng.integers(0, 900 * DAY, len(u)), names)  # fmt: skip


def naive_biases(r: Ratings, user: float, item: float) -> tuple[float, list[float], list[float]]:
    mean, rows = sum(r.value) / len(r.value), list(zip(r.user.tolist(), r.item.tolist(), r.value.tolist(), strict=True))
    bu, bi = [0.0] * r.shape[0], [0.0] * r.shape[1]
    for _ in range(10):
        for n in range(len(bi)):
            own = [v - mean - bu[u] for u, i, v in rows if i == n]
            bi[n] = sum(own) / (len(own) + item)
        for n in range(len(bu)):
            own = [v - mean - bi[i] for u, i, v in rows if u == n]
            bu[n] = sum(own) / (len(own) + user)
    return mean, bu, bi


def naive_near(r: Ratings, model: RatingNeighbours, u: int, i: int) -> tuple[float, float]:
    left = {(a, b): v - model.biases.predict(np.array([a]), np.array([b]))[0]
            for a, b, v in zip(r.user.tolist(), r.item.tolist(), r.value.tolist(), strict=True)}  # fmt: skip
    found = []
    for j in r.item[r.user == u].tolist():
        both = [(left[v, i], left[v, j]) for v in range(r.shape[0]) if (v, i) in left and (v, j) in left]
        if j == i or len(both) < 2 or sum(x * y for x, y in both) <= 0:
            continue
        rho = sum(x * y for x, y in both) / np.sqrt(sum(x * x for x, _ in both) * sum(y * y for _, y in both))
        found.append((rho * (len(both) - 1) / (len(both) - 1 + model.shrink), left[u, j]))
    best = sorted(found, key=lambda f: -f[0])[: model.k]
    weight = sum(w for w, _ in best)
    return (sum(w * x for w, x in best) / (weight + model.damp) if best else 0.0), weight


def pairs(r: Ratings) -> tuple[np.ndarray, np.ndarray]:
    u, i = np.divmod(np.arange(r.shape[0] * r.shape[1]), r.shape[1])
    return u, i


def test_rows_come_by_user_moment_and_item_and_the_last_rating_of_a_pair_counts() -> None:
    r = Ratings.of(["b", "a", "b", "b"], ["y", "x", "x", "y"], [1, 2, 3, 4], [30, 9, 20, 10],
                   {"x": ["q"], "z": ["p"]}, {"y": 1999})  # fmt: skip
    assert (r.user_ids.tolist(), r.item_ids.tolist()) == (["a", "b"], ["x", "y"])
    assert (r.user.tolist(), r.item.tolist(), r.value.tolist()) == ([0, 1, 1], [0, 0, 1], [2, 3, 1])
    assert (r.ts_us.tolist(), r.by_user.tolist()) == ([9, 20, 30], [0, 1, 3])
    assert r.genre_NG.tolist() == [[True], [False]]
    np.testing.assert_array_equal(r.year_N, [np.nan, 1999])
    assert r.some(np.array([2, 0])).value.tolist() == [2, 1]
    assert r.some(r.user == 1).by_user.tolist() == [0, 0, 2]


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from([(0.5, 3.0), (5.0, 1.0)]))
def test_biases_and_neighbours_are_what_plain_loops_make_of_them(seed: int, pull: tuple[float, float]) -> None:
    r = world(seed)
    mean, bu, bi = naive_biases(r, *pull)
    biases = Biases(*pull).fit(r)
    u, i = pairs(r)
    np.testing.assert_allclose(biases.predict(u, i), [mean + bu[a] + bi[b] for a, b in zip(u, i, strict=True)], atol=1e-9)
    model = RatingNeighbours(3, 2.0, 0.5, Biases(*pull)).fit(r)
    value, support = model.residual(u, i)
    want = np.array([naive_near(r, model, a, b) for a, b in zip(u.tolist(), i.tolist(), strict=True)])
    np.testing.assert_allclose(np.stack([value, support], 1), want, atol=1e-9)
    np.testing.assert_array_equal(model.predict(u, i), biases.predict(u, i) + value)
    turned = np.random.default_rng(seed).permutation(len(u))
    np.testing.assert_array_equal(model.residual(u[turned], i[turned])[0], value[turned])


def test_factors_step_as_a_plain_loop_does_and_the_seed_decides() -> None:
    r = world(1)
    made = BiasedFactors(factors=3, reg=0.1, epochs=2, lr=0.05, bias_reg=0.02, seed=4).fit(r)
    draw = np.random.default_rng(4)
    bu, bi = [np.zeros(n) for n in r.shape]
    p, q = [draw.normal(0, 0.02, (n, 3)) for n in r.shape]
    for _ in range(2):
        for e in draw.permutation(len(r.value)):
            a, b = r.user[e], r.item[e]
            miss = r.value[e] - r.value.mean() - bu[a] - bi[b] - p[a] @ q[b]
            bu[a], bi[b] = bu[a] + 0.05 * (miss - 0.02 * bu[a]), bi[b] + 0.05 * (miss - 0.02 * bi[b])
            p[a], q[b] = p[a] + 0.05 * (miss * q[b] - 0.1 * p[a]), q[b] + 0.05 * (miss * p[a] - 0.1 * q[b])
    u, i = pairs(r)
    want = r.value.mean() + bu[u] + bi[i] + (p[u] * q[i]).sum(1)
    np.testing.assert_allclose(made.predict(u, i), want, atol=1e-12)
    assert (replace(made).fit(r).predict(u, i) == made.predict(u, i)).all()
    assert (replace(made, seed=5).fit(r).predict(u, i) != made.predict(u, i)).any()
    # a fit that is ended is the fit of as many epochs
    ended = replace(made, epochs=9).fit(r, lambda epoch: epoch == 2)
    assert (ended.predict(u, i) == made.predict(u, i)).all()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_what_a_head_sees_of_a_pair_is_what_its_words_say(seed: int) -> None:
    r = world(seed)
    known = Known(r, SMALL)
    u, i = pairs(r)
    ts = AT + np.random.default_rng(seed).integers(-20, 60, len(u)) * DAY // 200
    base, x = known.features(u, i, ts)
    left = r.value - known.biases.predict(r.user, r.item)
    usual = (left**2).mean()
    dated = r.year_N[r.item][np.isfinite(r.year_N[r.item])]
    year = np.where(np.isnan(r.year_N), dated.mean() if len(dated) else 0.0, r.year_N)
    for n in range(0, len(u), 5):
        own, its = r.user == u[n], r.item == i[n]
        genre = [left[own & r.genre_NG[r.item, g]].sum() / ((own & r.genre_NG[r.item, g]).sum() + 8) for g in np.flatnonzero(r.genre_NG[i[n]])]
        # of two as near the later, of those of one moment what lies nearer in the order of rows
        when = sorted((abs(int(t - ts[n])), t < ts[n], -k if t < ts[n] else k) for k, t in enumerate(r.ts_us) if own[k])
        moments = []
        for k, reach in ((5, DAY / 144), (20, DAY)):
            w = {abs(row): np.exp(-d / reach) for d, _, row in when[:k]}
            moments.append(sum(v * left[row] for row, v in w.items()) / (sum(w.values()) + 2))
        want = {
            "user_bias": known.biases.user_U[u[n]], "item_bias": known.biases.item_N[i[n]],
            "user_count": np.log(1 + own.sum()), "item_count": np.log(1 + its.sum()),
            "user_spread": np.sqrt(((left[own] ** 2).sum() + 5 * usual) / (own.sum() + 5)),
            "item_spread": np.sqrt(((left[its] ** 2).sum() + 5 * usual) / (its.sum() + 5)),
            "neighbours": known.neighbours.predict(u[[n]], i[[n]])[0] - base[n],
            "support": np.log1p(known.neighbours.residual(u[[n]], i[[n]])[1][0]),
            "factors": known.factors.predict(u[[n]], i[[n]])[0] - base[n], "genre": np.mean(genre) if genre else 0.0,
            "year": year[i[n]], "age": 1970 + ts[n] / DAY / 365.25 - year[i[n]],
            "since": np.log(1 + max((ts[n] - r.ts_us[own].min()) / DAY, 0)) if own.any() else 0.0,
            "minutes": moments[0], "days": moments[1],
        }  # fmt: skip
        got = dict(zip(FEATURES, x[n].tolist(), strict=True))
        assert got == pytest.approx({**want, "taste": got["taste"]}, rel=1e-5, abs=1e-5)
    some = slice(3, 9)
    np.testing.assert_array_equal(known.features(u[some], i[some], ts[some])[1], x[some])


def test_taste_is_the_ridge_regression_of_a_users_residuals() -> None:
    r = world(3, users=5, items=9)
    known = Known(r, SMALL)
    left = r.value - known.biases.predict(r.user, r.item)
    for u in range(5):
        z, y = known.about_NZ[r.item[r.user == u]], left[r.user == u]
        # ten rows of weight more whose target is zero: the ridge as plain least squares
        w = np.linalg.lstsq(np.vstack([z, np.sqrt(10) * np.eye(z.shape[1])]), np.append(y, np.zeros(z.shape[1])), rcond=None)[0]
        np.testing.assert_allclose(known.taste_UZ[u], w, atol=1e-9)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10**6), st.data())
def test_no_rating_reaches_what_is_seen_of_its_own_pair(seed: int, data: st.DataObject) -> None:
    r = world(seed)
    row, folds = data.draw(st.integers(0, len(r.value) - 1)), data.draw(st.sampled_from([2, 3, 5]))
    other = r.value.copy()
    other[row] = data.draw(st.sampled_from([-100.0, 0.5, 1e6]))
    parts = replace(SMALL, factors=replace(SMALL.factors, lr=1e-9))  # a planted rating as wild would diverge
    one = Sample.out_of_fold(r, parts, folds, seed)
    two = Sample.out_of_fold(replace(r, value=other), parts, folds, seed)
    np.testing.assert_array_equal(one.x_QF[row], two.x_QF[row])
    assert one.base_Q[row] == two.base_Q[row]
    assert one.value_Q[row] != two.value_Q[row] or other[row] == r.value[row]


def test_one_part_a_row_is_to_leave_one_out() -> None:
    r = world(5)
    n = len(r.value)
    made = Sample.out_of_fold(r, SMALL, folds=n)
    for row in range(0, n, 4):
        known = Known(r.some(np.arange(n) != row), SMALL)
        base, x = known.features(r.user[[row]], r.item[[row]], r.ts_us[[row]])
        assert base[0] == made.base_Q[row]
        np.testing.assert_array_equal(x[0], made.x_QF[row])


def cut(r: Ratings, seed: int = 0) -> tuple[Ratings, Ratings, Ratings]:
    order, n = np.random.default_rng(seed).permutation(len(r.value)), len(r.value)
    train, valid, test = (r.some(rows) for rows in np.split(order, [int(0.8 * n), int(0.9 * n)]))
    return train, valid, test


@pytest.fixture(scope="module")
def fitted() -> tuple[Ratings, Known, Sample, Sample, RatingHead]:
    train, valid, test = cut(planted(0))
    # the best of a grid in this world, for the factors and neighbours
    parts = Parts(Biases(), BiasedFactors(factors=16, reg=0.06, epochs=60), RatingNeighbours(k=20, shrink=20.0, damp=0.3))
    known, learned = Known(train, parts), Sample.out_of_fold(train, parts)
    return test, known, learned, known.sample(valid), fit_rating(learned, known.sample(valid), parts)


def test_in_a_planted_world_the_head_is_nearer_than_factors_and_neighbours(fitted: tuple) -> None:
    test, known, _, _, head = fitted
    off = {"head": head.predict(known, test.user, test.item, test.ts_us) - test.value}
    for name, model in {"factors": known.factors, "neighbours": known.neighbours, "biases": known.biases}.items():
        off[name] = model.predict(test.user, test.item) - test.value
    root = {n: float(np.sqrt((o**2).mean())) for n, o in off.items()}
    mean = {n: float(np.abs(o).mean()) for n, o in off.items()}
    assert root["head"] < 0.95 * min(v for n, v in root.items() if n != "head"), root
    assert mean["head"] < 0.95 * min(v for n, v in mean.items() if n != "head"), mean
    assert head.told.loss[1] < head.told.loss[0]


def test_the_seed_decides_the_head_and_what_is_left_out_has_no_say(fitted: tuple) -> None:
    _, _, learned, held, head = fitted
    again = fit_rating(learned, held, head.parts)
    assert again.told == head.told
    assert (again.rate(held.base_Q, held.x_QF) == head.rate(held.base_Q, held.x_QF)).all()
    other = fit_rating(learned, held, head.parts, seed=1, without=("genre", "taste"))
    assert (other.rate(held.base_Q, held.x_QF) != head.rate(held.base_Q, held.x_QF)).any()
    wild = held.x_QF.copy()
    wild[:, [FEATURES.index("genre"), FEATURES.index("taste")]] = 7
    assert (other.rate(held.base_Q, wild) == other.rate(held.base_Q, held.x_QF)).all()
    low, high = head.told.bounds
    assert (head.rate(held.base_Q + 100, held.x_QF) == high).all()
    assert (head.rate(held.base_Q - 100, held.x_QF) == low).all()


def test_a_head_is_saved_and_exported_to_the_same_numbers(fitted: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, known, _, held, head = fitted
    head.save(tmp_path / "a")
    back = RatingHead.load(tmp_path / "a")
    assert back.told == head.told
    assert asdict(back.parts) == asdict(head.parts)
    anew = Known(known.ratings, back.parts)
    asked = (test.user, test.item, test.ts_us)
    assert (back.predict(anew, *asked) == head.predict(known, *asked)).all()
    told = head.export(tmp_path / "a")
    assert told["parity"] <= 1e-4
    json.dumps(told)
    (got,) = session(tmp_path / "a" / "rating.onnx").run(None, {"x": held.x_QF})
    with torch.no_grad():
        np.testing.assert_allclose(got, head.net(torch.from_numpy(held.x_QF)).numpy(), atol=1e-4)

    class Wrong:
        def run(self, _: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.zeros(len(feeds["x"]), np.float32)]

    monkeypatch.setattr(small, "session", lambda path: Wrong())
    with pytest.raises(QualityError, match="disagree"):
        head.export(tmp_path / "b")
    told = json.loads((tmp_path / "a" / "rating.json").read_text())
    (tmp_path / "a" / "rating.json").write_text(json.dumps(told | {"features": ["age"]}))
    with pytest.raises(InputError, match="other features") as caught:
        RatingHead.load(tmp_path / "a")
    assert caught.value.value == ("age",)


def test_where_nothing_can_be_learned_the_head_is_the_baseline() -> None:
    rng = np.random.default_rng(0)
    learned, held = (Sample(np.full(n, 3.0), rng.standard_normal((n, len(FEATURES))).astype(np.float32), 3 + sign * np.ones(n)) for n, sign in ((300, 1), (80, -1)))
    head = fit_rating(learned, held, Parts())
    assert (head.told.epochs, head.told.loss) == (0, (1.0, 1.0))
    assert (head.rate(np.full(80, 4.0), held.x_QF) == 4).all()


def test_bad_input_says_what_where_and_what_would_do() -> None:
    r = world(0)
    x = np.zeros((1, len(FEATURES)), np.float32)
    one, none = Sample(np.zeros(1), x, np.zeros(1)), Sample(np.zeros(0), x[:0], np.zeros(0))
    bad = {
        "don't fit": lambda: Ratings.of(["a"], ["x", "y"], [1], [0]), "don't fit: none": lambda: Ratings.of([], [], [], []),
        "not a number": lambda: Ratings.of(["a", "b"], ["x", "x"], [1, np.nan], [0, 0]),
        "no rating is left": lambda: r.some(np.zeros(len(r.value), bool)),
        "no such user": lambda: Biases().fit(r).predict(np.array([8]), np.array([0])),
        "no such item": lambda: SMALL.neighbours.fit(r).residual(np.array([0]), np.array([-1])),
        "no neighbour": lambda: RatingNeighbours(k=0).fit(r),
        "diverge": lambda: BiasedFactors(factors=3, epochs=50, lr=50.0).fit(r),
        "can't be cut": lambda: Sample.out_of_fold(r, SMALL, folds=1),
        "nothing to learn": lambda: fit_rating(none, one, SMALL),
        "no such feature": lambda: fit_rating(one, one, SMALL, without=("colour",)),
        "films are needed": lambda: bench.bench(1, lambda *_: None),
    }  # fmt: skip
    for words, call in bad.items():
        with np.errstate(all="ignore"), pytest.raises(InputError, match=words.split(":")[0]) as caught:
            call()
        assert "where: " in str(caught.value)
        assert "valid: " in str(caught.value)
        assert "next:  mmrec bench ratings --root FOLDER" in str(caught.value)


def test_the_bench_chooses_on_validation_and_tells_every_model_of_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r = planted(1, users=60, items=40, share=0.4)
    folder = tmp_path / "films"
    folder.mkdir()
    with (folder / "ratings.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["userId", "movieId", "rating", "timestamp"])
        for u, i, v, t in zip(r.user, r.item, r.value, r.ts_us, strict=True):
            rows.writerow([u + 1, i + 1, round(float(v), 2), t // 1_000_000])
    with (folder / "movies.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["movieId", "title", "genres"])
        for i in range(r.shape[1]):
            title = f"Film {i}" if i == 3 else f"Film {i} ({1950 + i})"
            rows.writerow([i + 1, title, "|".join(f"g{g}" for g in np.flatnonzero(r.genre_NG[i])) or "(no genres listed)"])
    read = bench.films(folder)
    assert (read.shape, len(read.value), read.genre_NG.sum()) == (r.shape, len(r.value), r.genre_NG.sum())
    assert np.isnan(read.year_N[read.item_ids.tolist().index("4")])
    assert read.year_N[read.item_ids.tolist().index("11")] == 1960

    monkeypatch.setattr(bench, "_BIASES", {"user": (3.0,), "item": (3.0,)})
    monkeypatch.setattr(bench, "_FACTORS", {"factors": (4, 8)})
    monkeypatch.setattr(bench, "_NEIGHBOURS", {"k": (5, 20)})
    monkeypatch.setattr(room, "_PACE", replace(room._PACE, epochs=6))
    told = bench.bench(2, lambda *_: None, root=folder)
    json.dumps(told)
    assert list(told["seeds"]) == ["0", "1"]
    names = ["biases", "biased_mf", "item_knn", "head_untimed", "head"]
    for each in told["seeds"].values():
        assert list(each) == [*names, "head_minus"]
        assert each["biased_mf"]["settings"]["factors"] in (4, 8)
        assert list(each["head_minus"]) == names[:-1]
        for model, less in each["head_minus"].items():
            for e in ("rmse", "mae"):
                assert less[e][0] == pytest.approx(each["head"][e] - each[model][e], abs=2e-5)
                assert less[e][1] <= less[e][0] <= less[e][2]
    assert told["mean"]["head"]["rmse"] == pytest.approx(np.mean([s["head"]["rmse"] for s in told["seeds"].values()]), abs=1e-5)
    shown = Console(record=True, width=160)
    shown.print(bench.table(told))
    assert f"{told['seeds']['1']['item_knn']['rmse']:.4f}" in shown.export_text()
