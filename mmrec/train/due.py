"""When a model should be trained.

In: a home's settings, its lake and a run_date. Out: the reason, or None.
Trade-off: looks at the age and the features of what serves; a drop in its quality is the monitor's word.
"""

from __future__ import annotations

import json
from datetime import date, datetime

from mmrec import dates, schema
from mmrec.bundle import bundle as bundles
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.lake.store import Lake


def training_due(config: Config, lake: Lake, run_date: date, served: str | None) -> str | None:
    """Why a model should be trained before the next night; None: no reason, or a date of the past.

    Args:
        served: version of the model that the night was planned with; None asks the registry, which takes a second.
    """
    published = lake.run_dates()
    if published and run_date < published[-1]:
        return None
    marker = config.runs / "last-training.json"
    if not marker.is_file():
        return "no model was trained yet"
    as_of = dates.as_of(run_date, config.zone)
    age = (as_of - datetime.fromisoformat(json.loads(marker.read_text())["as_of"])).days
    if age >= config.train.every_days:
        return f"the last training is {age} days old; train.every_days is {config.train.every_days}"
    about = _about(config, as_of, served)
    if about["kind"] != "popularity" and about.get("features") != schema.features_fingerprint():
        return "the champion was trained on features of another definition"
    return None


def _about(config: Config, as_of: datetime, served: str | None) -> dict:
    if served is not None:
        try:
            return bundles.load(config.bundles / served).about
        except InputError:  # not on disk: the registry knows where to get it
            pass
    from mmrec.bundle.registry import champion

    return champion(config, as_of)[0].about
