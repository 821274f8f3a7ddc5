"""Exact top K of dot products or of given scores, without seen and forbidden items.

In: vectors or scores, seen items as CSR, allowed items. Out: item indices and fp32 scores in the total order: score
descending, then index ascending.
The score of a pair is its fp64 dot product, summed in the order of the columns, rounded once to fp32 (each product of
two fp32 numbers is exact in fp64, so a fused multiply-add changes nothing). Faster products only propose: every item
that comes within a proven bound of the K-th place is scored again in fp64. So neither block size, thread count and
device nor the way there have a say in the result:
    int8      the compiled kernel over vectors of a quarter of the size, see kernel.c
    fp32      the compiled kernel
    portable  BLAS and numba, where there is no compiled kernel
    graph     ONNX Runtime, for a catalogue on another device
Trade-off: the second scoring costs little where scores differ; where most items tie within the bound (a constant
model) it costs a full fp64 product of those users.

Shape legend: B users, N items, M items that may be shown, K places, D vector size.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from mmrec.errors import InputError
from mmrec.topk import graph, native, portable
from mmrec.topk.catalogue import Catalogue
from mmrec.topk.compiled import jit
from mmrec.topk.heap import is_seen, push, unheap
from mmrec.topk.seen import Seen, positions
from mmrec.topk.threads import cores

WAYS = (*(("int8", "fp32") if native.available() else ()), "portable", "graph")  # that this machine has
_PLAIN = ("portable", "graph")  # these know items by their position among those on offer
_U32 = 2.0**-24  # unit round-off of fp32
_TINY = 2.0**-149  # smallest fp32 number: what an underflow can lose
_HUGE = 2.0**120  # beyond this an fp32 product could overflow on the way
_BLOCKS = {"graph": graph.BLOCK, "portable": portable.BLOCK}  # users at a time; of the others:
ON_DEVICE = 4  # blocks at once: each has a tile's scores there
BLOCK = 384
TILE_BYTES = 192 * 1024  # of a catalogue that all users of a block go over; the rest of a core's second cache is theirs
# int8 is worth it while few items pass its bound: some lists' length, and a share of the catalogue
_PROBED, _PASSED, _MOST = 48, 20, 0.02
_FEW = 32  # users
_WIDEST = 2**31 // (255 * 128)  # columns that a sum of int8 products may have


@dataclass(frozen=True)
class TopK:
    """Lists of B users.

    Attributes:
        item: (B, K) int32, -1 in empty places, which come last. score: (B, K) float32, -inf in empty places.
        dropped_users: users that got an empty list because their vector is not finite.
        dropped_items: items left out for everybody because their vector is not finite (`search`), or for at least
            one user because the score is NaN or +inf (`select`).
        rank: (B, K) int32, of lists that were put in another order, the place from 1 that each had; None: of others.
    """

    item: np.ndarray
    score: np.ndarray
    dropped_users: int
    dropped_items: int
    rank: np.ndarray | None = None


def search(
    user_BD: np.ndarray, item_ND: np.ndarray | Catalogue, k: int, *, seen: Seen | None = None,
    allowed: np.ndarray | None = None, block: int | None = None, tile: int | None = None, threads: int | None = None,
    way: str | None = None,
) -> TopK:  # fmt: skip
    """The K items with the greatest dot product for every user; exact.

    Args:
        user_BD, item_ND: converted to float32. A row with NaN or infinity is left out and counted. A `Catalogue` is
            made once for many calls.
        k: places; where fewer items remain the list is short.
        seen: (B + 1,) int64 ptr and int32 idx, in any order, repeats welcome: what a user must not get.
        allowed: (N,) bool, items on offer; None: all, or those that a `Catalogue` was made of.
        block, tile: users and items scored at a time; None: as many as a core's cache holds. threads: blocks
            worked on at once; None: the cores this process may use. way: one of `WAYS`; None: what is fastest here.
            None of the four changes the result.

    Raises:
        InputError: shapes disagree, k, block, tile or threads below 1, a seen index outside the catalogue, `allowed`
            with a `Catalogue`, no such way, one that this machine hasn't, int8 of vectors too wide for it.
    """
    user_BD = np.ascontiguousarray(user_BD, np.float32)
    given = item_ND.item_ND if isinstance(item_ND, Catalogue) else np.ascontiguousarray(item_ND, np.float32)
    if user_BD.ndim != 2 or given.ndim != 2 or user_BD.shape[1] != given.shape[1]:
        raise InputError("Vectors don't fit.", value=(user_BD.shape, given.shape), valid="(B, D) and (N, D)")
    threads = cores() if threads is None else threads
    b = len(user_BD)
    _check(b, len(given), min(k, *(1 if n is None else n for n in (block, tile)), threads), seen, allowed)
    if isinstance(item_ND, Catalogue) and allowed is not None:
        raise InputError("Allowed items are a catalogue's own.", where="allowed", valid="Catalogue(item_ND, allowed)")
    catalogue = item_ND if isinstance(item_ND, Catalogue) else Catalogue(given, allowed)
    ok_B = np.isfinite(user_BD).all(1)
    norm_B = np.sqrt(np.square(np.where(ok_B[:, None], user_BD, 0), dtype=np.float64).sum(1))
    margin_B = _margin(norm_B, catalogue.longest, user_BD.shape[1])
    work = _Work(catalogue, user_BD, ok_B, norm_B, margin_B, k, tile)
    out = work.empty(b, int((~ok_B).sum()))
    if not len(catalogue.row_M) or not b:
        return out
    way = _way(work, way)
    catalogue.ready(way)  # once, before threads ask for it
    place_N = catalogue.position_N if way in _PLAIN else catalogue.place_N
    block = block or _BLOCKS.get(way) or _even(b, threads)

    def fill(start: int) -> None:
        rows = slice(start, min(start + block, b))
        work.fill(way, rows, positions(seen, rows, place_N), out)

    starts = range(0, b, block)
    # a tile is too small to share: a BLAS with two threads takes three times as long where a core is busy
    with threadpool_limits(1, user_api="blas") if way == "portable" else nullcontext():
        if way == "graph":  # lists of a block are finished while the device is at the next one
            threads = min(threads, ON_DEVICE)
        if threads == 1 or len(starts) == 1:
            for start in starts:
                fill(start)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, starts))
    if way in _PLAIN:
        return replace(out, item=np.where(out.item >= 0, catalogue.keep_M[out.item], np.int32(-1)))
    return out


def _even(b: int, threads: int) -> int:
    """Users of a block, groups of the kernel's filled up: so many that threads end together."""
    each = -(-b // (threads * -(-b // (threads * BLOCK))))
    return -(-each // native.GROUP) * native.GROUP


@dataclass(frozen=True)
class _Work:
    """What a search is asked for; `fill` does a part of the users one way."""

    catalogue: Catalogue
    user_BD: np.ndarray
    ok_B: np.ndarray
    norm_B: np.ndarray
    margin_B: np.ndarray
    k: int
    tile: int | None

    def empty(self, b: int, dropped: int) -> TopK:
        return TopK(np.full((b, self.k), -1, np.int32), np.full((b, self.k), -np.inf, np.float32), dropped,
                    self.catalogue.dropped)  # fmt: skip

    def fill(self, way: str, rows: slice, seen: Seen, out: TopK) -> int:
        """Lists of some users; says how many items passed a bound, 0 where nobody counts."""
        item, score, ok_B = out.item[rows], out.score[rows], self.ok_B[rows]
        user_BD = np.where(ok_B[:, None], self.user_BD[rows], np.float32(0))
        if way == "portable":
            portable.search_block(user_BD, self.catalogue.shown_MD, ok_B, self.margin_B[rows], *seen,
                                  self.tile or portable.TILE, item, score)  # fmt: skip
            return 0
        if way == "graph":
            graph.search_block(self.catalogue.graph, user_BD, ok_B, self.margin_B[rows], *seen, item, score)
            return 0
        panels = self.catalogue.int8 if way == "int8" else self.catalogue.fp32
        width = user_BD.shape[1] * (1 if way == "int8" else 4)
        tile = TILE_BYTES // max(width, 1) if self.tile is None else self.tile
        norm_B = np.where(ok_B, self.norm_B[rows], -1.0)
        passed, _ = native.search_block(panels, user_BD, norm_B, self.margin_B[rows], self.k, seen,
                                        max(1, tile // native.PANEL), item, score)  # fmt: skip
        return int(passed)


def _way(work: _Work, asked: str | None) -> str:
    """The way asked for, or the fastest; what a catalogue was found to be like is kept with it."""
    catalogue, wide = work.catalogue, work.user_BD.shape[1] > _WIDEST
    if asked is not None:
        if asked not in WAYS or (asked == "int8" and wide):
            valid = tuple(w for w in WAYS if not (wide and w == "int8"))
            raise InputError("No such way to search.", value=asked, valid=valid)
        return asked
    if catalogue.device != "cpu":
        return "graph"
    # packing costs what some ten users do
    if "fp32" not in WAYS or (len(work.user_BD) < _FEW and not catalogue.packed):
        return "portable"
    if wide:
        return "fp32"
    alike = work.k.bit_length()  # how many pass the bound changes little between
    if alike not in catalogue.ways:
        catalogue.ready("int8")
        n = min(_PROBED, len(work.user_BD))
        nobody = np.zeros(n + 1, np.int64), np.zeros(0, np.int32)
        passed = work.fill("int8", slice(0, n), nobody, work.empty(n, 0))
        few = passed <= n * (_PASSED * (work.k + 10) + _MOST * len(catalogue.row_M))
        catalogue.ways[alike] = "int8" if few else "fp32"
    return catalogue.ways[alike]


def select(score_BN: np.ndarray, k: int, seen: Seen | None = None, allowed: np.ndarray | None = None) -> TopK:
    """The K greatest of given scores for every user, in the same order as `search`.

    Args:
        score_BN: (B, N), converted to float32. -inf means not to be shown; NaN and +inf are left out and counted; a
            user with no finite score at all is counted as dropped. k, seen, allowed: as for `search`.
    """
    score_BN = np.ascontiguousarray(score_BN, np.float32)
    if score_BN.ndim != 2:
        raise InputError("Scores don't fit.", value=score_BN.shape, valid="(B, N)")
    b, n = score_BN.shape
    _check(b, n, k, seen, allowed)
    allowed_N = np.ones(n, bool) if allowed is None else np.ascontiguousarray(allowed, bool)
    seen_ptr, seen_idx = positions(seen, slice(0, b), np.arange(n, dtype=np.int32))
    out_item = np.full((b, k), -1, np.int32)
    out_score = np.full((b, k), -np.inf, np.float32)
    bad_N, finite_B = np.zeros(n, np.bool_), np.zeros(b, np.bool_)
    _select(score_BN, allowed_N, seen_ptr, seen_idx, out_item, out_score, bad_N, finite_B)
    return TopK(out_item, out_score, int((~finite_B).sum()) if n else 0, int(bad_N.sum()))


def _check(b: int, n: int, least: int, seen: Seen | None, allowed: np.ndarray | None) -> None:
    if least < 1:
        raise InputError("K, block and tile count something.", value=least, valid="1 or more")
    if allowed is not None and np.shape(allowed) != (n,):
        raise InputError("Allowed items don't fit the catalogue.", value=np.shape(allowed), valid=f"({n},)")
    if seen is not None:
        ptr, idx = np.asarray(seen[0]), np.asarray(seen[1])
        if ptr.shape != (b + 1,) or (len(idx) and (idx.min() < 0 or idx.max() >= n)) or ptr[-1] > len(idx):
            shapes = (ptr.shape, idx.shape)
            raise InputError("Seen items don't fit.", value=shapes, valid=f"ptr ({b + 1},), indices below {n}")


def _margin(norm_B: np.ndarray, longest: float, d: int) -> np.ndarray:
    """(B,) float64: how far a user's fp32 score may lie from the final one, at most; inf: don't trust fp32 at all.

    |fl(u.v) - u.v| <= gamma_D sum |u_d v_d| <= gamma_D |u| |v| whatever the order of summation, gamma_D =
    D r / (1 - D r), r = 2^-24 (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1);
    plus one rounding of the fp64 sum to fp32, plus what underflow can lose.
    """
    bound_B = norm_B * longest
    gamma = d * _U32 / (1 - d * _U32)
    # one column: the fp32 product is the fp64 product rounded once, the final score itself
    slack_B = np.zeros_like(bound_B) if d == 1 else (gamma + 2 * _U32) * bound_B * (1 + 1e-6) + (2 * d + 2) * _TINY
    slack_B = np.where(bound_B == 0, 0.0, slack_B)
    return np.where((bound_B < _HUGE) & (d * _U32 < 0.01), slack_B, np.inf)


@jit
def _select(
    score_BN: np.ndarray,
    allowed_N: np.ndarray,
    seen_ptr: np.ndarray,
    seen_idx: np.ndarray,
    out_item: np.ndarray,
    out_score: np.ndarray,
    bad_N: np.ndarray,
    finite_B: np.ndarray,
) -> None:
    b, n = score_BN.shape
    k = out_item.shape[1]
    for u in range(b):
        size = 0
        for i in range(n):
            score = score_BN[u, i]
            if not np.isfinite(score):
                bad_N[i] |= score != -np.inf
                continue
            finite_B[u] = True
            # indices ascend: once full, an equal score never enters
            better = size < k or score > out_score[u, 0]
            if better and allowed_N[i] and not is_seen(seen_idx, seen_ptr[u], seen_ptr[u + 1], i):
                size = push(out_score[u], out_item[u], size, score, i)
        unheap(out_score[u], out_item[u], size)
