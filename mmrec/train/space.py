"""What a search for a recipe draws from: which fields, between which values.

In: an Optuna trial and the recipe that the search starts from. Out: a recipe to try.
What decides most on the sets that the recipes were made on (docs/decisions/0015-recipes.md). Layers, heads and context
stay: they cost the most time and gained nothing there. So do the linear head's rank, and what a validation chooses in
every fit.
Trade-off: ten fields, thirteen with content, each drawn for itself; half an hour is some dozens of fits at best, which
is too few for more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmrec.train.recipe import Recipe

if TYPE_CHECKING:
    from optuna import Trial

_LOG = {  # by ratio; a start that has one of them at 0 does without, and so do its trials
    "lr": (3e-4, 2e-2),  # the two paces are a factor of six apart, and each loses on the other's data
    "weight_decay": (1e-3, 1.0),  # likewise, thirtyfold
    "lam": (50.0, 2000.0),  # of EASE; grows with the number of users
}
_EVEN = {
    "dropout": (0.0, 0.6),
    "negative_power": (0.0, 1.0),  # uniform on sparse data, the root of popularity on films
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "tokens": (512, 1024, 2048),  # of a batch: fewer are more steps an epoch
    "negatives": (256, 1024, 4096),  # a larger sample comes nearer to the whole softmax, and costs time
    "warm": (0.0, 0.1, 0.2),  # begins at the linear head or at random
    "d": (32, 64, 128),
}
# means nothing where nothing is described
_OF_CONTENT_LOG = {"head_content": (1.0, 200.0)}
_OF_CONTENT_EVEN = {"part_dropout": (0.0, 0.5)}
_OF_CONTENT_CHOICES: dict[str, tuple[Any, ...]] = {"fusion": ("gate", "sum")}

SEARCHED = (*_LOG, *_EVEN, *_CHOICES, *_OF_CONTENT_LOG, *_OF_CONTENT_EVEN, *_OF_CONTENT_CHOICES, "schedule")


def drawn(trial: Trial, start: Recipe, content: bool) -> Recipe:
    """The start with what an Optuna trial draws; every range is widened to hold the start's own value.

    Args:
        content: something is described, so what concerns content is searched, too.

    Returns: a recipe whose numbers have three digits, so that what is fitted is what a file says of it.
    """
    asked: dict[str, Any] = {}

    def between(field: str, low: float, high: float, log: bool) -> None:
        own = getattr(start, field)
        asked[field] = float(f"{trial.suggest_float(field, min(low, own), max(high, own), log=log):.3g}")

    for field, (low, high) in (_LOG | (_OF_CONTENT_LOG if content else {})).items():
        if getattr(start, field) > 0:
            between(field, low, high, True)
    for field, (low, high) in (_EVEN | (_OF_CONTENT_EVEN if content else {})).items():
        between(field, low, high, False)
    for field, choices in (_CHOICES | (_OF_CONTENT_CHOICES if content else {})).items():
        fitting = [c for c in choices if field != "d" or c % start.heads == 0]  # heads share the width
        asked[field] = trial.suggest_categorical(field, tuple(dict.fromkeys((*fitting, getattr(start, field)))))
    s = start.schedule
    asked["schedule"] = trial.suggest_int("schedule", max(1, s // 2), 2 * s, log=True)
    return replace(start, **asked, epochs=asked["schedule"])
