"""The encoded pairs, split, and the label firewall: training may read labels of the seed and of nothing else.

What the files know of the other labels is behind `HeldOutLabels`, which only counts.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ser_lightning.data.labels import TIE
from ser_lightning.data.reader import PairStore
from ser_lightning.data.store import ROLES, UNLABELLED, Counts
from ser_lightning.datamodules.annotators import agreement_of
from ser_lightning.datamodules.batches import PairSet
from ser_lightning.datamodules.splitting import (
    DataReport,
    SplitPolicy,
    Splits,
    add_arrival,
    assign_folds,
    count_splits,
    is_decided,
    set_undecided_aside,
    split_pairs,
)
from ser_lightning.errors import UserError
from ser_lightning.evaluation.metrics import effective_pairs
from ser_lightning.records import PreferencePair

SplitName = Literal["seed", "val", "pool", "test", "ties", "all", "arrived_seed", "arrived_pool"]
SPLITS = ("seed", "val", "pool", "test")


class HeldOutLabels:
    """Labels of the pool or the test set. Answers with counts, never with a label.

    Args:
        pair_id: (N,) int64 ids of the pairs whose better response the file names; of a tie it names none.
        label: (N,) labels, 1: a is the better one.
    """

    __slots__ = ("__label", "__pair_id")

    def __init__(self, pair_id: np.ndarray, label: np.ndarray) -> None:
        order = np.argsort(pair_id)
        self.__pair_id, self.__label = pair_id[order], label[order]

    def count_right(self, pair_id: Tensor, label: Tensor) -> tuple[int, float]:
        """How many labels can be checked, and how many of those are right.

        Args:
            pair_id: (K,) int64 ids, of any pairs.
            label: (K,) labels given to them, 1: a is the better one; 0.5 is a tie and counts half.

        Returns:
            Number of pairs with a known truth, and number of right labels among them.
        """
        is_known, credit = self.__check(pair_id, label)
        return int(is_known.sum()), float(credit[is_known].sum())

    def effective_labels(self, pair_id: Tensor, label: Tensor, group: Tensor) -> float:
        """How many independent labels those that can be checked are worth (`effective_pairs`).

        Args:
            pair_id: (K,) int64 ids, of any pairs.
            label: (K,) labels given to them, as for `count_right`.
            group: (K,) equal for pairs of one prompt.
        """
        is_known, credit = self.__check(pair_id, label)
        return effective_pairs(torch.from_numpy(credit[is_known]), group.cpu()[torch.from_numpy(is_known)])

    def __check(self, pair_id: Tensor, label: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(K,) whether the truth is known, and (K,) credit where it is."""
        ids, given = pair_id.cpu().numpy(), label.cpu().numpy()
        if not len(self.__pair_id):
            return np.zeros(len(ids), dtype=bool), np.zeros(len(ids))
        place = np.searchsorted(self.__pair_id, ids).clip(max=len(self.__pair_id) - 1)
        return self.__pair_id[place] == ids, np.where(given == 0.5, 0.5, self.__label[place] == given)


