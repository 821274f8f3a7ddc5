"""The second stage of a training: fitted beside the first, on what is known beside behaviour too.

In: settings, data, a first stage as validation knows it. Out: a folder of fitted stages, the served one and those that
tell what each source brings; files and fields of a bundle.
Trade-off: every source costs a fit more of a small network, so that the report can say what it is worth.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmrec.config import Config
from mmrec.dataset import Data
from mmrec.errors import InputError
from mmrec.models.data import Fold

_SERVED = "served"


def may_have(config: Config) -> None:
    """Raises: InputError: of a rival there is no second stage."""
    told = config.train.model
    if config.second_stage.depth and told != "champion":
        raise InputError("a second stage is fitted over mmrec's own model alone",
                         where="mmrec.toml: second_stage.depth, train.model",
                         value=f"{config.second_stage.depth}, {told}", valid="depth 0, or model champion",
                         next="edit mmrec.toml")  # fmt: skip


def fitted(config: Config, model: Any, data: Data, folds: Sequence[Fold], folder: Path) -> None:
    """Fit on validation windows and write to `folder`; without a depth, only clear it."""
    shutil.rmtree(folder, ignore_errors=True)
    if not config.second_stage.depth:
        return
    from mmrec.train.second import fit_second

    stages = fit_second(model, data.items, data.log, folds, depth=config.second_stage.depth,
                        length=config.night.sequence_length, seed=config.train.seed, sources=data.sources,
                        using=using(config), kept=config.second_stage.kept)  # fmt: skip
    for name, stage in stages.items():
        stage.save(folder / (name or _SERVED))


def scorers(folder: Path, data: Data) -> Callable[..., dict[str, Any]] | None:
    """Of what `fitted` wrote, as a study asks for it; None: there is none."""
    if not folder.is_dir():
        return None
    from mmrec.train import second

    kept = {"" if p.name == _SERVED else p.name: second.Reranker.load(p) for p in sorted(folder.iterdir())}
    return lambda model, items, log, fold: second.scorers(kept, model, items, log, fold, data.sources)


def exported(folder: Path, data: Data, fold: Fold, bundle: Path) -> dict[str, Any]:
    """Write the served stage's files of a bundle, its traits counted on `fold`; returns bundle.json's `second_stage`,
    or nothing where there is none.

    Raises: QualityError: the graph differs from torch.
    """
    if not folder.is_dir():
        return {}
    from mmrec.models.pairs import Facts, source_of
    from mmrec.train.second import Reranker

    stage = Reranker.load(folder / _SERVED)
    told = stage.export(bundle)
    used = sorted({s for s in map(source_of, stage.told.features) if s is not None})
    if used and data.sources is not None:
        data.sources.counted(data.log, fold, data.items.n).of_kinds(used).save(bundle, data.items.ids)
        social = {"social_days": data.sources.social_days, "depth": data.sources.social_items}
        told |= {"sources": used, "social": social}
        known = Facts.of_fold(data.items, data.log, fold, None)
        columns = data.sources.columns(data.log, fold, known.popularity_N) if "columns" in used else None
        if columns is not None:
            columns.save(bundle)
            told |= {"columns": columns.fingerprint}
    return {"second_stage": told}


def using(config: Config) -> tuple[str, ...]:
    """Sources that a second stage looks at, the shop's own columns among them where there are any."""
    return (*config.second_stage.sources, *(("columns",) if config.second_stage.columns else ()))
