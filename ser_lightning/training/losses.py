"""Losses of the reward model: Bradley-Terry for the margin, and an anchor for the zero that Bradley-Terry leaves free.

Shapes: B pairs. Rewards are logits in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(reward_a: Tensor, reward_b: Tensor, target: Tensor, label_noise: float = 0.0) -> Tensor:
    """Negative log-likelihood of a label under Bradley-Terry with annotators who err at a constant rate.

    `P(a wins) = (1 - 2e) sigmoid(r_a - r_b) + e`; with e = 0 this is `-log sigmoid(r_chosen - r_rejected)`
    (SER, section 3.1; Bradley and Terry, 1952).

    Args:
        reward_a: (B,) rewards of response a.
        reward_b: (B,) rewards of response b.
        target: (B,) probability that a wins; between 0 and 1 for a soft label.
        label_noise: e, the share of labels that are wrong, in [0, 0.5).

    Returns:
        (B,) loss of each pair.
    """
    margin = reward_a - reward_b
    if label_noise == 0.0:
        return F.binary_cross_entropy_with_logits(margin, target, reduction="none")
    # log((1 - 2e) sigmoid(m) + e) = log((1 - e) e^m + e) - log(1 + e^m): in logs, large margins stay finite.
    log_right = torch.log(torch.tensor(1.0 - label_noise, device=margin.device))
    log_wrong = torch.log(torch.tensor(label_noise, device=margin.device))
    log_a_wins = torch.logaddexp(log_right + margin, log_wrong.expand_as(margin)) - F.softplus(margin)
    log_b_wins = torch.logaddexp(log_wrong + margin, log_right.expand_as(margin)) - F.softplus(margin)
    return -(target * log_a_wins + (1.0 - target) * log_b_wins)


def centring(reward_a: Tensor, reward_b: Tensor) -> Tensor:
    """Squared sum of a pair's rewards: pulls their mean to 0 and leaves the margin alone (Eisenstein et al., 2023).

    Returns:
        (B,) `(r_a + r_b)^2`.
    """
    return (reward_a + reward_b).square()


def pointwise(reward_a: Tensor, reward_b: Tensor, target: Tensor) -> Tensor:
    """Each response by itself is good or bad: makes `sigmoid(r) = 0.5` the border that SER's status 1 cuts at.

    Returns:
        (B,) mean over the two responses of the cross-entropy of "this is the better one".
    """
    loss_a = F.binary_cross_entropy_with_logits(reward_a, target, reduction="none")
    loss_b = F.binary_cross_entropy_with_logits(reward_b, 1.0 - target, reduction="none")
    return (loss_a + loss_b) / 2
