"""Settings of a fit, by name or from a file.

In: a name, or a TOML file that says which recipe it starts from and which fields it changes. Out: a `Recipe`;
`RECIPES` are those that a home or a benchmark may name without a file.
Trade-off: a recipe is Python or a file of its own, reviewed like code; settings of a home name one and change none of
its numbers. Why these: docs/decisions/0015-recipes.md.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrec.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """Settings of a fit. Those marked * are chosen on validation where a validation fold is given."""

    d: int = 64
    layers: int = 1
    heads: int = 2
    context: int = 64  # events the sequence tower attends to
    length: int = 1024  # events the linear head and the content profile see
    dropout: float = 0.2
    part_dropout: float = 0.1  # share of items that lose their id, and each modality, in a batch
    fusion: str = "sum"  # of an item's id and content, see models/fusion.py
    warm: float = 0.1  # spread of id embeddings that begin at the linear head's directions; 0: they begin at random
    loss: str = "sampled"  # softmax over a sample; "full": over all items; "gbce"
    own_negatives: bool = False  # drawn for each position, not for the batch
    negative_power: float = 0.5  # negatives are drawn by popularity to this power
    propensity: float = 0.0  # targets weigh by popularity to minus this power, at most ten times the mean; 0: alike
    tokens: int = 1024
    negatives: int = 1024
    lr: float = 6e-3
    weight_decay: float = 0.05
    warmup: int = 50  # steps
    epochs: int = 10  # * at most
    every: int = 1  # epochs from one validation to the next
    patience: int = 4  # validations without a better ndcg@10
    lam: float = 400.0
    rank: int = 512
    head_content: float = 10.0  # users that an item's content counts as in the linear head
    content_rank: int = 256  # principal directions kept of each modality
    tau: float = 20.0  # *
    base: float = 0.3  # *
    half_life_days: float = 365.0  # *
    linear: float = 50.0  # * weight of the linear head
    popularity: float = 0.2  # * weight of log popularity
    content: float = 0.0  # * weight of content likeness, items with interactions
    content_cold: float = 4.0  # * the same, items without
    linear_cold: float = 50.0  # * the linear head's weight, items without
    appeal_cold: float = 1.0  # * weight of the popularity that content foretells, items without
    sequence_cold: float = 1.0  # * share of the sequence tower's say, items without interactions
    cold_offset: float = 0.0  # * taken off the score of items without
    blend: str = "scores"  # * of the three parts: their sum, or a way to re-rank, see topk/rerank.py
    blend_weights: tuple[float, ...] = ()  # * of that way
    depth: int = 100  # best of each part that are re-ranked
    image_share: float = 1.0  # * say of pictures in content likeness, against 1 for the rest
    schedule: int = 10  # epochs the cosine is laid out for
    sparse_under: float = 30.0  # train events a user below which learning takes many small steps; 0: it never does
    ema: float = 0.0  # decay of a moving average of the weights, which is validated and kept; 0: none
    accumulate: int = 1  # batches a step
    precision: str = "auto"  # of the towers in training: "fp32"; "bf16"; "auto": bf16 on a GPU that has it

    def fixed(self, chosen: dict[str, Any]) -> Recipe:
        """The recipe with what a validation chose."""
        return replace(self, **{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()})

    @staticmethod
    def recorded(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields as they were recorded, and those that came later as they were before they came."""
        return {"propensity": 0.0, **fields}

    def pace(self, events: float) -> dict[str, Any]:
        """Fields that data of so many train events a user asks for; with them it goes at that pace ever after."""
        return (_SPARSE if events < self.sparse_under else {}) | {"sparse_under": 0.0}


# of short histories a model learns more, and overfits later, in many small steps from a random start
_SPARSE: dict[str, Any] = {
    "dropout": 0.5, "tokens": 1536, "lr": 1e-3, "weight_decay": 0.01, "warmup": 200, "epochs": 50, "schedule": 50,
    "every": 2, "patience": 6, "warm": 0.0, "negative_power": 0.0,
}  # fmt: skip
RECIPES: dict[str, Recipe] = {
    "default": Recipe(),
    "small": Recipe(context=32, epochs=8, schedule=8, lam=200.0, rank=128, dropout=0.3, weight_decay=0.3,
                    sparse_under=0.0),
}


# what a file may set, and from where to where; `blend` and `blend_weights` are for a validation alone to choose
_BOUNDS: dict[str, tuple[float, float]] = {
    "d": (8, 1024), "layers": (1, 12), "heads": (1, 16), "context": (1, 4096), "length": (1, 65_536),
    "dropout": (0, 0.95), "part_dropout": (0, 0.95), "warm": (0, 10), "negative_power": (0, 1),
    "propensity": (0, 1), "tokens": (16, 2**20),
    "negatives": (1, 2**20), "lr": (1e-6, 1), "weight_decay": (0, 10), "warmup": (1, 10**6), "epochs": (1, 10_000),
    "every": (1, 1000), "patience": (1, 10_000), "lam": (1e-3, 1e6), "rank": (1, 8192), "head_content": (0, 1e6),
    "content_rank": (1, 4096), "tau": (1e-3, 1e6), "base": (0, 1), "half_life_days": (1e-3, 1e5), "linear": (0, 1e6),
    "popularity": (0, 1e6), "content": (0, 1e6), "content_cold": (0, 1e6), "linear_cold": (0, 1e6),
    "appeal_cold": (0, 1e6), "sequence_cold": (0, 1), "cold_offset": (0, 1e6), "depth": (2, 1000),
    "image_share": (0, 1000), "schedule": (1, 10_000), "ema": (0, 0.999999), "accumulate": (1, 1024),
    "sparse_under": (0, 1e6),
}  # fmt: skip
_MORE = 3
_OTHERS = ("fusion", "loss", "own_negatives", "precision")


