"""A linear head on fixed states, solved exactly: logistic regression on the differences of pairs, without an intercept.

    minimise over w:  sum_i  -t_i log s(x_i w) - (1 - t_i) log s(-x_i w)  +  penalty / 2 |w|^2,   s the sigmoid

A difference x_i is the states of response a minus those of response b, scaled by `difference_scale`, and swapping both
turns x_i and t_i: so there is nothing for an intercept to learn. The penalty takes the place of learning rate and
epochs, and is chosen out of fold. It stands beside the sum of the losses, so it need not change as labels are added.
Shapes: n pairs, D numbers of a difference (K readings of H), g groups, m other pairs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-4, 5))
"""The candidates of `choose_penalty`: 0.01 to 100, on differences whose every reading has a mean square of 1."""
_RANK_TOLERANCE = 1e-10


def difference_scale(differences: Iterable[Tensor], num_readings: int = 1) -> Tensor:
    """(D,) divisor of the differences: it gives all columns one variance, and every reading a mean square of 1.

    No label is read, so the pool may take part.

    Args:
        differences: chunks (n, D) of the pairs to learn from, labelled or not.
        num_readings: K; each has D / K numbers.
    """
    total, count = torch.zeros(()), 0
    for chunk in differences:
        total = total + chunk.double().square().sum(0)
        count += len(chunk)
    deviation = (total / max(1, count)).sqrt()
    # A number that never varies says nothing: its weight stays 0 whatever it is divided by.
    deviation = deviation.where(deviation > 1e-6 * deviation.max(), torch.ones_like(deviation))
    return (deviation * (len(deviation) / num_readings) ** 0.5).float()


def fit_linear_head(differences: Tensor, target: Tensor, penalty: float, root: Tensor | None = None) -> Tensor:
    """(D,) float64, the weights that minimise the penalised loss above; margins are right to 1e-4.

    Args:
        differences: (n, D), scaled.
        target: (n,) probability that a wins: 1, 0 or anything between.
        penalty: above 0.
        root: (D, D) `curvature_root` of these differences and others, for many heads; None makes one of these.
    """
    from scipy.linalg.blas import dtrsv

    x, axes = differences.double().cpu(), None
    if root is None:
        if x.shape[0] < x.shape[1]:  # the weights lie in the span of the differences
            axes, triangle = torch.linalg.qr(x.T)
            x = triangle.T
        root = curvature_root([x], penalty)
    lower = np.asfortranarray(root.numpy())  # BLAS would copy it in every step
    solve = partial(dtrsv, lower, lower=1)
    weight = _minimum(x, target, penalty, partial(solve, trans=1), solve)
    return weight if axes is None else axes @ weight


def curvature_root(differences: Iterable[Tensor], penalty: float) -> Tensor:
    """(D, D) float64, the lower triangle L with L L' = X' X / 4 + penalty I.

    That is the largest curvature that the loss can have, of these pairs and of any among them. On weights L'^-1 u it is
    at most 1 in every direction, and nearly 1 in those that count: so L-BFGS is done in few steps.

    Args:
        differences: chunks (n, D) of the pairs, scaled.
        penalty: above 0.
    """
    bound = torch.zeros(())
    for chunk in differences:
        bound = bound + chunk.double().T @ chunk.double()
    bound = bound / 4
    bound.diagonal().add_(penalty)
    return torch.linalg.cholesky(bound)


def _minimum(
    x: Tensor,
    target: Tensor,
    penalty: float,
    weigh: Callable[[np.ndarray], np.ndarray],
    whiten: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray | None = None,
) -> Tensor:
    """(r,) weights where the penalised loss is smallest, by L-BFGS on other coordinates u.

    Args:
        x: (n, r) float64 differences.
        target: (n,) labels.
        penalty: above 0.
        weigh: from u to weights, linear.
        whiten: its transpose, from gradients to those of u.
        start: (r,) where the search for u begins, None = 0.
    """
    from scipy.optimize import minimize

    states, wanted = x.numpy(), target.double().cpu().numpy()

    def loss(u: np.ndarray) -> tuple[float, np.ndarray]:
        weight = weigh(u)
        margin = states @ weight
        chance = 1 / (1 + np.exp(-margin))
        value = np.logaddexp(0, margin).sum() - wanted @ margin + penalty / 2 * weight @ weight
        return value, whiten(states.T @ (chance - wanted) + penalty * weight)

    options = {"maxiter": 500, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-6}
    first = np.zeros(states.shape[1]) if start is None else start
    return torch.from_numpy(weigh(minimize(loss, first, jac=True, method="L-BFGS-B", options=options).x))


@dataclass(frozen=True)
class PenaltyChoice:
    """A penalty and its out-of-fold results."""

    penalty: float
    margin: Tensor
    """(n,) float64, each pair by the head that was fitted without its group."""
    loss: Tensor
    """(n,) float64, what each margin costs: -log of the probability of the label."""


def choose_penalty(
    differences: Tensor,
    target: Tensor,
    group: Sequence[int],
    num_folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
) -> PenaltyChoice:
    """The penalty with the lowest log loss out of fold; the largest of `penalties` where there are too few groups.

    Args:
        differences: (n, D), scaled.
        target: (n,) labels.
        group: n numbers, equal for pairs of one dialogue; a group is never split.
        num_folds: parts that are left out in turn.
        penalties: to choose from.
    """
    from sklearn.model_selection import GroupKFold

    num_folds = min(num_folds, len(set(group)))
    if num_folds < 2:
        nothing = torch.zeros(len(target), dtype=torch.float64)
        return PenaltyChoice(max(penalties), nothing, log_loss(nothing, target))
    margins = torch.zeros(len(penalties), len(target), dtype=torch.float64)
    for kept, left_out in GroupKFold(num_folds).split(differences, groups=np.asarray(group)):
        span, start = _Span.of(differences[kept]), None
        others = span.reduce(differences[left_out])
        for i in sorted(range(len(penalties)), key=lambda i: -penalties[i]):  # each starts where a stronger one ended
            start = span.solve(target[kept], penalties[i], start)
            margins[i, left_out] = others @ start
    losses = torch.stack([log_loss(margin, target) for margin in margins])
    best = int(losses.mean(1).argmin())
    return PenaltyChoice(penalties[best], margins[best], losses[best])


def log_loss(margin: Tensor, target: Tensor) -> Tensor:
    """(n,) float64, -log of the probability that a logit gives its label."""
    return torch.nn.functional.binary_cross_entropy_with_logits(margin.double(), target.double(), reduction="none")


def accuracy_of(margin: Tensor, target: Tensor) -> float:
    """Share of pairs whose margin has the sign of their label; a tie counts half."""
    return float(((torch.sign(margin) * (2 * target.double() - 1) + 1) / 2).mean())


@dataclass(frozen=True)
class _Span:
    """Differences on the axes of their own span, where the loss is smallest along no other: r <= min(n, D) numbers."""

    states: Tensor
    """(n, r) float64, the differences on these axes."""
    axes: Tensor
    """(D, r) float64, orthonormal, by falling variance."""
    variance: Tensor
    """(r,) sum of squares along each."""

    @classmethod
    def of(cls, differences: Tensor) -> "_Span":
        x = differences.double().cpu()
        is_wide = x.shape[0] < x.shape[1]
        values, vectors = torch.linalg.eigh(x @ x.T if is_wide else x.T @ x)
        is_used = values > _RANK_TOLERANCE * max(float(values.max()), 1e-300)
        values, vectors = values[is_used].flip(0), vectors[:, is_used].flip(1)
        axes = x.T @ (vectors / values.sqrt()) if is_wide else vectors
        return cls(x @ axes, axes, values)

    def reduce(self, differences: Tensor) -> Tensor:
        """(m, r) float64, other differences on these axes."""
        return differences.double().cpu() @ self.axes

    def solve(self, target: Tensor, penalty: float, start: Tensor | None = None) -> Tensor:
        """(r,) float64, the weights on these axes."""
        # Steps in units of the curvature that the loss has at most: all directions then converge alike.
        unit = (penalty + self.variance / 4).sqrt().numpy()
        first = None if start is None else start.numpy() * unit
        return _minimum(self.states, target, penalty, lambda u: u / unit, lambda g: g / unit, first)
