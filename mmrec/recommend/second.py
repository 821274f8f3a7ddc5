"""The second stage: the first candidates of a ranking in the order of a heavier model, which sees each pair's features.

In: rankings of some users, histories, a bundle's `second.onnx`, the day's items. Out: the same rankings, the first
`depth` places in a new order.
`rank` is the place from 1 that the first stage gave, and a row keeps the first stage's score: so the last look still
checks that there was a ranking. What lies behind `depth` follows in its own order; ties are by the first stage's place.
It runs on the CPU in batches of one size, so that a user's order depends on no companion and on no device.
Trade-off: what the first stage ranks behind `depth` can't come in; in exchange the pool is its exact top, whose scores
were of the same kind in training.

Shape legend: S users, W places of a ranking, C candidates of a pool, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from mmrec.bundle.bundle import Bundle
from mmrec.errors import InputError, QualityError
from mmrec.models.pairs import FEATURES, Facts, features
from mmrec.ort import session
from mmrec.topk.exact import TopK
from mmrec.topk.seen import Seen, of_rows
from mmrec.topk.threads import share

_BATCH = 64  # users
_FEW = 4 * _BATCH  # users that are not worth a thread
GRAPH = "second.onnx"


@dataclass(frozen=True)
class Second:
    """A night's second stage: see `Second.over`. `graph`: pairs' features (R, F) -> values (R,)."""

    facts: Facts
    depth: int
    graph: Any

    @classmethod
    def over(
        cls, bundle: Bundle, depth: int, items: pa.Table, sketch_NV: np.ndarray | None, at_us: int
    ) -> Second:
        """Of a day's items, with the columns of models/pairs.py.

        Args:
            sketch_NV: of sketch.py; None: no content is known. at_us: the night's as_of.

        Raises: QualityError: as `_check`.
        """
        _check(bundle)
        return cls(Facts.of_day(items, at_us, sketch_NV), depth, session(bundle.folder / GRAPH, "cpu", 1))

    def ranked(self, found: TopK, wide: int, history: Seen) -> TopK:
        """The first `wide` places of rankings, of which the first `depth` come in a new order, and `rank`: (S, W)
        int32, the place from 1 that each had.

        Args:
            found: of at least max(wide, depth) places, or all there are. history: (S + 1,) and places in the catalogue,
                the latest last.

        Raises: QualityError: the graph gives what is not a number.
        """
        item_SC, score_SC = (np.ascontiguousarray(x[:, : self.depth]) for x in (found.item, found.score))
        value_SC = np.empty(item_SC.shape, np.float32)

        def part(some: slice) -> None:
            x_SCF = features(self.facts, item_SC[some], score_SC[some], of_rows(history, some))
            value_SC[some] = self._values(x_SCF)

        share(len(item_SC), _FEW, part)
        there_SC = item_SC >= 0
        if not np.isfinite(value_SC[there_SC]).all():
            raise QualityError("the second stage gives what is not a number", where=f"bundle, {GRAPH}",
                               value=int((~np.isfinite(value_SC[there_SC])).sum()), valid="finite values",
                               next="mmrec learn --date D")  # fmt: skip
        order_SC = np.argsort(-np.where(there_SC, value_SC, -np.inf), axis=1, kind="stable")
        rank_SW = np.tile(np.arange(1, found.item.shape[1] + 1, dtype=np.int32), (len(found.item), 1))
        rank_SW[:, : self.depth] = order_SC + 1
        at_SW = rank_SW[:, :wide] - 1
        return replace(found, item=np.take_along_axis(found.item, at_SW, 1),
                       score=np.take_along_axis(found.score, at_SW, 1), rank=at_SW + np.int32(1))  # fmt: skip

    def _values(self, x_SCF: np.ndarray) -> np.ndarray:
        """(S, C) float32."""
        s, c, f = x_SCF.shape
        out_SC = np.zeros((s, c), np.float32)
        x_BCF = np.zeros((_BATCH, self.depth, f), np.float32)
        for start in range(0, s, _BATCH):
            n = min(_BATCH, s - start)
            x_BCF[:] = 0
            x_BCF[:n, :c] = x_SCF[start : start + n]
            value_R = self.graph.run(None, {"x": x_BCF.reshape(-1, f)})[0]
            out_SC[start : start + n] = value_R.reshape(_BATCH, self.depth)[:n, :c]
        return out_SC


def reordered(found: TopK, put: Callable[[TopK], TopK]) -> TopK:
    """What else puts a second stage's ranking in another order: it is shown scores that fall, each place with the score
    of who had it in the first stage, and what goes out has the first stage's scores and places again.

    Args:
        found: of `ranked`, whole: with every place that the first stage gave. put: gives places and their `rank`.
    """
    back_SW = np.argsort(found.rank, axis=1)
    score_SW = np.take_along_axis(found.score, back_SW, 1)
    made = put(replace(found, score=score_SW.copy(), rank=None))
    assert found.rank is not None
    assert made.rank is not None
    rank_SW = np.take_along_axis(found.rank, made.rank - 1, 1)
    return replace(made, score=np.take_along_axis(score_SW, rank_SW - 1, 1), rank=rank_SW)


def _check(bundle: Bundle) -> None:
    """Raises: QualityError: the bundle's second stage was trained on other features than are made here."""
    told = (bundle.about.get("second_stage") or {}).get("features")
    if told != list(FEATURES):
        raise QualityError("the second stage was trained on other features", where="bundle.json: second_stage",
                           value=told, valid=list(FEATURES), next="mmrec learn --date D")  # fmt: skip


def asked(depth: int, bundle: Bundle, when: date) -> bool:
    """Whether a night has a second stage: the settings ask for it, and a model ranks.

    Raises: InputError: the bundle has none, or one of another depth. QualityError: as `_check`.
    """
    if not depth or bundle.kind == "popularity":  # of before the first training: nobody's ranking is a model's
        return False
    told = bundle.about.get("second_stage")
    if told is None or not (bundle.folder / GRAPH).is_file() or told["depth"] != depth:
        has = "no second.onnx" if told is None else f"one of depth {told['depth']}"
        raise InputError("the settings ask for a second stage that the model does not have",
                         where=f"mmrec.toml: second_stage.depth {depth}, bundle {bundle.folder.name}", value=has,
                         valid="a model trained with these settings, or depth 0",
                         next=f"mmrec learn --date {when}")  # fmt: skip
    _check(bundle)
    return True
