"""Faults that a self-training can have, to be injected into runs of `guard_study.py`."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ser_lightning.callbacks.evolution import EvolutionCallback
from ser_lightning.evolution.selection import CalibratedRule, SelectionContext, SelectionResult
from ser_lightning.records import PairScores


class FlippingRule(CalibratedRule):
    """Gives every label to the wrong side."""

    def select(self, scores: PairScores, context: SelectionContext) -> SelectionResult:
        """The default rule's result, turned round."""
        result = super().select(scores, context)
        return replace(result, prob_a=1 - result.prob_a)


class LengthTeacher(Callback):
    """Rewards of the pool are a taste for length as much as what the model has learnt.

    Args:
        weight: standard deviations of margin for one of length.
    """

    def __init__(self, weight: float = 2.0) -> None:
        self.weight = weight

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand between the evolution and its scores of the pool."""
        evolution: Any = next(c for c in trainer.callbacks if isinstance(c, EvolutionCallback))
        honest = evolution.score

        def biased(trainer: Trainer, split: str, name: str, fold: int | None = None) -> PairScores:
            scores = honest(trainer, split, name, fold)
            if split != "pool":
                return scores
            length = scores.length_difference.float()
            return replace(scores, reward_a=scores.reward_a + self.weight * length / length.std() * scores.margin.std())

        evolution.score = biased


class DecayedWeights(Callback):
    """From round 1 on a weight decay that shrinks every weight to nothing: rewards collapse."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """After the schedule, which does not touch it."""
        evolution = next(c for c in trainer.callbacks if isinstance(c, EvolutionCallback))
        for group in optimizer.param_groups:
            group["weight_decay"] = 300.0 if evolution.state.round > 0 else 0.0


def write_foreign_pairs(path: Path, num_pairs: int, seed: int) -> None:
    """Sums, told at some length, in a file without labels: nothing that the synthetic dataset knows."""
    rng = random.Random(f"foreign pairs {seed}")
    words = "carry digit column total count number amount figure units tens result answer check".split()

    def tell(total: int) -> str:
        return f"{total}: " + " ".join(rng.choice(words) for _ in range(rng.randint(5, 40))) + "."

    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_pairs):
            a, b = rng.randint(10, 99), rng.randint(10, 99)
            row = {"prompt": f"Add {a} and {b}.", "response_a": tell(a + b), "response_b": tell(a + b + 10)}
            file.write(json.dumps(row) + "\n")
