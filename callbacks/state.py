"""What a run of self-evolution looks back on. It lies in every checkpoint, as plain values and tensors."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ser_lightning.errors import UserError
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.records import PairScores, Selection
from ser_lightning.runs.files import RoundRow


@dataclass
class EvolutionState:
    """Round, phase, history; owned by `EvolutionCallback`."""

    round: int = 0
    first_round: int = 0
    """Round that this run began with: 0, or the one after the last of a run that it continues."""
    phase_index: int = 0
    epochs_done: int = 0
    phase_first_epoch: int = 0
    finished: bool = False
    barred: list[int] = field(default_factory=list)
    """Rounds that a guard has taken back."""
    rows: list[RoundRow] = field(default_factory=list)
    """Lines of `rounds.csv`."""
    history: list[Selection] = field(default_factory=list)
    """What every round has selected."""
    fold_history: dict[int, list[Selection]] = field(default_factory=dict)
    """For each fold, what the chain of models that never saw it has selected."""
    seed_scores: list[PairScores] = field(default_factory=list)
    """For each round the seed's scores, out of fold."""
    fold_scores: list[PairScores] = field(default_factory=list)
    """Of the running round: the seed's scores so far, fold by fold."""
    fold_pool_scores: list[PairScores] = field(default_factory=list)
    """Of the running round: the pool's scores by each fold's model so far."""
    pool_label: Tensor | None = None
    """(N,) labels of the pool that the round before gave."""
    earlier_label: Tensor | None = None
    """(N,) labels that the round before that one gave the same pool; None where there was none."""
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of the running round so far: `tokens` and `seconds` by the parts in `COST_PARTS`."""

    def spend(self, part: str, tokens: int, seconds: float) -> None:
        """Add to a part of the running round's cost."""
        spent = self.cost.setdefault(part, {"tokens": 0, "seconds": 0.0})
        spent["tokens"] += tokens
        spent["seconds"] += seconds

    @property
    def tokens(self) -> int:
        """Of the running round so far, in all."""
        return int(sum(spent["tokens"] for spent in self.cost.values()))

    @property
    def delivered(self) -> int:
        """Round whose model is handed over, as far as is known."""
        return next(row.round for row in self.rows if row.delivered)

    def to_dict(self) -> dict[str, Any]:
        """All of it without a class of this project."""
        return {
            **vars(self),
            "rows": _plain(self.rows),
            "fold_history": {fold: _plain(past) for fold, past in self.fold_history.items()},
            **{name: _plain(getattr(self, name)) for name in ("history", *_SCORES)},
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "EvolutionState":
        """What `to_dict` gave; `UserError` if another version of this package gave it."""
        if state.keys() != {f.name for f in fields(cls)}:
            raise UserError(
                "checkpoint: got the state of another version of ser-lightning; go on with that one, or start a new run"
            )
        return cls(
            **{
                **state,
                "rows": [RoundRow(**row) for row in state["rows"]],
                "history": [Selection(**s) for s in state["history"]],
                "fold_history": {k: [Selection(**s) for s in past] for k, past in state["fold_history"].items()},
                **{name: [PairScores(**s) for s in state[name]] for name in _SCORES},
            }
        )


_SCORES = ("seed_scores", "fold_scores", "fold_pool_scores")


def _plain(records: list[Any]) -> list[dict[str, Any]]:
    return [dict(vars(record)) for record in records]


def seed_credits(rounds: list[PairScores], pair_id: Tensor, target: Tensor) -> list[Tensor]:
    """For each round the credit (1 right, 0.5 tie, 0 wrong) of the seed pairs that all rounds have scored.

    Args:
        rounds: for each round the seed's scores, out of fold; a seed may have grown from one to the next.
        pair_id: (M,) seed pairs, ascending.
        target: (M,) their labels.

    Returns:
        For each round a tensor of the same length, in the order of `pair_id`.
    """
    common = torch.stack([torch.isin(pair_id, scores.pair_id) for scores in rounds]).all(0)
    credits = []
    for scores in rounds:
        order = scores.pair_id.argsort()
        places = order[torch.searchsorted(scores.pair_id[order], pair_id[common])]
        credits.append(half_credit(scores.margin[places], target[common]))
    return credits
