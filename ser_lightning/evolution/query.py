"""Which pool pairs to ask people about next."""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

import numpy as np
from torch import Tensor

from ser_lightning.errors import UserError, describe
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
    """The pairs of the lowest confidence."""

    def choose(self, prob_a: Tensor, pairs: Sequence[PreferencePair], num_pairs: int) -> list[int]:
        """As `QueryStrategy` says."""
        return (2 * prob_a - 1).abs().argsort(stable=True)[:num_pairs].tolist()


STRATEGIES = {one.__name__: one for one in (Random, MostUncertain)}


def load_strategy(name: str) -> QueryStrategy:
    """The strategy of a name: one of `STRATEGIES`, or a class by its dotted path, made without arguments.

    Raises:
        UserError: there is none.
    """
    module, _, attribute = name.rpartition(".")
    reason = ""
    try:
        kind = STRATEGIES.get(name.removeprefix("ser_lightning.")) or getattr(import_module(module), attribute)
        strategy: QueryStrategy = kind()
        if callable(strategy.choose):
            return strategy
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        reason = f" ({describe(error)})" if module else ""  # what is wrong with a class of one's own
    raise UserError(
        f"--strategy: got {name!r}{reason}; give {' or '.join(STRATEGIES)}, or the dotted path of a class of your own "
        "with a method choose(prob_a, pairs, num_pairs)"
    )
