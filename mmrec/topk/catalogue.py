"""A catalogue made ready to be searched: once, for every block of users.

In: item vectors, which of them are on offer. Out: their rows by falling norm, and, when a way to search asks for them,
the packed forms it needs.
Trade-off: a packed form is a copy (fp32 as large as the vectors, int8 a quarter), made when first asked for and kept.

Shape legend: N items, M items that may be shown, D columns.
"""

from __future__ import annotations

import threading
from functools import cached_property

import numpy as np

from mmrec.topk.graph import Tiles
from mmrec.topk.native import Panels


class Catalogue:
    """See the module.

    Attributes:
        n: items, shown or not. item_ND: (N, D) float32. row_M: (M,) int32, rows on offer, longest first, then by row.
        longest: the greatest norm. dropped: items left out because their vector is not finite. device: "cpu", or where
            it is searched instead. ways: bits of K -> the way to search that was found fastest.
    """

    def __init__(self, item_ND: np.ndarray, allowed: np.ndarray | None = None, device: str = "cpu") -> None:
        self.device = device
        self.item_ND = np.ascontiguousarray(item_ND, np.float32)
        self.n = len(self.item_ND)
        ok_N = np.isfinite(self.item_ND).all(1)
        self.dropped = int((~ok_N).sum())
        keep_M = np.flatnonzero(ok_N if allowed is None else ok_N & allowed)
        norm_M = np.sqrt(np.einsum("md,md->m", *[self.item_ND[keep_M].astype(np.float64)] * 2))
        self.row_M = keep_M[np.argsort(-norm_M, kind="stable")].astype(np.int32)
        self.longest = float(norm_M.max(initial=0.0))
        self.ways: dict[int, str] = {}
        self._making = threading.Lock()

    def ready(self, way: str) -> None:
        """Make what a way to search needs, if it is not there; once, whoever asks at the same time."""
        with self._making:
            getattr(self, "shown_MD" if way == "portable" else way)
            self.position_N if way in ("portable", "graph") else self.place_N  # noqa: B018

    @property
    def packed(self) -> bool:
        """Whether a packed form is there."""
        return bool({"fp32", "int8"} & set(self.__dict__))

    @cached_property
    def shown_MD(self) -> np.ndarray:
        """(M, D): vectors on offer, in rising order of row."""
        return self.item_ND if len(self.row_M) == self.n else self.item_ND[self.keep_M]

    @cached_property
    def keep_M(self) -> np.ndarray:
        """(M,) int32: rows on offer, rising."""
        return np.sort(self.row_M)

    @cached_property
    def place_N(self) -> np.ndarray:
        """(N,) int32: where a row stands in `row_M`; -1: nowhere."""
        return _inverse(self.row_M, self.n)

    @cached_property
    def position_N(self) -> np.ndarray:
        """(N,) int32: where a row stands in `keep_M`; -1: nowhere."""
        return _inverse(self.keep_M, self.n)

    @cached_property
    def graph(self) -> Tiles:
        """On the device."""
        return Tiles(self.shown_MD, self.device)

    @cached_property
    def fp32(self) -> Panels:
        """For the compiled kernel, as they are."""
        return Panels.of(self.item_ND, self.row_M, reduced=False)

    @cached_property
    def int8(self) -> Panels:
        """For the compiled kernel, at a quarter of the size."""
        return Panels.of(self.item_ND, self.row_M, reduced=True)


def _inverse(row_M: np.ndarray, n: int) -> np.ndarray:
    place_N = np.full(n, -1, np.int32)
    place_N[row_M] = np.arange(len(row_M), dtype=np.int32)
    return place_N
