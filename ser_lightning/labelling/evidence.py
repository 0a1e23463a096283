"""What labels have brought: accuracy out of fold with them and without, on the states that a run has cached.

For a run whose body is frozen. Its features lie in the cache, so a head is solved in a moment; no model is loaded.
Shapes: n labelled pairs, D numbers of a difference.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor

from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.errors import UserError, describe
from ser_lightning.evaluation.metrics import half_credit, wilson_interval
from ser_lightning.evaluation.sets import prompt_interval, share_interval
from ser_lightning.models.backbone import backbone_from, load_tokenizer
from ser_lightning.runs.config import setting
from ser_lightning.runs.files import CONFIG, ROUNDS, delivered_round, labels_worth, read_json, read_rounds, round_files
from ser_lightning.runs.pair_tables import read_audit
from ser_lightning.runs.shapes import NOTES
from ser_lightning.runs.weights import read_model
from ser_lightning.training.features import FeatureTable, cached_keys, dtype_of
from ser_lightning.training.linear_head import fit_linear_head

NUM_FOLDS = 5


@dataclass(frozen=True)
class LabelGain:
    """Heads with and without the new labels, each on pairs that it was not fitted on: the seed's and the new ones."""

    num_seed: int
    num_new: int
    accuracy: float
    """With the new labels."""
    low: float
    """95 % interval, from a bootstrap over dialogues."""
    high: float
    change: float
    """Accuracy with the new labels less that without, on the same pairs."""
    change_low: float
    change_high: float


def label_gain(differences: Tensor, target: Tensor, group: np.ndarray, is_new: np.ndarray, penalty: float) -> LabelGain:
    """Fit a head out of fold on the seed alone and on seed and new labels together, and compare them.

    Args:
        differences: (n, D) of states, scaled.
        target: (n,) labels, 1 where a is better, 0 where b is; a tie, 0.5, teaches and is not measured on.
        group: (n,) equal for pairs that may know one another; a group is never split. At least two.
        is_new: (n,) bool, not of the seed.
    """
    margins = torch.zeros(2, len(target), dtype=torch.float64)
    folds = GroupKFold(min(NUM_FOLDS, len(np.unique(group)))).split(differences, groups=group)
    for kept, left_out in folds:
        for row, used in enumerate((kept[~is_new[kept]], kept)):
            if len(used):
                weight = fit_linear_head(differences[used], target[used], penalty)
                margins[row, left_out] = differences[left_out].double() @ weight
    decided = target != 0.5
    group = group[decided.numpy()]
    without, with_new = (half_credit(margin[decided], target[decided]) for margin in margins)
    change = with_new - without
    figures = float(with_new.mean()), *share_interval(with_new, group)
    is_new = is_new[decided.numpy()]
    return LabelGain(
        int((~is_new).sum()), int(is_new.sum()), *figures, float(change.mean()), *prompt_interval(change, group)
    )


@dataclass
class CachedRun:
    """The states of a run's pairs, its seed labels and its penalty."""

    data: PreferenceDataModule
    table: FeatureTable
    penalty: float

    def gain(self, labels: Mapping[int, int]) -> LabelGain | None:
        """What labels of pool pairs bring; None where there are too few dialogues to leave one out.

        Args:
            labels: 1 where a is better, by pair id; pairs of another split are left out.
        """
        seed = self.data.pair_ids("seed")
        pool = {*self.data.pair_ids("pool").tolist()}
        new = torch.tensor(sorted(labels.keys() & pool), dtype=torch.int64)
        ids = torch.cat([seed, new])
        group = self.data.dialogues(ids).numpy()
        if len(np.unique(group)) < 2:
            return None
        target = torch.cat([self.data.seed_labels(seed), torch.tensor([float(labels[i]) for i in new.tolist()])])
        differences = torch.cat([*self.table.differences(self.data.data.rows_of(ids.tolist()))])
        return label_gain(differences, target, group, np.arange(len(ids)) >= len(seed), self.penalty)


def open_cached_run(run: Path) -> CachedRun:
    """A run whose body is frozen, from its folder and the cache.

    Raises:
        UserError: its body was trained, or its features are not in the cache (any more).
    """
    backbone = backbone_from(setting(run, "model", "init_args", "backbone"), str(run / CONFIG), False)
    if backbone.train != "head":
        raise UserError(f"run: {run} trained its body, so that a new head would not show what labels bring")
    files = round_files(run, delivered_round(run))
    saved = read_model(files.model)
    reading, weights = saved["reading"], [*saved["weights"].values()]
    if not reading or not reading.get("penalty") or len(weights) != 1:  # an encoder, or an earlier version
        raise UserError(f"run: {files.model} has no head that was solved exactly")
    try:
        data = PreferenceDataModule(**setting(run, "data", "init_args"))
    except TypeError as error:
        raise UserError(f"run: {run / CONFIG} has data that this version does not know ({error})") from error
    data.tokenizer = load_tokenizer(backbone)
    if not data.is_encoded:
        raise UserError("run: its pairs are not in the cache any more")
    data.setup("fit")
    audit = read_audit(files.audit)
    if audit is None:
        raise UserError(f"run: {files.audit} is gone, by which its features are known")
    table = _find_table(data, reading, weights[0], audit)
    pairs = np.concatenate([data.data.rows("seed"), data.data.rows("pool")])
    return CachedRun(data, table.scaled_by(pairs), float(reading["penalty"]))


