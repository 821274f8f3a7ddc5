"""The second stage fitted: a small network that orders the first stage's best by what it sees of each pair.

In: a fitted first stage, its rolling validation folds, what is known beside behaviour. Out: a `Reranker`: saved,
exported as `second.onnx`, or a scorer for evaluation; and rivals of it that were fitted without one source, and with
one that is noise: what each source brings. Features: models/pairs.py, as of each fold's cut.
The first stage was fitted before these cases, so its scores are what they will be at night. The loss is the softmax
cross-entropy over a case's pool (Cao et al., ICML 2007, top one), several targets weighing alike; a case of whose
targets the pool holds none says nothing and is left out. The network begins as the first stage's own order (its score,
and nothing added) and is kept as it was at the best epoch on a fifth of the users, who are not trained on: where
nothing is learned, nothing is moved. There are five, one for each fifth, and what is served is their mean (bagging by
cross-validation: Breiman, Machine Learning 24, 1996): one fit's luck is as large as what a source brings.
Trade-off: it is fitted on validation windows alone and not again on the latest ones, because the latest ones judge it.

Shape legend: B cases, C candidates, F features, R rows of a batch (cases x candidates), N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmrec.errors import InputError, QualityError
from mmrec.models.data import Fold, Items, Log
from mmrec.models.pairs import Facts, features, source_of
from mmrec.models.sketch import sketched
from mmrec.models.sources import Sources
from mmrec.models.traits import KINDS
from mmrec.topk.exact import TopK, select
from mmrec.topk.seen import Seen
from mmrec.train.small import Head, Pace, learned, trunk

_PACE = Pace(rate=1e-3, decay=1e-3, batch=64, epochs=100, patience=10)
_PARTS = 5  # of users, each of which one member is not trained on
_CASES = 32_768  # of all folds together, evenly spaced
_BLOCK = 256
_NEXT = "mmrec train --date D"


def _liked(name: str) -> bool:
    return name.endswith("_like")


def _lift(name: str) -> bool:
    return source_of(name) in KINDS and not _liked(name)


class _Member(nn.Module):
    """(R,) scores of the first stage and (R, F) in units of their spread -> (R,): the score in a weight that is
    learned, and what a network adds."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.added = trunk(wide)
        self.own = nn.Parameter(torch.ones(()))

    def forward(self, score_R: torch.Tensor, z_RF: torch.Tensor) -> torch.Tensor:
        return self.own * score_R + self.added(z_RF).squeeze(1)


