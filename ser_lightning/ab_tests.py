"""Is B better than A? Paired tests of two reward models on the same labelled pairs, on tensors. N pairs."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ser_lightning.evaluation import prompt_interval


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
    """Pairs that A orders better than B: the discordant ones of McNemar's test."""
    only_b: int
    p_value: float
    """Two-sided, of McNemar's exact test."""


def paired(credit_a: Tensor, credit_b: Tensor, same_order: Tensor, prompt: np.ndarray, seed: int = 0) -> Paired:
    """Compare two models pair by pair.

    Args:
        credit_a: (N,) 1 where model A is right, 0 where wrong, 0.5 for a tie.
        credit_b: (N,) the same of model B.
        same_order: (N,) bool, both models take the same response for the better one.
        prompt: (N,) ids; pairs of one prompt are drawn together.
        seed: of the bootstrap.
    """
    change = (credit_b - credit_a).double()
    low, high = prompt_interval(change, prompt, seed)
    only_a, only_b = int((change < 0).sum()), int((change > 0).sum())
    agreement = float(same_order.double().mean())
    return Paired(float(change.mean()), low, high, agreement, only_a, only_b, mcnemar(only_a, only_b))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact test: how likely so uneven a split of the discordant pairs is by chance."""
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.exp(_log_choose(n, i) - n * math.log(2)) for i in range(k + 1))
    return min(1.0, 2 * tail)


def concentration(num_discordant: float) -> float:
    """Of the bets of `log_e_value`, for a set with about so many discordant pairs.

    A larger set can tell smaller differences apart, so the bets go closer to even; 40 cost least in simulation.
    """
    return max(1.0, num_discordant / 40)


def log_e_value(only_a: int, only_b: int, a: float = 1.0) -> float:
    """Logarithm of the evidence against "both are equally good", valid whenever one looks.

    The capital after the discordant pairs so far of a bettor who bets on every share of wins for B, spread as
    Beta(a, a): 2^n B(k + a, n - k + a) / B(a, a). If both models are equally good, it ever reaches 1 / alpha with
    probability alpha at most (Ville's inequality), whatever `a`.
    """
    n = only_a + only_b
    return n * math.log(2) + _log_beta(only_b + a, only_a + a) - _log_beta(a, a)


def first_decision(wins: Tensor, alpha: float, a: float = 1.0) -> int | None:
    """After how many discordant pairs the sequential test decides; None if it does not.

    Args:
        wins: (M,) 1 where B won the pair, 0 where A did, in the order in which they are looked at.
        alpha: bound of the probability that equal models are ever told apart.
        a: see `log_e_value`; must not depend on the wins.
    """
    won = wins.long().cumsum(0).tolist()
    for n, k in enumerate(won, start=1):
        if log_e_value(n - k, k, a) >= -math.log(alpha):
            return n
    return None


def _log_beta(x: float, y: float) -> float:
    return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def same_order(margin_a: Tensor, margin_b: Tensor) -> Tensor:
    """(N,) bool, both margins have the same sign; ties only agree with ties."""
    return torch.sign(margin_a) == torch.sign(margin_b)
