"""`mmrec bench ratings`: how far off ratings are foretold, by the rating head and by well tuned models of one kind.

In: a MovieLens folder, seeds. Out: of each seed RMSE and MAE on its test rows, and the head's differences.
A seed cuts the ratings at random: 80% are fitted on, 10% validate, 10% test. All that is chosen (shrinkage, factors,
regularisation, epochs, neighbours) is chosen by RMSE on validation, of every seed anew; the test rows are read once,
by what was chosen. All models know the train rows alone, and all are held within the scale. The head stands on the
tuned models; `head_untimed` lacks what it sees of the moment (`age`, `since`, `minutes`, `days`).
Trade-off: a random cut lets every model know ratings that were given later than those it is asked for, as published
figures on this set do; it measures how well gaps are filled, not tomorrow.

Shape legend: Q test rows.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mmrec.errors import InputError
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.models.rated import Known, Parts, Sample
from mmrec.models.ratings import BiasedFactors, Biases, RatingNeighbours, Ratings
from mmrec.train.rating import fit_rating

_MODELS = ("biases", "biased_mf", "item_knn", "head_untimed", "head")
_UNTIMED = ("age", "since", "minutes", "days")
_SHARES = (0.8, 0.9)  # where validation begins, where test begins
_BIASES = {"user": (1.0, 3.0, 5.0, 10.0), "item": (1.0, 2.0, 3.0, 5.0)}
_FACTORS = {"factors": (128, 256, 512), "reg": (0.04, 0.05, 0.06, 0.08)}
_NEIGHBOURS = {"shrink": (50.0, 100.0, 200.0, 400.0), "damp": (0.0, 0.2, 0.4, 0.8), "k": (10, 20, 30, 45)}
_EVERY, _MOST = 3, 90  # epochs between looks at validation, and of a fit
_LOOKS = 3  # that bring nothing end a fit
_Tell = Callable[[str, int, int], None]


def bench(rounds: int, tell: _Tell, *, root: Path | None = None) -> dict[str, Any]:
    """RMSE and MAE of each model for seeds 0 to `rounds` - 1.

    Returns: seeds: seed -> model -> rmse, mae, settings (of tuned ones); and head_minus: model -> rmse, mae: the
        difference and its 95% interval over users (the head is better where all three are below zero). mean: model ->
        rmse, mae, of seeds. seconds: of a seed, about; settings.

    Raises: InputError: no MovieLens folder was named, or it holds no ratings.
    """
    if root is None:
        raise InputError("films are needed", where="bench ratings --root", valid="a MovieLens folder",
                         next="mmrec bench ratings --root FOLDER")  # fmt: skip
    whole, begun = films(root), time.perf_counter()
    seeds = {}
    for seed in range(rounds):
        tell("bench ratings", seed, rounds)
        seeds[str(seed)] = _seed(whole, seed)
    tell("bench ratings", rounds, rounds)
    mean = {m: {e: round(float(np.mean([s[m][e] for s in seeds.values()])), 5) for e in ("rmse", "mae")}
            for m in _MODELS}  # fmt: skip
    users, items = whole.shape
    about = {"source": root.name, "users": users, "items": items, "ratings": len(whole.value), "split": "80/10/10"}
    return {"seeds": seeds, "mean": mean, "seconds": round((time.perf_counter() - begun) / rounds, 1),
            "settings": about}  # fmt: skip


def films(root: Path) -> Ratings:
    """The ratings of a MovieLens folder, with genres and years.

    Raises: InputError: no such folder, or no rating in it.
    """
    from mmrec.worlds.sources import open_source

    rows: dict[str, list[dict[str, Any]]] = {"interactions": [], "items": []}
    for delivery in open_source("movielens-small", root, root).deliveries():
        if delivery.kind in rows:
            rows[delivery.kind] += [r for b in delivery.read() for r in b.to_pylist() if not r["parse_error"]]
    genres = {r["item_id"]: json.loads(r["categories"] or "[]") for r in rows["items"]}
    years = {r["item_id"]: json.loads(r["attributes"] or "{}").get("year") for r in rows["items"]}
    rated = [r for r in rows["interactions"] if r["event_type"] == "rating"]
    ts = np.array([r["event_ts"].removesuffix("Z") for r in rated], "datetime64[us]").astype(np.int64)
    return Ratings.of([r["user_id"] for r in rated], [r["item_id"] for r in rated], [float(r["weight"]) for r in rated],
                      ts, genres, {i: float(y) for i, y in years.items() if y})  # fmt: skip


def _tuned(train: Ratings, valid: Ratings, seed: int) -> Parts:
    """Settings that foretell validation best, by RMSE."""

    def error(model: Any) -> float:
        return float(np.square(_within(train, model.predict(valid.user, valid.item)) - valid.value).mean())

    biases = min(_grid(Biases(), _BIASES), key=lambda m: error(replace(m).fit(train)))
    near = min(_grid(RatingNeighbours(biases=biases), _NEIGHBOURS), key=lambda m: error(replace(m).fit(train)))
    best, found = np.inf, BiasedFactors()
    for model in _grid(BiasedFactors(epochs=_MOST, seed=seed), _FACTORS):
        seen: list[float] = []

        def watch(epoch: int, model: BiasedFactors = model, seen: list[float] = seen) -> bool:
            if epoch % _EVERY == 0:
                seen.append(error(model))
            return len(seen) - int(np.argmin(seen)) > _LOOKS if seen else False

        model.fit(train, watch)
        if min(seen) < best:
            best, found = min(seen), replace(model, epochs=_EVERY * (int(np.argmin(seen)) + 1))
    return Parts(biases, found, near)


def table(told: dict[str, Any]) -> Table:
    """What `bench` returns, for a person."""
    about = told["settings"]
    grid = Table(title=f"{about['source']}: {about['ratings']:,} ratings, {about['split']} at random, test rows")
    for head in ("seed", "model", "RMSE", "MAE", "head's RMSE less it", "head's MAE less it"):
        grid.add_column(head, justify="left" if head == "model" else "right")
    for seed, each in told["seeds"].items():
        for model in _MODELS:
            less = each["head_minus"].get(model, {})
            apart = ("{:+.4f} ({:+.4f} to {:+.4f})".format(*less[e]) if less else "" for e in ("rmse", "mae"))
            grid.add_row(seed, model, f"{each[model]['rmse']:.4f}", f"{each[model]['mae']:.4f}", *apart,
                         style="bold" if model == "head" else "", end_section=model == "head")  # fmt: skip
    for model in _MODELS:
        grid.add_row("mean", model, f"{told['mean'][model]['rmse']:.4f}", f"{told['mean'][model]['mae']:.4f}", "", "")
    return grid


def _seed(whole: Ratings, seed: int) -> dict[str, Any]:
    order, n = np.random.default_rng(seed).permutation(len(whole.value)), len(whole.value)
    train, valid, test = (whole.some(rows) for rows in np.split(order, [int(share * n) for share in _SHARES]))
    parts = _tuned(train, valid, seed)
    known, learned = Known(train, parts), Sample.out_of_fold(train, parts, seed=seed)
    held = known.sample(valid)
    heads = {"head_untimed": fit_rating(learned, held, parts, seed=seed, without=_UNTIMED),
             "head": fit_rating(learned, held, parts, seed=seed)}  # fmt: skip
    plain = {"biases": known.biases, "biased_mf": known.factors, "item_knn": known.neighbours}
    # here, and nowhere before, the test rows are looked at
    asked = known.sample(test)
    rated = {name: _within(train, model.predict(test.user, test.item)) for name, model in plain.items()}
    rated |= {name: head.rate(asked.base_Q, asked.x_QF) for name, head in heads.items()}
    off = {name: rated_Q - test.value for name, rated_Q in rated.items()}
    out: dict[str, Any] = {name: {"rmse": round(_rmse(o), 5), "mae": round(float(np.abs(o).mean()), 5)}
                           for name, o in off.items()}  # fmt: skip
    for name, model in plain.items():
        out[name]["settings"] = asdict(model)
    for name, head in heads.items():
        out[name]["epochs"] = head.told.epochs
    out["head_minus"] = {m: _apart(off["head"], off[m], test.user) for m in _MODELS if m != "head"}
    return out


def _apart(a_Q: np.ndarray, b_Q: np.ndarray, user_Q: np.ndarray) -> dict[str, list[float]]:
    """rmse, mae: that of errors a less that of errors b, and the 95% interval by draws of users.

    A difference of RMSEs is that of mean squares over the sum of both RMSEs, and so are the interval's ends.
    """
    both = _rmse(a_Q) + _rmse(b_Q)
    square = [x / max(both, 1e-12) for x in paired_bootstrap(np.square(a_Q), np.square(b_Q), user_Q)]
    return {"rmse": [round(x, 5) for x in square],
            "mae": [round(x, 5) for x in paired_bootstrap(np.abs(a_Q), np.abs(b_Q), user_Q)]}  # fmt: skip


def _rmse(off_Q: np.ndarray) -> float:
    return float(np.sqrt(np.square(off_Q).mean()))


def _within(known: Ratings, rated_Q: np.ndarray) -> np.ndarray:
    return np.clip(rated_Q, known.value.min(), known.value.max())


def _grid(model: Any, values: dict[str, tuple[Any, ...]]) -> Iterator[Any]:
    for each in itertools.product(*values.values()):
        yield replace(model, **dict(zip(values, each, strict=True)))
