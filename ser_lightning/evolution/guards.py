"""Drift guards: signs of failing self-training, from the seed out of fold and the round's own figures alone.

Self-training fails quietly: a failing model is as confident as a good one. Nothing here sees a hidden
label. Shapes: N pool pairs, M seed pairs. `docs/guards.md` has what each is worth on injected faults and without any.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ser_lightning.evaluation.metrics import half_credit, ks_distance, wilson_interval
from ser_lightning.evolution.selection import SelectionContext, SelectionResult
from ser_lightning.records import PairScores

Level = Literal["ignore", "warn", "stop", "rollback"]
"""`stop`: the round's labels are not used and evolution ends; `rollback`: its model is not delivered either."""
NUM_STANDARD_ERRORS = 3.0
"""From this many standard errors on, a difference of shares counts as real."""
KS_P_VALUE = 1e-4
"""The KS distance of two samples counts as real if its p-value is below this."""
TIE = 1e-4
"""Margins below this count as no preference."""


@dataclass(frozen=True)
class Guard:
    """When a guard fires, and what is done then."""

    level: Level
    threshold: float


@dataclass(frozen=True)
class RoundView:
    """What a guard sees of a round."""

    round: int
    pool: PairScores
    """(N,) the scores that the labels were made from."""
    fold_pool: list[PairScores]
    """For each fold (N,) scores of the pool by the model that has not seen the fold; empty in the last round, and in
    round 0 where a teacher's labels of the pool trained these models."""
    result: SelectionResult
    label_before: Tensor | None
    """(N,) int8 labels that the round before gave; None in round 0."""
    context: SelectionContext
    """(M,) out-of-fold scores and human labels of the seed."""
    seed_rounds: list[PairScores]
    """For each round up to this one the seed's out-of-fold scores."""
    seed_credits: list[Tensor]
    """For each round up to this one the credit of the same seed pairs: 1 right, 0.5 tie, 0 wrong."""


@dataclass(frozen=True)
class Finding:
    """What a guard has found."""

    guard: str
    value: float
    """NaN where it cannot be measured; it does not fire then."""
    limit: float
    """The threshold, or the limit of what chance explains if that is further away."""
    fired: bool
    level: Level
    action: str
    meaning: str

    @property
    def figures(self) -> str:
        """The value and its limit."""
        return f"{self.value:.3f}, {allowed(self.guard)} {self.limit:.3f} is fine"

    @property
    def message(self) -> str:
        """One line: how much, what it means and what to do."""
        return f"{self.figures}: {self.meaning}; {self.action}"


# What is measured. Each returns (value, limit); "bad" is above the limit, or below it for those in `BAD_BELOW`.


def chance(view: RoundView, threshold: float) -> tuple[float, float]:
    """Lower end of the 95 % interval of the accuracy out of fold, which must not be that of chance."""
    return _accuracy_interval(view.seed_rounds[-1], view.context.target)[0], threshold


def decline(view: RoundView, threshold: float) -> tuple[float, float]:
    """Accuracy out of fold lost since the best earlier round, beyond two standard errors of the paired difference."""
    *earlier, now = view.seed_credits
    if not earlier or len(now) < 2:
        return math.nan, threshold
    loss = max(earlier, key=lambda credit: float(credit.mean())) - now
    return float(loss.mean() - 2 * loss.std() / len(loss) ** 0.5), threshold


def disagreement(view: RoundView, threshold: float) -> tuple[float, float]:
    """Share of kept labels that contradict the rewards they were made from."""
    if not view.result.keep.any():
        return math.nan, threshold
    return float(1 - half_credit(view.pool.margin, view.result.label.float())[view.result.keep].mean()), threshold


def flips(view: RoundView, threshold: float) -> tuple[float, float]:
    """Share of pool labels that differ from those of the round before."""
    if view.label_before is None:
        return math.nan, threshold
    return float((view.label_before != view.result.label).double().mean()), threshold


