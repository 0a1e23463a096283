"""Learning status and selection: which of its pseudo-labels a reward model keeps (SER, section 3.2).

A rule is a small object with one method, `select(scores, context) -> SelectionResult`; another rule is one class and
one line of YAML. Shapes: N pool pairs, M seed pairs. `p` is the probability that a response is good, sigmoid(reward).
"""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ser_lightning.errors import UserError, raise_problems
from ser_lightning.evaluation.calibration import MAX_TEMPERATURE, fit_temperature, fit_zero, prob_a_wins
from ser_lightning.records import PairScores, Selection

TELLS_GOOD_FROM_BAD, AMPLIFIES_DIFFERENCE, NO_STATUS = 1, 2, 0
_STATUS_WORDS = {TELLS_GOOD_FROM_BAD: "one response good, the other bad", AMPLIFIES_DIFFERENCE: "a clear difference"}


@dataclass(frozen=True)
class SelectionContext:
    """What a rule may know besides the scores of the pool: human labels of the seed, and its own earlier selections."""

    scores: PairScores
    """(M,) rewards of the seed pairs, each by a model that was not trained on it."""
    target: Tensor
    """(M,) float32, 1 where a is the better response."""
    history: list[Selection] = field(default_factory=list)
    """The selections of the earlier rounds, oldest first."""
    has_zero: bool = True
    """Whether training pulls rewards to 0; a head that is solved on differences leaves their zero open."""

    def scale(self) -> tuple[float, float]:
        """Temperature and zero of the reward, fitted on the seed; 1 and 0 where nothing was scored out of fold."""
        if len(self.scores) == 0:
            return 1.0, 0.0
        temperature = fit_temperature(self.scores.margin, self.target)
        return temperature, fit_zero(self.scores.reward_a, self.scores.reward_b, self.target)


@dataclass(frozen=True)
class SelectionResult:
    """A rule's labels of the pool and which of them to keep. A pair's label is the more probable side."""

    prob_a: Tensor
    """(N,) float32, probability that a wins."""
    keep: Tensor
    """(N,) bool."""
    status: int
    converged: bool
    """Nothing new is left to learn from the pool: evolution stops."""
    message: str
    """One sentence for the log: how much was kept, and why."""

    @property
    def confidence(self) -> Tensor:
        """(N,) the probability that the pair's label is right, at least 0.5."""
        return torch.maximum(self.prob_a, 1 - self.prob_a)

    @property
    def label(self) -> Tensor:
        """(N,) int8, 1 = a is the better one."""
        return (self.prob_a > 0.5).to(torch.int8)


class SelectionRule(Protocol):
    """Anything that can be named as `rule` in the YAML."""

    needs_folds: bool
    """Whether `select` reads the out-of-fold scores, which cost a training for every fold."""

    def select(self, scores: PairScores, context: SelectionContext) -> SelectionResult:
        """Label the pool, and choose the pairs to keep."""
        ...


def tells_good_from_bad(scores: PairScores, tau_low: float, tau_high: float) -> Tensor:
    """Status 1: one response has p > tau_high and the other p < tau_low.

    Returns:
        (N,) bool.
    """
    p_a, p_b = scores.reward_a.sigmoid(), scores.reward_b.sigmoid()
    return ((p_a > tau_high) & (p_b < tau_low)) | ((p_b > tau_high) & (p_a < tau_low))


def amplifies_difference(scores: PairScores, tau_delta: float) -> Tensor:
    """Status 2: |p_a - p_b| > tau_delta.

    Returns:
        (N,) bool.
    """
    return (scores.reward_a.sigmoid() - scores.reward_b.sigmoid()).abs() > tau_delta


def num_new(pair_id: Tensor, keep: Tensor, history: list[Selection]) -> int:
    """How many of the kept pairs no earlier round has selected."""
    kept = pair_id[keep]
    if not history:
        return len(kept)
    return int((~torch.isin(kept, torch.cat([s.pair_id for s in history]))).sum())


