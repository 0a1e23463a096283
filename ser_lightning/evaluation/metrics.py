"""What validation reports of a reward model, exact over uneven batches and ranks (torchmetrics). N pairs."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.functional.regression import pearson_corrcoef
from torchmetrics.utilities.data import dim_zero_cat

from ser_lightning.evaluation.calibration import prob_a_wins
from ser_lightning.records import PairScores
from ser_lightning.training.scoring import check_finite

NUM_CALIBRATION_BINS = 10
Z_95 = 1.959963984540054
"""97.5 % quantile of the normal distribution: half of a 95 % interval, in standard errors."""


def half_credit(margin: Tensor, target: Tensor) -> Tensor:
    """(N,) 1 where the sign of the margin agrees with the target, 0 where not, 0.5 for a tie of either."""
    return torch.where((margin == 0) | (target == 0.5), 0.5, ((margin > 0) == (target > 0.5)).to(margin.dtype))


def wilson_interval(num_right: float, num_pairs: float) -> tuple[float, float]:
    """95 % interval of an accuracy (Wilson, 1927); NaN without pairs. SciPy's takes no ties that count half."""
    if num_pairs == 0:
        return math.nan, math.nan
    p, z2 = num_right / num_pairs, Z_95**2
    centre = (p + z2 / (2 * num_pairs)) / (1 + z2 / num_pairs)
    half = Z_95 * math.sqrt(p * (1 - p) / num_pairs + z2 / (4 * num_pairs**2)) / (1 + z2 / num_pairs)
    return centre - half, centre + half


def effective_pairs(credit: Tensor, group: Tensor) -> float:
    """How many independent pairs N pairs that share prompts are worth: N / design effect (Rao and Scott, 1992).

    The design effect is the variance of the accuracy between groups over that of independent pairs, at least 1. So
    groups of one pair are N pairs, and groups of m equal credits N / m. Where all credits are equal, or there is one
    group, nothing tells how much pairs of a group agree, and each group counts once.

    Args:
        credit: (N,) 1 for a right pair, 0 for a wrong one, 0.5 for a tie.
        group: (N,) equal for pairs of one prompt.
    """
    if not len(credit):
        return 0.0
    _, index = group.unique(return_inverse=True)
    residual = credit.double() - credit.double().mean()
    of_groups = torch.zeros(int(index.max()) + 1, dtype=torch.float64).index_add_(0, index, residual)
    if len(of_groups) == 1 or bool((credit == credit[0]).all()):
        return float(len(of_groups))
    return len(credit) / max(1.0, float(of_groups.square().sum() / residual.square().sum()))


def accuracy_interval(credit: Tensor, group: Tensor) -> tuple[float, float]:
    """95 % interval of the accuracy of N pairs: Wilson's of so many independent ones (`effective_pairs`)."""
    number = effective_pairs(credit, group)
    return wilson_interval(float(credit.double().mean()) * number, number)


def length_correlation(margin: Tensor, length_difference: Tensor) -> float:
    """Pearson correlation of reward margin and length difference (tokens): how far the model just likes length.

    NaN where it is not defined: fewer than two pairs, or one of the two does not vary.
    """
    if len(margin) < 2 or margin.std() == 0 or length_difference.float().std() == 0:
        return math.nan
    return float(pearson_corrcoef(margin.double(), length_difference.double()))


def calibration_error(probability: Tensor, right: Tensor) -> float:
    """Expected calibration error over 10 bins of equal width; NaN without pairs.

    Args:
        probability: (N,) stated probability that the label is right.
        right: (N,) 1 where it was.
    """
    if len(probability) == 0:
        return math.nan
    return float(binary_calibration_error(probability.float(), right.long(), n_bins=NUM_CALIBRATION_BINS))