def length(view: RoundView, threshold: float) -> tuple[float, float]:
    """How much more often the model expects the longer response to win, on the pairs it keeps, than people do.

    The expectation is that of its margins on the scale fitted out of fold. Counting its labels instead would blame
    any model that knows little more than length: where the longer wins 64 of 100 times, the likelier label is the
    longer one every time. The human labels are those of the seed pairs of which the model is as confident, out of
    fold: being longer is a good sign in some data, and more so among clear pairs.
    """
    scores = view.context.scores
    if len(scores) == 0 or not view.result.keep.any():
        return math.nan, threshold
    temperature, _ = view.context.scale()
    expected = _longer_wins((view.pool.margin / temperature).sigmoid(), view.pool.length_difference, view.result.keep)
    size = scores.margin.abs()
    sure = size >= size.quantile(1 - view.result.keep.double().mean().to(size.dtype))
    return _difference(expected, _longer_wins(view.context.target, scores.length_difference, sure), threshold)


def position(view: RoundView, threshold: float) -> tuple[float, float]:
    """How far the share of kept labels that say a is from the share among human labels."""
    if len(view.context.target) == 0 or not view.result.keep.any():
        return math.nan, threshold
    return _difference(view.result.label[view.result.keep].double(), view.context.target.double(), threshold)


def ties(view: RoundView, threshold: float) -> tuple[float, float]:
    """Share of pool pairs whose rewards are equal or not finite."""
    return float((~(view.pool.margin.abs() > TIE)).double().mean()), threshold


def spread(view: RoundView, threshold: float) -> tuple[float, float]:
    """Standard deviation of the seed's margins, out of fold, divided by that of the same pairs in round 0."""
    ends = view.seed_rounds[0], view.seed_rounds[-1]
    # A seed may have grown in between.
    first, now = (a.margin[torch.isin(a.pair_id, b.pair_id)] for a, b in (ends, ends[::-1]))
    if view.round == 0 or len(first) < 2 or float(first.std()) == 0:
        return math.nan, threshold
    return float(now.std() / first.std()), threshold


def shift(view: RoundView, threshold: float) -> tuple[float, float]:
    """KS distance of pool and seed: of lengths, and in round 0 of the confidence of models trained on neither."""
    scores = view.context.scores
    samples = [(scores.tokens_a + scores.tokens_b, view.pool.tokens_a + view.pool.tokens_b)]
    if view.round == 0 and view.fold_pool:
        samples.append((scores.margin.abs(), torch.cat([pool.margin.abs() for pool in view.fold_pool])))
    if len(scores) == 0 or len(view.pool) == 0:
        return math.nan, threshold
    distances, by_chance = zip(*(ks_distance(one, other, KS_P_VALUE) for one, other in samples), strict=True)
    return max(distances), max(threshold, *by_chance)


def overconfidence(view: RoundView, threshold: float) -> tuple[float, float]:
    """Mean confidence stated for the pool's labels, less the upper end of the 95 % interval of accuracy out of fold.

    Confidence alone is no fault: on clear pairs a good model is confident. It is one if human labels do not support it.
    The accuracy is that of the scores which labels are made of: those of both views where a pairwise judge has a part.
    """
    confidence = view.result.confidence
    if len(confidence) == 0:
        return math.nan, threshold
    high = _accuracy_interval(view.context.scores, view.context.target)[1]
    return float(confidence.double().mean()) - high, threshold


def _accuracy_interval(scores: PairScores, target: Tensor) -> tuple[float, float]:
    """95 % interval of the accuracy of scores; NaN without pairs."""
    return wilson_interval(float(half_credit(scores.margin, target).sum()), len(scores))


def _longer_wins(prob_a: Tensor, length_difference: Tensor, mask: Tensor) -> Tensor:
    """Probability that the longer response wins, of pairs of unequal length under the mask; of labels 1 or 0."""
    mask = mask & (length_difference != 0)
    return torch.where(length_difference[mask] > 0, prob_a[mask], 1 - prob_a[mask]).double()


