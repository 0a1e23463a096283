"""Losses of the reward model: Bradley-Terry for the margin, and a term for their mean, which Bradley-Terry leaves free.

Shapes: B pairs. Rewards are logits in float32.
"""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(reward_a: Tensor, reward_b: Tensor, target: Tensor) -> Tensor:
    """`-log sigmoid(r_chosen - r_rejected)` (SER, section 3.1; Bradley and Terry, 1952).

    Args:
        reward_a: (B,) rewards of response a.
        reward_b: (B,) rewards of response b.
        target: (B,) probability that a wins; between 0 and 1 for a soft label.

    Returns:
        (B,) loss of each pair.
    """
    return F.binary_cross_entropy_with_logits(reward_a - reward_b, target, reduction="none")


def centring(reward_a: Tensor, reward_b: Tensor) -> Tensor:
    """(B,) `(r_a + r_b)^2`: pulls the mean of a pair's rewards to 0, not the margin (Eisenstein et al., 2023)."""
    return (reward_a + reward_b).square()