def reliability(probability: Tensor, right: Tensor) -> list[dict[str, float]]:
    """The bins of `calibration_error` that hold pairs: how many, their mean `confidence`, and how many are `right`.

    Args:
        probability: (N,) stated probability that the label is right.
        right: (N,) bool, whether it was.
    """
    edges = torch.linspace(0, 1, NUM_CALIBRATION_BINS + 1)
    place = torch.bucketize(probability.float(), edges, right=True)
    return [
        {
            "pairs": int((place == i).sum()),
            "confidence": float(probability[place == i].double().mean()),
            "right": int(right[place == i].sum()),
        }
        for i in place.unique().tolist()
    ]


def confidence_and_right(margin: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(N,) stated probability that the better response by the margin is the better one, and (N,) bool whether it is.

    Args:
        margin: (N,) reward_a - reward_b.
        target: (N,) 1 where a is the better response.
        temperature: divides the margins before the sigmoid.
    """
    prob_a = prob_a_wins(margin, temperature)
    return torch.maximum(prob_a, 1 - prob_a), (margin > 0) == (target > 0.5)


def ks_distance(one: Tensor, other: Tensor, p_value: float) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance of two samples, and the distance that chance exceeds with probability `p_value`.

    Args:
        one: (N,) sample, N > 0.
        other: (M,) sample, M > 0.
        p_value: in (0, 1).
    """
    from scipy.stats import ks_2samp, kstwobign  # here, since it takes half a second

    by_chance = float(kstwobign.isf(p_value)) * (1 / len(one) + 1 / len(other)) ** 0.5
    return float(ks_2samp(one.numpy(), other.numpy(), method="asymp").statistic), by_chance


class PairMetrics(Metric):
    """All figures of one evaluation set, from the scores and labels of its pairs."""

    full_state_update = False
    margin: list[Tensor]
    target: list[Tensor]
    length_difference: list[Tensor]
    dialogue: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("margin", "target", "length_difference", "dialogue"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: PairScores, target: Tensor, dialogue: Tensor, weight: Tensor) -> None:
        """Add a batch.

        Args:
            scores: (B,) rewards.
            target: (B,) 1 where a is the better response.
            dialogue: (B,) equal for pairs of one prompt.
            weight: (B,) 0 leaves the pair out (a row that only fills up a rank).
        """
        real = weight > 0
        self.margin.append(scores.margin[real])
        self.target.append(target[real])
        self.length_difference.append(scores.length_difference[real])
        self.dialogue.append(dialogue[real])

    def compute(self, temperature: float = 1.0) -> dict[str, float]:
        """Figures by name; `docs/metrics.md` defines each.

        Args:
            temperature: divides the margins before the sigmoid, for the calibration error.
        """
        if not len(self.margin):
            return {"pairs": 0}
        columns = (self.margin, self.target, self.length_difference, self.dialogue)
        margin, target, difference, dialogue = (dim_zero_cat(column).cpu() for column in columns)
        return pair_figures(margin, target, difference, dialogue, temperature)


def pair_figures(
    margin: Tensor, target: Tensor, length_difference: Tensor, dialogue: Tensor, temperature: float = 1.0
) -> dict[str, float]:
    """Figures of N scored and labelled pairs.

    Args:
        margin: (N,) reward_a - reward_b.
        target: (N,) 1 where a is the better response.
        length_difference: (N,) tokens of a minus tokens of b.
        dialogue: (N,) equal for pairs of one prompt.
        temperature: divides the margins before the sigmoid.

    Raises:
        UserError: a margin is not finite.
    """
    check_finite(margin)
    credit = half_credit(margin, target)
    low, high = accuracy_interval(credit, dialogue)
    return {
        "accuracy": float(credit.sum()) / len(margin),
        "accuracy_low": low,
        "accuracy_high": high,
        "tie_share": float((margin == 0).float().mean()),
        "margin": float((margin * (2 * target - 1)).mean()),
        "calibration_error": calibration_error(*confidence_and_right(margin, target, temperature)),
        "length_correlation": length_correlation(margin, length_difference),
        "longer_accuracy": float(half_credit(length_difference.float(), target).mean()),
        "pairs": len(margin),
    }
