"""Which users a canary serves: a share of them, by hash, the same ones every night.

In: user ids, what a manifest says of the canary. Out: who is in which arm.
Trade-off: a hash of the version and the id gives shares that are right on the mean: of 1,000 users a tenth is 100, give
or take ten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

MAIN, CANARY = "main", "canary"
_WHOLE = 2**64


def served_by(arm: str, canary: Mapping[str, Any] | None, user_ids: Iterable[str]) -> np.ndarray:
    """(B,) bool: users of an arm.

    Args:
        canary: version and share; None: there is none, and everybody is of the main arm.
    """
    if canary is None:
        return np.fromiter((arm == MAIN for _ in user_ids), bool)
    bound, version = int(canary["share"] * _WHOLE), canary["version"]
    drawn = np.fromiter((_place(version, u) < bound for u in user_ids), bool)
    return drawn if arm == CANARY else ~drawn


def _place(version: str, user_id: str) -> int:
    return int.from_bytes(blake2b(f"{version}/{user_id}".encode(), digest_size=8).digest())
