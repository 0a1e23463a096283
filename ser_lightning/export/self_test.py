"""Does a folder compute what the trained model computes? Judged by order and spread, whatever the number format."""

import math
from dataclasses import dataclass

from torch import Tensor, finfo, float32

TOLERANCE = 1e-3
"""Largest difference of a number where both compute in float32 on the same weights."""
MAX_DEVIATION, MAX_EXACT_DEVIATION = 0.45, 0.05
"""Largest root mean square difference, as a share of the spread; the second where both compute in float32. A folder
that has nothing to do with the model has 1.4, one whose rewards are half as large again 0.5; rounding a model that has
hardly learnt anything to bfloat16 makes 0.3."""
MAX_REORDERED = 0.25
"""Largest share of pairs that change their order; by chance a half does."""


@dataclass(frozen=True)
class SelfTest:
    """What plain transformers computes from a folder, held against the trained model.

    Attributes:
        largest: largest difference.
        spread: standard deviation of the trained model's numbers.
        deviation: root mean square difference over that.
        num_reordered: pairs that the folder orders otherwise.
        num_pairs: pairs in all.
        is_exact: whether both compute in float32 on the same weights.
    """

    largest: float
    spread: float
    deviation: float
    num_reordered: int
    num_pairs: int
    is_exact: bool

    def problem(self, what: str) -> str | None:
        """One line if the folder computes something else, None if not."""
        if not math.isfinite(self.largest):
            return (
                f"export: the {what} are not finite, so the weights are not; take a round or run that did not diverge"
            )
        limit = MAX_EXACT_DEVIATION if self.is_exact else MAX_DEVIATION
        is_wrong = self.deviation > limit or self.num_reordered > MAX_REORDERED * self.num_pairs
        if not is_wrong and not (self.is_exact and self.largest > TOLERANCE):
            return None
        own = "" if self.is_exact else "without --dtype it is rounded as the run was; "
        fix = f"{own}is the base what it was?"
        return (
            f"export: the folder's {what} differ by up to {self.largest:.2e} from the trained model's, whose spread is "
            f"{self.spread:.2e}, and order {self.num_reordered} of {self.num_pairs} pairs otherwise; {fix}"
        )


def compared(expected: Tensor, found: Tensor, places: tuple[Tensor, Tensor], is_exact: bool) -> SelfTest:
    """Hold what a folder computes against what the trained model does.

    Args:
        expected: (N,) numbers of the trained model.
        found: (N,) numbers of the folder.
        places: twice (P,): pairs of places whose order is compared.
        is_exact: whether both compute in float32 on the same weights.
    """
    difference, spread = found.double() - expected.double(), float(expected.double().std())
    # What is all but constant has no order and no spread but that of rounding.
    noise = 100 * finfo(float32).eps * max(1.0, float(expected.abs().max())) if is_exact else 0.0
    margins = [numbers[places[0]] - numbers[places[1]] for numbers in (expected, found)]
    is_told_apart = margins[0].abs() > noise
    return SelfTest(
        largest=float(difference.abs().max()),
        spread=spread,
        deviation=max(0.0, float(difference.square().mean().sqrt()) - noise) / max(spread, finfo(float32).tiny),
        num_reordered=int(((margins[0].sign() != margins[1].sign()) & is_told_apart).sum()),
        num_pairs=len(places[0]),
        is_exact=is_exact,
    )
