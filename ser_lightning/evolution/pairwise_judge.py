"""A second view of the pool: a judge that reads both responses of a pair in one prompt helps to label it.

It sees more than a reward model, which reads one response at a time, but gives no reward of its own: so it labels, and
what learns from its labels is delivered. Its head is fitted on the human labels of the seed, out of fold where the seed
itself is scored. It is used only where that makes the labels better, by the seed. Shapes: N pairs, H the size of a
state, n pairs of the seed, m other pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ser_lightning.evaluation.calibration import fit_temperature
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evolution.selection import SelectionContext
from ser_lightning.records import PairScores
from ser_lightning.training.linear_head import choose_penalty, difference_scale, fit_linear_head, log_loss

_CHUNK = 4096


@dataclass(frozen=True)
class PairwiseJudge:
    """The states of a language model for pairs, see `evolution/comparison_states.py`.

    Attributes:
        pair_id: (N,) int64, ascending.
        states: (N, H) float32.
    """

    pair_id: Tensor
    states: Tensor

    def at(self, pair_id: Tensor) -> Tensor:
        """(m, H) float32 states of pairs; KeyError for one that was not compared."""
        places = torch.searchsorted(self.pair_id, pair_id).clamp_max(len(self.pair_id) - 1)
        if not torch.equal(self.pair_id[places], pair_id):
            raise KeyError("a pair that the judge has not compared")
        return self.states[places]

    def learn(self, pair_id: Tensor, target: Tensor, group: Sequence[int], pool: Tensor) -> "JudgeHead":
        """Fit the judge's head on human labels.

        Args:
            pair_id: (n,) of the seed.
            target: (n,) their labels.
            group: (n,) equal for pairs of one dialogue.
            pool: ids of the pairs to label; with the seed they give the scale of each number.
        """
        scale = difference_scale(map(self.at, torch.cat([pair_id, pool]).split(_CHUNK)))
        states = self.at(pair_id) / scale
        found = choose_penalty(states, target, group)
        return JudgeHead(self, scale, pair_id, target, found.penalty, found.margin)


@dataclass(frozen=True)
class JudgeHead:
    """A judge with a head that is fitted on the seed.

    Attributes:
        judge: whose head it is.
        scale: (H,) of its states.
        pair_id: (n,) the seed.
        target: (n,) its labels.
        penalty: of the head, chosen out of fold.
        out_of_fold: (n,) float64 margins of the seed, each pair by a head that was fitted without its group.
    """

    judge: PairwiseJudge
    scale: Tensor
    pair_id: Tensor
    target: Tensor
    penalty: float
    out_of_fold: Tensor

    @property
    def temperature(self) -> float:
        """The temperature that turns margins into logits, fitted on the seed out of fold."""
        return fit_temperature(self.out_of_fold, self.target)

    def logits(self, pair_id: Tensor, left_out: Tensor | None = None) -> Tensor:
        """(m,) float64, calibrated log-odds that response a is the better one.

        Args:
            pair_id: (m,) pairs of the pool.
            left_out: ids of the seed that the head must not have seen, None = it has seen all.
        """
        kept = torch.ones(len(self.pair_id), dtype=torch.bool)
        if left_out is not None:
            kept = ~torch.isin(self.pair_id, left_out)
        states = self.judge.at(self.pair_id[kept]) / self.scale
        weight = fit_linear_head(states, self.target[kept], self.penalty)
        return (self.judge.at(pair_id) / self.scale).double() @ weight / self.temperature

    def seed_logits(self, pair_id: Tensor) -> Tensor:
        """(m,) float64, the same for pairs of the seed, by heads that have not seen them."""
        order = self.pair_id.argsort()
        places = order[torch.searchsorted(self.pair_id[order], pair_id)]
        return self.out_of_fold[places] / self.temperature


@dataclass(frozen=True)
class Vote:
    """Out-of-fold scores of the seed by both views, and whether the judge is used.

    Attributes:
        context: the seed with both views' scores, or with the reward model's alone.
        is_used: whether the log loss of both together is below that of the reward model.
        message: one sentence for the log.
    """

    context: SelectionContext
    temperature: float
    is_used: bool
    message: str


def hold_vote(context: SelectionContext, head: JudgeHead) -> Vote:
    """Decide on the seed whether the judge makes better labels.

    Args:
        context: (n,) the reward model's scores of the seed, out of fold.
        head: fitted on the same seed.
    """
    own, target = context.scores, context.target
    temperature = fit_temperature(own.margin, target)
    both = joined(own, temperature, head.seed_logits(own.pair_id))
    loss, loss_of_both = (
        float(log_loss(scores.margin / fit_temperature(scores.margin, target), target).mean()) for scores in (own, both)
    )
    is_used = loss_of_both < loss
    right, right_alone, right_both = (
        float(half_credit(margin, target).mean()) for margin in (own.margin, head.seed_logits(own.pair_id), both.margin)
    )
    message = (
        f"of the seed, out of fold, the pairwise judge has {right_alone:.3f} right, the reward model {right:.3f}, both "
        f"together {right_both:.3f}; log loss {loss_of_both:.3f} against {loss:.3f}, so the judge "
        f"{'helps to label the pool' if is_used else 'is not used'}"
    )
    found = replace(context, scores=both) if is_used else context
    return Vote(found, temperature, is_used, message)


def joined(scores: PairScores, temperature: float, logits: Tensor) -> PairScores:
    """Rewards divided by their temperature, with the judge's log-odds added to their difference.

    Args:
        scores: (m,) of the reward model.
        logits: (m,) of the judge for the same pairs.
    """
    half = logits.float() / 2
    return replace(scores, reward_a=scores.reward_a / temperature + half, reward_b=scores.reward_b / temperature - half)
