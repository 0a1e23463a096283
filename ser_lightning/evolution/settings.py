"""The settings of the rounds, what cannot work among them, and the work that follows from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from ser_lightning.errors import raise_problems
from ser_lightning.evolution.selection import SelectionRule


@dataclass(frozen=True)
class EvolutionSettings:
    """How a run evolves; the arguments of `EvolutionCallback`.

    Args:
        rule: which of its pseudo-labels the model keeps.
        max_rounds: most rounds after the seed model; in a run that continues another, after those of that run.
        seed_epochs: epochs over the seed in round 0.
        epochs_per_round: epochs over seed and selected pairs in every later round.
        folds: parts of the seed that are left out in turn, to score the seed by models that have not seen it; each
            costs one more training a round. 0 goes without: no calibration, and the last round is delivered.
        restart: what is reset at the start of a round: the `weights` (and the optimiser), or `nothing`.
        min_gain: minimum gain in accuracy (a share, above 0) that makes a round worth its compute; evolution is
            forecast to converge where no further round gains as much.
        min_steps: minimum number of optimiser steps of a phase: a small seed gets more epochs.
        stop_by: what ends evolution before `max_rounds`: the `rule` alone, or the `forecast` of convergence as well.
    """

    rule: SelectionRule
    max_rounds: int = 4
    seed_epochs: int = 3
    epochs_per_round: int = 2
    folds: int = 3
    restart: Literal["nothing", "weights"] = "weights"
    min_gain: float = 0.005
    stop_by: Literal["rule", "forecast"] = "rule"
    min_steps: int = 0

    def __post_init__(self) -> None:
        found = [
            f"evolution.{name}: got {getattr(self, name)}; need at least 1"
            for name in ("seed_epochs", "epochs_per_round")
            if getattr(self, name) < 1
        ]
        if self.min_steps < 0:
            found.append(f"evolution.min_steps: got {self.min_steps}; need 0 or more")
        if self.max_rounds < 0:
            found.append(f"evolution.max_rounds: got {self.max_rounds}; need 0 or more")
        if self.folds < 0 or self.folds == 1:
            found.append(f"evolution.folds: got {self.folds}; need 0 or at least 2")
        if self.folds == 0 and self.rule.needs_folds:
            found.append(
                f"evolution.folds: got 0 with {type(self.rule).__name__}, which calibrates on them; set 2 or more"
            )
        if not 0 < self.min_gain < 1:
            found.append(f"evolution.min_gain: got {self.min_gain}; need a share in (0, 1)")
        if self.restart not in ("nothing", "weights"):
            found.append(f"evolution.restart: got {self.restart!r}; use nothing or weights")
        if self.stop_by not in ("rule", "forecast"):
            found.append(f"evolution.stop_by: got {self.stop_by!r}; use rule or forecast")
        raise_problems(found)

    def settled(self, is_solved: bool) -> Self:
        """These settings for a module: of a head that is solved exactly each phase is one step."""
        return replace(self, seed_epochs=1, epochs_per_round=1, min_steps=0) if is_solved else self

    def phase_epochs(self, round: int, steps: int) -> int:
        """Epochs of a phase of a round, of so many steps each."""
        epochs = self.seed_epochs if round == 0 else self.epochs_per_round
        return max(epochs, math.ceil(self.min_steps / max(1, steps)))

    def epochs_of_phases(self, round: int, seed: int, selected: int, pairs_per_step: int) -> list[int]:
        """Epochs of each phase of a round."""
        pairs = [*[seed - seed / self.folds + selected for _ in range(self.folds)], seed + selected]
        return [self.phase_epochs(round, math.ceil(n / pairs_per_step)) for n in pairs]

    def phases(
        self, is_last: bool, epochs: Sequence[int], sizes: dict[str, int], selected: int
    ) -> list[tuple[float, float]]:
        """How much each phase of a round trains on, all its epochs together, and how much it scores.

        Args:
            is_last: no later round needs labels from the models of the folds.
            epochs: of each phase.
            sizes: of `seed`, `pool` and `test`, in pairs or in tokens.
            selected: of the pool, what is trained on.
        """
        left_out = sizes["seed"] / self.folds if self.folds else 0.0
        *folds, main = epochs
        scored = left_out + (0 if is_last else sizes["pool"])
        found = [(n * (sizes["seed"] - left_out + selected), scored) for n in folds]
        return [*found, (float(main * (sizes["seed"] + selected)), float(sizes["pool"] + sizes["test"]))]