def _find_table(
    data: PreferenceDataModule, reading: Mapping[str, Any], weight: Tensor, audit: Mapping[str, Any]
) -> FeatureTable:
    """The features of the run's body: those for which its head gives the rewards that stand in the audit.

    The cache may hold those of other bodies for the same pairs, and only the body itself could tell its key.
    """
    store = data.data.store
    ids = audit["pair_id"][:32]
    wanted = torch.from_numpy((audit["reward_a"] - audit["reward_b"])[:32]).double()
    rows = data.data.rows_of(ids.tolist())
    for key in cached_keys(store.folders[0]):
        files = data.feature_files(key)
        try:
            table = FeatureTable(files, store.parts, dtype_of(key), len(reading["readings"]))
            margins = torch.cat([*table.differences(rows)]).double() @ weight[0].double()
        except (OSError, RuntimeError):  # another body's, of another shape
            continue
        if float((margins - wanted).abs().max()) <= 0.01 * float(wanted.abs().max()):
            return table
    raise UserError("run: its features are not in the cache any more")


def last_accuracy(run: Path) -> str:
    """A sentence with the accuracy out of fold that a run has found for its delivered model, and when."""
    row = read_rounds(run)[delivered_round(run)]
    when = time.strftime("%Y-%m-%d", time.localtime((run / ROUNDS).stat().st_mtime))
    accuracy = row["seed_oof_accuracy"]
    if accuracy != accuracy:
        return f"The run of {when} had no folds, so no accuracy out of fold."
    notes = read_json(round_files(run, delivered_round(run)).notes, NOTES)
    count = labels_worth(notes).get("seed_oof_accuracy")
    interval = "" if not count else " [{:.3f}, {:.3f}]".format(*wilson_interval(accuracy * count, count))
    return f"The run of {when}: accuracy out of fold {accuracy:.3f}{interval}, without these labels."


def gain_sentences(gain: LabelGain | None) -> list[str]:
    """What the page says of a gain."""
    if gain is None:
        return ["Accuracy out of fold needs labelled pairs of two dialogues."]
    both = gain.num_seed + gain.num_new
    lines = [f"Accuracy out of fold {gain.accuracy:.3f} [{gain.low:.3f}, {gain.high:.3f}] on {both:,} labelled pairs."]
    if gain.num_new:
        change = f"{gain.change:+.3f} [{gain.change_low:+.3f}, {gain.change_high:+.3f}]"
        lines.append(f"Your {gain.num_new:,} labels change it by {change} against the seed's {gain.num_seed:,} alone.")
    return lines


class Evidence:
    """Sentences about what labels have brought, kept up to date by a thread."""

    def __init__(self, run: Path) -> None:
        self.run, self.lines = run, [last_accuracy(run)]
        self._question: tuple[int, Mapping[int, int]] = (0, {})
        self._answered = 0
        self._wanted = threading.Event()
        # A daemon: Ctrl-C does not wait for it, and it writes nothing.
        self._thread = threading.Thread(target=self._work, daemon=True)

    @property
    def is_pending(self) -> bool:
        """Whether more will be known soon."""
        return self._question[0] != self._answered and self._thread.is_alive()

    def refresh(self, labels: Mapping[int, int]) -> None:
        """Ask for the evidence of these labels; of several calls the last one counts.

        Args:
            labels: 1 where a is better, 0 where b is, by pair id.
        """
        self._question = self._question[0] + 1, labels
        self._wanted.set()
        if self._thread.ident is None:
            self._thread.start()

    def _work(self) -> None:
        torch.set_num_threads(1)  # of this thread: the page is to answer meanwhile
        try:
            opened = open_cached_run(self.run)
            while self._wanted.wait():
                self._wanted.clear()
                number, labels = self._question
                self.lines = gain_sentences(opened.gain(labels))
                self._answered = number
        except Exception as error:  # whatever it is, labelling goes on
            reason = error.problems[0] if isinstance(error, UserError) else describe(error)
            self.lines = [last_accuracy(self.run), f"What they bring is not known: {reason.removeprefix('run: ')}."]