def recipe_named(name: str, where: str, next_command: str, folder: Path | None = None) -> Recipe:
    """The recipe of that name.

    Args:
        name: one of `RECIPES`, NAME of a file NAME.toml in `folder`, or a path that ends in .toml; a relative one is
            looked for in `folder`. folder: None: there are no files by name, and a path begins here.

    Raises: InputError: there is none, with `where` it was asked for and what to do; a file that can't be read, with a
        field that recipes don't have, or with a value that is of another type or out of range.
    """
    file = (folder or Path()) / (name if name.endswith(".toml") else f"{name}.toml")
    by_name = folder is not None or name.endswith(".toml")
    there = by_name and file.is_file()
    if name in RECIPES:
        if there:
            raise InputError("a file has the name of a recipe that mmrec has", where=str(file), value=name,
                             valid="a name of its own", next=f"rename {file}")  # fmt: skip
        return RECIPES[name]
    if not there:
        own = sorted(p.stem for p in folder.glob("*.toml")) if folder else ["FILE.toml"]
        raise InputError("no such recipe", where=where, value=name, valid=sorted(RECIPES) + own, next=next_command)
    return _read(file)


def recipe_text(recipe: Recipe, start: str, was: Recipe, about: Sequence[str]) -> str:
    """A recipe as a file that `recipe_named` reads.

    Args:
        start: name of the recipe that the search began at; of a file, whose fields are then written out against
            "default". was: that recipe, whose values stand in comments. about: lines of the header.
    """
    base = start if start in RECIPES else "default"
    head = ["# " + "".join(c if c.isprintable() else "?" for c in line) for line in about]
    lines = [*head, f"start = {json.dumps(base)}"]
    for field in (*_BOUNDS, *_OTHERS):
        value, before = getattr(recipe, field), getattr(was, field)
        if value != getattr(RECIPES[base], field):
            lines.append(f"{field} = {_toml(value)}" + (f"  # was {_toml(before)}" if value != before else ""))
    return "\n".join(lines) + "\n"


def _toml(value: bool | float | str) -> str:
    return json.dumps(value) if isinstance(value, bool | str) else repr(value)


def _read(file: Path) -> Recipe:
    edit = f"edit {file}"
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("a recipe can't be read", where=str(file), value=str(error), valid="TOML", next=edit) from None
    name = told.pop("start", "")
    if not isinstance(name, str) or name not in RECIPES:
        raise InputError("a recipe starts from one that mmrec has", where=f"{file}: start", value=name,
                         valid=sorted(RECIPES), next=edit)  # fmt: skip
    start = RECIPES[name]
    if set(_SPARSE) & set(told):  # what says how fast to learn is meant for any data
        start = replace(start, sparse_under=0.0)
    found = replace(start, **{field: _checked(field, value, start, file) for field, value in told.items()})
    if found.d % found.heads:
        raise InputError("heads share a model's width", where=f"{file}: d", value=found.d,
                         valid=f"a multiple of heads, {found.heads}", next=edit)  # fmt: skip
    # a graph is written for a history a little longer than the tower's
    if found.length < found.context + _MORE:
        raise InputError("the whole model looks at more of a history than its tower", where=f"{file}: length",
                         value=found.length, valid=f"context, {found.context}, and {_MORE} or more",
                         next=f"edit {file}")  # fmt: skip
    return found


def _checked(field: str, value: Any, start: Recipe, file: Path) -> Any:
    if field not in _BOUNDS and field not in _OTHERS:
        raise InputError("no such field of a recipe", where=f"{file}: {field}", value=value,
                         valid=sorted([*_BOUNDS, *_OTHERS]), next=f"edit {file}")  # fmt: skip
    kind: Any = type(getattr(start, field))
    if field in _BOUNDS:
        low, high = _BOUNDS[field]
        # to Python true is a number, and 1 is one for a field that counts in fractions
        right = type(value) in ((int,) if kind is int else (int, float)) and low <= value <= high
        valid = f"a {'whole ' if kind is int else ''}number from {low:g} to {high:g}"
    elif kind is bool:
        right, valid = isinstance(value, bool), "true or false"
    else:
        choices = _choices()[field]
        right, valid = value in choices, ", ".join(choices)
    if not right:
        raise InputError("a recipe's value is wrong", where=f"{file}: {field}", value=value, valid=valid,
                         next=f"edit {file}")  # fmt: skip
    return kind(value)


def _choices() -> Mapping[str, Sequence[str]]:
    from mmrec.models.fusion import FUSIONS
    from mmrec.train.device import PRECISIONS
    from mmrec.train.loop import LOSSES  # which imports this module

    return {"fusion": FUSIONS, "loss": LOSSES, "precision": PRECISIONS}
