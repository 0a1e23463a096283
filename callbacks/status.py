"""What a running evolution says of itself in the progress bar: accuracy so far, and the time it will take at most."""

import time

from lightning.pytorch import Trainer

from ser_lightning.callbacks.evolution import EvolutionCallback

SCORING = 1 / 3
"""Work of scoring a pair beside that of training on it: a forward pass without a backward one of twice its size."""
KEPT_SHARE = 0.6
"""Of the pool, in rounds that nothing is known of yet."""


class StatusLine:
    """Measures how fast work is done from its making on. Work is counted in pairs trained on once."""

    def __init__(self, trainer: Trainer) -> None:
        found = [c for c in trainer.callbacks if isinstance(c, EvolutionCallback)]
        self._evolution = found[0] if found else None
        self._start, self._work_at_start = time.monotonic(), self._work(trainer)[0]

    def text(self, trainer: Trainer) -> str:
        """`oof 0.654 | at most 3 min left | `, as far as known; nothing without an evolution."""
        if self._evolution is None:
            return ""
        rows = self._evolution.state.rows
        parts = [f"oof {rows[-1].seed_oof_accuracy:.3f}"] if rows else []
        done, total = self._work(trainer)
        if done > self._work_at_start:
            rate = (time.monotonic() - self._start) / (done - self._work_at_start)
            parts.append(f"at most {duration(rate * max(0.0, total - done))} left")
        return "".join(f"{part} | " for part in parts)

    def _work(self, trainer: Trainer) -> tuple[float, float]:
        """Work done so far, and all of it if no round converges before the last."""
        if self._evolution is None:
            return 0.0, 0.0
        evolution, state, data = self._evolution, self._evolution.state, trainer.datamodule
        pairs = {split: len(data.pair_ids(split)) for split in ("seed", "pool", "test")}
        kept = {row.round + 1: row.kept for row in state.rows}
        done = total = 0.0
        for number in range(state.first_round, evolution.last_round + 1):
            selected = 0 if number == 0 else kept.get(number, round(KEPT_SHARE * pairs["pool"]))
            phases = round_work(evolution, number, pairs, selected)
            total += sum(training + scoring for training, scoring in phases)
            if number < state.round:
                done += sum(training + scoring for training, scoring in phases)
            elif number == state.round:
                done += sum(training + scoring for training, scoring in phases[: state.phase_index])
                epochs = state.epochs_done - state.phase_first_epoch
                done += phases[state.phase_index][0] * min(1.0, epochs / evolution.phase_epochs(number))
        return done, total


def round_work(
    evolution: EvolutionCallback, number: int, pairs: dict[str, int], selected: int
) -> list[tuple[float, float]]:
    """Training and scoring of each phase of a round.

    Args:
        evolution: its settings.
        number: of the round.
        pairs: in `seed`, `pool` and `test`.
        selected: pool pairs that are trained on.
    """
    epochs, folds = evolution.phase_epochs(number), evolution.folds
    labels_folds = evolution.committee or number < evolution.last_round
    phases = []
    for _ in range(folds):
        scored = pairs["seed"] / folds + (pairs["pool"] if labels_folds else 0)
        phases.append((epochs * (pairs["seed"] * (1 - 1 / folds) + selected), SCORING * scored))
    phases.append((float(epochs * (pairs["seed"] + selected)), SCORING * (pairs["pool"] + pairs["test"])))
    return phases


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
