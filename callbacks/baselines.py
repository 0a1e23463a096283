"""Baselines beside every accuracy: a bag-of-words model fitted on the reward model's own labels, and length."""

from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.evaluation.baselines import BagOfWords
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.utils.terminal import say


class BaselineCallback(Callback):
    """Log `bag_of_words_accuracy` in `validate` and `test`, and end `fit` with a line on both baselines."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The line below the table of rounds."""
        data = trainer.datamodule
        if trainer.is_global_zero and isinstance(data, PreferenceDataModule) and len(data.pair_ids("test")):
            longer, words = longer_accuracy(data, "test"), bag_of_words_accuracy(data, "test")
            say(f"Baselines on the test pairs: take the longer {longer:.3f}, bag of words on the seed {words:.3f}.")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Beside the figures of the validation pairs."""
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Beside the figures of the test pairs."""
        self._log(trainer, pl_module, "test")

    def _log(self, trainer: Trainer, pl_module: LightningModule, split: Literal["val", "test"]) -> None:
        data = trainer.datamodule
        if isinstance(data, PreferenceDataModule) and len(data.pair_ids("seed")) > 1 and len(data.pair_ids(split)):
            pl_module.log(f"{split}/bag_of_words_accuracy", bag_of_words_accuracy(trainer.datamodule, split))


def seed_bag_of_words(data: PreferenceDataModule) -> BagOfWords:
    """Fitted on the labels that the reward model had."""
    ids = data.pair_ids("seed")
    return BagOfWords().fit(_responses(data, ids), data.seed_labels(ids))


def bag_of_words_accuracy(data: PreferenceDataModule, split: Literal["val", "test"]) -> float:
    """Accuracy on a split of a bag-of-words model that was fitted on the seed.

    Args:
        data: a DataModule that is set up.
        split: whose pairs to judge.
    """
    return _accuracy(data, split, seed_bag_of_words(data).margin(_responses(data, data.pair_ids(split))))


def longer_accuracy(data: PreferenceDataModule, split: Literal["val", "test"]) -> float:
    """Accuracy on a split of "the longer response wins", in tokens."""
    tokens_a, tokens_b = data.num_tokens(data.pair_ids(split)).unbind(-1)
    return _accuracy(data, split, (tokens_a - tokens_b).float())


def _accuracy(data: PreferenceDataModule, split: Literal["val", "test"], margin: Tensor) -> float:
    known, right = data.held_out_labels(split).count_right(
        data.pair_ids(split), half_credit(margin, torch.ones(len(margin)))
    )
    return right / known


def _responses(data: PreferenceDataModule, ids: Tensor) -> list[tuple[str, str]]:
    return [(pair.response_a, pair.response_b) for pair in data.lookup(ids)]
