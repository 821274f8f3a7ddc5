"""`mmrec bench clicks`: how likely what is shown is clicked, by the click head and by models that see place and rates.

In: seeds of the built-in world, a size. Out: of each seed AUC, log loss, F1 and calibration error on its test weeks,
the heads' differences, and how far the looks they found at places are from the world's own.
A seed's slates (bench/showcase.py) are cut in time: a week that only counts, train, validation, test. All that is
chosen (the ridge of `bias`, epochs, stretching, the threshold of F1) is chosen on validation; the test weeks are read
once. Every model sees what was known before an impression's day:
    place       the click rate of the place
    bias        logistic regression on place, user and item, drawn to nothing by a ridge, and both rates of that morning
    pair, bilinear      the head's two forms; sampled: pair, from a tenth of what was not clicked
    oracle      the world's own chances: no model can do better but by luck
Trade-off: models are fitted once and asked for weeks after, with what is known of users and items told anew each day:
a night that fits more often would do no worse.

Shape legend: Q impressions, T test rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss, precision_recall_curve, roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from mmrec.bench.showcase import showcase
from mmrec.evaluate.chances import auc_apart, calibration_error, reliability
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.models.shown import RATES, Impressions, Shown
from mmrec.train.click import fit_click

_MODELS = ("place", "bias", "bilinear", "sampled", "pair", "oracle")
_HEADS = ("bilinear", "sampled", "pair")
_BEFORE = 60  # days without slates
_WEEKS = {"counted": 1, "train": 10, "valid": 2, "test": 4}
_RIDGE = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of scikit-learn's C
_KEEP = 0.1  # of negatives, of `sampled`
_NUMBERS = ("auc", "log_loss", "f1", "ece", "ece_count")
_Tell = Callable[[str, int, int], None]


def bench(rounds: int, tell: _Tell, *, size: str = "small") -> dict[str, Any]:
    """Each model for world seeds 0 to `rounds` - 1.

    Returns: seeds: seed -> model -> auc, log_loss, f1, ece (15 bins of one width), ece_count (of one number of cases),
        epochs, stretch and examined of heads; minus: head -> model -> auc, log_loss: the head less it, with the 95%
        interval over users; looks: head -> mean and greatest distance of examined from the world's; reliability: of
        `pair`, bins of one number of cases; counts: part -> impressions, clicks. mean: model -> numbers, of seeds.
        seconds: of a seed, about; settings.

    Raises: InputError: no such size.
    """
    begun, seeds = time.perf_counter(), {}
    for seed in range(rounds):
        seeds[str(seed)] = _seed(seed, size, lambda n, of, at=seed: tell("bench clicks", at * of + n, rounds * of))
    tell("bench clicks", rounds, rounds)
    mean = {m: {e: round(float(np.mean([s[m][e] for s in seeds.values()])), 5) for e in _NUMBERS} for m in _MODELS}
    return {"seeds": seeds, "mean": mean, "seconds": round((time.perf_counter() - begun) / rounds, 1),
            "settings": {"size": size, "days_before": _BEFORE, "weeks": _WEEKS, "keep": _KEEP}}  # fmt: skip


def table(told: dict[str, Any]) -> Table:
    """What `bench` returns, for a person."""
    about = told["settings"]
    grid = Table(title=f"the built-in world, {about['size']}: {about['weeks']['test']} test weeks; 95% over users")
    for head in ("seed", "model", "AUC", "loss", "F1", "ECE", "AUC less bias's"):
        grid.add_column(head, justify="left" if head == "model" else "right", no_wrap=True)
    for seed, each in [*told["seeds"].items(), ("mean", told["mean"])]:
        for model in _MODELS:
            less = each["minus"][model]["bias"]["auc"] if model in each.get("minus", {}) else None
            apart = "{:+.3f} ({:+.3f} to {:+.3f})".format(*less) if less else ""
            own = each[model]
            cells = f"{own['auc']:.3f}", f"{own['log_loss']:.4f}", f"{own['f1']:.3f}", f"{own['ece']:.4f}", apart
            grid.add_row(seed, model, *(c.replace("0.", ".") for c in cells), style="bold" if model == "pair" else "",
                         end_section=model == _MODELS[-1])  # fmt: skip
    return grid


def _seed(seed: int, size: str, tell: Callable[[int, int], None]) -> dict[str, Any]:
    days = 7 * sum(_WEEKS.values())
    shop = showcase(seed, size, _BEFORE, days, lambda n, of: tell(n, of + days))
    seen = shop.seen(lambda n, of: tell(_BEFORE + days + n, _BEFORE + days + of))
    i = shop.shown
    ends = np.cumsum([7 * w for w in _WEEKS.values()])
    part_Q = np.searchsorted(ends, i.day - i.day[0], side="right")
    train, valid, test = (part_Q == n for n in (1, 2, 3))
    views = {form: Shown(x, names, of_user, i.user, i.place, i.surface, i.clicked, i.surfaces)
             for form, (x, names, of_user) in seen.items()}  # fmt: skip
    asked = {"pair": ("pair", 1.0), "sampled": ("pair", _KEEP), "bilinear": ("bilinear", 1.0)}
    heads = {name: fit_click(views[form].some(train), views[form].some(valid), form=form, keep=keep, seed=seed)
             for name, (form, keep) in asked.items()}  # fmt: skip
    chance = {"place": _place(i, train), "bias": _bias(i, views["pair"].x_QF, train, valid), "oracle": shop.true_Q}
    chance |= {name: head.chance(views[head.told.form]) for name, head in heads.items()}
    # here, and nowhere before, the test weeks are looked at
    came, user = i.clicked[test], i.user[test]
    out: dict[str, Any] = {m: _judged(chance[m][valid], i.clicked[valid], chance[m][test], came) for m in _MODELS}
    for name, head in heads.items():
        examined = head.told.examined[i.surfaces[0]]
        out[name] |= {"epochs": head.told.epochs, "stretch": head.told.stretch,
                      "examined": [round(e, 4) for e in examined]}  # fmt: skip
    out["minus"] = {h: {m: _apart(chance[h][test], chance[m][test], came, user) for m in ("place", "bias")}
                    for h in _HEADS}  # fmt: skip
    off = {h: np.abs(np.array(out[h]["examined"]) - shop.looks_P[: len(out[h]["examined"])]) for h in _HEADS}
    out["looks"] = {h: {"mean": round(float(o.mean()), 4), "most": round(float(o.max()), 4)} for h, o in off.items()}
    out["reliability"] = [{k: round(v, 5) for k, v in row.items()}
                          for row in reliability(chance["pair"][test], came, even="count")]  # fmt: skip
    out["counts"] = {name: [int(rows.sum()), int(i.clicked[rows].sum())]
                     for name, rows in (("train", train), ("valid", valid), ("test", test))}  # fmt: skip
    return out


def _place(i: Impressions, train: np.ndarray) -> np.ndarray:
    """(Q,) click rates of places."""
    wide = int(i.place.max()) + 1
    many, clicks = (np.bincount(i.place[train], w, wide) for w in (None, i.clicked[train]))
    return ((clicks + i.clicked[train].mean()) / (many + 1))[i.place]


def _bias(i: Impressions, x_QF: np.ndarray, train: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(Q,) by place, user, item and both rates; the ridge that foretells validation best."""
    whole = np.stack([i.place, i.user, i.item], 1)
    known = OneHotEncoder(handle_unknown="ignore").fit(whole[train])
    rates = x_QF[:, -len(RATES) :][:, :2]
    x = sparse.hstack([known.transform(whole), sparse.csr_matrix(rates)]).tocsr()
    made = [LogisticRegression(C=c, max_iter=1000).fit(x[train], i.clicked[train]) for c in _RIDGE]
    best = min(made, key=lambda m: log_loss(i.clicked[valid], m.predict_proba(x[valid])[:, 1]))
    return best.predict_proba(x)[:, 1]


