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
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from mmrec.bundle.bundle import Bundle
from mmrec.errors import InputError, QualityError
from mmrec.models import traits
from mmrec.models.columns import Columns
from mmrec.models.pairs import FEATURES, Facts, Known, features
from mmrec.models.traits import Traits, Who, traits_of
from mmrec.ort import session
from mmrec.recommend.histories import rows_of
from mmrec.topk.exact import TopK
from mmrec.topk.seen import Seen, of_rows
from mmrec.topk.threads import share

_BATCH = 64  # users
_FEW = 4 * _BATCH  # users that are not worth a thread
GRAPH = "second.onnx"
COLUMNS = ("attributes", "contexts", "texts", "event_us", "social_item_ids")  # of gold.user_sequences: who users are


@dataclass(frozen=True)
class Second:
    """A night's second stage: see `Second.over`.

    Attributes:
        graph: pairs' features (R, F) -> values (R,). names: (F,) of them. ids: (N,) of items. at_us: the night's as_of.
        columns: that the shop declared; None: none.
    """

    facts: Facts
    depth: int
    graph: Any
    names: tuple[str, ...]
    ids: pa.Array
    at_us: int
    columns: Columns | None = None

    @classmethod
    def over(
        cls, bundle: Bundle, depth: int, items: pa.Table, sketch_NV: np.ndarray | None, at_us: int
    ) -> Second:
        """Of a day's items, with the columns of models/pairs.py.

        Args:
            items: ascending by item_id. sketch_NV: of sketch.py; None: no content is known. at_us: the night's as_of.

        Raises: QualityError: as `_check`; or items' columns are of another kind than those that were learned from.
        """
        _check(bundle)
        facts, ids = Facts.of_day(items, at_us, sketch_NV), items["item_id"].combine_chunks()
        if bundle.about["second_stage"].get("sources"):
            facts = facts.knowing(Traits.load(bundle.folder, ids.to_pylist()), items["entities"].to_pylist())
        columns = _columns(bundle)
        if columns is not None:
            facts = facts.telling(columns, items["attributes"].to_pylist())
        names = tuple(bundle.about["second_stage"]["features"])
        return cls(facts, depth, session(bundle.folder / GRAPH, "cpu", 1), names, ids, at_us, columns)

    def who(self, users: pa.Table) -> Who | None:
        """Who users are, with `COLUMNS` of gold.user_sequences; None: it is not looked at.

        Raises: QualityError: users' columns are of another kind than those that were learned from.
        """
        if self.facts.known is None:
            return None
        told, context, text, at_us = (users[c].to_pylist() for c in COLUMNS[:-1])
        own = [traits_of(a, c[-1] if c else None, _lately(t, us, self.at_us - traits.WORDS_US))
               for a, c, t, us in zip(told, context, text, at_us, strict=True)]  # fmt: skip
        friends = rows_of(users[COLUMNS[-1]], self.ids)
        theirs = [friends.at[a:z] for a, z in pairwise(friends.ptr.tolist())]
        at = {name: t for t, name in enumerate(self.facts.known.names)}
        last = [c[-1] if c else None for c in context], np.array([us[-1] if us else -1 for us in at_us], np.int64)
        return Who.of(own, at, theirs, None if self.columns is None else self.columns.users(told, last))

    def ranked(self, found: TopK, wide: int, history: Seen, who: Who | None = None) -> TopK:
        """The first `wide` places of rankings, of which the first `depth` come in a new order, and `rank`: (S, W)
        int32, the place from 1 that each had.

        Args:
            found: of at least max(wide, depth) places, or all there are. history: (S + 1,) and places in the catalogue,
                the latest last. who: the same users; None: no source is looked at.

        Raises: QualityError: the graph gives what is not a number.
        """
        assert (who is None) == (self.facts.known is None)
        item_SC, score_SC = (np.ascontiguousarray(x[:, : self.depth]) for x in (found.item, found.score))
        value_SC = np.empty(item_SC.shape, np.float32)

        def part(some: slice) -> None:
            own = None if who is None else who.some(np.arange(some.start, some.stop))
            x_SCF = features(self.facts, item_SC[some], score_SC[some], of_rows(history, some), own)
            value_SC[some] = self._values(np.ascontiguousarray(x_SCF[..., self._at]))

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

    @cached_property
    def _at(self) -> list[int]:
        return [self.facts.names.index(name) for name in self.names]

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


def _lately(texts: list[str | None] | None, event_us: list[int], since_us: int) -> list[str | None]:
    return [text for text, us in zip(texts or (), event_us, strict=False) if us > since_us]


def _check(bundle: Bundle) -> None:
    """Raises: QualityError: the bundle's second stage was trained on other features than are made here."""
    about = bundle.about.get("second_stage") or {}
    made = (*FEATURES, *(Known.named(Traits.load(bundle.folder, ())) if about.get("sources") else ()))
    columns = _columns(bundle)
    made = (*made, *(columns.names if columns is not None else ()))
    if not about.get("features") or not set(about["features"]) <= set(made):
        raise QualityError("the second stage was trained on other features", where="bundle.json: second_stage",
                           value=about.get("features"), valid=list(made), next="mmrec learn --date D")  # fmt: skip


def _columns(bundle: Bundle) -> Columns | None:
    """Raises: QualityError: as `Columns.load`."""
    told = (bundle.about.get("second_stage") or {}).get("columns")
    return None if told is None else Columns.load(bundle.folder, told)


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
