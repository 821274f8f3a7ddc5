"""The compiled kernel (kernel.c): whether this machine has it, and how it is called.

In: a catalogue in panels, a block of users. Out: rows and scores of their lists, written into the caller's arrays.
The library is built with the package where there is a C compiler, and runs where the processor has AVX-512 with VNNI;
elsewhere `available` says no and exact.py goes the portable way to the same lists.
Trade-off: ctypes, so that nothing is built against an interpreter and its lock is not held; in return the arguments are
written down twice, here and in C.

Shape legend: B users, N items, D columns, D4 columns in fours, K places, P panels of W items, G groups of R users.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np

from mmrec.topk.seen import Seen

GROUP, PANEL = 6, 64  # R and W, as in kernel.c
_NEEDS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma"}
_AT_ONCE = 256  # panels packed at a time
# norms are rounded up by more than summing and a root can lose
_UP = 1 + 1e-6
_local = threading.local()
_POINTERS = ("item", "row", "panel", "norm", "panel8", "start8", "unit8", "error8", "norm8")


class _Catalogue(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in _POINTERS]
    _fields_ += [(name, ctypes.c_int64) for name in ("places", "columns", "panels")]


@dataclass(frozen=True)
class Panels:
    """Items by falling norm, in panels of 64, padded with zeros.

    Attributes:
        row: (P * W,) int32, the row of `item` at a place. panel: (P, D, W) float32. norm: (P,) float64, the greatest.
        panel8: (P, D4, W, 4) int8. start8: (P, W) int32, what takes back that users are shifted by 128. unit8: (P,)
        float64, steps of int8 in one. error8, norm8: (P,) float64, the greatest norm of an item less its int8 form,
        and of an int8 form.
        Those of int8 are empty where they were not asked for.
    """

    item: np.ndarray
    row: np.ndarray
    panel: np.ndarray
    norm: np.ndarray
    panel8: np.ndarray
    start8: np.ndarray
    unit8: np.ndarray
    error8: np.ndarray
    norm8: np.ndarray
    places: int

    @classmethod
    def of(cls, item_ND: np.ndarray, row_M: np.ndarray, reduced: bool) -> Panels:
        """`row_M`: rows by falling norm."""
        d, p = item_ND.shape[1], -(-len(row_M) // PANEL)
        d4, p8 = -(-d // 4), p if reduced else 0
        row = np.zeros(p * PANEL, np.int32)
        row[: len(row_M)] = row_M
        made = cls(item_ND, row, np.zeros((0 if reduced else p, d, PANEL), np.float32), np.zeros(p),
                   np.zeros((p8, d4, PANEL, 4), np.int8), np.zeros((p8, PANEL), np.int32), np.zeros(p8), np.zeros(p8),
                   np.zeros(p8), len(row_M))  # fmt: skip
        for start in range(0, p, _AT_ONCE):
            made._pack(row_M, slice(start, min(p, start + _AT_ONCE)), reduced)
        return made

    def _pack(self, row_M: np.ndarray, part: slice, reduced: bool) -> None:
        d, rows = self.item.shape[1], row_M[part.start * PANEL : part.stop * PANEL]
        v_PWD = np.zeros(((part.stop - part.start) * PANEL, d))
        v_PWD[: len(rows)] = self.item[rows]
        v_PWD = v_PWD.reshape(-1, PANEL, d)
        self.norm[part] = np.sqrt(np.square(v_PWD).sum(2)).max(1) * _UP
        if not reduced:
            self.panel[part] = v_PWD.transpose(0, 2, 1)
            return
        step_P11 = np.abs(v_PWD).max((1, 2))[:, None, None] / 127
        step_P11[step_P11 == 0] = 1
        q_PWD = np.rint(v_PWD / step_P11)
        self.error8[part] = np.sqrt(np.square(v_PWD - q_PWD * step_P11).sum(2)).max(1) * _UP
        self.norm8[part] = np.sqrt(np.square(q_PWD).sum(2)).max(1) * step_P11.ravel() * _UP
        self.unit8[part] = 1 / step_P11.ravel()
        self.start8[part] = -128 * q_PWD.sum(2)
        fours = np.zeros((*v_PWD.shape[:2], self.panel8.shape[1] * 4), np.int8)
        fours[:, :, :d] = q_PWD
        self.panel8[part] = fours.reshape(len(fours), PANEL, -1, 4).transpose(0, 2, 1, 3)


def available() -> bool:
    """Whether the library was built and this processor can run it."""
    return _library() is not None


def search_block(
    panels: Panels, user_BD: np.ndarray, norm_B: np.ndarray, margin_B: np.ndarray, k: int, seen: Seen, tile: int,
    out_row: np.ndarray, out_score: np.ndarray, *, select: bool = True,
) -> np.ndarray:  # fmt: skip
    """Fill the lists of a block of users; without the interpreter's lock.

    Args:
        user_BD: float32; rows of users that are left out are zeros. norm_B: (B,) float64, -1 of those left out.
        margin_B: as of exact.py. seen: (B + 1,) int64 and int32 places, ascending within a user. tile: panels that
            all users of the block go over before the next.
        out_row, out_score: (B, K) int32 and float32, filled with -1 and -inf.
        select: False: sum and compare nothing, for what the sums alone take.

    Returns: (2,) int64: items that reached a floor, items that were scored in fp64.

    Raises: MemoryError: there is no room for the block's buffers.
    """
    library = _library()
    assert library is not None
    b, d = user_BD.shape
    g = -(-b // GROUP)
    user_GRD = np.zeros((g * GROUP, d), np.float32)
    user_GRD[:b] = user_BD
    packed8, unit, error = np.zeros(1, np.uint8), np.ones(g * GROUP), np.zeros(g * GROUP)
    packed = np.zeros(1, np.float32)
    reduced = len(panels.panel8) > 0
    if reduced:
        step_B1 = np.abs(user_GRD).max(1, keepdims=True).astype(np.float64) / 127
        step_B1[step_B1 == 0] = 1
        q_BD = np.rint(user_GRD / step_B1)
        error, unit = np.sqrt(np.square(user_GRD - q_BD * step_B1).sum(1)) * _UP, 1 / step_B1.ravel()
        shifted = np.full((len(q_BD), panels.panel8.shape[1] * 4), 128, np.uint8)
        shifted[:, :d] = q_BD + 128
        packed8 = np.ascontiguousarray(shifted.reshape(g, GROUP, -1, 4).transpose(0, 2, 1, 3))
    else:
        packed = np.ascontiguousarray(user_GRD.reshape(g, GROUP, d).transpose(0, 2, 1))
    about = _Catalogue(*(getattr(panels, n).ctypes.data for n in _POINTERS), panels.places, d, len(panels.norm))
    told, cap = np.zeros(2, np.int64), 2 * k + 4 * PANEL
    given = (user_GRD, packed, packed8, norm_B * _UP, np.ascontiguousarray(margin_B), unit, error)
    failed = library.search(ctypes.byref(about), *(x.ctypes.data for x in given), b, k, seen[0].ctypes.data,
                            seen[1].ctypes.data, tile, reduced, select, cap, _room(8 * (cap + 16) * len(user_GRD)),
                            out_row.ctypes.data, out_score.ctypes.data, told.ctypes.data)  # fmt: skip
    if failed:
        raise MemoryError("no room for the buffers of a block of users")
    return told


def _room(size: int) -> int:
    """Address of so many bytes, a thread's own: fresh ones would be cleared by the system for each block."""
    if getattr(_local, "room", None) is None or len(_local.room) < size:
        _local.room = np.empty(size, np.uint8)
    return _local.room.ctypes.data


@lru_cache(maxsize=1)
def _library() -> Any:
    here = Path(__file__).parent
    if here.parents[1].is_file():  # in a zip, as executors have it: beside that
        here = here.parents[2]
    file = next((f for s in EXTENSION_SUFFIXES if (f := here / f"_kernel{s}").is_file()), None)
    if file is None or not _flags() >= _NEEDS:
        return None
    try:
        library = ctypes.CDLL(str(file))
    except OSError:  # made on a machine with another C library
        return None
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    library.search.argtypes = [pointer] * 8 + [whole, whole, pointer, pointer, *[whole] * 4] + [pointer] * 4
    library.search.restype = ctypes.c_int32
    return library


def _flags() -> set[str]:
    """What the processor says it can do; nothing where the system does not say it in this form."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))
