"""What users are scored with: two sides of a dot product, or sums of a sparse matrix's rows.

In: what score.py made of a bundle and a day. Out: rankings of some users, and which of a history an item is closest to.
Trade-off: what is made of a catalogue is kept as long as anyone holds its vectors.

Shape legend: U users, B users of a block, N items, K places, H history items, J offered items, M items a bundle knows,
D vector size, R rows of a matrix.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import sparse

from mmrec.models.stored import Stored
from mmrec.topk import native
from mmrec.topk.catalogue import Catalogue
from mmrec.topk.exact import TopK, search, select
from mmrec.topk.members import Offers
from mmrec.topk.rerank import Rerank, rerank
from mmrec.topk.seen import Seen

_making = threading.RLock()
_GATHERED = 2**22  # numbers of offered items' vectors at a time


@dataclass(frozen=True)
class Vectors:
    """The two sides of the dot product: `user_UD` (rows of NaN where the model has nothing to say), `item_ND`.

    `near`: whether an item can be nearer to one of a history than to another; of popularity's one column it can't.
    `how` a blend re-ranks, None: the dot product ranks; `cold_N`: (N,) bool, items that the model has not met; `device`
    that searches; `allowed_N`: (N,) bool, items that rules leave on offer, None: all; `kept`: what was made of items,
    for any users.
    """

    user_UD: np.ndarray
    item_ND: np.ndarray
    near: bool = True
    how: Rerank | None = None
    cold_N: np.ndarray | None = None
    device: str = "cpu"
    allowed_N: np.ndarray | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    def of(self, user_UD: np.ndarray) -> Vectors:
        """Of other users; what was made of items is shared."""
        return replace(self, user_UD=user_UD)

    def best(self, block: slice, rows: slice | np.ndarray, k: int, seen: Seen) -> TopK:
        """The best of `rows` of a block of users."""
        user_BD = self.user_UD[block][rows]
        if self.how is None or self.cold_N is None:
            return search(user_BD, self._catalogue, k, seen=seen)
        return rerank(user_BD, self._offers, k, how=self.how, seen=seen)

    @property
    def apart(self) -> bool:
        """Whether parts of the users may ask at the same time: a device and BLAS have threads of their own."""
        return self.device == "cpu" and native.available()

    @property
    def _catalogue(self) -> Catalogue:
        return self._once("catalogue", lambda: Catalogue(self.item_ND, self.allowed_N, self.device))

    @property
    def _offers(self) -> Offers:
        assert self.how is not None
        assert self.cold_N is not None
        members, cold_N = self.how.members, self.cold_N
        return self._once("offers", lambda: Offers(self.item_ND, members, cold_N, self.allowed_N, self.device))

    @property
    def _unit_ND(self) -> np.ndarray:
        return self._once("unit", lambda: _unit(self.item_ND))

    @property
    def speaks_N(self) -> np.ndarray:
        """(N,) bool: items that the model knows."""
        return self._once("speaks", lambda: np.isfinite(self.item_ND).all(1))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        with _making:
            if name not in self.kept:
                self.kept[name] = make()
            return self.kept[name]

    def some(self, rows: slice) -> Vectors:
        """Of some of its users."""
        return self.of(self.user_UD[rows])

    def closest(self, item_BK: np.ndarray, history_BH: np.ndarray) -> np.ndarray:
        """(B, K): which of the history, -1 in front of it, is nearest to an item; 0 of an empty place."""
        out_BK = np.zeros(item_BK.shape, np.int64)
        step = max(1, _GATHERED // (item_BK.shape[1] * self.item_ND.shape[1]))
        for start in range(0, len(item_BK), step):
            some = slice(start, start + step)
            # always of the same shape, so that bits don't depend on how long lists are
            near_BKH = self._unit_ND[item_BK[some]] @ self._unit_ND[history_BH[some]].transpose(0, 2, 1)
            out_BK[some] = np.where(history_BH[some, None] >= 0, near_BKH, -np.inf).argmax(2)
        return out_BK


@dataclass(frozen=True)
class Sums:
    """Of a sparse bundle: users as histories of the items it knows, its matrix over the day's items, by rows and by
    items, `place_N`: where a day's item stands among those it knows, -1 if nowhere; `allowed_N` as of `Vectors`."""

    stored: Stored
    history_UM: sparse.csr_matrix
    user_ids: np.ndarray
    matrix_RN: sparse.csr_matrix
    matrix_NR: sparse.csr_matrix
    place_N: np.ndarray
    allowed_N: np.ndarray | None = None
    near = True
    apart = False  # most of its work holds the interpreter's lock

    @property
    def speaks_N(self) -> np.ndarray:
        """As of `Vectors`."""
        return self.place_N >= 0

    def best(self, block: slice, rows: slice | np.ndarray, k: int, seen: Seen) -> TopK:
        """As of `Vectors`; only a few users' scores are there at a time."""
        may_N = self.speaks_N if self.allowed_N is None else self.speaks_N & self.allowed_N
        history_BM, asking_B = self.history_UM[block][rows], self.user_ids[block][rows]
        parts = []
        for some, score_BN in self.stored.sums(history_BM, asking_B, self.matrix_RN):
            ptr = seen[0][some.start : some.stop + 1]
            had = (ptr - ptr[0], seen[1][ptr[0] : ptr[-1]])
            parts.append(select(score_BN, k, seen=had, allowed=may_N))
        return TopK(np.concatenate([p.item for p in parts]), np.concatenate([p.score for p in parts]),
                    sum(p.dropped_users for p in parts), int((~self.speaks_N).sum()))  # fmt: skip

    def some(self, rows: slice) -> Sums:
        """As of `Vectors`."""
        return replace(self, history_UM=self.history_UM[rows], user_ids=self.user_ids[rows])

    def closest(self, item_BK: np.ndarray, history_BH: np.ndarray) -> np.ndarray:
        """As of `Vectors`."""
        out_BK = np.zeros(item_BK.shape, np.int64)
        for b, (item_K, history_H) in enumerate(zip(item_BK, history_BH, strict=True)):
            offered, had = item_K >= 0, history_H >= 0
            if offered.any() and had.any():
                near = self.weights(item_K[offered], history_H[had])
                out_BK[b, offered] = np.flatnonzero(had)[near.argmax(1)]
        return out_BK

    def weights(self, offered_J: np.ndarray, history_H: np.ndarray) -> np.ndarray:
        """(J, H): the weight from the one to the other; of users, the cosine of who had them."""
        offered_JR = self.matrix_NR[offered_J]
        if self.stored.name != "user_knn":
            return offered_JR[:, self.place_N[history_H]].toarray()
        had_HR = self.matrix_NR[history_H]
        return (offered_JR @ had_HR.T).toarray() / np.sqrt(np.maximum(np.diff(had_HR.indptr), 1))


def _unit(x_ND: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x_ND, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a vector that is not finite has no direction
        return x_ND / np.where(norm > 0, norm, 1)
