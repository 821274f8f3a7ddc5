"""Inputs of the towers: rows of a log and items of a catalogue as tensors.

In: `Log`, `Fold`, `Items` by dense index. Out: arrays and tensors in the shapes that the towers take.
Trade-off: histories are gathered a row at a time in Python; fitting, which can't afford that, has batches.py.

Shape legend: B cases, L history, N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from mmrec.models.data import Fold


class Tensors:
    """Inputs of the item tower, a few items at a time, with parts dropped for training."""

    def __init__(self, index: np.ndarray, content: dict[str, np.ndarray], present: dict[str, np.ndarray]) -> None:
        self.index = torch.from_numpy(index)
        self.content = {m: torch.from_numpy(np.ascontiguousarray(v)) for m, v in content.items()}
        self.present = {m: torch.from_numpy(v.astype(np.float32)) for m, v in present.items()}

    def all(self) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return self.index, self.content, self.present

    def take(self, rows: np.ndarray, rng: np.random.Generator, drop: float) -> tuple[Any, Any, Any]:
        at = torch.from_numpy(rows)
        present = {m: p[at] * torch.from_numpy((rng.random(len(rows)) >= drop).astype(np.float32))
                   for m, p in self.present.items()}  # fmt: skip
        has_content = sum(present.values(), torch.zeros(len(rows))) > 0
        # an item never loses everything it has
        lose_id = torch.from_numpy(rng.random(len(rows)) < drop) & has_content
        return torch.where(lose_id, 0, self.index[at]), {m: v[at] for m, v in self.content.items()}, present


def event_inputs(
    event: np.ndarray, gap_s: np.ndarray, weight: np.ndarray, mask: np.ndarray
) -> tuple[torch.Tensor, ...]:
    """event (B, L) int64, log1p of the gap, weight and mask (B, L) float32; zeros where `mask` is false."""
    return (
        torch.from_numpy(np.where(mask, event, 0).astype(np.int64)),
        torch.from_numpy(np.log1p(np.maximum(gap_s, 0)).astype(np.float32)),
        torch.from_numpy(np.where(mask, weight, 0).astype(np.float32)),
        torch.from_numpy(mask.astype(np.float32)),
    )


def history(fold: Fold, cases: slice, length: int, at_least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(B, L) rows of the log, right-aligned, -1 in front, and where there are any; L is what the longest history
    takes, within `at_least` and `length`."""
    n = cases.stop - cases.start
    longest = int(np.diff(fold.hist_ptr[cases.start : cases.stop + 1]).max(initial=1))
    width = max(at_least, min(length, longest))
    rows = np.full((n, width), -1, np.int64)
    for b in range(n):
        own = fold.hist_row[fold.hist_ptr[cases.start + b] : fold.hist_ptr[cases.start + b + 1]][-length:]
        rows[b, width - len(own) :] = own
    return rows, rows >= 0


def blocks(cases: slice, size: int) -> Iterator[slice]:
    """`cases` in slices of at most `size`."""
    for start in range(cases.start, cases.stop, size):
        yield slice(start, min(start + size, cases.stop))
