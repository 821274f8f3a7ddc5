"""Inputs of the towers: rows of a log and items of a catalogue as tensors.

In: `Log`, `Fold`, `Items` by dense index. Out: arrays and tensors in the shapes that the towers take.
Trade-off: which parts of an item are dropped is a hash of the step and the item, not a draw of a generator: whoever
takes the item at that step, alone or beside others, drops the same.

Shape legend: B cases, L history, N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def to(self, device: torch.device) -> Tensors:
        """The same on a device."""
        moved = Tensors.__new__(Tensors)
        moved.index = self.index.to(device)
        moved.content = {m: v.to(device) for m, v in self.content.items()}
        moved.present = {m: v.to(device) for m, v in self.present.items()}
        return moved

    def take(self, rows_N: np.ndarray, drop: float, seed: Sequence[int]) -> tuple[Any, Any, Any]:
        """Inputs of some items; each loses its id, and each modality, with probability `drop`, but never all.

        Args:
            seed: of the step: the same seed and item lose the same, in whatever company.
        """
        device = self.index.device
        at = torch.from_numpy(rows_N).to(device)
        keys = np.random.SeedSequence(seed).generate_state(1 + len(self.present), np.uint64)
        kept = [torch.from_numpy(_uniform(key, rows_N) >= drop).to(device) for key in keys]
        present = {m: p[at] * keep for (m, p), keep in zip(self.present.items(), kept[1:], strict=True)}
        has_content = sum(present.values(), torch.zeros(len(rows_N), device=device)) > 0
        # an item never loses everything it has
        index_N = torch.where(kept[0] | ~has_content, self.index[at], 0)
        return index_N, {m: v[at] for m, v in self.content.items()}, present


def _uniform(key: np.uint64, rows_N: np.ndarray) -> np.ndarray:
    """(N,) float64 in [0, 1) of a key and a row: the mixing of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = rows_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


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


def history(fold: Fold, cases: slice | np.ndarray, length: int, at_least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(B, L) rows of the log, right-aligned, -1 in front, and where there are any; L is what the longest history
    takes, within `at_least` and `length`. `cases`: a range or (B,) numbers of cases."""
    begin_B1, end_B1 = fold.hist_ptr[:-1][cases][:, None], fold.hist_ptr[1:][cases][:, None]
    width = max(at_least, min(length, int((end_B1 - begin_B1).max(initial=1))))
    at_BL = end_B1 - width + np.arange(width)
    mask_BL = at_BL >= np.maximum(begin_B1, end_B1 - length)
    rows_BL = np.full(at_BL.shape, -1, np.int64)
    rows_BL[mask_BL] = fold.hist_row[at_BL[mask_BL]]
    return rows_BL, mask_BL


def blocks(cases: slice, size: int) -> Iterator[slice]:
    """`cases` in slices of at most `size`."""
    for start in range(cases.start, cases.stop, size):
        yield slice(start, min(start + size, cases.stop))
