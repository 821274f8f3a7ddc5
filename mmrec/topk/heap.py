"""The K best of what comes, in two arrays; and whether a place is among those seen. For compiled loops.

In: scores and indices, one at a time. Out: the arrays in order: score descending, then index ascending.
Trade-off: a heap with the worst at its root: what is not better costs one comparison.
"""

from __future__ import annotations

import numpy as np

from mmrec.topk.compiled import jit


@jit
def is_seen(idx: np.ndarray, low: int, high: int, value: int) -> bool:
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
def push(heap_score: np.ndarray, heap_item: np.ndarray, size: int, score: float, item: int) -> int:
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
def unheap(heap_score: np.ndarray, heap_item: np.ndarray, size: int) -> None:
    """Sort in place, best first: take the worst off the root, put it last."""
    for end in range(size - 1, 0, -1):
        score, item = heap_score[end], heap_item[end]
        heap_score[end], heap_item[end] = heap_score[0], heap_item[0]
        _sink(heap_score, heap_item, end, score, item)
