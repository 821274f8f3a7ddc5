"""The slate benchmark, small: its lists are checked before its clock starts, and a wrong one stops it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmrec.bench import slate
from mmrec.errors import QualityError


def quiet(_what: str, _done: int, _of: int) -> None:
    pass


def test_every_side_is_measured_and_its_share_is_of_the_kernel() -> None:
    told = slate.bench(2, quiet, users=300, items=2500, k=30, dim=16)
    assert (told["mismatches"], told["users"], told["items"], told["rounds"]) == (0, 300, 2500, 2)
    assert told["drawn"] == 2
    assert told["passed"] > 0
    for name in ("plain", "ruled", "varied"):
        assert told[f"{name}_share"] == pytest.approx(told[f"{name}_s"] / told["kernel_s"] - 1, abs=0.3)  # of a kernel of two milliseconds, rounded to .1


def test_a_list_that_is_not_the_plain_walks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = slate._Shop.varied

    def wrong(self: Any, block: slice, *more: Any, **named: Any) -> Any:
        made = real(self, block, *more, **named)
        made.lists.item_BK[0] = np.roll(made.lists.item_BK[0], 1)
        return made

    monkeypatch.setattr(slate._Shop, "varied", wrong)
    with pytest.raises(QualityError, match="not those of a plain walk"):
        slate.bench(1, quiet, users=100, items=2500, k=30, dim=16)
