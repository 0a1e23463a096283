"""What more human labels are worth: a learning curve on subsets of the seed, out of fold, extrapolated.

Heads on frozen states are solved in milliseconds, so the seed model can be fitted again with fewer labels and judged on
seed pairs that none of them has seen. The curve is a power law of the number of labels m, accuracy = a - b m^-c with
b >= 0. Few labels do not determine c: it is `EXPONENT` in the forecast, and anywhere in `EXPONENTS` in the interval.
`docs/forecast.md` says how accurate this is. Nothing here sees a label of the pool or a test pair.
Shapes: n seed pairs, d of them no ties, D numbers of a difference, K sizes of subsets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ser_lightning.evaluation.metrics import Z_95, half_credit
from ser_lightning.training.linear_head import fit_linear_head

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
"""Sizes of the subsets, of the labels that a fold leaves."""
NUM_FOLDS = 5
EXPONENT, EXPONENTS = 0.5, (0.1, 1.0)
SCATTER = 0.15
"""Times 1 / sqrt(labels): standard deviation of the gain between draws of labels, on top of the error of the curve."""
MORE_LABELS = (100, 200)
MIN_LABELS, MAX_LABELS = 50, 2000
"""Sizes of seeds that get a forecast: fewer labels give no curve, and with more, 100 labels gain too little."""
_NUM_RESAMPLES = 1000
_FITS = 2
"""Fits of a fold and size, times the share that they take: small subsets differ more from one another."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LearningCurve:
    """Out-of-fold results of heads fitted on growing subsets of the seed's labels."""

    sizes: Floats
    """(K,) labels of a head, in the mean over folds."""
    credit: Tensor
    """(K, d) float64, mean credit of each seed pair by the heads of a size that never saw its prompt."""
    group: np.ndarray
    """(d,) equal for pairs of one dialogue."""
    num_labels: int
    """n."""


@dataclass(frozen=True)
class LabelGain:
    """What more labels are forecast to gain."""

    labels: int
    """How many more."""
    gain: float
    """Accuracy of the seed model with them less that without, never below 0."""
    low: float
    """Lower end of its 95 % interval; negative where the labels may do harm."""
    high: float


def label_gains(differences: Tensor, target: Tensor, group: Sequence[int], penalty: float) -> list[LabelGain]:
    """The forecast for each of `MORE_LABELS`, empty for too small or large a seed; arguments as `learning_curve`."""
    if not MIN_LABELS <= len(target) <= MAX_LABELS or len(set(group)) < NUM_FOLDS:
        return []
    curve = learning_curve(differences, target, group, penalty)
    return [label_gain(curve, labels) for labels in MORE_LABELS]


def learning_curve(
    differences: Tensor, target: Tensor, group: Sequence[int], penalty: float, seed: int = 0
) -> LearningCurve:
    """Fit heads on random subsets of the seed, which keep the pairs of a dialogue together as far as their size allows.

    Args:
        differences: (n, D), scaled.
        target: (n,) human labels, 0.5 for a tie: it is trained on, and no part of an accuracy.
        group: n numbers, equal for pairs of one dialogue; at least two different ones.
        penalty: of the head, the same for every size, as it weighs against the sum of the losses.
    """
    from sklearn.model_selection import GroupKFold

    groups, generator = np.asarray(group), np.random.default_rng(seed)
    credit = torch.zeros(len(SHARES), len(target), dtype=torch.float64)
    sizes = np.zeros(len(SHARES))
    folds = list(GroupKFold(min(NUM_FOLDS, len(set(groups.tolist())))).split(differences, groups=groups))
    for kept, left_out in folds:
        for k, share in enumerate(SHARES):
            num_fits = round(_FITS / share) if share < 1 else 1
            size = max(2, round(share * len(kept)))
            for _ in range(num_fits):
                rows = kept[_in_random_order(groups[kept], generator)[:size]]
                weight = fit_linear_head(differences[rows], target[rows], penalty)
                margin = differences[left_out].double() @ weight
                credit[k, left_out] += half_credit(margin, target[left_out].double()) / num_fits
            sizes[k] += size / len(folds)
    decided = target != 0.5
    return LearningCurve(sizes, credit[:, decided], groups[decided.numpy()], len(target))


def _in_random_order(groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Places of the pairs, prompt by prompt."""
    _, number = np.unique(groups, return_inverse=True)
    return np.argsort(generator.permutation(number.max() + 1)[number], kind="stable")


def label_gain(curve: LearningCurve, labels: int, seed: int = 0) -> LabelGain:
    """The forecast gain of a number of labels beyond the seed's.

    Args:
        labels: how many more.
    """
    generator = np.random.default_rng(seed)
    steps = np.array([curve.num_labels, curve.num_labels + labels], dtype=np.float64)
    _, group = np.unique(curve.group, return_inverse=True)
    sums = np.stack([np.bincount(group, weights=row) for row in curve.credit.numpy()])
    counts = np.bincount(group)
    drawn = []
    for _ in range(_NUM_RESAMPLES):
        prompts = generator.integers(len(counts), size=len(counts))
        accuracy = sums[:, prompts].sum(1) / counts[prompts].sum()
        drawn.append(_carried_on(curve.sizes, accuracy, steps, generator.uniform(*EXPONENTS)))
    low, high = np.quantile(drawn, (0.025, 0.975))
    gain = _carried_on(curve.sizes, curve.credit.mean(1).numpy(), steps, EXPONENT)
    by_draw = Z_95 * SCATTER / curve.num_labels**0.5
    below, above = (math.hypot(max(0.0, way), by_draw) for way in (gain - float(low), float(high) - gain))
    return LabelGain(labels, gain, gain - below, gain + above)


def power_law(sizes: Floats, accuracy: Floats, exponent: float) -> tuple[float, float]:
    """`a` and `b` of the accuracy a - b m^-exponent, b >= 0, by least squares.

    Args:
        sizes: (K,) numbers of labels m.
        accuracy: (K,).
        exponent: above 0.
    """
    from scipy.optimize import lsq_linear  # here, since it takes half a second

    design = np.stack([np.ones(len(sizes)), -(sizes**-exponent)], 1)
    found = lsq_linear(design, accuracy, bounds=([-np.inf, 0.0], np.inf), method="bvls")
    return float(found.x[0]), float(found.x[1])


def _carried_on(sizes: Floats, accuracy: Floats, steps: Floats, exponent: float) -> float:
    """The gain of the second of two numbers of labels over the first."""
    _, b = power_law(sizes, accuracy, exponent)
    return float(b * (steps[0] ** -exponent - steps[1] ** -exponent))
