"""The loop that trains the towers: steps in, a look at validation now and then, the best state back.

In: an item and a user tower, a log and its train rows, a recipe. Out: the towers with the weights that did best on
validation, and a row of numbers an epoch.
AdamW (Loshchilov and Hutter, ICLR 2019) with warm-up and a cosine, gradients clipped at 1. Only items that a step
needs are encoded; under the whole softmax these are all that anybody had.
A step depends on the weights, the moments and its number alone, so a fit that was killed goes on from its checkpoint
to the same bits; on a GPU that was measured and is not promised.
Trade-off: validation ranks the whole catalogue for up to 8,192 cases, a third of an epoch's time on sparse data, so
recipes look every other epoch there.

Shape legend: B windows, L inputs, T targets, S negatives, N items, D model size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mmrec.errors import InputError, QualityError
from mmrec.models.data import Fold, Log
from mmrec.models.losses import full_softmax, gbce, sampled_softmax
from mmrec.train.checkpoint import Checkpoint
from mmrec.train.device import autocast
from mmrec.train.feed import Feed, Part, Step
from mmrec.train.inputs import Tensors, blocks
from mmrec.train.measure import first_cases, mask, ndcg
from mmrec.train.recipe import Recipe
from mmrec.train.world import World

LOSSES = ("sampled", "full", "gbce")
_VALIDATED = 8192  # cases that early stopping looks at: a standard error of .002 on sparse data


def train(
    towers: nn.ModuleDict, log: Log, rows: np.ndarray, tensors: Tensors, recipe: Recipe, *, seed: int,
    told: Callable[[dict[str, Any]], None], validate: Callable[[], float] | None,
    stepped: Callable[[int, float], None] | None = None, checkpoint: Checkpoint | None = None,
    world: World | None = None,
) -> int | None:  # fmt: skip
    """Train in place, on the device that `tensors` are on; the towers are left there.

    Args:
        towers: "item" and "user". rows: (E,) bool, what may be learned from.
        told: called with an epoch's row: epoch (from 1), loss, seconds, tokens_per_s and, where it was asked for,
            val_ndcg@10; a fit that goes on begins with the rows it had. stepped: called after a step with its targets
            and loss. Both in the first process of a world alone.
        validate: ndcg@10 of the towers as they are; None: all epochs are run.
        checkpoint: where the fit stands; left for the caller to drop, who may have more to do. Not part of its
            fingerprint: nothing; all arguments but these callbacks belong there.
        world: the processes that share each step; None: this one alone.

    Returns: the epoch whose weights were kept; None without validation.

    Raises: QualityError: the loss is not a number. InputError: the recipe asks for what there is not.
    """
    _checked(recipe)
    towers.to(tensors.index.device)
    fit = _Fit(towers, log, rows, tensors, recipe, seed, world or World())
    fit.go_on(checkpoint)
    at, first = fit.at, fit.world.first
    for row in at.curve if first else ():
        told(row)
    while at.epoch <= recipe.epochs and not (validate is not None and at.waited >= recipe.patience):
        towers.train()
        for number, n, loss, seconds in fit.steps():
            at.step, at.steps, at.loss, at.targets = number + 1, at.steps + 1, at.loss + loss * n, at.targets + n
            at.seconds += seconds
            if first and stepped is not None:
                stepped(n, loss)
            if first and checkpoint is not None and checkpoint.due:
                fit.save(checkpoint)
        row: dict[str, Any] = {"epoch": at.epoch, "loss": at.loss / max(at.targets, 1), "seconds": round(at.seconds, 2),
                               "tokens_per_s": round(at.targets / max(at.seconds, 1e-9))}  # fmt: skip
        if validate is not None and (at.epoch % recipe.every == 0 or at.epoch == recipe.epochs):
            row["val_ndcg@10"] = fit.look(validate)
        at.curve.append(row)
        if first:
            told(row)
        at.epoch, at.step, at.loss, at.targets, at.seconds = at.epoch + 1, 0, 0.0, 0, 0.0
        if first and checkpoint is not None:
            fit.save(checkpoint)
    fit.finish()
    return at.best_epoch


def validation_ndcg(log: Log, vals: Sequence[Fold], scores: Callable[[Fold, slice], np.ndarray]) -> float:
    """ndcg@10 over the first 8,192 cases of every fold, all items ranked. `scores`: (B, N) of some cases of a fold."""
    values, weights = [], []
    for v in vals:
        for part in blocks(first_cases(v, _VALIDATED), 1024):
            values.append(ndcg(v, mask(v, log, scores(v, part), part.start), part.start))
            weights.append(part.stop - part.start)
    return float(np.average(values, weights=weights))


@dataclass
class _At:
    """Where a fit stands: `epoch` under way, its first `step` steps done; `steps` done in all; sums of this epoch's
    loss, targets and seconds; what early stopping knows; rows of the epochs that are over."""

    epoch: int = 1
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    targets: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_epoch: int | None = None
    waited: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)


class _Fit:
    """Everything a checkpoint holds, and how it moves."""

    def __init__(
        self, towers: nn.ModuleDict, log: Log, rows: np.ndarray, tensors: Tensors, recipe: Recipe, seed: int,
        world: World,
    ) -> None:  # fmt: skip
        self.towers, self.recipe, self.world, self.device = towers, recipe, world, tensors.index.device
        self.parameters = list(towers.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, lr=recipe.lr, weight_decay=recipe.weight_decay,
                                           betas=(0.9, 0.98), fused=True)  # fmt: skip
        self.feed = Feed(log, rows, tensors, recipe, seed=seed, rank=world.rank, size=world.size)
        self.at, self.best = _At(), {}
        # of the parameters; in a world the first keeps it
        self.mean = [p.detach().clone() for p in self.parameters] if recipe.ema and world.first else []
        autocast(recipe.precision, self.device)  # refused before the first step, not in it

    # steps

    def steps(self) -> Iterator[tuple[int, int, float, float]]:
        """The rest of the epoch, done: number, targets, loss and seconds of each step."""
        begun = time.monotonic()
        with closing(self.feed.epoch(self.at.epoch - 1, self.at.step)) as steps:
            for step in steps:
                loss = self._step(step)
                now = time.monotonic()
                yield step.number, step.targets, loss, now - begun
                begun = now

    def _step(self, step: Step) -> float:
        """Mean loss over the targets of all batches and processes."""
        _seed(self.device, step.seed)
        self.optimiser.zero_grad(set_to_none=True)
        value = torch.zeros((), device=self.device)
        for part in step.parts:
            share = len(part.asked_T) / step.targets
            loss = self._loss(part) * share if share < 1 else self._loss(part)
            loss.backward()
            value += loss.detach()
        if self.world.size > 1:
            for p in self.parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            self.world.add([value, *(p.grad for p in self.parameters if p.grad is not None)])
        found = float(value)
        if not np.isfinite(found):
            raise QualityError("the loss is not a number: nothing is registered", where=f"epoch {self.at.epoch}",
                               value=found, next="lower the recipe's lr")  # fmt: skip
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self._lr(self.at.steps)
        self.optimiser.step()
        if self.mean:
            # an average over few steps has not forgotten its beginning: it begins short
            decay = min(self.recipe.ema, (1 + self.at.steps) / (10 + self.at.steps))
            with torch.no_grad():
                torch._foreach_lerp_(self.mean, self.parameters, 1 - decay)
        return found

    def _lr(self, done: int) -> float:
        r = self.recipe
        way = min(1.0, done / (self.feed.steps * r.schedule))
        return r.lr * min(1.0, (done + 1) / r.warmup) * (0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * way))))

    def _loss(self, part: Part) -> torch.Tensor:
        """Mean over the part's targets, in float32 whatever the towers run in."""
        r, shape = self.recipe, part.side[0].shape
        with autocast(r.precision, self.device):
            vector_ND = self.towers["item"](*part.items).float()
            input_KD = _rows(vector_ND, part.input_K)
            item_BLD = vector_ND.new_zeros(shape.numel(), r.d).index_copy(0, part.place_K, input_KD)
            user_BLD = self.towers["user"](item_BLD.view(*shape, r.d), *part.side)
        user_TD = user_BLD.float().flatten(0, 1)[part.asked_T]
        negative_SD = _rows(vector_ND, part.negative_S)
        if r.loss == "full":
            return full_softmax(user_TD, negative_SD, part.target_id_T, part.weight_T)
        both = user_TD, _rows(vector_ND, part.target_T), part.target_id_T, negative_SD, part.negative_id_S
        if part.log_expected_S is None:
            return gbce(*both, self.feed.drawn_from, weight_T=part.weight_T)
        return sampled_softmax(*both, part.log_expected_S, part.weight_T)

    # validation

    def look(self, validate: Callable[[], float]) -> float:
        """ndcg@10 of what would be kept; remembers the best, and how many looks were not better."""
        found = 0.0
        if self.world.first:
            self.towers.eval()
            with self._averaged():
                found = validate()
                if found > self.at.best:
                    self.best = {k: v.detach().clone() for k, v in self.towers.state_dict().items()}
        (found,) = self.world.told([found], self.device)
        self.at.waited += 1
        if found > self.at.best:
            self.at.best, self.at.best_epoch, self.at.waited = found, self.at.epoch, 0
        return found

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The towers hold the average."""
        held = [p.detach().clone() for p in self.parameters] if self.mean else []
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(held)

    def _put(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for p, value in zip(self.parameters, values, strict=False):
                p.copy_(value)

    def finish(self) -> None:
        """The towers hold what is kept."""
        self._put(self.mean)
        if self.best:
            self.towers.load_state_dict(self.best)
        self.towers.eval()

    # checkpoints

    def save(self, checkpoint: Checkpoint) -> None:
        tensors = {f"towers.{k}": v for k, v in self.towers.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"mean.{n}": v for n, v in enumerate(self.mean)}
        moments = self.optimiser.state_dict()["state"]
        tensors |= {f"optimiser.{n}.{k}": v for n, state in moments.items() for k, v in state.items()}
        checkpoint.save(tensors, asdict(self.at))

    def go_on(self, checkpoint: Checkpoint | None) -> None:
        """From the checkpoint, if there is one of this fit."""
        found = checkpoint.load() if checkpoint is not None else None
        # nobody writes before all have read
        self.world.told([0.0], self.device)
        if found is None:
            return
        tensors, numbers = found
        self.at = _At(**numbers)
        self.towers.load_state_dict(_below("towers", tensors))
        self.best = _below("best", tensors) if self.world.first else {}
        for n, mean in enumerate(self.mean):
            mean.copy_(tensors[f"mean.{n}"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _below("optimiser", tensors).items():
            n, key = name.split(".")
            state.setdefault(int(n), {})[key] = value
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})


def _checked(recipe: Recipe) -> None:
    valid = {"loss": (recipe.loss in LOSSES, ", ".join(LOSSES)), "accumulate": (recipe.accumulate >= 1, "from 1"),
             "ema": (0 <= recipe.ema < 1, "from 0, below 1")}  # fmt: skip
    for name, (fits, which) in valid.items():
        if not fits:
            raise InputError(f"no such {name}", where=f"recipe: {name}", value=getattr(recipe, name), valid=which,
                             next="edit the recipe")  # fmt: skip


def _rows(vector_ND: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """`vector_ND[at]`; threads that share an index's gradient add it up in any order, an embedding's has one."""
    return F.embedding(at, vector_ND)


def _below(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def _seed(device: torch.device, seed: int) -> None:
    """Dropout's generator alone: torch.manual_seed goes through every device's."""
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
