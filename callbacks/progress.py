"""One progress line for each phase of a run: round, fold and epoch, accuracy so far, and the time left at most."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, convert_inf

from ser_lightning.callbacks.evolution import EvolutionCallback
from ser_lightning.utils.durations import duration
from ser_lightning.utils.terminal import say


class PhaseProgressBar(TQDMProgressBar):
    """A bar such as `round 1 | fold 2/3 | epoch 4`, which leaves one line for each phase.

    The phase is `trainer.datamodule.phase` (`round`, `fold` or None, `num_folds`); without one the whole training
    leaves one line. An evolution adds its accuracy out of fold so far and the time that it has left at most. Epochs
    count from 0 and over all phases, as in the metrics. Where standard output is no terminal there is no bar: a line is
    printed when a phase is over.
    """

    BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"

    def __init__(self) -> None:
        super().__init__()
        self._shown_phase = ""
        self._finished_epoch = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the bar out of files and pipes."""
        super().setup(trainer, pl_module, stage)
        if not sys.stdout.isatty():
            self.disable()

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        """Open the bar of the first phase."""
        super().on_train_start(trainer, *args)
        self._shown_phase = describe_phase(trainer)
        self._status = StatusLine(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin a new line where a new phase begins."""
        phase = describe_phase(trainer)
        if phase != self._shown_phase:
            self._leave_line(trainer)
            self.train_progress_bar = self.init_train_tqdm()
            self._shown_phase = phase
        self.train_progress_bar.reset(convert_inf(self.total_train_batches))
        status = self._status.text(trainer)
        self.train_progress_bar.set_description_str(f"{phase}{status}epoch {trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember how the epoch went; it may be the last of its phase."""
        super().on_train_epoch_end(trainer, pl_module)
        found = self.get_metrics(trainer, pl_module).items()
        metrics = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found]
        self._finished_epoch = ", ".join([f"{self._shown_phase}epoch {trainer.current_epoch}", *metrics])
        if self._status.ends_phase(trainer):  # what is scored and printed now stands below the line
            self._leave_line(trainer)

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        """Leave the line of the last phase."""
        self._leave_line(trainer)

    def _leave_line(self, trainer: Trainer) -> None:
        self.train_progress_bar.close()
        if self.is_disabled and trainer.is_global_zero and self._finished_epoch:
            say(self._finished_epoch)
        self._finished_epoch = ""

    def init_train_tqdm(self) -> Tqdm:
        """The bar without the colon that tqdm puts after a description."""
        bar = super().init_train_tqdm()
        bar.set_description_str(self.train_description, refresh=False)
        return bar

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict]:
        """The module's progress-bar metrics; a run folder has no version number to show beside them."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def describe_phase(trainer: Trainer) -> str:
    """`round 1 | fold 2/3 | ` of the DataModule's phase, nothing where it has none."""
    phase = getattr(getattr(trainer, "datamodule", None), "phase", None)
    if phase is None:
        return ""
    fold = "" if phase.fold is None else f"fold {phase.fold + 1}/{phase.num_folds} | "
    return f"round {phase.round} | {fold}"


SCORING = 1 / 3
"""Work of scoring a pair beside that of training on it: a forward pass without a backward one of twice its size."""


class ParameterLine(ModelSummary):
    """One line for Lightning's table of modules, of which a run has one that counts."""

    @staticmethod
    def summarize(
        summary_data: Any, total_parameters: int, trainable_parameters: int, model_size: float, *args: Any, **more: Any
    ) -> None:
        """Say how large the model is and how much of it is trained; Lightning's bytes are wrong for half precision."""
        say(f"Model: {total_parameters:,} parameters, {trainable_parameters:,} of them trained")


class StatusLine:
    """Measures how fast work is done from its making on. Work is counted in pairs trained on once."""

    def __init__(self, trainer: Trainer) -> None:
        found = [c for c in trainer.callbacks if isinstance(c, EvolutionCallback)]
        self._evolution = found[0] if found else None
        self._start, self._work_at_start = time.monotonic(), self._work(trainer)[0]

    def ends_phase(self, trainer: Trainer) -> bool:
        """Whether the epoch that ends is the last of its phase; the evolution, which ends it, is asked later."""
        if self._evolution is None:
            return False
        state = self._evolution.state
        return state.epochs_done + 1 - state.phase_first_epoch >= self._evolution.phase_epochs(trainer)

    def text(self, trainer: Trainer) -> str:
        """`oof 0.654 | at most 3 min left | `, as far as known; nothing without an evolution."""
        if self._evolution is None:
            return ""
        rows = self._evolution.state.rows
        has_accuracy = rows and not math.isnan(rows[-1].seed_oof_accuracy)  # without folds there is none
        parts = [f"oof {rows[-1].seed_oof_accuracy:.3f}"] if has_accuracy else []
        done, total = self._work(trainer)
        if done > self._work_at_start:
            rate = (time.monotonic() - self._start) / (done - self._work_at_start)
            parts.append(f"at most {duration(rate * max(0.0, total - done))} left")
        return "".join(f"{part} | " for part in parts)

    def _work(self, trainer: Trainer) -> tuple[float, float]:
        """Work done so far, and all of it if no round converges before the last and each keeps the whole pool."""
        evolution, data = self._evolution, trainer.datamodule
        if evolution is None:
            return 0.0, 0.0
        settings, state = evolution.settings, evolution.state
        pairs = {split: len(data.pair_ids(split)) for split in ("seed", "pool", "test")}
        kept = {0: 0, **{row.round + 1: row.kept for row in state.rows}, state.round: len(data.accepted)}
        done = total = 0.0
        for number in range(state.first_round, evolution.last_round + 1):
            selected = kept.get(number, pairs["pool"])
            of_phases = settings.epochs_of_phases(number, pairs["seed"], selected, data.pairs_per_step)
            phases = settings.phases(number == evolution.last_round, of_phases, pairs, selected)
            work = [trained + SCORING * scored for trained, scored in phases]
            total += sum(work)
            if number < state.round:
                done += sum(work)
            elif number == state.round:
                epochs = state.epochs_done - state.phase_first_epoch
                in_phase = phases[state.phase_index][0] * min(1.0, epochs / of_phases[state.phase_index])
                done += sum(work[: state.phase_index]) + in_phase
        return done, total
