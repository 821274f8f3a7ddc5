"""Why a row is in a list, in numbers for analysts and in words for users.

In: a day's items, what weighs a model's contributions (contributions.py), lists. Out: the columns reason, because,
because_share, parts and parts_share of gold.recommendations.
Of the first rows of a list that the model put there: which items of the history added most to the score, at most
three, each with its share of all that was added; and the parts of the score, each with its share of their sizes. Rows
behind them name the item of the history that is closest in the model's item space. Rows of popularity, of a rule or of
a draw have no history to name, and say so.
Trade-off: a share is of what items that are still on offer add; what they take away is not told.

Shape legend: B users, K places of a list, J places with numbers, H items of a history, C named ones, P parts, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec import schema
from mmrec.recommend import words
from mmrec.recommend.generators import NAMES
from mmrec.recommend.histories import Rows
from mmrec.recommend.walk import Lists
from mmrec.topk.compiled import jit

_NAMED = 3
_LATEST = 20  # items that a row behind the first ones may name
_COMPARABLE = 0.75  # share of the first item's contribution from which on the second is named with it
_FINE = 1e6  # contributions closer than this share of them all are equal
_USERS = 512  # whose contributions are there at a time
COLUMNS = ("because", "because_share", "parts", "parts_share")


@dataclass(frozen=True)
class Account:
    """Numbers of some users' rows. `item_BJC`: places in the day's items, greatest share first, equal ones by item, -1
    where there is none. `share_BJC`: of what the history adds, to thousandths. `part_BJP`: likewise of the parts, NaN
    where nothing is told."""

    item_BJC: np.ndarray
    share_BJC: np.ndarray
    part_BJP: np.ndarray


class Reasons:
    """What is said of rows over one catalogue."""

    def __init__(self, items: pa.Table, language: str = "en", rows: int = 0, weigher: Any = None) -> None:
        """Over the day's items.

        Args:
            items: item_id, title, and categories where shared ones are to be named. rows: the first ones of a list,
                which have numbers. weigher: contributions.Weigher; None: the model has none.
        """
        self.language, self.rows = language, rows if weigher is not None else 0
        self.weigher: Any = weigher
        self.ids = items["item_id"].combine_chunks()
        titles = pc.fill_null(items["title"].combine_chunks(), "")
        nameless = words.TEMPLATES[language]["title"]
        self._titles = pc.if_else(pc.equal(titles, ""), nameless, titles)
        self._one = pa.concat_arrays([words.said(language, "one", a=self._titles),
                                      *(words.said(language, kind) for kind in words.NAMELESS)])  # fmt: skip
        self._kind, self._kinds = _first(items)

    def columns(
        self, lists: Lists, users: pa.Table, history: Rows, model: Any, brought_BK: np.ndarray | None = None
    ) -> dict[str, pa.Array]:
        """Of a block of users' lists, the columns of the rows there are, list after list.

        Args:
            users: of those lists, rows of gold.user_sequences. history: theirs, of items that the model knows. model:
                `Vectors` or `Sums` of these users, None: of popularity. brought_BK: of generators.py, what the model
                did not bring; None: it brought everything.
        """
        b, at = np.nonzero(lists.item_BK >= 0)
        said = self._nearest(lists, history, model, brought_BK)[b, at]
        one = self._one.take(pa.array(np.where(said < 0, said + len(self._one), said)))
        if not self.rows or model is None or not model.near:
            arrow = schema.table("gold.recommendations").arrow
            return {"reason": one} | {name: pa.nulls(len(b), arrow.field(name).type) for name in COLUMNS}
        found = self.account(lists, users, history, model)
        row = np.flatnonzero(at < found.item_BJC.shape[1])
        where = b[row], at[row]
        item_RC, share_RC, part_RP = (np.full((len(b), x.shape[2]), empty) for x, empty in (
            (found.item_BJC, -1), (found.share_BJC, np.nan), (found.part_BJP, np.nan)))  # fmt: skip
        item_RC[row], share_RC[row], part_RP[row] = found.item_BJC[where], found.share_BJC[where], found.part_BJP[where]
        there_RC = item_RC >= 0
        named = pc.take(self.ids, pa.array(item_RC[there_RC]))
        made = {"reason": self._sentences(one, lists.item_BK[b, at], item_RC, share_RC),
                "because": _lists(there_RC, named), "because_share": _lists(there_RC, pa.array(share_RC[there_RC]))}
        order_RP = np.argsort(-part_RP, 1, kind="stable")  # NaN is last
        sorted_RP = np.take_along_axis(part_RP, order_RP, 1)
        told_RP = sorted_RP > 0
        names = pa.array(self.weigher.parts, pa.string()).take(pa.array(order_RP[told_RP]))
        return made | {"parts": _lists(told_RP, names), "parts_share": _lists(told_RP, pa.array(sorted_RP[told_RP]))}

    def account(self, lists: Lists, users: pa.Table, history: Rows, model: Any) -> Account:
        """Numbers of the first rows of a block of users' lists; see `columns`."""
        item_BJ = np.where(lists.model_BK & (lists.place_BK > 0), lists.item_BK, -1)[:, : self.rows]
        parts = []
        for some, made in self.weighed(item_BJ, users, history, model):
            parts.append(_account(item_BJ[some], *made))
        shape = (*item_BJ.shape, _NAMED)
        if not parts:
            return Account(np.full(shape, -1), np.zeros(shape), np.zeros((*shape[:2], len(self.weigher.parts))))
        return Account(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    def weighed(
        self, item_BJ: np.ndarray, users: pa.Table, history: Rows, model: Any
    ) -> Iterator[tuple[slice, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """What `Weigher.weigh` gives, some users at a time."""
        for start in range(0, len(item_BJ), _USERS):
            some = slice(start, min(start + _USERS, len(item_BJ)))
            yield some, self.weigher.weigh(users.slice(start, some.stop - start), history.of(some), model.some(some),
                                           item_BJ[some])  # fmt: skip

    def _nearest(self, lists: Lists, history: Rows, model: Any, brought_BK: np.ndarray | None) -> np.ndarray:
        """(B, K): places in `_one`, below 0 from its end."""
        drawn, picked, popular, newcomers = range(-4, 0)
        model_BK = lists.model_BK
        reason_BK = np.full(lists.item_BK.shape, popular, np.int64)
        if model is not None and model.near:
            where_BH = history.last(_LATEST)
            history_BH = np.where(where_BH >= 0, history.at[where_BH], -1) if len(history.at) else where_BH
            # of the model's places alone, without a look at the others
            near_BK = model.closest(np.where(model_BK, lists.item_BK, -1), history_BH)
            named_BK = np.take_along_axis(history_BH, near_BK, 1)
            reason_BK = np.where(model_BK, np.where(named_BK >= 0, named_BK, newcomers), popular)
        if brought_BK is not None:
            by_G = np.array([words.NAMELESS.index(name) - len(words.NAMELESS) for name in NAMES])
            reason_BK = np.where(brought_BK >= 0, by_G[brought_BK], reason_BK)
        unplaced_BK = lists.place_BK == 0
        return np.where(unplaced_BK, np.where(lists.rule_BK >= 0, picked, drawn), reason_BK)

    def _sentences(self, one: pa.Array, offered_R: np.ndarray, item_RC: np.ndarray, share_RC: np.ndarray) -> pa.Array:
        """Of every row; `one`: of those without numbers."""
        first, second = item_RC[:, 0], item_RC[:, 1]
        with np.errstate(invalid="ignore"):
            two = (second >= 0) & (share_RC[:, 1] >= _COMPARABLE * share_RC[:, 0])
        a, b = (self._titles.take(pa.array(x, mask=x < 0)) for x in (first, second))
        two &= np.asarray(pc.fill_null(pc.not_equal(a, b), False))
        kind = np.where(first >= 0, self._kind[first], -1)
        both = two & (kind >= 0) & (kind == self._kind[second]) & (kind == self._kind[offered_R])
        what = self._kinds.take(pa.array(kind, mask=~both))
        single = self._one.take(pa.array(first, mask=first < 0))
        out = pc.coalesce(single, one)
        out = pc.if_else(pa.array(two), words.said(self.language, "two", a=a, b=b), out)
        return pc.if_else(pa.array(both), words.said(self.language, "both", a=a, b=b, what=what), out)


def _account(
    item_BJ: np.ndarray, near_BH: np.ndarray, value_BJH: np.ndarray, part_BJP: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    there_BJ1 = (item_BJ >= 0)[..., None]
    add_BJH = np.where(there_BJ1 & (near_BH >= 0)[:, None] & np.isfinite(value_BJH), np.maximum(value_BJH, 0), 0)
    total_BJ1 = add_BJH.sum(2, keepdims=True)
    share_BJH = np.divide(add_BJH, total_BJ1, out=np.zeros_like(add_BJH), where=total_BJ1 > 0)
    item_BJC, share_BJC = np.full((*item_BJ.shape, _NAMED), -1), np.zeros((*item_BJ.shape, _NAMED))
    _greatest(share_BJH, near_BH, item_BJC, share_BJC)
    share_BJC = np.round(share_BJC, 3)
    item_BJC = np.where(share_BJC > 0, item_BJC, -1)
    size_BJP = np.where(there_BJ1, np.abs(part_BJP), np.nan)
    whole_BJ1 = size_BJP.sum(2, keepdims=True)
    part_BJP = np.divide(size_BJP, whole_BJ1, out=np.full(size_BJP.shape, np.nan), where=whole_BJ1 > 0)
    thousandths_BJP = np.rint(part_BJP * 1000)
    greatest = np.expand_dims(np.argmax(np.nan_to_num(part_BJP), 2), 2)  # takes what rounding leaves
    rest = 1000 - thousandths_BJP.sum(2, keepdims=True) + np.take_along_axis(thousandths_BJP, greatest, 2)
    np.put_along_axis(thousandths_BJP, greatest, rest, 2)
    return item_BJC, share_BJC, thousandths_BJP / 1000


@jit
def _greatest(share_BJH: np.ndarray, near_BH: np.ndarray, item_BJC: np.ndarray, share_BJC: np.ndarray) -> None:
    """The items with the greatest shares; where only the last bits differ, the item decides."""
    places = item_BJC.shape[2]
    for b in range(share_BJH.shape[0]):
        for j in range(share_BJH.shape[1]):
            for h in range(share_BJH.shape[2]):
                share, item = share_BJH[b, j, h], near_BH[b, h]
                if share <= 0:
                    continue
                fine, c = np.rint(share * _FINE), places
                while c > 0:
                    other = np.rint(share_BJC[b, j, c - 1] * _FINE) if item_BJC[b, j, c - 1] >= 0 else -1.0
                    if other > fine or (other == fine and item_BJC[b, j, c - 1] < item):
                        break
                    c -= 1
                for d in range(places - 1, c, -1):
                    item_BJC[b, j, d], share_BJC[b, j, d] = item_BJC[b, j, d - 1], share_BJC[b, j, d - 1]
                if c < places:
                    item_BJC[b, j, c], share_BJC[b, j, c] = item, share


def _first(items: pa.Table) -> tuple[np.ndarray, pa.Array]:
    """(N,) int64: an item's first category, -1 if it has none; and the categories."""
    if "categories" not in items.column_names:
        return np.full(items.num_rows, -1), pa.array([], pa.string())
    lists = items["categories"].combine_chunks()
    first = pc.list_element(pc.if_else(pc.greater(pc.fill_null(pc.list_value_length(lists), 0), 0), lists,
                                       pa.scalar([None], lists.type)), 0)  # fmt: skip
    coded = first.dictionary_encode()
    return pc.fill_null(coded.indices, -1).to_numpy().astype(np.int64), coded.dictionary


def _lists(there_RC: np.ndarray, entries: pa.Array) -> pa.Array:
    """A list a row, null where it has no entry."""
    count = there_RC.sum(1)
    ends = pa.array(np.concatenate([[0], np.cumsum(count)]), pa.int32())
    return pa.ListArray.from_arrays(ends, entries, mask=pa.array(count == 0))