def _judged(held: np.ndarray, held_came: np.ndarray, chance_T: np.ndarray, came: np.ndarray) -> dict[str, Any]:
    """Of test rows; F1 at the threshold that is best for it on validation."""
    precision, recall, threshold = precision_recall_curve(held_came, held)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    said = chance_T >= threshold[int(f1[:-1].argmax())]
    numbers = (roc_auc_score(came, chance_T), log_loss(came, _inside(chance_T)), f1_score(came, said),
               calibration_error(chance_T, came), calibration_error(chance_T, came, even="count"))  # fmt: skip
    return {name: round(float(v), 5) for name, v in zip(_NUMBERS, numbers, strict=True)}


def _apart(a_T: np.ndarray, b_T: np.ndarray, came: np.ndarray, user: np.ndarray) -> dict[str, list[float]]:
    """auc, log_loss: that of chances a less that of b, and the 95% interval by draws of users."""
    loss = (-np.log(np.where(came, p, 1 - p)) for p in map(_inside, (a_T, b_T)))
    return {"auc": [round(x, 5) for x in auc_apart(a_T, b_T, came, user)],
            "log_loss": [round(x, 6) for x in paired_bootstrap(*loss, user)]}  # fmt: skip


def _inside(chance_T: np.ndarray) -> np.ndarray:
    """What a click may have come of: the oracle says none of what had been had."""
    return np.clip(chance_T, 1e-9, 1 - 1e-9)
