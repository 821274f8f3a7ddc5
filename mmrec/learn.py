"""The stations of training: fit, evaluate, export, register, promote. Run in a process of their own.

In: silver and the embedding cache at their versions of now, as of a run_date. Out: an MLflow run, ops.metrics, a
sealed bundle, a registered challenger, a decision in ops.promotions.
Settings are chosen on validation windows that end before the first test window; each test window is read once,
after that; what is served is refitted on everything up to as_of with the chosen settings.
Trade-off: the stations hand each other files under `<home>/training/<run_date>`, so each can be run alone; the
models of the evaluation are kept there until the next training.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import mmrec
from mmrec.config import Config
from mmrec.errors import InputError, QualityError
from mmrec.lake import commit
from mmrec.lake.session import session
from mmrec.models.data import Fold, Items, Log
from mmrec.night import Night, encoders, record_metrics

_CHAIN = ("train", "evaluate", "export", "register", "promote")


def chain(config: Config, when: date, tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    """All five stations of `when`; returns their counts and seconds."""
    from mmrec.steps import step

    night = Night(config, when, tell)
    seconds: dict[str, float] = {}
    counts: dict[str, Any] = {}
    for name in _CHAIN:
        begun = time.monotonic()
        counts[name] = step(name).load()(night)
        seconds[name] = round(time.monotonic() - begun, 2)
        tell(name, int(seconds[name] * 1000), -1)
    return counts | {"seconds": seconds}
