"""What a reward means: the temperature that makes a margin a probability, and the zero that makes a reward good or bad.

Both are fitted on labelled pairs that the model was not trained on (out-of-fold scores of the seed).
Shapes: N pairs.
"""

import torch
from torch import Tensor

MAX_TEMPERATURE = 1e3
"""What `fit_temperature` gives where the margins say nothing of the labels, or the wrong thing."""


def fit_temperature(margin: Tensor, target: Tensor) -> float:
    """Temperature T that minimises the log-loss of `sigmoid(margin / T)` (Guo et al., 2017).

    The log-loss is convex in 1/T: T is where its slope is 0. A seed on which the model is no better than chance has its
    minimum at T -> infinity: the search is bounded at 1000, where every probability is near one half. One that makes
    no mistake would have it at T -> 0; labels are taken as (N + 1) / (N + 2) sure, as in Platt scaling (Platt, 1999),
    so that N pairs never prove more than they can.

    Args:
        margin: (N,) reward_a - reward_b.
        target: (N,) 1 where a is the better response, else 0.

    Raises:
        ValueError: if there is no pair, or a margin that is not finite.
    """
    if len(margin) == 0 or not torch.isfinite(margin).all():
        raise ValueError(f"temperature needs finite margins of labelled pairs: got {len(margin)} pairs")
    from scipy.optimize import brentq  # here, since it takes a third of a second

    margin, target = margin.double().cpu(), target.double().cpu()
    target = (target * len(target) + 1) / (len(target) + 2)

    def slope(inverse_t: float) -> float:
        """Of the log-loss, in 1/T."""
        return float((margin * (torch.sigmoid(margin * inverse_t) - target)).mean())

    coldest, hottest = MAX_TEMPERATURE, 1 / MAX_TEMPERATURE  # as 1/T
    if slope(hottest) >= 0:
        return MAX_TEMPERATURE
    return 1 / MAX_TEMPERATURE if slope(coldest) <= 0 else 1 / brentq(slope, hottest, coldest, rtol=1e-12)


def fit_zero(reward_a: Tensor, reward_b: Tensor, target: Tensor) -> float:
    """The reward at which a response is as often the better as the worse one of its pair.

    A logistic regression "is the better one" on the reward of each single response has the form
    `sigmoid((r - zero) / T)`; only its border is wanted here. Where rewards say nothing (slope 0 or negative) the
    border does not exist and the mean reward is returned.

    Args:
        reward_a: (N,) rewards of response a.
        reward_b: (N,) rewards of response b.
        target: (N,) 1 where a is the better response, else 0.
    """
    from sklearn.linear_model import LogisticRegression  # here, since it takes more than a second

    reward = torch.cat([reward_a, reward_b]).double().cpu()
    better = torch.cat([target, 1.0 - target]).double().cpu()
    centre, scale = float(reward.mean()), float(reward.std().clamp_min(1e-12))
    # The weak penalty keeps separable data finite.
    model = LogisticRegression(C=1e3, tol=1e-8).fit(((reward - centre) / scale)[:, None].numpy(), better.numpy())
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    return centre - scale * intercept / slope if slope > 1e-6 else centre


def prob_a_wins(margin: Tensor, temperature: float) -> Tensor:
    """(N,) `sigmoid(margin / temperature)`."""
    return torch.sigmoid(margin / temperature)
