"""Sampled softmax with negatives shared by a batch.

In: user vectors at the positions that have a next item, vectors of their targets and of sampled negatives. Out: loss.
Trade-off: the partition sum is estimated from the sample; logQ makes the estimate unbiased whatever the sampler.

Shape legend: T positions, S negatives, D vector size.
"""

from __future__ import annotations

import torch


def sampled_softmax(
    user_TD: torch.Tensor,
    target_TD: torch.Tensor,
    target_T: torch.Tensor,
    negative_SD: torch.Tensor,
    negative_S: torch.Tensor,
    log_expected_S: torch.Tensor,
) -> torch.Tensor:
    """Mean cross-entropy of the target against the target and the negatives.

    Args:
        target_T, negative_S: item indices, to mask a negative that is the target (an accidental hit).
        log_expected_S: log of the expected count of each negative in the sample (logQ correction, Bengio and
            Senecal, 2008; Yi et al., RecSys 2019, eq. 5); the target is not a draw and gets none.
    """
    positive_T = (user_TD * target_TD).sum(1)
    logit_TS = user_TD @ negative_SD.T - log_expected_S
    logit_TS = logit_TS.masked_fill(target_T.unsqueeze(1) == negative_S.unsqueeze(0), -1e9)
    total_T = torch.logsumexp(torch.cat([positive_T.unsqueeze(1), logit_TS], 1), 1)
    return (total_T - positive_T).mean()
