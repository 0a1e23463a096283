"""How far annotators agree, and how often one of them must then be wrong."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Agreement of annotators on pairs that two or more of them have decided.

    Attributes:
        pairs: how many pairs those are.
        agreement: probability that two annotators of such a pair name the same response, averaged over the pairs.
    """

    pairs: int
    agreement: float

    @property
    def error_rate(self) -> float:
        """Share of one annotator's labels that are wrong, if all err equally often and independently of one another.

        Two then disagree with the probability d = 2 e (1 - e); e is 0.5 where d is 0.5 or more.
        """
        return (1 - math.sqrt(max(0.0, 1 - 2 * (1 - self.agreement)))) / 2

    def line(self) -> str:
        """For the table of what was read."""
        return (
            f"annotators: two of them agree on {self.agreement:.3f} of {self.pairs:,} seed pairs with two votes; if "
            f"all err equally often, {self.error_rate:.3f} of their single labels are wrong"
        )


def agreement_of(votes: np.ndarray) -> Agreement | None:
    """Agreement from votes; a vote for a tie decides nothing and does not enter. None without a pair of two votes.

    Args:
        votes: (N, 3) annotators of each pair for a, for a tie and for b.

    Example:
        >>> agreement_of(np.array([[2, 0, 0], [1, 0, 1], [1, 5, 0]]))
        Agreement(pairs=2, agreement=0.5)
    """
    for_a, for_b = votes[:, 0].astype(np.int64), votes[:, 2].astype(np.int64)
    together = (for_a * (for_a - 1) + for_b * (for_b - 1)) / 2
    both = (for_a + for_b) * (for_a + for_b - 1) / 2
    has_two = both > 0
    if not has_two.any():
        return None
    return Agreement(int(has_two.sum()), float((together[has_two] / both[has_two]).mean()))
