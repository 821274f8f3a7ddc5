"""What a training measures for the gate: its stand-in, baselines and versions that served, on the days before it.

In: a training's data and settings, its stand-in, bundles on disk. Out: the window, its `Contest`, what a user costs.
The window is the last `gate.days`; where what serves was trained within it, the days since then, so that neither knows
any of them; where it was trained as of the same moment, its own window.
Trade-off: a stand-in costs a training one fit more; what is registered could only be judged on days to come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import numpy as np

from mmrec import dates
from mmrec.bundle import registry
from mmrec.bundle.bundle import Bundle, load
from mmrec.bundle.serving import Serving
from mmrec.context import Night
from mmrec.dataset import Data
from mmrec.errors import InputError, QualityError, TransientError
from mmrec.evaluate.contest import SELF, Contest, measure, version_named
from mmrec.models import splits
from mmrec.models.data import Fold
from mmrec.recommend.asking import asking

_LEAST = timedelta(days=1)
_TIMED, _TURNS = 512, 3  # users, and how often; the fastest counts


def since(night: Night) -> datetime:
    """Where the window begins; it ends at as_of."""
    if night.again is not None and night.again.since is not None:
        return night.again.since
    e = night.config.evaluate
    begin = night.as_of - timedelta(days=min(night.config.gate.days, e.rolling_days * e.rolling_cuts))
    serves = None if night.again else _serving(night).known_at(night.as_of)
    if serves is None or serves.as_of is None or serves.as_of <= begin:
        return begin
    if serves.as_of <= night.as_of - _LEAST:
        return serves.as_of
    with suppress(InputError, QualityError):  # of the same moment: what it was measured on itself
        theirs = Contest.load(load(night.config.bundles / serves.version, serves.sha256, deep=False).folder)
        return theirs.since if theirs is not None and theirs.until == night.as_of else begin
    return begin


def window(night: Night, data: Data, begin: datetime) -> Fold:
    """The fold of the window; at most `gate.cases` users, the same ones whoever asks."""
    first, end = dates.micros(begin), dates.micros(night.as_of)
    fold = splits.window("gate", data.log, data.items, first, end, min_history=night.config.evaluate.min_history)
    most = night.config.gate.cases
    if fold.n_cases <= most:
        return fold
    key = [sha256(str(data.log.user_ids[u]).encode()).digest() for u in fold.case_user]
    keep = np.zeros(fold.n_cases, bool)
    keep[sorted(range(len(key)), key=key.__getitem__)[:most]] = True
    return fold.some(keep)


def contested(
    night: Night, data: Data, fold: Fold, begin: datetime, stand_in: Any, baselines: Mapping[str, Any]
) -> Contest:
    """Ask all who can be asked.

    Args:
        stand_in: the version's settings fitted on the fold. baselines: name -> settings, to be fitted.
    """
    items, log = data.items, data.log
    rankers: dict[str, tuple[Any, Any]] = {SELF: (stand_in, None)}
    rankers |= {name: (model.fit(items, log, fold), None) for name, model in baselines.items()}
    unmeasured: dict[str, str] = {}
    for version, digest in [] if night.again else registry.served(night.config, alone=True):
        try:
            bundle = load(night.config.bundles / version, digest)
            told = bundle.about.get("as_of")
            if told is None or datetime.fromisoformat(told) > begin:
                continue  # it knows what is asked
            rankers[version_named(version)] = (stand_in, _asking(night, data, fold, bundle))
        except (InputError, QualityError) as error:
            unmeasured[version] = f"{error.what} ({error.where})"
    return measure(items, log, fold, rankers, begin, night.as_of, unmeasured)


def seconds(night: Night, data: Data, fold: Fold, bundle: Bundle) -> list[dict[str, Any]]:
    """Milliseconds that a user takes to score, of a bundle and of what serves, one after the other in turns; rows as of
    `Contest.rows`."""
    asked = {SELF: bundle}
    serves = _serving(night)
    if serves.stack:
        with suppress(InputError, QualityError):  # then the gate says so
            asked[version_named(serves.version)] = load(night.config.bundles / serves.version, serves.stack[-1].sha256)
    some = slice(0, min(_TIMED, fold.n_cases))
    scorers: dict[str, Callable[[slice], np.ndarray]] = {}
    for name, one in asked.items() if some.stop else ():
        with suppress(InputError, QualityError):
            scorers[name] = _asking(night, data, fold, one)(fold)
    best = dict.fromkeys(scorers, float("inf"))
    for _ in range(_TURNS):
        for name, score in scorers.items():
            begun = time.perf_counter()
            score(some)
            best[name] = min(best[name], time.perf_counter() - begun)
    return [{"split": "gate", "slice": "all", "model": name, "metric": "ms_per_user", "value": 1e3 * s / some.stop,
             "n": some.stop, "lo": None, "hi": None} for name, s in best.items()]  # fmt: skip


def _serving(night: Night) -> Serving:
    """What serves; a server that would know, and does not answer, is not waited for: then nothing is compared with."""
    try:
        return registry.state(night.config)
    except TransientError:
        return Serving()


def _asking(night: Night, data: Data, fold: Fold, bundle: Bundle) -> Callable[[Fold], Callable[[slice], np.ndarray]]:
    config = night.config
    return asking(bundle, data.items, data.log, fold, data.rows, night.lake, data.tables,
                  length=config.night.sequence_length, half_life_days=config.night.half_life_days,
                  device=config.device, threads=config.threads)  # fmt: skip
