"""Evaluation from few labelled pairs and many unlabelled ones: prediction-powered inference.

    estimate = mean(outcome) + power * (mean(prediction of the unlabelled) - mean(prediction of the labelled))

A prediction is the outcome that the models' own probabilities suggest, such as how likely the model is to be right. It
may be wrong by any amount: its error on the labelled pairs is subtracted, so the estimate has no bias, and `power` is
chosen to minimise the variance (Angelopoulos et al. 2023, "Prediction-powered inference" and "PPI++").

Two conditions that no figure can check: labelled and unlabelled pairs come from the same distribution, and the models
were trained on neither. Pseudo-labels count as training: they make a model surer of the pool than of other pairs.
Shapes: n labelled pairs, m unlabelled ones.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PoweredMean:
    """A mean of the outcome over all pairs like these, and what the labels alone say of it."""

    mean: float
    low: float
    """Of its 95 % interval."""
    high: float
    power: float
    """Weight of the predictions, 0 to 1; 0: the labels alone."""
    labels_mean: float
    """By the labels alone."""
    labels_low: float
    labels_high: float

    @property
    def width_ratio(self) -> float:
        """Width of the interval over that by the labels alone, below 1 where the pool helps; NaN where both are 0."""
        alone = self.labels_high - self.labels_low
        return (self.high - self.low) / alone if alone else float("nan")


def expected_credit(prob_a: Tensor) -> Tensor:
    """(N,) probability that the response that a model takes for the better one is the better one.

    Args:
        prob_a: (N,) the model's probability that a wins, calibrated.
    """
    return torch.maximum(prob_a, 1 - prob_a)


def expected_change(prob_by_a: Tensor, prob_by_b: Tensor) -> Tensor:
    """(N,) expected credit of model B less that of model A, by the mean of their probabilities.

    Args:
        prob_by_a: (N,) probability that response a wins, by model A.
        prob_by_b: (N,) the same by model B.
    """
    mean = (prob_by_a + prob_by_b) / 2
    return (torch.sign(prob_by_b - 0.5) - torch.sign(prob_by_a - 0.5)) / 2 * (2 * mean - 1)


def powered_mean(
    outcome: Tensor, prediction: Tensor, pool_prediction: Tensor, prompt: np.ndarray, pool_prompt: np.ndarray
) -> PoweredMean:
    """Mean outcome from labelled and unlabelled pairs, with an interval of Student's t over prompts.

    Args:
        outcome: (n,) what the labels say, such as `half_credit` or a difference of two.
        prediction: (n,) of the same pairs, made without their labels.
        pool_prediction: (m,) of the unlabelled pairs.
        prompt: (n,) id of the prompt of each labelled pair; pairs of one are not independent.
        pool_prompt: (m,) the same of the unlabelled ones.

    Raises:
        ValueError: fewer than two labelled prompts.

    Example:
        >>> right = torch.tensor([1.0, 0.0, 1.0, 1.0])
        >>> sure = torch.tensor([0.9, 0.6, 0.8, 0.9])
        >>> found = powered_mean(right, sure, torch.full((100,), 0.7), np.arange(4), np.arange(100))
        >>> found.labels_mean, round(found.mean, 3)  # the pool's pairs are harder than the four with a label
        (0.75, 0.65)
    """
    outcomes, predictions = _influence(outcome, prompt), _influence(prediction, prompt)
    pool = _influence(pool_prediction, pool_prompt)
    if len(outcomes) < 2:
        raise ValueError(f"powered_mean: got {len(outcomes)} labelled prompts; need 2")
    noise = predictions.var(ddof=1) / len(predictions) + _variance_of_mean(pool)
    shared = float(np.cov(outcomes, predictions)[0, 1]) / len(outcomes)
    has_pool = len(pool) > 1 and noise > 0
    power = min(1.0, max(0.0, shared / noise)) if has_pool else 0.0
    alone = float(outcome.double().mean())
    shift = float(pool_prediction.double().mean() - prediction.double().mean()) if has_pool else 0.0
    mean = alone + power * shift
    variance = _variance_of_mean(outcomes - power * predictions) + power**2 * _variance_of_mean(pool)
    half, half_alone = (_half_width(v, len(outcomes)) for v in (variance, _variance_of_mean(outcomes)))
    return PoweredMean(mean, mean - half, mean + half, power, alone, alone - half_alone, alone + half_alone)


def _influence(values: Tensor, prompt: np.ndarray) -> np.ndarray:
    """(P,) what each prompt adds to the mean over pairs: the mean of these is 0, and their variance over P is its."""
    if not len(values):
        return np.empty(0)
    _, group = np.unique(prompt, return_inverse=True)
    centred = (values.double() - values.double().mean()).numpy()
    sums = np.bincount(group, weights=centred)
    return sums * len(sums) / len(centred)


def _variance_of_mean(influence: np.ndarray) -> float:
    return float(influence.var(ddof=1)) / len(influence) if len(influence) > 1 else 0.0


def _half_width(variance: float, num_prompts: int) -> float:
    from scipy.stats import t  # here, since it takes half a second

    return float(t.ppf(0.975, num_prompts - 1)) * variance**0.5
