"""The K best of a block of users by BLAS and numba: for machines that the compiled kernel was not built for.

In: vectors, what users have seen. Out: positions and final scores of their lists, written into the caller's arrays.
Trade-off: every score is written once and read once, in a tile that stays in a core's cache.

Shape legend: B users, M items that may be shown, K places, D vector size, T items of a tile.
"""

from __future__ import annotations

import numpy as np

from mmrec.topk.compiled import jit
from mmrec.topk.heap import is_seen, push, unheap

BLOCK, TILE = 192, 4096  # users and items at a time, unless asked


def search_block(
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
    finish(user_BD, item_MD, seen_ptr, seen_idx, buf_item, count_B, out_item, out_score)


@jit
def _kth(values: np.ndarray, count: int, k: int, heap_score: np.ndarray, heap_item: np.ndarray) -> float:
    """The k-th greatest of values[:count], count >= k."""
    size = 0
    for i in range(count):
        if size < k or values[i] > heap_score[0]:
            size = push(heap_score, heap_item, size, values[i], i)
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
            if is_seen(seen_idx, low, high, start + t):
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
def finish(
    user_BD: np.ndarray,
    item_MD: np.ndarray,
    seen_ptr: np.ndarray,
    seen_idx: np.ndarray,
    buf_item: np.ndarray,
    count_B: np.ndarray,
    out_item: np.ndarray,
    out_score: np.ndarray,
) -> None:
    """Score the collected items in fp64 and keep the best k in order, of what was not seen.

    Args:
        buf_item: (B, C) int32 positions. count_B: how many there are; -1: score all items; -2: leave the user out.
        out_item, out_score: (B, K), filled with -1 and -inf.
    """
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
            if is_seen(seen_idx, seen_ptr[u], seen_ptr[u + 1], i):
                continue
            total = 0.0
            for j in range(d):
                total += np.float64(user_BD[u, j]) * np.float64(item_MD[i, j])
            score = np.float32(total) + np.float32(0)  # a zero has no sign
            if size < k or score >= out_score[u, 0]:
                size = push(out_score[u], out_item[u], size, score, i)
        unheap(out_score[u], out_item[u], size)
