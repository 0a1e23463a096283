"""Forecast of the next round from the rounds so far: its accuracy out of fold, and when evolution converges.

`planning/workload.py` counts the tokens of a run before its first round. Nothing here sees a hidden label or a test
pair. N is the number of pool pairs, M of seed pairs. `docs/forecast.md` says where the constants come from and what it
is worth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ser_lightning.evaluation.metrics import Z_95

FIRST_CHANGE = 0.13
"""Share of the pool's labels that round 1 changes, before anything is measured."""
LASTING = 0.5
"""Share of the labels changed by round 1 that stay changed; the others flip back and forth."""
DECAY = 0.5
"""Net label change of a round as a share of that of the round before."""
NET_SHARE, NET_SHARE_ERROR = 0.3, 0.15
"""Prior mean and standard deviation of the accuracy that a net label change of 1 gains."""


@dataclass(frozen=True)
class Outlook:
    """The forecast that a round ends with."""

    gain: float
    """Gain in accuracy of the next round; negative for a loss."""
    accuracy: float
    """Accuracy of the next round on the seed, out of fold; NaN without folds."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    rounds_left: int
    """Number of further rounds that gain at least `min_gain`; 0 = evolution has converged."""


def net_label_change(label: Tensor, before: Tensor, earlier: Tensor | None) -> float:
    """Net change of a round's labels since two rounds ago, as a share of the pool; negative if they moved back.

    Labels that flip back and forth from round to round cancel, however many they are.

    Args:
        label: (N,) labels of the round.
        before: (N,) those of the round before.
        earlier: (N,) those of two rounds before; None, as in round 1, counts a fixed share of the change.
    """
    if earlier is None:
        return LASTING * _changed_share(label, before)
    return _changed_share(label, earlier) - _changed_share(before, earlier)


def look_ahead(seed_credits: Sequence[Tensor], net_label_changes: Sequence[float], min_gain: float) -> Outlook:
    """Forecast the round that follows R + 1 rounds.

    A round gains its net label change times a net share. The change shrinks by `DECAY` from round to round; the net
    share combines a prior with the gain on the seed so far, each weighted by its precision.

    Args:
        seed_credits: for each of the R + 1 rounds the (M,) credit (1 right, 0.5 tie, 0 wrong) of the same seed pairs,
            scored out of fold. M is 0 without folds.
        net_label_changes: of the R rounds after the first, each the `net_label_change` of its labels.
        min_gain: minimum gain in accuracy that makes a round worth its compute, above 0.
    """
    ahead = DECAY * net_label_changes[-1] if net_label_changes else LASTING * FIRST_CHANGE
    share, share_error = net_share(seed_credits, net_label_changes)
    ahead = max(0.0, ahead)
    gain = ahead * share
    accuracy = low = high = math.nan
    if len(seed_credits[-1]):
        accuracy = min(1.0, max(0.0, float(seed_credits[-1].mean()) + gain))
        half = Z_95 * math.hypot(_paired_error(*seed_credits[-2:]), ahead * share_error)
        low, high = max(0.0, accuracy - half), min(1.0, accuracy + half)
    return Outlook(gain, accuracy, low, high, rounds_that_gain(gain, min_gain))


def net_share(seed_credits: Sequence[Tensor], net_label_changes: Sequence[float]) -> tuple[float, float]:
    """Accuracy gained for a net label change of 1: the prior, corrected by what the seed has gained out of fold.

    The posterior mean and standard deviation of b in
    (gain since the first round) = b * (sum of the net label changes) + noise.

    Args:
        seed_credits: for each round the (M,) credit of the same pairs; M may be 0.
        net_label_changes: of the rounds after the first.
    """
    if not net_label_changes or not len(seed_credits[0]):
        return NET_SHARE, NET_SHARE_ERROR
    first, now = seed_credits[0], seed_credits[-1]
    gained, way = float((now - first).mean()), sum(net_label_changes)
    belief, noise = NET_SHARE_ERROR**2, _paired_error(first, now) ** 2
    total = noise + belief * way**2
    return (NET_SHARE * noise + belief * gained * way) / total, math.sqrt(belief * noise / total)


def rounds_that_gain(gain: float, min_gain: float) -> int:
    """How many rounds gain at least `min_gain`, when the next one gains `gain` and each later one `DECAY` times that.

    Args:
        gain: accuracy.
        min_gain: accuracy, above 0.
    """
    return 0 if gain < min_gain else math.floor(math.log(min_gain / gain) / math.log(DECAY)) + 1


def _changed_share(label: Tensor, other: Tensor) -> float:
    return float((label != other).double().mean()) if len(label) else 0.0


def _paired_error(before: Tensor, now: Tensor | None = None) -> float:
    """Standard error of the difference in accuracy of two rounds; without a second one, of one that changes as usual.

    One pair more of two more counts as changed: a small seed in which nothing changes is no proof that nothing can.
    """
    if now is None:
        return math.sqrt(FIRST_CHANGE / len(before))
    return math.sqrt((float((now - before).square().sum()) + 1) / (len(now) + 2) / len(now))
