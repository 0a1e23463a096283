"""The settings of the rounds, what cannot work among them, and the work that follows from them."""

from dataclasses import dataclass
from typing import Literal

from ser_lightning.errors import raise_problems
from ser_lightning.evolution.selection import SelectionRule


@dataclass(frozen=True)
class EvolutionSettings:
    """How a run evolves; the arguments of `EvolutionCallback`.

    Args:
        rule: which of its own labels the model is trusted with.
        max_rounds: rounds after the seed model, at most; in a run that continues another, after the rounds of that.
        seed_epochs: epochs over the seed in round 0.
        epochs_per_round: epochs over seed and selected pairs in every later round.
        folds: parts of the seed that are left out in turn, to score the seed by models that have not seen it; each
            costs one more training a round. 0 goes without: no calibration, and the last round is delivered.
        restart: what starts anew in a round: the `weights` (and the optimiser), or `nothing`.
        min_gain: accuracy (a share, above 0) that makes a round worth its compute; evolution is forecast to converge
            where no further round gains as much.
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

    def __post_init__(self) -> None:
        found = [
            f"evolution.{name}: got {getattr(self, name)}; need at least 1"
            for name in ("seed_epochs", "epochs_per_round")
            if getattr(self, name) < 1
        ]
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
        if self.stop_by not in ("rule", "forecast"):
            found.append(f"evolution.stop_by: got {self.stop_by!r}; use rule or forecast")
        raise_problems(found)

    def phase_epochs(self, round: int) -> int:
        """Epochs of each phase of a round."""
        return self.seed_epochs if round == 0 else self.epochs_per_round

    def phases(self, round: int, is_last: bool, sizes: dict[str, int], selected: int) -> list[tuple[float, float]]:
        """How much each phase of a round trains on, all its epochs together, and how much it scores.

        Args:
            round: its number.
            is_last: no later round needs labels from the models of the folds.
            sizes: of `seed`, `pool` and `test`, in pairs or in tokens.
            selected: of the pool, what is trained on.
        """
        epochs, seed = self.phase_epochs(round), sizes["seed"]
        whole = float(epochs * (seed + selected)), float(sizes["pool"] + sizes["test"])
        if not self.folds:
            return [whole]
        left_out = seed / self.folds
        return [(epochs * (seed - left_out + selected), left_out + (0 if is_last else sizes["pool"]))] * self.folds + [
            whole
        ]