def _difference(one: Tensor, other: Tensor, threshold: float) -> tuple[float, float]:
    """Size of the difference of two shares, and the larger of the threshold and three standard errors of it."""
    if len(one) == 0 or len(other) == 0:
        return math.nan, threshold
    both = torch.cat([one, other]).mean()
    error = (both * (1 - both) * (1 / len(one) + 1 / len(other))).sqrt()
    return float((one.mean() - other.mean()).abs()), max(threshold, NUM_STANDARD_ERRORS * float(error))


@dataclass(frozen=True)
class _Kind:
    measure: Callable[[RoundView, float], tuple[float, float]]
    default: Guard
    meaning: str
    action: str
    is_bad_below: bool = False


KINDS = {
    "chance": _Kind(
        chance,
        Guard("warn", 0.5),
        "out of fold the model may be no better than a coin (the value is the lower end of its 95 % interval), and so "
        "would be its labels",
        "give more human labels (data.seed_fraction) or a larger model, or train longer (seed_epochs)",
        is_bad_below=True,
    ),
    "decline": _Kind(
        decline,
        Guard("rollback", 0.0),
        "the model has become worse at human labels by what it taught itself",
        "raise the rule's target, or read the pairs that flipped",
    ),
    "disagreement": _Kind(
        disagreement,
        Guard("rollback", 0.05),
        "labels contradict the rewards that they were made of",
        "look for swapped sides in the selection rule",
    ),
    "flips": _Kind(
        flips,
        Guard("rollback", 0.35),
        "the model contradicts the labels of the round before",
        "lower the learning rate, raise the rule's target, or give more human labels",
    ),
    "length": _Kind(
        length,
        Guard("rollback", 0.15),
        "among the pairs that it keeps, the longer response wins more or less often than in human labels",
        "give human labels of pairs whose shorter response is better",
    ),
    "position": _Kind(
        position,
        Guard("stop", 0.15),
        "its labels favour a place, which has no meaning here",
        "look at the selection rule and at pairs that hold the same response twice",
    ),
    "ties": _Kind(
        ties,
        Guard("rollback", 0.05),
        "rewards have collapsed to one number, or are none",
        "lower the learning rate or model.max_grad_norm",
    ),
    "spread": _Kind(
        spread,
        Guard("rollback", 0.1),
        "rewards have shrunk until no pair has a clear winner",
        "lower the learning rate, or train longer (epochs_per_round)",
        is_bad_below=True,
    ),
    "shift": _Kind(
        shift,
        Guard("warn", 0.15),
        "the pool differs from the labelled seed, so accuracy on the seed does not carry over",
        "label some pairs of the pool and add them to the seed, or take a pool of the same kind",
    ),
    "overconfidence": _Kind(
        overconfidence,
        Guard("warn", 0.1),
        "the model is surer of its labels than it is right about people's",
        "use CalibratedRule, or restart: weights with fewer epochs_per_round; give more human labels",
    ),
}
"""name -> what it measures, what is done by default, what that means, and what to do"""


def allowed(guard: str) -> str:
    """On which side of its limit the value of a guard is fine: `at least` or `at most`."""
    return "at least" if guard in KINDS and KINDS[guard].is_bad_below else "at most"


def inspect_round(view: RoundView, guards: dict[str, Guard]) -> list[Finding]:
    """The findings of all guards that are not ignored, in the order of `KINDS`."""
    found = []
    for name, kind in KINDS.items():
        guard = guards[name]
        if guard.level == "ignore":
            continue
        value, limit = kind.measure(view, guard.threshold)
        fired = value < limit if kind.is_bad_below else value > limit  # never for NaN
        found.append(Finding(name, value, limit, fired, guard.level, kind.action, kind.meaning))
    return found
