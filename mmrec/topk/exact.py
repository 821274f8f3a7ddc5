"""Exact top K of dot products or of given scores, without seen and forbidden items.

In: vectors or scores, seen items as CSR, allowed items. Out: item indices and fp32 scores in the total order: score
descending, then index ascending.
The score of a pair is its fp64 dot product, summed in the order of the columns, rounded once to fp32 (each product of
two fp32 numbers is exact in fp64, so a fused multiply-add changes nothing). A fast fp32 product only proposes: every
item whose fp32 score comes within a proven error bound of the K-th place is scored again in fp64. So block size,
thread count and the order in which a BLAS adds have no say in the result.
Trade-off: the second scoring costs little where scores differ; where most items tie within the bound (a constant
model) it costs a full fp64 product of those users.

Shape legend: B users, N items, M items that may be shown, K places, D vector size, T items of a tile.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from mmrec.errors import InputError
from mmrec.topk.compiled import jit
from mmrec.topk.seen import Seen, positions

_U32 = 2.0**-24  # unit round-off of fp32
_TINY = 2.0**-149  # smallest fp32 number: what an underflow can lose
_HUGE = 2.0**120  # beyond this an fp32 product could overflow on the way


@dataclass(frozen=True)
class TopK:
    """Lists of B users.

    Attributes:
        item: (B, K) int32, -1 in empty places, which come last. score: (B, K) float32, -inf in empty places.
        dropped_users: users that got an empty list because their vector is not finite.
        dropped_items: items left out for everybody because their vector is not finite (`search`), or for at least
            one user because the score is NaN or +inf (`select`).
    """

    item: np.ndarray
    score: np.ndarray
    dropped_users: int
    dropped_items: int


def search(
    user_BD: np.ndarray,
    item_ND: np.ndarray,
    k: int,
    *,
    seen: Seen | None = None,
    allowed: np.ndarray | None = None,
    block: int = 256,
    tile: int = 4096,
    threads: int | None = None,
) -> TopK:
    """The K items with the greatest dot product for every user; exact.

    Args:
        user_BD, item_ND: converted to float32. A row with NaN or infinity is left out and counted.
        k: places; where fewer items remain the list is short.
        seen: (B + 1,) int64 ptr and int32 idx, in any order, repeats welcome: what a user must not get.
        allowed: (N,) bool, items on offer; None: all.
        block, tile: users and items scored at a time (memory: threads * block * tile * 4 bytes).
        threads: blocks worked on at once, each with one BLAS thread; None: the cores this process may use.
            None of the three changes the result.

    Raises:
        InputError: shapes disagree, k, block, tile or threads below 1, a seen index outside the catalogue.
    """
    user_BD = np.ascontiguousarray(user_BD, np.float32)
    item_ND = np.ascontiguousarray(item_ND, np.float32)
    if user_BD.ndim != 2 or item_ND.ndim != 2 or user_BD.shape[1] != item_ND.shape[1]:
        raise InputError("Vectors don't fit.", value=(user_BD.shape, item_ND.shape), valid="(B, D) and (N, D)")
    b, n = len(user_BD), len(item_ND)
    if threads is None:  # macOS has no affinity
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    _check(b, n, min(k, block, tile, threads), seen, allowed)
    ok_B, ok_N = np.isfinite(user_BD).all(1), np.isfinite(item_ND).all(1)
    keep_M = np.flatnonzero(ok_N if allowed is None else ok_N & allowed).astype(np.int32)
    item_MD = item_ND if len(keep_M) == n else item_ND[keep_M]
    seen_ptr, seen_idx = positions(seen, b, n, keep_M)
    norm_M = np.sqrt(np.square(item_MD, dtype=np.float64).sum(1))
    norm_B = np.where(ok_B, np.sqrt(np.square(user_BD, dtype=np.float64).sum(1)), 0.0)
    margin_B = _margin(norm_B, norm_M, user_BD.shape[1])
    out_item = np.full((b, k), -1, np.int32)
    out_score = np.full((b, k), -np.inf, np.float32)

    def work(start: int) -> None:
        rows = slice(start, min(start + block, b))
        _search_block(
            user_BD[rows], item_MD, ok_B[rows], margin_B[rows], seen_ptr[rows.start : rows.stop + 1], seen_idx,
            tile, out_item[rows], out_score[rows],
        )  # fmt: skip

    starts = range(0, b, block)
    if len(keep_M):
        # a tile is too small to share: a BLAS with two threads takes three times as long where a core is busy
        with threadpool_limits(1, user_api="blas"):
            if threads == 1 or len(starts) == 1:
                for start in starts:
                    work(start)
            else:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(work, starts))
        out_item = np.where(out_item >= 0, keep_M[out_item], np.int32(-1))
    return TopK(out_item, out_score, int((~ok_B).sum()), int((~ok_N).sum()))


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
    seen_ptr, seen_idx = positions(seen, b, n, np.arange(n, dtype=np.int32))
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


def _margin(norm_B: np.ndarray, norm_M: np.ndarray, d: int) -> np.ndarray:
    """(B,) float64: how far a user's fp32 score may lie from the final one, at most; inf: don't trust fp32 at all.

    |fl(u.v) - u.v| <= gamma_D sum |u_d v_d| <= gamma_D |u| |v| whatever the order of summation, gamma_D =
    D r / (1 - D r), r = 2^-24 (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1);
    plus one rounding of the fp64 sum to fp32, plus what underflow can lose.
    """
    bound_B = norm_B * norm_M.max(initial=0.0)
    gamma = d * _U32 / (1 - d * _U32)
    # one column: the fp32 product is the fp64 product rounded once, the final score itself
    slack_B = np.zeros_like(bound_B) if d == 1 else (gamma + 2 * _U32) * bound_B * (1 + 1e-6) + (2 * d + 2) * _TINY
    slack_B = np.where(bound_B == 0, 0.0, slack_B)
    return np.where((bound_B < _HUGE) & (d * _U32 < 0.01), slack_B, np.inf)


def _search_block(
    user_BD: np.ndarray,
    item_MD: np.ndarray,
    ok_B: np.ndarray,
    margin_B: np.ndarray,
    seen_ptr: np.ndarray,
    seen_idx: np.ndarray,
    tile: int,
    out_item: np.ndarray,
    out_score: np.ndarray,
) -> None:
    """Fill the rows of the outputs with positions in `item_MD` and final scores."""
    b, k = out_item.shape
    cap = 4 * k + 256
    buf_item, buf_score = np.empty((b, cap), np.int32), np.empty((b, cap), np.float32)
    count_B, floor_B = np.zeros(b, np.int64), np.full(b, -np.inf)
    # -1: the buffer can't hold what lies within the bound, or fp32 can't be trusted; score all in fp64
    count_B[~np.isfinite(margin_B)] = -1
    count_B[~ok_B] = -2
    trusted = bool((count_B >= 0).any())
    user_BD = np.where(ok_B[:, None], user_BD, np.float32(0))
    for start in range(0, len(item_MD) if trusted else 0, tile):
        with np.errstate(over="ignore", invalid="ignore"):
            score_BT = user_BD @ item_MD[start : start + tile].T
        _scan(score_BT, start, k, margin_B, seen_ptr, seen_idx, buf_item, buf_score, count_B, floor_B)
    _finish(user_BD, item_MD, seen_ptr, seen_idx, buf_item, count_B, out_item, out_score)


@jit
def _is_seen(idx: np.ndarray, low: int, high: int, value: int) -> bool:
    while low < high:
        mid = (low + high) >> 1
        if idx[mid] < value:
            low = mid + 1
        elif idx[mid] > value:
            high = mid
        else:
            return True
    return False


@jit
def _push(heap_score: np.ndarray, heap_item: np.ndarray, size: int, score: float, item: int) -> int:
    """Keep the best of what came, worst at the root: lower score, then greater index. Returns the new size."""
    k = len(heap_score)
    if size < k:
        at = size
        while at > 0:
            up = (at - 1) >> 1
            if score < heap_score[up] or (score == heap_score[up] and item > heap_item[up]):
                heap_score[at], heap_item[at] = heap_score[up], heap_item[up]
                at = up
            else:
                break
        heap_score[at], heap_item[at] = score, item
        return size + 1
    if score < heap_score[0] or (score == heap_score[0] and item > heap_item[0]):
        return size
    _sink(heap_score, heap_item, k, score, item)
    return size


@jit
def _sink(heap_score: np.ndarray, heap_item: np.ndarray, size: int, score: float, item: int) -> None:
    """Replace the root by (score, item) and restore the order."""
    at = 0
    while True:
        down = 2 * at + 1
        if down >= size:
            break
        right = down + 1
        if right < size and (
            heap_score[right] < heap_score[down]
            or (heap_score[right] == heap_score[down] and heap_item[right] > heap_item[down])
        ):
            down = right
        if heap_score[down] < score or (heap_score[down] == score and heap_item[down] > item):
            heap_score[at], heap_item[at] = heap_score[down], heap_item[down]
            at = down
        else:
            break
    heap_score[at], heap_item[at] = score, item


@jit
def _unheap(heap_score: np.ndarray, heap_item: np.ndarray, size: int) -> None:
    """Sort in place, best first: take the worst off the root, put it last."""
    for end in range(size - 1, 0, -1):
        score, item = heap_score[end], heap_item[end]
        heap_score[end], heap_item[end] = heap_score[0], heap_item[0]
        _sink(heap_score, heap_item, end, score, item)


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
            if better and allowed_N[i] and not _is_seen(seen_idx, seen_ptr[u], seen_ptr[u + 1], i):
                size = _push(out_score[u], out_item[u], size, score, i)
        _unheap(out_score[u], out_item[u], size)


@jit
def _kth(values: np.ndarray, count: int, k: int, heap_score: np.ndarray, heap_item: np.ndarray) -> float:
    """The k-th greatest of values[:count], count >= k."""
    size = 0
    for i in range(count):
        if size < k or values[i] > heap_score[0]:
            size = _push(heap_score, heap_item, size, values[i], i)
    return heap_score[0]


@jit
def _scan(
    score_BT: np.ndarray,
    start: int,
    k: int,
    margin_B: np.ndarray,
    seen_ptr: np.ndarray,
    seen_idx: np.ndarray,
    buf_item: np.ndarray,
    buf_score: np.ndarray,
    count_B: np.ndarray,
    floor_B: np.ndarray,
) -> None:
    """Collect what may be among the best k. `floor_B`: nothing below it can be; it only rises.

    With s the fp32 and f the final score, |s - f| <= m. If t is the k-th greatest s so far, k items have f >= t - m,
    so an item with s < t - 2m has f < t - m and is out. With m = 0, s is final and an equal score with a
    greater index loses too.
    """
    b, width = score_BT.shape
    cap = buf_item.shape[1]
    heap_score, heap_item = np.empty(k, np.float32), np.empty(k, np.int32)
    for u in range(b):
        count = count_B[u]
        if count < 0:
            continue
        margin, floor = margin_B[u], floor_B[u]
        row = score_BT[u]
        low, high = seen_ptr[u], seen_ptr[u + 1]
        strict = margin == 0
        for t in range(width):
            score = row[t]
            if score < floor:
                continue
            if strict and score == floor and count >= k:
                continue
            if _is_seen(seen_idx, low, high, start + t):
                continue
            if count == cap:
                kth = np.float64(_kth(buf_score[u], count, k, heap_score, heap_item))
                floor = kth - 2 * margin
                kept, equal = 0, 0
                if strict:
                    for i in range(count):
                        equal += buf_score[u, i] > kth
                    equal = k - equal  # places left for the earliest that equal the k-th
                for i in range(count):
                    value = buf_score[u, i]
                    if value < floor:
                        continue
                    if strict and value == kth:
                        equal -= 1
                        if equal < 0:
                            continue
                    buf_score[u, kept], buf_item[u, kept] = value, buf_item[u, i]
                    kept += 1
                count = kept
                if count > cap - cap // 8:
                    count = -1
                    break
                if score < floor or (strict and score == floor):
                    continue
            buf_score[u, count], buf_item[u, count] = score, start + t
            count += 1
        count_B[u], floor_B[u] = count, floor


@jit
def _finish(
    user_BD: np.ndarray,
    item_MD: np.ndarray,
    seen_ptr: np.ndarray,
    seen_idx: np.ndarray,
    buf_item: np.ndarray,
    count_B: np.ndarray,
    out_item: np.ndarray,
    out_score: np.ndarray,
) -> None:
    """Score the collected items (or all, where count is -1) in fp64 and keep the best k in order."""
    b, d = user_BD.shape
    k = out_item.shape[1]
    for u in range(b):
        count = count_B[u]
        if count == -2:
            continue
        everything = count == -1
        size = 0
        for c in range(len(item_MD) if everything else count):
            i = c if everything else buf_item[u, c]
            if everything and _is_seen(seen_idx, seen_ptr[u], seen_ptr[u + 1], i):
                continue
            total = 0.0
            for j in range(d):
                total += np.float64(user_BD[u, j]) * np.float64(item_MD[i, j])
            score = np.float32(total)
            if size < k or score >= out_score[u, 0]:
                size = _push(out_score[u], out_item[u], size, score, i)
        _unheap(out_score[u], out_item[u], size)
