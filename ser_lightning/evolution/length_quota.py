"""A quota against a growing preference for length: of what is kept, the longer wins as often as in the seed.

Shapes: N pool pairs, M seed pairs.
"""

import torch
from torch import Tensor

from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evolution.selection import SelectionContext, SelectionResult
from ser_lightning.records import PairScores


def keep_length_share(result: SelectionResult, pool: PairScores, context: SelectionContext) -> Tensor:
    """(N,) bool, what is kept so that the longer response wins as often as in the human labels of the seed."""
    difference = context.scores.length_difference
    unequal = difference != 0
    if not unequal.any():
        return result.keep
    longer_wins = half_credit(difference[unequal].float(), context.target[unequal])
    return balance_by_length(result, pool.length_difference, float(longer_wins.mean()))


def balance_by_length(result: SelectionResult, length_difference: Tensor, longer_wins_share: float) -> Tensor:
    """Drop the least sure pairs of the more frequent direction until "the longer one won" has a given share.

    Pairs of equal length stay. Stops a preference for length from snowballing through the rounds.

    Args:
        result: (N,) what the rule kept.
        length_difference: (N,) tokens of a minus tokens of b.
        longer_wins_share: share to reach among kept pairs of unequal length, e.g. that of the human labels.

    Returns:
        (N,) bool, the pairs still kept.
    """
    keep = result.keep.clone()
    direction = length_difference.sign() * (result.label.to(torch.int64) * 2 - 1)
    longer, shorter = (keep & (direction > 0)).nonzero()[:, 0], (keep & (direction < 0)).nonzero()[:, 0]
    share = min(max(longer_wins_share, 1e-6), 1 - 1e-6)
    if len(longer) * (1 - share) > len(shorter) * share:
        surplus, num_stay = longer, int(len(shorter) * share / (1 - share))
    else:
        surplus, num_stay = shorter, int(len(longer) * (1 - share) / share)
    order = result.confidence[surplus].argsort(descending=True, stable=True)
    keep[surplus[order[num_stay:]]] = False
    return keep