class _Net(nn.Module):
    """(R, F) -> (R,): the mean of the members."""

    def __init__(self, wide: int, members: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(_Member(wide) for _ in range(members))
        self.register_buffer("mean", torch.zeros(wide))
        self.register_buffer("scale", torch.ones(wide))  # 1 of what never varies

    def forward(self, x: torch.Tensor, only: int | None = None) -> torch.Tensor:
        z, members = (x - self.mean) * self.scale, self.members if only is None else self.members[only : only + 1]
        return torch.stack([member(x[:, 0], z) for member in members]).mean(0)


@dataclass(frozen=True)
class _Told:
    """Of a fit. `epochs`: of each member. `loss`: of the first stage's order and of the members, each on the users that
    it was not trained on."""

    features: tuple[str, ...]
    depth: int
    length: int
    cases: int
    left_out: int
    epochs: tuple[int, ...]
    loss: tuple[float, float]


@dataclass(frozen=True)
class Reranker(Head):
    """A fitted second stage; `told`: what is known of the fit, for bundle.json."""

    net: _Net
    told: _Told
    name, output, then = "second", "value", _NEXT

    @classmethod
    def load(cls, folder: Path) -> Reranker:
        """What `save` wrote."""
        told, weights = cls.read(folder)
        net = _Net(len(told["features"]), len(told["epochs"]))
        net.load_state_dict(weights)
        return cls(net, _Told(**told))

    def values(self, x_BCF: np.ndarray, names: Sequence[str], user_B: np.ndarray | None = None) -> np.ndarray:
        """(B, C) float32 of features of pairs, `names` of them among which its own are.

        Args:
            user_B: where the cases are those that it was fitted on, their users: each is valued by the member that was
                not trained on it.
        """
        x_BCF = x_BCF[..., [names.index(own) for own in self.told.features]]
        part_B = None if user_B is None else _parts(user_B)
        value_BC = np.empty(x_BCF.shape[:2], np.float32)
        with torch.no_grad():
            for part in (None,) if part_B is None else range(len(self.net.members)):
                some = slice(None) if part_B is None else part_B == part
                x = torch.from_numpy(x_BCF[some].reshape(-1, x_BCF.shape[2]))
                value_BC[some] = self.net(x, part).numpy().reshape(-1, x_BCF.shape[1])
        return value_BC


def scorers(
    stages: Mapping[str, Reranker], model: Any, items: Items, log: Log, fold: Fold, sources: Sources | None
) -> dict[str, Callable[[slice], np.ndarray]]:
    """Of each stage, slice of cases -> (B, N) float32, by which the pool leads in its order and all else follows in the
    first stage's; `model` as it is fitted for the fold. Of one depth and length, as `fit_second` gives them."""
    told = next(iter(stages.values())).told
    pool = _Pool(model, items, log, fold, told.depth, told.length, sources)

    def score(stage: Reranker, cases: slice) -> np.ndarray:
        score_BN, top, x_BCF = pool.of(cases)
        value_BC = np.where(top.item >= 0, stage.values(x_BCF, pool.facts.names), -np.inf)
        order_BC = np.argsort(-value_BC, axis=1, kind="stable")
        item_BC = np.take_along_axis(top.item, order_BC, 1)
        best_B = np.where(np.isfinite(score_BN), score_BN, -np.inf).max(1)
        b, at = np.nonzero(item_BC >= 0)
        score_BN[b, item_BC[b, at]] = best_B[b] + (item_BC.shape[1] - at)
        return score_BN

    return {name: partial(score, stage) for name, stage in stages.items()}


class _Pool:
    """Pools of a fold's cases, and their features."""

    def __init__(
        self, model: Any, items: Items, log: Log, fold: Fold, depth: int, length: int, sources: Sources | None
    ) -> None:
        self.model, self.items, self.log, self.fold, self.depth, self.length = model, items, log, fold, depth, length
        self.facts, self.sources = Facts.of_fold(items, log, fold, _sketch(items)), sources
        self.traits, self.columns = None, None
        if sources is not None:
            self.traits = sources.counted(log, fold, items.n)
            self.columns = sources.columns(log, fold, self.facts.popularity_N)
            self.facts = self.facts.knowing(self.traits, sources.entities_N, fold.catalogue)
            if self.columns is not None:
                self.facts = self.facts.telling(self.columns, sources.attributes_N, checked=False)

    def of(self, cases: slice) -> tuple[np.ndarray, TopK, np.ndarray]:
        """(B, N) scores of the first stage, its best, and (B, C, F)."""
        score_BN = np.array(self.model.score(self.items, self.log, self.fold, cases), np.float32)
        ptr = self.fold.hist_ptr[cases.start : cases.start + len(score_BN) + 1]
        seen = (ptr - ptr[0], self.log.item[self.fold.hist_row[ptr[0] : ptr[-1]]])
        top = select(score_BN, self.depth, seen=seen, allowed=self.fold.catalogue)
        who = None
        if self.sources is not None and self.traits is not None:
            who = self.sources.who(self.log, self.fold, cases, self.traits, self.length, self.columns)
        return score_BN, top, features(self.facts, top.item, top.score, self._history(cases), who)

    def _history(self, cases: slice) -> Seen:
        """The last events of items on offer, as a night keeps them."""
        ptr, row = self.fold.hist_ptr, self.fold.hist_row
        ends = pairwise(ptr[cases.start : cases.stop + 1].tolist())
        own = [self.log.item[row[max(a, z - self.length) : z]] for a, z in ends]
        own = [o[self.fold.catalogue[o]] for o in own]
        return np.cumsum([0, *map(len, own)]).astype(np.int64), np.concatenate([*own, np.zeros(0, np.int32)])


_SKETCHED: list[tuple[Items, np.ndarray | None]] = []  # of the items that were last asked for


def _sketch(items: Items) -> np.ndarray | None:
    """Directions are found from all items: it takes seconds, and a fold's own differ by what rounding does."""
    if not _SKETCHED or _SKETCHED[0][0] is not items:
        contents = [items.content[m] for m in sorted(items.content)]
        _SKETCHED[:] = [(items, sketched(contents) if contents else None)]
    return _SKETCHED[0][1]


def fit_second(
    model: Any, items: Items, log: Log, folds: Sequence[Fold], *, depth: int, length: int, seed: int = 0,
    sources: Sources | None = None, using: Sequence[str] = (), kept: Sequence[str] = (),
) -> dict[str, Reranker]:  # fmt: skip
    """Fit on validation folds: the second stage under "", and beside it under `without_<source>` and `with_noise` what
    is compared with it, of the same cases and draws.

    Args:
        model: the first stage, fitted before them; what is closed form is fitted again on each, as a night does.
        depth: candidates of a pool. length: events of a history that a night keeps. sources: what is known beside
            behaviour; None: nothing. using: sources that the second stage looks at. kept: features; empty: all.

    Raises: QualityError: no case has a target in its pool, or the loss is not a number. InputError: no such feature.
    """
    gathered = _gathered(model, items, log, folds, depth, length, sources)
    names = gathered[5]
    if not len(gathered[0]):
        raise _nothing(gathered, depth)
    using = using if sources is not None else ()
    asked = {"": using} | {f"without_{s}": [u for u in using if u != s] for s in using}
    asked |= {"with_noise": [*using, "noise"]} if using else {}
    strange = sorted(set(kept) - set(names))
    if strange:
        raise InputError("no such feature", where="mmrec.toml: second_stage.kept", value=strange[0], valid=list(names),
                         next="mmrec features rank")  # fmt: skip
    seen = [f for f in names if not kept or f in kept or source_of(f) == "noise"]
    return {name: _fit(gathered, [f for f in seen if source_of(f) in (None, *some)], depth, length, seed)
            for name, some in asked.items()}  # fmt: skip


def looked_at(
    model: Any, items: Items, log: Log, folds: Sequence[Fold], *, depth: int, length: int, seed: int = 0,
    sources: Sources | None = None, using: Sequence[str] = (), drop: bool = False, tell: Callable[[int, int], None],
) -> dict[str, Any]:  # fmt: skip
    """What a second stage is fitted on, and its word on it, as evaluate/importance.py takes them: x_BCF, there_BC,
    wanted_BC, user_B, names, values, without. A case is valued by the member that was not trained on it.

    Args:
        the others as `fit_second`. drop: whether there is a `without`; else it is None. tell: is told after each fit
            how many there were, and are.

    Raises: QualityError: as `fit_second`.
    """
    gathered = _gathered(model, items, log, folds, depth, length, sources)
    if not len(gathered[0]):
        raise _nothing(gathered, depth)
    x_BCF, there_BC, wanted_BC, user_B, _, known = gathered
    names = [f for f in known if source_of(f) in (None, *(using if sources is not None else ()))]
    fits = count(1)

    def fitted(features: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
        stage = _fit(gathered, features, depth, length, seed)
        tell(next(fits), 1 + drop * len(names))
        return lambda x: stage.values(x, names, user_B)

    return {"x_BCF": np.ascontiguousarray(x_BCF[..., [known.index(f) for f in names]]), "there_BC": there_BC,
            "wanted_BC": wanted_BC, "user_B": user_B, "names": names, "values": fitted(names),
            "without": (lambda f: fitted([own for own in names if own != names[f]])) if drop else None}  # fmt: skip


def _fit(gathered: _Gathered, names: Sequence[str], depth: int, length: int, seed: int) -> Reranker:
    x_BCF, there_BC, wanted_BC, user_B, missed, known = gathered
    x_BCF = np.ascontiguousarray(x_BCF[..., [known.index(name) for name in names]])
    seen_RF = x_BCF[there_BC]
    mean_F, spread_F = seen_RF.mean(0, dtype=np.float64), seen_RF.std(0, dtype=np.float64)
    # all lifts are in one unit, and so is all that is liked: what says little stays little
    for unit in (_lift, _liked):
        own = [n for n, name in enumerate(names) if unit(name)]
        spread_F[own] = spread_F[own].max(initial=0)
    part_B = _parts(user_B)
    torch.manual_seed(seed)
    net = _Net(len(names), int(part_B.max()) + 1)
    net.mean.copy_(torch.from_numpy(mean_F.astype(np.float32)))
    net.scale.copy_(torch.from_numpy((1 / np.where(spread_F > 1e-6, spread_F, 1)).astype(np.float32)))
    every = _Cases(*(torch.from_numpy(a) for a in (x_BCF[..., 0], x_BCF, there_BC, wanted_BC)))
    every = replace(every, z_BCF=(every.z_BCF - net.mean) * net.scale)
    fits = []
    for part, member in enumerate(net.members):
        train, held = every.of(part_B != part), every.of(part_B == part)
        fits.append(learned(member, len(train.z_BCF), partial(train.loss, member),
                            partial(lambda held, member: float(held.loss(member, slice(None))), held, member),
                            _PACE, seed + part, ("second stage", _NEXT)))  # fmt: skip
    loss = np.average([loss for _, loss in fits], axis=0, weights=np.bincount(part_B))
    return Reranker(net.eval(), _Told(tuple(names), depth, length, len(x_BCF), missed, tuple(e for e, _ in fits),
                                      (float(loss[0]), float(loss[1]))))  # fmt: skip


def _nothing(gathered: _Gathered, depth: int) -> QualityError:
    return QualityError("no validation case has a target among its first candidates", where="second stage",
                        value=f"{gathered[4]} cases, depth {depth}", valid="at least one",
                        next="edit mmrec.toml: second_stage.depth")  # fmt: skip


def _parts(user_B: np.ndarray) -> np.ndarray:
    """(B,) the member that is not trained on a case: all of a user's have one."""
    part_B = np.unique(user_B, return_inverse=True)[1]
    if part_B.max() < _PARTS - 1:  # too few users to hold any out
        part_B = np.arange(len(user_B))
    return part_B % _PARTS


_Gathered = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, tuple[str, ...]]


def _gathered(
    model: Any, items: Items, log: Log, folds: Sequence[Fold], depth: int, length: int, sources: Sources | None
) -> _Gathered:
    """(B, C, F), (B, C) whether there is a candidate and whether it is wanted, (B,) users, cases left out, and the
    features' names: those that all folds have."""
    parts, missed = [], 0
    known: list[tuple[str, ...]] = []
    total = sum(f.n_cases for f in folds)
    for fold in (f for f in folds if f.n_cases):
        model.refresh(items, log, fold)
        pool = _Pool(model, items, log, fold, depth, length, sources)
        known.append(pool.facts.names)
        most = max(1, _CASES * fold.n_cases // max(total, _CASES))
        picked = np.unique(np.linspace(0, fold.n_cases - 1, most).astype(np.int64))
        for start in range(0, fold.n_cases, _BLOCK):
            mine = picked[(picked >= start) & (picked < start + _BLOCK)]
            if not len(mine):
                continue
            _, top, x_BCF = pool.of(slice(start, min(start + _BLOCK, fold.n_cases)))
            item_BC = top.item[mine - start]
            target = [fold.target_item[fold.target_ptr[c] : fold.target_ptr[c + 1]] for c in mine]
            wanted_BC = np.stack([np.isin(i, t) for i, t in zip(item_BC, target, strict=True)]) & (item_BC >= 0)
            kept = wanted_BC.any(1)
            missed += int((~kept).sum())
            parts.append((len(known) - 1, x_BCF[mine - start][kept], item_BC[kept] >= 0, wanted_BC[kept],
                          fold.case_user[mine][kept]))  # fmt: skip
    names = tuple(n for n in (known or [()])[0] if all(n in own for own in known))
    if not parts:
        return np.zeros((0, depth, 0), np.float32), *(np.zeros((0, depth), bool),) * 2, np.zeros(0), missed, names
    parts = [(x[..., [known[of].index(n) for n in names]], *more) for of, x, *more in parts]
    x, there, wanted, user = (np.concatenate(q) for q in zip(*parts, strict=True))
    return x, there, wanted, user, missed, names


@dataclass(frozen=True)
class _Cases:
    """Cases to train on, or to judge by."""

    score_BC: torch.Tensor
    z_BCF: torch.Tensor
    there_BC: torch.Tensor
    wanted_BC: torch.Tensor

    def of(self, some_B: np.ndarray) -> _Cases:
        some = torch.from_numpy(np.flatnonzero(some_B))
        return _Cases(self.score_BC[some], self.z_BCF[some], self.there_BC[some], self.wanted_BC[some])

    def loss(self, member: _Member, rows: torch.Tensor | slice) -> torch.Tensor:
        z_BCF, there_BC, wanted_BC = self.z_BCF[rows], self.there_BC[rows], self.wanted_BC[rows]
        value_BC = member(self.score_BC[rows].reshape(-1), z_BCF.reshape(-1, z_BCF.shape[2])).reshape(there_BC.shape)
        log_BC = torch.log_softmax(value_BC.masked_fill(~there_BC, -1e9), 1)
        return -(torch.where(wanted_BC, log_BC, 0.0).sum(1) / wanted_BC.sum(1)).mean()
