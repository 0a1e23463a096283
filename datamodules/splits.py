"""The encoded pairs, split. This is the firewall's near side: it holds the labels of the seed and of nothing else."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ser_lightning.datamodules.hygiene import (
    DataReport,
    SplitPolicy,
    assign_folds,
    count_splits,
    drop_contradictions,
    split_pairs,
)
from ser_lightning.datamodules.steps import PairSet
from ser_lightning.datamodules.store import ROLES, UNLABELLED, PairStore
from ser_lightning.datamodules.truth import HiddenTruth
from ser_lightning.errors import UserError
from ser_lightning.records import PreferencePair

SplitName = Literal["seed", "val", "pool", "test", "all"]


class SplitPairs:
    """Rows of a store by split, and the questions that may be asked of them.

    Args:
        store: the encoded pairs.
        policy: how much goes where.

    Attributes:
        report: what was read, dropped, and kept where.
    """

    def __init__(self, store: PairStore, policy: SplitPolicy) -> None:
        self.store, self.report = store, DataReport(store.counts)
        self._split_seed = policy.split_seed
        labels = store.read_labels()
        between = self.report.between
        given = [role for role in ROLES if store.counts[role]["rows"]]
        drafts = split_pairs(store.pair_id, store.dialogue_id, store.role, labels != UNLABELLED, given, policy, between)
        splits = drop_contradictions(drafts, labels, between)
        self.report.splits = count_splits(splits, store.dialogue_id, labels)
        self._rows: dict[str, np.ndarray] = dict(vars(splits))
        self._seed_label = {int(row): int(labels[row]) for row in splits.seed}
        self._row_of = {int(store.pair_id[row]): int(row) for row in self.rows("all")}

    def rows(self, split: SplitName, fold: int | None = None, num_folds: int = 3) -> np.ndarray:
        """(N,) rows of a split, or of one fold of the seed, in the order of their pair id; `all` is every split."""
        if split == "all":
            return np.concatenate(list(self._rows.values()))
        if split not in self._rows:
            raise ValueError(f"split: got {split!r}; use seed, pool, test or all")
        if fold is None:
            return self._rows[split]
        if split != "seed" or not 0 <= fold < num_folds:
            raise ValueError(f"fold: got {fold} of {num_folds} of {split}; only the seed has folds, counted from 0")
        return self._rows["seed"][self._folds(num_folds) == fold]

    def _folds(self, num_folds: int) -> np.ndarray:
        dialogue_id = self.store.dialogue_id[self._rows["seed"]]
        if (num_dialogues := len(np.unique(dialogue_id))) < num_folds:
            raise UserError(
                f"folds: got {num_folds} of a seed with {num_dialogues} dialogues; use fewer folds or a larger seed"
            )
        return assign_folds(dialogue_id, num_folds, self._split_seed)

    def rows_of(self, pair_ids: Sequence[int]) -> np.ndarray:
        """(N,) rows of these pairs; KeyError for a pair that is in no split."""
        return np.asarray([self._row_of[i] for i in pair_ids], dtype=np.int64)

    def pair_ids(self, rows: np.ndarray) -> Tensor:
        """(N,) int64 ids of these rows."""
        return torch.from_numpy(self.store.pair_id[rows])

    def seed_labels(self, rows: np.ndarray) -> np.ndarray:
        """(N,) float32 labels of rows of the seed; KeyError for any other row."""
        return np.asarray([self._seed_label[int(row)] for row in rows], dtype=np.float32)

    def measured(self, split: Literal["val", "test"]) -> PairSet:
        """The pairs of a split with their labels, to measure on."""
        rows = self.rows(split)
        return PairSet.labelled(rows, self.store.read_labels()[rows])

    def hidden_truth(self, split: Literal["pool", "val", "test"]) -> HiddenTruth:
        """What the files know of a split's labels."""
        rows = self.rows(split)
        labels = self.store.read_labels()[rows]
        is_known = labels > UNLABELLED
        return HiddenTruth(self.store.pair_id[rows[is_known]], labels[is_known])

    def lookup(self, pair_ids: Sequence[int]) -> list[PreferencePair]:
        """Texts of pairs, with the label where it is the seed's."""
        rows = self.rows_of(pair_ids)
        return [
            PreferencePair(**{**vars(pair), "label": self._seed_label.get(row)})
            for row, pair in zip(rows.tolist(), self.store.read_texts(rows), strict=True)
        ]

    @property
    def fingerprint(self) -> str:
        """Changes when a split, a seed label or `split_seed` does; hidden labels do not enter."""
        content = hashlib.sha256(str(self._split_seed).encode())
        for rows in self._rows.values():
            content.update(len(rows).to_bytes(8, "little") + self.store.pair_id[rows].tobytes())
        content.update(self.seed_labels(self._rows["seed"]).tobytes())
        return content.hexdigest()[:16]
