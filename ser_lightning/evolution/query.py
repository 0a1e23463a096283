"""Which pool pairs to ask people about next."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from ser_lightning.records import PreferencePair


class QueryStrategy(Protocol):
    """Anything that can be named as `--strategy`."""

    def choose(self, prob_a: Tensor, pairs: Sequence[PreferencePair], num_pairs: int) -> list[int]:
        """Places of the pairs to ask for.

        Args:
            prob_a: (N,) the delivered model's probability that a wins.
            pairs: N pool pairs, without labels.
            num_pairs: how many, at most N.
        """
        ...


class Random:
    """Pairs at random: no strategy that was measured asks better questions (docs/results.md)."""

    def choose(self, prob_a: Tensor, pairs: Sequence[PreferencePair], num_pairs: int) -> list[int]:
        """As `QueryStrategy` says; the same pool gives the same pairs."""
        return np.random.default_rng(0).choice(len(pairs), num_pairs, replace=False).tolist()


class MostUncertain:
    """The least sure pairs, whatever they are."""

    def choose(self, prob_a: Tensor, pairs: Sequence[PreferencePair], num_pairs: int) -> list[int]:
        """As `QueryStrategy` says."""
        return (2 * prob_a - 1).abs().argsort(stable=True)[:num_pairs].tolist()
