"""Which model is trained: mmrec's own, or a rival in its place; where the two part ways, and nowhere else.

In: settings; a folder that a fit was saved to. Out: models that the stations of training can't tell apart; the files of
a bundle.
Trade-off: a rival's numbers stand in ops.metrics under `champion`, as any version's do; which model a version is stands
in its bundle.json and in MLflow.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mmrec.config import Config
from mmrec.models.data import Fold, Items, Log
from mmrec.models.knowledge import KNOWLEDGE, Knowledge


def new(config: Config) -> Callable[[dict[str, Any]], Any]:
    """Settings that a validation chose, if any -> the model that `train.model` names, unfitted."""
    from mmrec.evaluate.protocols import tune
    from mmrec.train.fit import Champion
    from mmrec.train.recipe import recipe_named
    from mmrec.train.rival import Plan, Rival

    told = config.train
    if told.model == Champion.name:
        recipe = recipe_named(told.recipe, "config: train.recipe", "mmrec recipes", config.recipes)
        return lambda chosen: Champion(recipe.fixed(chosen), told.seed, device=config.device, processes=told.processes)
    most = config.evaluate.ease_items
    return lambda chosen: Rival(Plan(told.model, chosen), told.seed, partial(tune, ease_items=most), ease_items=most)


def fitted(model: Any, folder: Path, items: Items, log: Log, fold: Fold, vals: list[Fold]) -> Any:
    """Fit a model and save it, or read it, if it is mmrec's own and the same fit had ended there; that goes on, too."""
    from mmrec.train.checkpoint import fit_once
    from mmrec.train.fit import Champion

    if isinstance(model, Champion):
        return fit_once(model, folder, items, log, fold, vals)
    shutil.rmtree(folder, ignore_errors=True)
    model.fit(items, log, fold, vals).save(folder)
    return model


def kept(folder: Path) -> Any:
    """A model that was saved, whatever the settings say by now."""
    from mmrec.train.fit import Champion
    from mmrec.train.rival import Rival

    rival = "rival" in json.loads((folder / "model.json").read_text())
    return (Rival if rival else Champion).load(folder)


def exported(
    model: Any, items: Items, log: Log, fold: Fold, folder: Path, length: int, knowledge: Knowledge | None = None
) -> dict[str, Any]:
    """Write a model's files of a bundle.

    Args:
        fold: cases whose histories graphs are compared on. length: events of a history that a night keeps.
        knowledge: what items' vectors of that modality were made by.

    Returns: fields for bundle.json, `kind` among them.

    Raises: QualityError: the graphs differ from the model.
    """
    from mmrec.train.export import export
    from mmrec.train.export_rival import export_rival
    from mmrec.train.fit import Champion

    if isinstance(model, Champion):
        spec = {"kind": "two_tower"} | export(model, items, log, fold, folder)
        (folder / "curves.json").write_text(json.dumps(model.curves))
    else:
        spec = export_rival(model, items, log, fold, folder, length)
    if knowledge is not None and KNOWLEDGE in spec.get("content_dims", {}):
        knowledge.save(folder)
    return spec
