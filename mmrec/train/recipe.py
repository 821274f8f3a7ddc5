"""Settings of a fit, by name.

In: a name. Out: a `Recipe`; `RECIPES` are those that a home or a benchmark may name.
Trade-off: a recipe is Python, reviewed like code; settings of a home name one and change none of its numbers. Why
these: docs/decisions/0015-recipes.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    part_dropout: float = 0.25  # share of items that lose their id, and each modality, in a batch
    fusion: str = "gate"  # of an item's id and content: "gate" or "sum"
    warm: float = 0.1  # spread of id embeddings that begin at the linear head's directions; 0: they begin at random
    loss: str = "sampled"  # softmax over a sample; "full": over all items; "gbce"
    own_negatives: bool = False  # drawn for each position, not for the batch
    negative_power: float = 0.5  # negatives are drawn by popularity to this power
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
    head_content: float = 50.0  # users that an item's content counts as in the linear head
    content_rank: int = 64  # principal directions kept of each modality
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
    ema: float = 0.0  # decay of a moving average of the weights, which is validated and kept; 0: none
    accumulate: int = 1  # batches a step
    precision: str = "auto"  # of the towers in training: "fp32"; "bf16"; "auto": bf16 on a GPU that has it

    def fixed(self, chosen: dict[str, Any]) -> Recipe:
        """The recipe with what a validation chose."""
        return replace(self, **{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()})


RECIPES: dict[str, Recipe] = {
    "default": Recipe(),
    "small": Recipe(context=32, epochs=8, schedule=8, lam=200.0, rank=128, dropout=0.3, weight_decay=0.3),
    # many small steps: for sets of short sequences, of which published protocols look at the last 50 events
    "sparse": Recipe(context=50, length=50, dropout=0.5, part_dropout=0.1, tokens=1536, lr=1e-3, weight_decay=0.01,
                     warmup=200, epochs=50, schedule=50, every=2, patience=6, fusion="sum", warm=0.0,
                     negative_power=0.0),
}


def recipe_named(name: str, where: str, next_command: str) -> Recipe:
    """The recipe of that name. Raises: InputError: there is none; `where` it was asked for and what to do are told."""
    if name not in RECIPES:
        raise InputError("no such recipe", where=where, value=name, valid=sorted(RECIPES), next=next_command)
    return RECIPES[name]