class SplitPairs:
    """Rows of a store by split, and the questions that may be asked of them.

    The first part of the store is split by the policy; every later part joins what is there (`add_arrival`).
    """

    def __init__(self, store: PairStore, policy: SplitPolicy) -> None:
        self.store, self.report = store, DataReport(_joined_counts(store.counts))
        self._split_seed = policy.split_seed
        labels = store.read_labels()
        first = slice(0, int(store.parts[1]))
        given = [role for role in ROLES if store.counts[0][role]["rows"]]
        drafts = split_pairs(
            store.pair_id[first],
            store.dialogue_id[first],
            store.role[first],
            labels[first] != UNLABELLED,
            given,
            policy,
            self.report.between,
        )
        history = [set_undecided_aside(drafts, labels, self.report.between)]
        for start, end in zip(store.parts[1:-1], store.parts[2:], strict=True):
            rows, dialogues = np.arange(start, end), store.joint_dialogue_id
            history.append(add_arrival(history[-1], rows, store.pair_id, dialogues, labels, self.report.between))
        self.report.annotators = agreement_of(store.read_votes()[np.concatenate([history[-1].seed, history[-1].ties])])
        self.report.splits = count_splits(history[-1], store.joint_dialogue_id, labels)
        self._history = history
        self._rows: dict[str, np.ndarray] = dict(vars(history[-1]))
        self._labelled_rows = np.sort(self._rows["seed"])
        self._seed_label = labels[self._labelled_rows]
        self._fingerprints = [self._fingerprint_of(splits, labels) for splits in history]
        everything = self.rows("all")
        self._row_by_id = everything[np.argsort(store.pair_id[everything])]
        self._sorted_id = store.pair_id[self._row_by_id]
        self.mark_arrived(self.fingerprint)

    def rows(self, split: SplitName, fold: int | None = None, num_folds: int = 3) -> np.ndarray:
        """(N,) rows of a split, or of one fold of the seed, in the order of their pair id; `all` is everything."""
        if split == "all":
            return np.concatenate([self._rows[name] for name in (*SPLITS, "ties")])
        if split not in self._rows:
            raise ValueError(f"split: got {split!r}; use seed, pool, test or all")
        if fold is None:
            return self._rows[split]
        if split != "seed" or not 0 <= fold < num_folds:
            raise ValueError(f"fold: got {fold} of {num_folds} of {split}; only the seed has folds, counted from 0")
        return self._rows["seed"][self._folds(num_folds) == fold]

    def ties(self, fold: int | None = None, num_folds: int = 3) -> np.ndarray:
        """(N,) rows of the ties to train on, without those of the dialogues of a fold of the seed that is left out."""
        ties, dialogues = self._rows["ties"], self.store.joint_dialogue_id
        if fold is None:
            return ties
        return ties[~np.isin(dialogues[ties], dialogues[self.rows("seed", fold, num_folds)])]

    def _folds(self, num_folds: int) -> np.ndarray:
        """(S,) fold of each seed pair; what arrived later changes no fold of what was there."""
        rows = self._history[0].seed
        dialogues = self.store.dialogue_id[rows]
        if (num_dialogues := len(np.unique(dialogues))) < num_folds:
            raise UserError(
                f"folds: got {num_folds} of a seed with {num_dialogues} dialogues; use fewer folds or a larger seed"
            )
        folds = assign_folds(dialogues, num_folds, self._split_seed)
        for splits in self._history[1:]:
            joint, new = self.store.joint_dialogue_id, np.setdiff1d(splits.seed, rows)
            dealt = assign_folds(joint[new], num_folds, self._split_seed, (joint[rows], folds))
            rows, folds = np.concatenate([rows, new]), np.concatenate([folds, dealt])
        order = np.argsort(rows)
        return folds[order[np.searchsorted(rows[order], self._rows["seed"])]]

    def rows_of(self, pair_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """(N,) rows of these pairs; KeyError for a pair that is in no split."""
        return self._row_by_id[_places(self._sorted_id, pair_ids)]

    def pair_ids(self, rows: np.ndarray) -> Tensor:
        """(N,) int64 ids of these rows."""
        return torch.from_numpy(self.store.pair_id[rows])

    def seed_labels(self, rows: np.ndarray) -> np.ndarray:
        """(N,) float32 labels of rows of the seed; KeyError for any other row."""
        return self._seed_label[_places(self._labelled_rows, rows)].astype(np.float32)

    def measured(self, split: Literal["val", "test"]) -> PairSet:
        """The pairs of a split with their labels, to measure on."""
        rows = self.rows(split)
        return PairSet.labelled(rows, self.store.read_labels()[rows])

    def held_out_labels(self, split: Literal["pool", "val", "test"]) -> HeldOutLabels:
        """What the files know of a split's labels."""
        rows = self.rows(split)
        labels = self.store.read_labels()[rows]
        is_known = is_decided(labels)
        return HeldOutLabels(self.store.pair_id[rows[is_known]], labels[is_known])

    def lookup(self, pair_ids: Sequence[int]) -> list[PreferencePair]:
        """Texts of pairs, with the label where it is the seed's, or that of a tie to train on."""
        rows = self.rows_of(pair_ids)
        labels = dict(zip(self._labelled_rows.tolist(), self._seed_label.tolist(), strict=True))
        labels |= dict.fromkeys(self._rows["ties"].tolist(), TIE)
        return [
            PreferencePair(**{**vars(pair), "label": labels.get(row)})
            for row, pair in zip(rows.tolist(), self.store.read_texts(rows), strict=True)
        ]

    @property
    def fingerprint(self) -> str:
        """Changes when a split, a seed label or `split_seed` does; hidden labels do not enter."""
        return self._fingerprints[-1]

    def had(self, fingerprint: str) -> bool:
        """Whether the data ever had this fingerprint, before or after an arrival."""
        return fingerprint in self._fingerprints

    def mark_arrived(self, fingerprint: str) -> bool:
        """Take what has come since the data had this fingerprint as `arrived_seed` and `arrived_pool`.

        Returns:
            Whether the data ever had it, before or after an arrival.
        """
        if not self.had(fingerprint):
            return False
        old = self._history[self._fingerprints.index(fingerprint)]
        for name in ("seed", "pool"):
            rows = self._rows[name]
            self._rows[f"arrived_{name}"] = rows[~np.isin(rows, getattr(old, name))]
        return True

    def _fingerprint_of(self, splits: Splits, labels: np.ndarray) -> str:
        content = hashlib.sha256(str(self._split_seed).encode())
        for name in SPLITS:
            rows = getattr(splits, name)
            content.update(len(rows).to_bytes(8, "little") + self.store.pair_id[rows].tobytes())
        content.update(labels[splits.seed].astype(np.float32).tobytes() + self.store.pair_id[splits.ties].tobytes())
        return content.hexdigest()[:16]


def _joined_counts(counts: Sequence[Counts]) -> Counts:
    """What was read of the first part by role, and of all that arrived later as `new_data_path`."""
    return {**counts[0], "new_data_path": sum((part["path"] for part in counts[1:]), Counter())}


def _places(keys: np.ndarray, wanted: Sequence[int] | np.ndarray) -> np.ndarray:
    """(N,) positions of the wanted ones among ascending keys; KeyError for one that is not among them."""
    wanted = np.asarray(wanted, dtype=np.int64)
    places = np.searchsorted(keys, wanted)
    is_there = np.zeros(len(wanted), dtype=bool)
    inside = places < len(keys)
    is_there[inside] = keys[places[inside]] == wanted[inside]
    if not is_there.all():
        raise KeyError(int(wanted[~is_there][0]))
    return places
