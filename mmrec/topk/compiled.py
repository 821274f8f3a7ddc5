"""Functions that numba compiles.

In: a function over arrays. Out: the same, compiled at its first call, without the interpreter's lock.
Trade-off: what was compiled is kept beside the module where that can be written; else each process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable

import numba


def jit(function: Callable, **how: bool) -> Callable:
    """Compile; numbers behave as in numpy: a division by zero is infinite."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", **how)(function)
    except RuntimeError:  # no writable place for the cache, as in a read-only image
        return numba.njit(nogil=True, error_model="numpy", **how)(function)


def inlined(function: Callable) -> Callable:
    """Compile into whoever calls it: a call costs more than a few numbers that are looked up."""
    return jit(function, forceinline=True)
