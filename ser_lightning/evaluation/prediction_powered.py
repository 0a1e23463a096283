"""Evaluation from few labelled pairs and many unlabelled ones: prediction-powered inference.

    estimate = mean(outcome) + power * (mean(prediction of the unlabelled) - mean(prediction of the labelled))

A prediction is the outcome that a model's own probabilities suggest, such as how likely it is to be right. It may be
wrong by any amount: its error on the labelled pairs is subtracted, so the estimate has no bias, and `power` is chosen
to minimise the variance (Angelopoulos et al. 2023, "Prediction-powered inference" and "PPI++").

Two conditions that no figure can check:

- Labelled and unlabelled pairs come from the same distribution.
- The model that predicts was trained on neither; pseudo-labels count as training, for they make a model surer of the
  pairs than of others. The model that is judged may have been trained on the unlabelled pairs. For the error is

      mean(outcome - power * prediction) less its expectation, over the labelled pairs
      + power * (mean(prediction) less its expectation, over the unlabelled pairs)

  Given the judged model and the unlabelled pairs, the first line is 0 on average and uncorrelated with the second,
  whatever the judged model has learned of them. The second is 0 on average if the prediction knows nothing of them.
  So for a run that evolved the model of round 0 predicts, which has seen the seed alone.

Pairs of a prompt are not independent, wherever they stand: the variance is that of sums over prompts, of labelled and
unlabelled pairs together. Shapes: n labelled pairs, m unlabelled ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ser_lightning.evaluation.sets import prompt_interval, share_interval

MIN_PROMPTS = 100
"""With labels of fewer prompts the pool is not used: `power` fits so few by chance, and the interval holds the truth
one to two points too seldom, which is all that it is narrower by (`benchmarks/prediction_powered/`)."""


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


@dataclass(frozen=True)
class Estimate:
    """A mean with the interval to report: with the unlabelled pairs where they make it narrower."""

    value: float
    low: float
    """Of its 95 % interval."""
    high: float
    labels_value: float
    """By the labels alone."""
    labels_low: float
    """From a bootstrap over prompts, as `sets.share_interval` and, of a difference, `prompt_interval` give it."""
    labels_high: float

    @property
    def width(self) -> float:
        """Of the interval."""
        return self.high - self.low

    @property
    def labels_width(self) -> float:
        """Of the interval by the labels alone."""
        return self.labels_high - self.labels_low

    @property
    def uses_unlabelled(self) -> bool:
        """Whether the unlabelled pairs are part of it."""
        return self.width < self.labels_width


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


def estimates(
    credit: Sequence[Tensor],
    prob: Sequence[Tensor],
    pool_prob: Sequence[Tensor],
    prompt: np.ndarray,
    pool_prompt: np.ndarray,
    min_prompts: int = MIN_PROMPTS,
) -> dict[str, Estimate]:
    """Accuracy of one model, or of two with their difference, from labelled and unlabelled pairs.

    Args:
        credit: of each model (n,) `half_credit` on the labelled pairs.
        prob: of each model (n,) predicted probability that a wins, by itself or by a model in its place.
        pool_prob: of each model (m,) the same of the unlabelled pairs.
        prompt: (n,) as of `powered_mean`.
        pool_prompt: (m,).
        min_prompts: with labels of fewer prompts these decide alone.

    Returns:
        `accuracy_a`, and with two models `accuracy_b` and `difference` (of B less A).
    """
    asked = {
        f"accuracy_{side}": (one, expected_credit(p), expected_credit(q))
        for side, one, p, q in zip("ab", credit, prob, pool_prob, strict=False)
    }
    if len(credit) == 2:
        asked["difference"] = credit[1] - credit[0], expected_change(*prob), expected_change(*pool_prob)
    return {
        name: estimate(*one, prompt, pool_prompt, -1.0 if name == "difference" else 0.0, min_prompts)
        for name, one in asked.items()
    }


def estimate(
    outcome: Tensor,
    prediction: Tensor,
    pool_prediction: Tensor,
    prompt: np.ndarray,
    pool_prompt: np.ndarray,
    least: float = 0.0,
    min_prompts: int = MIN_PROMPTS,
) -> Estimate:
    """The narrower one of `powered_mean` and of the bootstrap by the labels alone; arguments as of the former.

    Args:
        outcome: (n,).
        prediction: (n,).
        pool_prediction: (m,).
        prompt: (n,).
        pool_prompt: (m,).
        least: that the mean can be; 1 is the most.
    """
    interval = prompt_interval if least else share_interval
    labels = float(outcome.double().mean()), *interval(outcome, prompt)
    if len(np.unique(prompt)) >= min_prompts:
        found = powered_mean(outcome, prediction, pool_prediction, prompt, pool_prompt)
        if found.power > 0 and found.high - found.low < labels[2] - labels[1]:
            mean, low, high = (min(1.0, max(least, value)) for value in (found.mean, found.low, found.high))
            return Estimate(mean, low, high, *labels)
    return Estimate(*labels, *labels)


def powered_mean(
    outcome: Tensor, prediction: Tensor, pool_prediction: Tensor, prompt: np.ndarray, pool_prompt: np.ndarray
) -> PoweredMean:
    """Mean outcome from labelled and unlabelled pairs, with an interval of Student's t over prompts.

    Args:
        outcome: (n,) what the labels say, such as `half_credit` or a difference of two.
        prediction: (n,) of the same pairs, made without their labels.
        pool_prediction: (m,) of the unlabelled pairs.
        prompt: (n,) id of the prompt of each labelled pair; pairs of one are not independent.
        pool_prompt: (m,) the same of the unlabelled ones; a prompt may stand on both sides.

    Raises:
        ValueError: fewer than two labelled prompts.

    Example:
        >>> right = torch.tensor([1.0, 0.0, 1.0, 1.0])
        >>> sure = torch.tensor([0.9, 0.6, 0.8, 0.9])
        >>> found = powered_mean(right, sure, torch.full((100,), 0.7), np.arange(4), np.arange(4, 104))
        >>> found.labels_mean, round(found.mean, 3)  # the pool's pairs are harder than the four with a label
        (0.75, 0.65)
    """
    _, group = np.unique(np.concatenate([prompt, pool_prompt]), return_inverse=True)
    labelled, pool, num_prompts = group[: len(prompt)], group[len(prompt) :], len(np.unique(prompt))
    if num_prompts < 2:
        raise ValueError(f"powered_mean: got {num_prompts} labelled prompts; need 2")
    size = int(group.max()) + 1
    of_labels = _influence(outcome, labelled, size)
    of_shift = _influence(pool_prediction, pool, size) - _influence(prediction, labelled, size)
    noise = float((of_shift**2).sum())
    has_pool = len(np.unique(pool)) > 1 and noise > 0
    power = min(1.0, max(0.0, -float((of_labels * of_shift).sum()) / noise)) if has_pool else 0.0
    alone = float(outcome.double().mean())
    shift = float(pool_prediction.double().mean() - prediction.double().mean()) if has_pool else 0.0
    mean = alone + power * shift
    variances = (float((one**2).sum()) for one in (of_labels + power * of_shift, of_labels))
    half, half_alone = (_half_width(variance, num_prompts) for variance in variances)
    return PoweredMean(mean, mean - half, mean + half, power, alone, alone - half_alone, alone + half_alone)


def _influence(values: Tensor, group: np.ndarray, size: int) -> np.ndarray:
    """(size,) what each prompt adds to the error of the mean over pairs: the sum of their squares is its variance.

    Args:
        values: (N,).
        group: (N,) number of the prompt of each, below `size`.
        size: how many prompts there are; those without a value add 0.
    """
    num_prompts = len(np.unique(group))
    if num_prompts < 2:
        return np.zeros(size)
    centred = (values.double() - values.double().mean()).numpy()
    sums = np.bincount(group, weights=centred, minlength=size)
    return sums / len(centred) * (num_prompts / (num_prompts - 1)) ** 0.5


def _half_width(variance: float, num_prompts: int) -> float:
    from scipy.stats import t  # here, since it takes half a second

    return float(t.ppf(0.975, num_prompts - 1)) * variance**0.5
