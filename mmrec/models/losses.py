"""Losses of next-item models: sampled softmax, the whole softmax in chunks, gBCE.

In: user vectors at the positions that have a next item, vectors of their targets and of sampled negatives, shared by
the batch or drawn for each position; or vectors of all items. Out: a mean loss.
Trade-off: a sampled partition sum is an estimate, which logQ makes unbiased whatever the sampler; the whole one is
exact and costs the catalogue every step. Neither is ever held as a whole: gradients are made chunk by chunk on the way
forward, so nobody can ask for a second derivative.

Shape legend: T positions, S negatives, N items, D vector size, C positions of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

_CHUNK = 4 << 20  # logits held at a time
_BLOCK = 1 << 19  # of a sample: what stays in a core's cache from one pass to the next


def sampled_softmax(
    user_TD: torch.Tensor,
    target_TD: torch.Tensor,
    target_T: torch.Tensor,
    negative_SD: torch.Tensor,
    negative_S: torch.Tensor,
    log_expected_S: torch.Tensor,
    weight_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of the target against the target and the negatives. Holds some positions' logits at a time.

    Args:
        target_T, negative_S: item indices, to mask a negative that is the target (an accidental hit).
        negative_SD, negative_S, log_expected_S: shared by all positions; or (T, S, D), (T, S), (T, S): each its own.
        log_expected_S: log of the expected count of each negative in the sample (logQ correction, Bengio and
            Senecal, 2008; Yi et al., RecSys 2019, eq. 5); the target is not a draw and gets none.
        weight_T: what a position's loss counts in the sum that is divided by T; None: each counts one.
    """
    return _Sampled.apply(user_TD, target_TD, target_T, negative_SD, negative_S, log_expected_S, weight_T)


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, user_TD: torch.Tensor, target_TD: torch.Tensor, target_T: torch.Tensor, negative_SD: torch.Tensor,
        negative_S: torch.Tensor, log_expected_S: torch.Tensor, weight_T: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        shared, total = negative_SD.ndim == 2, user_TD.new_zeros(())
        user_grad_TD, target_grad_TD = torch.empty_like(user_TD), torch.empty_like(target_TD)
        negative_grad_SD = torch.zeros_like(negative_SD)
        step = max(1, _BLOCK // max(1, negative_S.shape[-1]))
        for start in range(0, len(user_TD), step):
            at = slice(start, start + step)
            user_CD, target_CD, own = user_TD[at], target_TD[at], slice(None) if shared else at
            vector, index, expected = negative_SD[own], negative_S[own], log_expected_S[own]
            logit_CS = _masked(_logits(user_CD, vector).sub_(expected), target_T[at], index)
            positive_C1 = (user_CD * target_CD).sum(1, keepdim=True)
            high_C1 = torch.maximum(logit_CS.amax(1, keepdim=True), positive_C1) if logit_CS.numel() else positive_C1
            odds_CS, own_odds_C1 = logit_CS.sub_(high_C1).exp_(), (positive_C1 - high_C1).exp_()
            sum_C1 = odds_CS.sum(1, keepdim=True) + own_odds_C1
            loss_C1, slope_C1 = sum_C1.log() + high_C1 - positive_C1, own_odds_C1 / sum_C1 - 1
            if weight_T is not None:  # a sum of odds that is smaller pulls harder
                weight_C1 = weight_T[at].unsqueeze(1)
                loss_C1, slope_C1, sum_C1 = loss_C1 * weight_C1, slope_C1 * weight_C1, sum_C1 / weight_C1
            total += loss_C1.sum()
            user_share_CD = user_CD / sum_C1
            target_grad_TD[at] = slope_C1 * user_CD
            if shared:
                pulled_CD = odds_CS @ vector
                negative_grad_SD.addmm_(odds_CS.T, user_share_CD)
            else:
                pulled_CD = (odds_CS.unsqueeze(1) @ vector).squeeze(1)
                negative_grad_SD[at] = odds_CS.unsqueeze(2) * user_share_CD.unsqueeze(1)
            user_grad_TD[at] = pulled_CD.div_(sum_C1).addcmul_(slope_C1, target_CD)
        ctx.save_for_backward(user_grad_TD, target_grad_TD, negative_grad_SD)
        return total / len(user_TD)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        user_grad_TD, target_grad_TD, negative_grad_SD = ctx.saved_tensors
        share = grad / len(user_grad_TD)
        return user_grad_TD * share, target_grad_TD * share, None, negative_grad_SD * share, None, None, None


def gbce(
    user_TD: torch.Tensor,
    target_TD: torch.Tensor,
    target_T: torch.Tensor,
    negative_SD: torch.Tensor,
    negative_S: torch.Tensor,
    n: int,
    calibration: float = 0.75,
    weight_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean generalised binary cross-entropy (Petrov and Macdonald, gSASRec, RecSys 2023).

    The target's probability is taken to the power beta = a (t (1 - 1/a) + 1/a), a = S / (n - 1), which undoes what
    sampling negatives does to confidence; t = 0 is plain binary cross-entropy, t = 1 a calibrated one.

    Args:
        negative_SD, negative_S: as in `sampled_softmax`, drawn uniformly. n: items they were drawn from.
        calibration: t. weight_T: as in `sampled_softmax`.
    """
    rate = negative_S.shape[-1] / max(n - 1, 1)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    positive_T = beta * F.logsigmoid((user_TD * target_TD).sum(1))
    logit_TS = _masked(_logits(user_TD, negative_SD), target_T, negative_S)
    loss_T = -(positive_T + F.logsigmoid(-logit_TS).sum(1))
    return (loss_T if weight_T is None else loss_T * weight_T).mean()


def full_softmax(
    user_TD: torch.Tensor, item_ND: torch.Tensor, target_T: torch.Tensor, weight_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross-entropy of the target against all items. Holds some positions' logits at a time, never (T, N).

    Args:
        target_T: rows of `item_ND`. weight_T: as in `sampled_softmax`.
    """
    return _Full.apply(user_TD, item_ND, target_T, weight_T)


class _Full(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, user_TD: torch.Tensor, item_ND: torch.Tensor, target_T: torch.Tensor, weight_T: torch.Tensor | None
    ) -> torch.Tensor:
        total = user_TD.new_zeros(())
        user_grad_TD, item_grad_ND = torch.empty_like(user_TD), torch.zeros_like(item_ND)
        for at in torch.arange(len(user_TD), device=user_TD.device).split(max(1, _CHUNK // max(1, len(item_ND)))):
            user_CD, target_C1 = user_TD[at], target_T[at].unsqueeze(1)
            logit_CN = user_CD @ item_ND.T
            log_C1 = torch.logsumexp(logit_CN, 1, keepdim=True)
            loss_C1 = log_C1 - logit_CN.gather(1, target_C1)
            slope_CN = logit_CN.sub_(log_C1).exp_()
            slope_CN.scatter_add_(1, target_C1, torch.full_like(log_C1, -1.0))
            if weight_T is not None:
                weight_C1 = weight_T[at].unsqueeze(1)
                loss_C1, slope_CN = loss_C1 * weight_C1, slope_CN.mul_(weight_C1)
            total += loss_C1.sum()
            user_grad_TD[at] = slope_CN @ item_ND
            item_grad_ND.addmm_(slope_CN.T, user_CD)
        ctx.save_for_backward(user_grad_TD, item_grad_ND)
        return total / len(user_TD)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        user_grad_TD, item_grad_ND = ctx.saved_tensors
        share = grad / len(user_grad_TD)
        return user_grad_TD * share, item_grad_ND * share, None, None


def _logits(user_TD: torch.Tensor, negative_SD: torch.Tensor) -> torch.Tensor:
    if negative_SD.ndim == 2:
        return user_TD @ negative_SD.T
    return (negative_SD @ user_TD.unsqueeze(2)).squeeze(2)


def _masked(logit_TS: torch.Tensor, target_T: torch.Tensor, negative_S: torch.Tensor) -> torch.Tensor:
    """What is the target itself counts as no negative."""
    return logit_TS.masked_fill_(target_T.unsqueeze(1) == negative_S, -1e9)
