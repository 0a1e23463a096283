"""Is B better than A? Paired tests of two reward models on the same labelled pairs, on tensors. N pairs.

Pairs of one prompt are not independent, so a test counts prompts: a prompt is won by the model that does better on its
pairs.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ser_lightning.evaluation.sets import prompt_interval


@dataclass(frozen=True)
class Paired:
    """Two models on the same pairs."""

    difference: float
    """Accuracy of B less that of A."""
    low: float
    """95 % interval of the difference, from a bootstrap over prompts."""
    high: float
    agreement: float
    """Share of pairs that both order the same way."""
    only_a: int
    """Pairs that A orders better than B."""
    only_b: int
    p_value: float
    """Two-sided, of a sign test over prompts: McNemar's exact test if each prompt has one pair."""


def paired(credit_a: Tensor, credit_b: Tensor, same_order: Tensor, prompt: np.ndarray, seed: int = 0) -> Paired:
    """Compare two models pair by pair.

    Args:
        credit_a: (N,) 1 where model A is right, 0 where wrong, 0.5 for a tie.
        credit_b: (N,) the same of model B.
        same_order: (N,) bool, both models take the same response for the better one.
        prompt: (N,) ids; pairs of one prompt are drawn together, and decide as one.
    """
    change = (credit_b - credit_a).double()
    low, high = prompt_interval(change, prompt, seed)
    only_a, only_b = int((change < 0).sum()), int((change > 0).sum())
    agreement = float(same_order.double().mean())
    p_value = sign_test(*prompts_won(change, prompt))
    return Paired(float(change.mean()), low, high, agreement, only_a, only_b, p_value)


def prompts_won(change: Tensor, prompt: np.ndarray) -> tuple[int, int]:
    """Prompts that A wins, and prompts that B wins, by the sum over their pairs.

    Args:
        change: (N,) credit of B less that of A.
        prompt: (N,) ids.
    """
    _, group = np.unique(prompt, return_inverse=True)
    sums = np.bincount(group, weights=change.double().numpy())
    return int((sums < 0).sum()), int((sums > 0).sum())


def sign_test(won_by_a: int, won_by_b: int) -> float:
    """Two-sided exact p-value: how likely so uneven a split of what either model wins is by chance."""
    from scipy.stats import binomtest  # here, since it takes half a second

    return float(binomtest(won_by_a, won_by_a + won_by_b).pvalue) if won_by_a + won_by_b else 1.0


def first_decision(changes: Iterable[float], num_prompts: int, alpha: float) -> tuple[int, int] | None:
    """When the sequential test decides which model is better, looking at the pairs of one prompt after another.

    Args:
        changes: for each prompt, in the order in which they are looked at, more than 0 where B does better on it, less
            where A does, 0 where neither; no more of them are taken than the decision needs.
        num_prompts: how many there are at most; must be known beforehand.
        alpha: bound of the type I error: the probability that equal models are declared different.

    Returns:
        How many prompts were looked at, and B's wins less A's among them; None if there is no decision.
    """
    changes, again = itertools.tee(changes)
    lead = 0
    bounds = boundary((change != 0 for change in again), num_prompts, alpha)
    for looked, (change, bound) in enumerate(zip(changes, bounds, strict=True), start=1):
        lead += (change > 0) - (change < 0)
        if abs(lead) >= bound:
            return looked, lead
    return None


def boundary(is_discordant: Iterable[bool], num_prompts: int, alpha: float) -> Iterator[int]:
    """Lead, of either model, from which on the sequential test decides: one number for each prompt that is looked at.

    If both models are equally good, a discordant prompt is a fair coin, whenever it comes, so the distribution of the
    lead is known to the last digit. After each prompt the outermost leads of both sides are taken out of it, which is
    what the boundary is, as long as all that was ever taken out stays within `alpha` times the share of prompts looked
    at: an error that is spent evenly (Lan and DeMets, 1983; Kim and DeMets, 1987, with exponent 1), exactly and not by
    a normal approximation. What fits no whole lead is left for later prompts.

    Args:
        is_discordant: whether one of both models does better, prompt by prompt.
        num_prompts: how many there are at most.
        alpha: probability that equal models ever reach the boundary, at most.
    """
    prob, spent = np.ones(1), 0.0  # of the leads -k, ..., k that have not decided
    for looked, is_coin in enumerate(is_discordant, start=1):
        if is_coin:
            prob = np.convolve(prob, (0.5, 0.0, 0.5))
        while len(prob) > 1 and spent + 2 * prob[0] <= alpha * min(1.0, looked / num_prompts):
            spent += 2 * float(prob[0])
            prob = prob[1:-1]
        yield len(prob) // 2 + 1


def same_order(margin_a: Tensor, margin_b: Tensor) -> Tensor:
    """(N,) bool, both margins have the same sign; ties only agree with ties."""
    return torch.sign(margin_a) == torch.sign(margin_b)