class ThresholdRule:
    """Fixed thresholds on the raw rewards, as in the paper and its released code; a base class, not a rule.

    A head that is solved on differences of states leaves the zero of its rewards open: the mean of the pool takes it.

    Args:
        tau_low: p below which a response counts as bad (paper: 0.45).
        tau_high: p above which a response counts as good (paper: 0.55).
        tau_delta: difference of p that counts as clear (paper: 0.3).
        min_new_share: share of the pool that must be newly selected to go on; the paper gives none.
    """

    needs_folds = False

    def __init__(
        self, tau_low: float = 0.45, tau_high: float = 0.55, tau_delta: float = 0.3, min_new_share: float = 0.02
    ) -> None:
        problems = []
        if not 0 < tau_low <= tau_high < 1:
            problems.append(
                f"rule.tau_low, rule.tau_high: got {tau_low} and {tau_high}; need 0 < tau_low <= tau_high < 1"
            )
        if not 0 <= tau_delta < 1:
            problems.append(f"rule.tau_delta: got {tau_delta}; need a number in [0, 1)")
        if not 0 <= min_new_share < 1:
            problems.append(f"rule.min_new_share: got {min_new_share}; need a number in [0, 1)")
        raise_problems(problems)
        self.tau_low, self.tau_high, self.tau_delta = tau_low, tau_high, tau_delta
        self.min_new_share = min_new_share

    @staticmethod
    def anchored(scores: PairScores, context: SelectionContext) -> PairScores:
        """The rewards that are cut: with the mean of the pool as their zero where training has left it open."""
        if context.has_zero or len(scores) == 0:
            return scores
        mean = (scores.reward_a.mean() + scores.reward_b.mean()) / 2
        return replace(scores, reward_a=scores.reward_a - mean, reward_b=scores.reward_b - mean)


class PaperRule(ThresholdRule):
    """The paper's rule, read literally: status 1 until it finds too few new pairs, then status 2, then converged."""

    def select(self, scores: PairScores, context: SelectionContext) -> SelectionResult:
        """Status 1, else status 2, else converged."""
        scores = self.anchored(scores, context)
        past = max((selection.status for selection in context.history), default=TELLS_GOOD_FROM_BAD)
        needed = max(1.0, self.min_new_share * len(scores))
        found = {}
        for status in (TELLS_GOOD_FROM_BAD, AMPLIFIES_DIFFERENCE):
            if status < past:
                continue
            keep = (
                tells_good_from_bad(scores, self.tau_low, self.tau_high)
                if status == TELLS_GOOD_FROM_BAD
                else amplifies_difference(scores, self.tau_delta)
            )
            found[status] = num_new(scores.pair_id, keep, context.history)
            if found[status] >= needed:
                kept = f"{int(keep.sum())} of {len(scores)} pairs kept, {found[status]} of them new"
                message = f"learning status {status} ({_STATUS_WORDS[status]}): {kept}"
                return SelectionResult(prob_a_wins(scores.margin, 1.0), keep, status, False, message)
        counts = ", ".join(f"{n} under learning status {s} ({_STATUS_WORDS[s]})" for s, n in found.items())
        message = f"converged: {counts} new pairs, {needed:.0f} needed; p lies in {_range_of_p(scores)}"
        nothing = torch.zeros(len(scores), dtype=torch.bool)
        return SelectionResult(prob_a_wins(scores.margin, 1.0), nothing, NO_STATUS, True, message)


class ReleasedRule(ThresholdRule):
    """The filter of the released code: a pair is kept where status 1 OR status 2 holds."""

    def select(self, scores: PairScores, context: SelectionContext) -> SelectionResult:
        """Either status is enough."""
        scores = self.anchored(scores, context)
        clear = amplifies_difference(scores, self.tau_delta)
        keep = tells_good_from_bad(scores, self.tau_low, self.tau_high) | clear
        new = num_new(scores.pair_id, keep, context.history)
        converged = new < max(1.0, self.min_new_share * len(scores))
        status = AMPLIFIES_DIFFERENCE if clear.any() else TELLS_GOOD_FROM_BAD if keep.any() else NO_STATUS
        message = f"{int(keep.sum())} of {len(scores)} pairs kept, {new} of them new; p lies in {_range_of_p(scores)}"
        return SelectionResult(prob_a_wins(scores.margin, 1.0), keep, status, converged, message)


