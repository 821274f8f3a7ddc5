"""`mmrec features rank`: what each feature of a second stage is worth, and which seem to know the future.

In: a home whose model was trained as of a run_date. Out: features, the most useful first, as evaluate/importance.py
tells of them.
It is read on the rolling validation windows, over the first stage that was fitted before them; test windows are not
looked at. Nothing is written: what is to be kept is said in `second_stage.kept`.
Trade-off: a feature's worth is that beside all the others: of two that say the same, neither seems to be worth much.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

from mmrec import trained
from mmrec.config import Config
from mmrec.context import Night
from mmrec.dataset import dataset, folds
from mmrec.errors import InputError
from mmrec.evaluate.importance import Ranked, ranked
from mmrec.staged import may_have, using

_DEPTH = 100  # where the settings have no second stage
_TRUSTED = ("score", "place")  # are the first stage's, which was fitted before these windows


def worth(
    config: Config, when: date, tell: Callable[[str, int, int], None], *, drop: bool = False
) -> tuple[int, list[Ranked]]:
    """How many candidates of a ranking were looked at, and features of pairs, ranked.

    Args:
        drop: fit again without each, too.

    Raises: InputError: nothing was trained for this run_date. QualityError: no case to look at.
    """
    from mmrec.train.second import looked_at

    depth = config.second_stage.depth or _DEPTH
    config = config.model_copy(update={"second_stage": config.second_stage.model_copy(update={"depth": depth})})
    may_have(config)
    night = Night(config, when, tell)
    folder = config.home / "training" / str(when) / "rolling-validation"
    if not (folder / "model.json").is_file():
        raise InputError("nothing was trained for this run_date", where=f"run_date {when}",
                         valid=sorted(p.name for p in folder.parent.parent.glob("????-??-??")),
                         next=f"mmrec train --date {when}")  # fmt: skip
    data = dataset(night)
    validation, _ = folds(night, data)["rolling"]
    seen = looked_at(
        trained.kept(folder), data.items, data.log, validation, depth=depth, length=config.night.sequence_length,
        seed=config.train.seed, sources=data.sources, using=using(config), drop=drop,
        tell=lambda done, of: night.progress("fits", done, of),
    )  # fmt: skip
    return depth, ranked(**seen, trusted=_TRUSTED, seed=config.train.seed)
