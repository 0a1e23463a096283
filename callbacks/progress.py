"""One progress line for each phase of a run: round, fold and epoch instead of a count of epochs over all rounds."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, convert_inf


class PhaseProgressBar(TQDMProgressBar):
    """A bar such as `round 1 | fold 2/3 | epoch 4`, which leaves one line behind for each phase.

    The phase is `trainer.datamodule.phase` (`round`, `fold` or None, `num_folds`); without one the whole training
    leaves one line. Epochs count from 0 and over all phases, as in the metrics.
    """

    BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"

    def __init__(self) -> None:
        super().__init__()
        self._shown_phase = ""

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        """Open the bar of the first phase."""
        super().on_train_start(trainer, *args)
        self._shown_phase = describe_phase(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin a new line where a new phase begins."""
        phase = describe_phase(trainer)
        if phase != self._shown_phase:
            self.train_progress_bar.close()
            self.train_progress_bar = self.init_train_tqdm()
            self._shown_phase = phase
        self.train_progress_bar.reset(convert_inf(self.total_train_batches))
        self.train_progress_bar.set_description_str(f"{phase}epoch {trainer.current_epoch}")

    def init_train_tqdm(self) -> Tqdm:
        """The bar without the colon that tqdm puts behind a description."""
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