class CalibratedRule:
    """Ours: keep the pairs whose expected correctness reaches a target, on a scale fitted out of fold on the seed.

    A label that is right with probability q carries (2q - 1)^2 of the information of a certain one, so k kept labels of
    mean correctness q are worth k (2q - 1)^2 certain ones. Without a `target` the rule takes the one that makes this
    number largest: a better seed model gets a higher target by itself.

    Args:
        target: expected correctness that a pair must reach, between 0.5 and 1; None lets the rule set it.
        min_change_share: evolution has converged when fewer than this share of the kept pairs are new or flipped.
    """

    needs_folds = True

    def __init__(self, target: float | None = None, min_change_share: float = 0.05) -> None:
        problems = []
        if target is not None and not 0.5 <= target < 1:
            problems.append(f"rule.target: got {target}; need a number in [0.5, 1) or null")
        raise_problems([*problems, *_change_problems(min_change_share)])
        self.target, self.min_change_share = target, min_change_share

    def select(self, scores: PairScores, context: SelectionContext) -> SelectionResult:
        """Calibrate on the seed, set the target, cut."""
        if len(context.scores) == 0:
            raise UserError(
                "rule: got CalibratedRule without out-of-fold scores; set the evolution's folds to 2 or more"
            )
        temperature, zero = context.scale()
        prob_a = prob_a_wins(scores.margin, temperature)
        confidence = torch.maximum(prob_a, 1 - prob_a)
        target = most_informative_target(confidence) if self.target is None else self.target
        is_chance = temperature > 0.99 * MAX_TEMPERATURE
        keep = (confidence >= target) & (not is_chance)
        result = SelectionResult(prob_a, keep, status_of(scores, zero, temperature, keep), False, "")
        if is_chance:
            message = "nothing is kept: out of fold on the seed, the rewards are no better than chance"
        elif not keep.any():
            best = f"{float(confidence.max()):.3f}" if len(confidence) else "none"
            message = f"target {target:.3f} keeps nothing: the highest that any pair reaches is {best}"
        else:
            message = (
                f"{int(keep.sum())} of {len(scores)} pairs reach the target {target:.3f} "
                f"({'set by the rule' if self.target is None else 'given'}); temperature {temperature:.3g}"
            )
        converged = not keep.any() or changed_share(scores.pair_id, result, context.history) < self.min_change_share
        return replace(result, converged=converged, message=message)


class TopShareRule:
    """A baseline: keep the most confident share of the pool, whatever its accuracy. 1.0 keeps all.

    Args:
        share: share of the pool to keep, in (0, 1].
        min_change_share: evolution has converged when fewer than this share of the kept pairs are new or flipped.
    """

    needs_folds = False

    def __init__(self, share: float = 0.5, min_change_share: float = 0.05) -> None:
        problems = [] if 0 < share <= 1 else [f"rule.share: got {share}; need a number in (0, 1]"]
        raise_problems([*problems, *_change_problems(min_change_share)])
        self.share, self.min_change_share = share, min_change_share

    def select(self, scores: PairScores, context: SelectionContext) -> SelectionResult:
        """Rank by the size of the margin."""
        num_kept = round(self.share * len(scores))
        keep = torch.zeros(len(scores), dtype=torch.bool)
        keep[scores.margin.abs().argsort(descending=True, stable=True)[:num_kept]] = True
        message = f"{num_kept} of {len(scores)} pairs kept: the surest {self.share:.0%}"
        result = SelectionResult(prob_a_wins(scores.margin, 1.0), keep, AMPLIFIES_DIFFERENCE, False, message)
        changed = changed_share(scores.pair_id, result, context.history)
        return replace(result, converged=changed < self.min_change_share)


def most_informative_target(confidence: Tensor) -> float:
    """The confidence c that maximises k (2q - 1)^2 over the k pairs with confidence >= c, q their mean confidence.

    Returns:
        The lowest confidence that is kept; 0.5 when there is no pair.
    """
    if len(confidence) == 0:
        return 0.5
    ordered = confidence.sort(descending=True).values
    count = torch.arange(1, len(ordered) + 1, dtype=torch.float64)
    information = count * (2 * ordered.double().cumsum(0) / count - 1).square()
    return float(ordered[information.argmax()])


def status_of(scores: PairScores, zero: float, temperature: float, keep: Tensor) -> int:
    """Learning status of a calibrated model: 2 once most kept pairs have both responses on one side of the zero.

    A model that only tells good from bad is confident where the two lie on different sides of the zero; one that also
    orders two good or two bad responses with confidence amplifies differences (SER, section 3.2, on our scale).
    """
    if not keep.any():
        return NO_STATUS
    sides = ((scores.reward_a - zero) / temperature > 0) != ((scores.reward_b - zero) / temperature > 0)
    return TELLS_GOOD_FROM_BAD if sides[keep].float().mean() >= 0.5 else AMPLIFIES_DIFFERENCE


def changed_share(pair_id: Tensor, result: SelectionResult, history: list[Selection]) -> float:
    """Share of the kept pairs that the round before had not selected, or with the other label; 1 in the first round."""
    if not history or not result.keep.any():
        return 1.0
    before = dict(zip(history[-1].pair_id.tolist(), history[-1].label.tolist(), strict=True))
    kept = zip(pair_id[result.keep].tolist(), result.label[result.keep].tolist(), strict=True)
    changed = [before.get(i) != label for i, label in kept]
    return sum(changed) / len(changed)


def _change_problems(min_change_share: float) -> list[str]:
    if 0 <= min_change_share < 1:
        return []
    return [f"rule.min_change_share: got {min_change_share}; need a number in [0, 1)"]


def _range_of_p(scores: PairScores) -> str:
    if len(scores) == 0:
        return "nothing"
    p = torch.cat([scores.reward_a, scores.reward_b]).sigmoid()
    return f"[{float(p.min()):.3f}, {float(p.max()):.3f}]"
