"""Settings of a night that hang on the bundle it is scored with, and on the one that serves a share beside it.

In: settings, a bundle. Out: parts of a manifest's config.
Trade-off: a night pins them, so an encoder that the settings name later changes no night that is planned.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from mmrec.bundle import bundle as bundles
from mmrec.bundle.bundle import Bundle
from mmrec.bundle.registry import state
from mmrec.canary import KEY
from mmrec.config import Config
from mmrec.errors import InputError, QualityError
from mmrec.models.fields import USUAL
from mmrec.recommend import second
from mmrec.recommend.generators import looks
from mmrec.recommend.vary import Aims
from mmrec.served import looked_at


def of_bundle(config: Config, bundle: Bundle, day: date) -> dict[str, Any]:
    """half_life_days, and where they are on text_fields, diversity, candidates and second_stage: canary.OF_A_BUNDLE.

    Raises: InputError: the bundle can't do what a generator needs, or no encoder is named.
    """
    chosen = bundle.fields["text"]
    texts = {} if chosen == USUAL["text"] else {"text_fields": chosen}  # the usual choice keeps the digest it had
    aims = config.diversity
    looked = looked_at(config, bundle, Aims.of(aims.model_dump()).looks) if aims.on else {}
    varied = {"diversity": aims.model_dump() | looked} if aims.on else {}
    mixed = _mixed(config, bundle)
    depth = config.second_stage.depth
    staged = second.asked(depth, bundle, day)
    twice: dict[str, Any] = {}
    if staged:
        about = bundle.about["second_stage"]
        known = {name: about[name] for name in ("sources", "social") if name in about}
        twice = {"second_stage": {"depth": depth, "encoders": bundle.encoders, "fields": bundle.fields} | known}
    half_life = bundle.about.get("half_life_days") or config.night.half_life_days  # the model's own, where it has one
    return texts | varied | mixed | twice | {"half_life_days": half_life}


def of_canary(config: Config, as_of: datetime, day: date) -> dict[str, Any]:
    """The version that serves a share of the users, unless it knows what lies after the night: `canary`, or nothing.

    Raises: InputError, QualityError: it can't score this night; what ends it is said.
    """
    now = state(config)
    trial = now.trial
    if trial is None or (trial.as_of is not None and trial.as_of > as_of):
        return {}
    try:
        bundle = bundles.load(config.bundles / trial.version, trial.sha256)
        told = of_bundle(config, bundle, day)
    except (InputError, QualityError) as error:
        raise type(error)(f"version {trial.version}, which serves a share of the users, can't score: {error.what}",
                          where=error.where, value=error.value, valid=error.valid,
                          next="mmrec models rollback") from error  # fmt: skip
    return {KEY: {"version": trial.version, "digest": trial.sha256, "share": now.share, "encoders": bundle.encoders,
                  "config": told}}  # fmt: skip


def _mixed(config: Config, bundle: Bundle) -> dict[str, Any]:
    """What else brings candidates, as a manifest has it.

    Raises: InputError: the bundle can't do what a generator needs, or no encoder is named.
    """
    told = config.candidates
    if not told.generators:
        return {}
    if "item_to_item" in told.generators and bundle.kind not in ("two_tower", "factors"):
        raise InputError("the model has no vectors of items, which item_to_item compares",
                         where="mmrec.toml: candidates.generators", value=f"a bundle of kind {bundle.kind}",
                         valid="a two_tower or factors bundle, or generators without item_to_item",
                         next="edit mmrec.toml")  # fmt: skip
    looked = looked_at(config, bundle, "content" in told.generators) if looks(told.generators) else {"encoders": {}}
    return {"candidates": told.model_dump() | looked}
