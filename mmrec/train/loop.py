"""The loop that trains the towers: batches in, steps, a look at validation now and then, the best state back.

In: an item and a user tower, a log and its train rows, a recipe. Out: the towers with the weights that did best on
validation, and a row of numbers an epoch.
AdamW (Loshchilov and Hutter, ICLR 2019) with warm-up and a cosine, gradients clipped at 1. Only items that a batch
needs are encoded; under the whole softmax these are all that anybody had.
Trade-off: validation ranks the whole catalogue for up to 8,192 cases, which costs about an epoch on sparse data, so
recipes look every other epoch there.

Shape legend: B windows, L inputs, T targets, N items, D model size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmrec.errors import InputError, QualityError
from mmrec.models.data import Fold, Log
from mmrec.models.losses import full_softmax, gbce, sampled_softmax
from mmrec.train.batches import Batch, Batches
from mmrec.train.blend import first_cases, mask, ndcg
from mmrec.train.inputs import Tensors, blocks, event_inputs
from mmrec.train.recipe import Recipe

LOSSES = ("sampled", "full", "gbce")
_VALIDATED = 8192  # cases that early stopping looks at: a standard error of .002 on sparse data


def train(
    towers: nn.ModuleDict, log: Log, rows: np.ndarray, tensors: Tensors, recipe: Recipe, *, seed: int,
    told: Callable[[dict[str, Any]], None], validate: Callable[[], float] | None,
    stepped: Callable[[int, float], None] | None = None,
) -> int | None:  # fmt: skip
    """Train in place.

    Args:
        towers: "item" and "user". rows: (E,) bool, what may be learned from.
        told: called with an epoch's row: epoch (from 1), loss, seconds, tokens_per_s and, where it was asked for,
            val_ndcg@10. stepped: called after a step with its targets and loss.
        validate: ndcg@10 of the towers as they are; None: all epochs are run.

    Returns: the epoch whose weights were kept; None without validation.

    Raises: QualityError: the loss is not a number. InputError: no such loss.
    """
    if recipe.loss not in LOSSES:
        raise InputError("no such loss", where="recipe: loss", value=recipe.loss, valid=LOSSES, next="edit the recipe")
    r, parameters = recipe, list(towers.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=r.lr, weight_decay=r.weight_decay, betas=(0.9, 0.98), fused=True)
    made = Batches(log, rows, context=r.context, tokens=r.tokens, seed=seed)
    steps = max(1, sum(1 for _ in made.epoch(0)))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1.0, (s + 1) / r.warmup) * (
        0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * min(1.0, s / (steps * r.schedule))))))  # fmt: skip
    count_N = np.bincount(log.item[rows], minlength=len(tensors.index)).astype(np.float64)
    share_N = np.where(count_N > 0, count_N**r.negative_power, 0)
    share_N /= share_N.sum()
    rng = np.random.default_rng(seed)
    best, best_epoch, best_state, waited = -1.0, None, None, 0
    for epoch in range(1, r.epochs + 1):
        begun, total, tokens = time.monotonic(), 0.0, 0
        towers.train()
        for batch in made.epoch(epoch - 1):
            if not batch.asked_BL.any():
                continue
            loss, n = _loss(towers, log, batch, tensors, r, share_N, rng)
            value = float(loss.detach())
            if not np.isfinite(value):
                raise QualityError("the loss is not a number: nothing is registered", where=f"epoch {epoch}",
                                   value=value, next="lower the recipe's lr")  # fmt: skip
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            scheduler.step()
            total, tokens = total + value * n, tokens + n
            if stepped is not None:
                stepped(n, value)
        seconds = time.monotonic() - begun
        row: dict[str, Any] = {"epoch": epoch, "loss": total / max(tokens, 1), "seconds": round(seconds, 2),
                               "tokens_per_s": round(tokens / seconds)}  # fmt: skip
        if validate is not None and (epoch % r.every == 0 or epoch == r.epochs):
            towers.eval()
            found = row["val_ndcg@10"] = validate()
            waited += 1
            if found > best:
                best, best_epoch, waited = found, epoch, 0
                best_state = {k: v.clone() for k, v in towers.state_dict().items()}
        told(row)
        if validate is not None and waited >= r.patience:
            break
    if best_state is not None:
        towers.load_state_dict(best_state)
    towers.eval()
    return best_epoch


def validation_ndcg(log: Log, vals: Sequence[Fold], scores: Callable[[Fold, slice], np.ndarray]) -> float:
    """ndcg@10 over the first 8,192 cases of every fold, all items ranked. `scores`: (B, N) of some cases of a fold."""
    values, weights = [], []
    for v in vals:
        for part in blocks(first_cases(v, _VALIDATED), 1024):
            values.append(ndcg(v, mask(v, log, scores(v, part), part.start), part.start))
            weights.append(part.stop - part.start)
    return float(np.average(values, weights=weights))


def _loss(
    towers: nn.ModuleDict, log: Log, batch: Batch, tensors: Tensors, r: Recipe, share_N: np.ndarray,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, int]:  # fmt: skip
    """(mean loss, targets) of a batch."""
    rows, mask_BL = np.maximum(batch.rows_BL, 0), batch.rows_BL >= 0
    gap = np.where(mask_BL, log.ts_us[np.maximum(batch.next_BL, 0)] - log.ts_us[rows], 0) / 1e6
    target = log.item[batch.next_BL[batch.asked_BL]]
    n, t = int(mask_BL.sum()), len(target)
    if r.loss == "full":
        negative = np.flatnonzero(share_N)
    else:
        negative = rng.choice(len(share_N), (t, r.negatives) if r.own_negatives else r.negatives, p=share_N)
    asked = np.concatenate([log.item[rows[mask_BL]], target, negative.ravel()])
    needed, where = np.unique(asked, return_inverse=True)
    vector_ND = towers["item"](*tensors.take(needed, rng, r.part_dropout))
    item_BLD = torch.zeros(*mask_BL.shape, r.d)
    item_BLD[torch.from_numpy(mask_BL)] = vector_ND[torch.from_numpy(where[:n])]
    user_BLD = towers["user"](item_BLD, *event_inputs(log.event[rows] + 1, gap, log.weight[rows], mask_BL))
    user_TD, at_T = user_BLD[torch.from_numpy(batch.asked_BL)], torch.from_numpy(where[n : n + t])
    at_S = torch.from_numpy(where[n + t :].reshape(negative.shape))
    if r.loss == "full":
        place_T = torch.from_numpy(np.searchsorted(negative, target))
        return full_softmax(user_TD, vector_ND[at_S], place_T), t
    target_T, negative_S = torch.from_numpy(target), torch.from_numpy(negative)
    if r.loss == "gbce":
        return gbce(user_TD, vector_ND[at_T], target_T, vector_ND[at_S], negative_S, int((share_N > 0).sum())), t
    log_expected = torch.from_numpy(np.log(share_N[negative] * r.negatives)).float()
    return sampled_softmax(user_TD, vector_ND[at_T], target_T, vector_ND[at_S], negative_S, log_expected), t
