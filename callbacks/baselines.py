"""Baselines beside every accuracy, and how far a round is from them and from the seed model on the test pairs.

The baselines are a bag-of-words model fitted on the reward model's own labels, and length.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.evaluation.baselines import BagOfWords
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evaluation.paired_tests import paired, same_order
from ser_lightning.evaluation.sets import Scored, set_figures
from ser_lightning.modules.reward import RewardModule
from ser_lightning.records import PairScores
from ser_lightning.runs.files import round_files
from ser_lightning.runs.pair_tables import Audit, read_test_scores
from ser_lightning.training.frozen_head import frozen_accuracy
from ser_lightning.utils.terminal import say

MAX_BASELINE_PAIRS = 20_000
"""A bag of words is fitted in a run only up to this seed: it must not hold up a run for long."""
MAX_FROZEN_PAIRS = 5_000
"""Heads on the frozen body are solved only up to this seed: some dozens of them would take many minutes."""
_FIGURES = ("pairs", "prompts", "accuracy", "accuracy_low", "accuracy_high", "by_length")


class BaselineCallback(Callback):
    """Log `bag_of_words_accuracy` in `validate` and `test`, and end a `fit` without rounds with both baselines.

    A fit that trains the body of a decoder, with folds, begins with the accuracy out of fold of heads on the pretrained
    body: what fine-tuning has to beat.
    """

    def __init__(self) -> None:
        self.frozen_accuracy: float | None = None
        self.seed_pairs = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the seed with the pretrained body; a run that goes on has done so."""
        data = trainer.datamodule
        if trainer.ckpt_path is not None or not isinstance(pl_module, RewardModule):
            return
        if not isinstance(data, PreferenceDataModule) or data.phase.fold is None:
            return
        self.seed_pairs = len(data.pair_ids("seed"))
        is_trained = pl_module.reward_model.is_decoder and not pl_module.caches_features
        if is_trained and self.seed_pairs <= MAX_FROZEN_PAIRS:
            self.frozen_accuracy = found = frozen_accuracy(trainer, pl_module.reward_model)
            if found is not None:
                rank_zero_info(f"Baseline: a head on the frozen body has {found:.3f} of the seed right, out of fold.")

    def state_dict(self) -> dict[str, Any]:
        """The accuracy of heads on the pretrained body, which a run that goes on no longer has."""
        return {"frozen_accuracy": self.frozen_accuracy, "seed_pairs": self.seed_pairs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.frozen_accuracy, self.seed_pairs = state_dict["frozen_accuracy"], state_dict["seed_pairs"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rounds say it themselves, with what their models are ahead by."""
        from ser_lightning.callbacks.evolution import EvolutionCallback  # which needs this module

        data = trainer.datamodule
        if any(isinstance(callback, EvolutionCallback) for callback in trainer.callbacks):
            return
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
            words = bag_of_words_accuracy(data, split)
            # Every rank has the same figure; Lightning would warn that they may differ.
            pl_module.log(f"{split}/bag_of_words_accuracy", words, sync_dist=True)


def frozen_accuracy_of(trainer: Trainer) -> float | None:
    """What a `BaselineCallback` has measured of heads on the pretrained body; None if not, or on a smaller seed."""
    data: Any = getattr(trainer, "datamodule", None)
    found = [callback for callback in trainer.callbacks if isinstance(callback, BaselineCallback)]
    return next((one.frozen_accuracy for one in found if one.seed_pairs == len(data.pair_ids("seed"))), None)


_FITTED: WeakKeyDictionary[PreferenceDataModule, tuple[str, BagOfWords]] = WeakKeyDictionary()


def seed_bag_of_words(data: PreferenceDataModule) -> BagOfWords:
    """Fitted on the labels that the reward model had, once for each state of the data."""
    state, found = _FITTED.get(data, ("", BagOfWords()))
    if state != data.data.fingerprint:
        ids = data.pair_ids("seed")
        found = BagOfWords().fit(_responses(data, ids), data.seed_labels(ids))
        _FITTED[data] = (data.data.fingerprint, found)
    return found


def measure_round(data: PreferenceDataModule, run: str | Path, number: int) -> dict[str, Any]:
    """What the test pairs say of a round, and nobody trains on: its accuracy, and how far it is from others.

    Returns:
        `pairs`, `prompts`, `accuracy` with `accuracy_low` and `accuracy_high` over prompts, `by_length`, and `against`:
        for `longer`, `bag_of_words` and, after round 0, `seed` (the seed model) the fields of `Paired`, where the
        difference is the round's accuracy less that of the other. Empty without test pairs.
    """
    ids, target = data.test_labels()
    scores = _test_scores(data, run, number, ids)
    if scores is None or not len(ids):
        return {}
    prompt = data.dialogues(ids).numpy()
    figures = set_figures(Scored("test", scores, target, prompt, []), temperature=1.0)
    others = _baseline_margins(data, ids)
    if number and (first := _test_scores(data, run, 0, ids)) is not None:
        others["seed"] = first.margin
    credit = half_credit(scores.margin, target)
    against = {
        name: asdict(paired(half_credit(margin, target), credit, same_order(margin, scores.margin), prompt))
        for name, margin in others.items()
    }
    return {**{name: figures[name] for name in _FIGURES}, "against": against}


def _test_scores(data: PreferenceDataModule, run: str | Path, number: int, ids: Tensor) -> PairScores | None:
    """What a round has made of these test pairs; None where it has not scored them all."""
    found: Audit | None = read_test_scores(round_files(run, number).test_scores)
    if found is None or not np.isin(ids.numpy(), found["pair_id"]).all():
        return None
    order = np.argsort(found["pair_id"])
    rows = order[np.searchsorted(found["pair_id"][order], ids.numpy())]
    rewards = (torch.from_numpy(found[name][rows]) for name in ("reward_a", "reward_b"))
    return PairScores(ids, *rewards, *data.num_tokens(ids).unbind(-1))


def _baseline_margins(data: PreferenceDataModule, ids: Tensor) -> dict[str, Tensor]:
    """(N,) margins of each baseline on test pairs; no bag of words where it would take long."""
    tokens_a, tokens_b = data.num_tokens(ids).unbind(-1)
    found = {"longer": (tokens_a - tokens_b).float()}
    if 1 < len(data.pair_ids("seed")) <= MAX_BASELINE_PAIRS:
        found["bag_of_words"] = seed_bag_of_words(data).margin(_responses(data, ids))
    return found


def bag_of_words_accuracy(data: PreferenceDataModule, split: Literal["val", "test"]) -> float:
    """Accuracy on a split of a bag-of-words model that was fitted on the seed."""
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
