"""Named sets of labelled pairs that a model is measured on and never trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.formats import parse_rows
from ser_lightning.data.labels import TIE, Labels
from ser_lightning.data.reader import PairStore
from ser_lightning.data.sources import Source, open_sources
from ser_lightning.data.store import ROLES, build_store, is_complete, store_key
from ser_lightning.datamodules.batches import PairSet
from ser_lightning.datamodules.splitting import is_decided
from ser_lightning.errors import UserError
from ser_lightning.records import PreferencePair


@dataclass
class EvaluationSet:
    """One named set, encoded into the cache like other pairs.

    Args:
        name: what figures call it.
        path: a file of labelled pairs.
        columns: how the file calls the columns.
        category: column that holds a pair's category, None = there is none.
        label_map: what the labels of the file mean.
    """

    name: str
    path: str
    columns: Mapping[str, str]
    category: str | None
    label_map: Labels | None = None

    def prepare(self, cache: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Encode the pairs into the cache, unless they are there."""
        folder = self._folder(cache, tokenizer, max_length)
        if not is_complete(folder):
            build_store(folder, self._by_role(), self.columns, tokenizer, max_length, self.label_map)
            rank_zero_info(f"Evaluation set {self.name}: written to {folder}")

    def open(
        self, cache: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, data: PairStore, seen: np.ndarray
    ) -> None:
        """Map the encoded pairs, without those of dialogues that training sees.

        Args:
            data: the store of the pairs to train and test on.
            seen: its rows that training sees.

        Raises:
            UserError: no labelled pair is left.
        """
        folder = self._folder(cache, tokenizer, max_length)
        self.store = store = PairStore(folder)
        dialogues = PairStore(*data.folders, folder).joint_dialogue_id
        labels = store.read_labels()
        is_labelled, is_seen = is_decided(labels), np.isin(dialogues[len(data) :], dialogues[seen])
        self.rows = np.flatnonzero(is_labelled & ~is_seen)
        self.labels = labels[self.rows]
        if num_ties := int((labels == TIE).sum()):
            rank_zero_info(f"data.eval_sets: {num_ties} of {len(labels)} pairs of {self.name} are ties and left out")
        if num_seen := int((is_labelled & is_seen).sum()):
            rank_zero_warn(
                f"data.eval_sets: {num_seen} of {int(is_labelled.sum())} pairs of {self.name} are of dialogues that "
                "training sees, and are left out"
            )
        if not len(self.rows) and is_labelled.any():
            raise UserError(
                f"data.eval_sets: every pair of {self.name} is of a dialogue that training sees; give others"
            )
        if not len(self.rows):
            raise UserError(
                f"data.eval_sets: {self.name} has no labelled pair in {self.path} ({len(labels)} without a label, "
                "ties, or with contradicting ones); give pairs with chosen and rejected, or with a label"
            )

    def pairs(self) -> PairSet:
        """The pairs with their labels."""
        return PairSet.labelled(self.rows, self.labels)

    def places(self, pair_id: Tensor) -> np.ndarray:
        """(N,) rows of the store of these pairs."""
        order = np.argsort(self.store.pair_id)
        return order[np.searchsorted(self.store.pair_id[order], pair_id.numpy())]

    def texts(self, pair_id: Tensor) -> list[PreferencePair]:
        """The pairs, without their labels."""
        return self.store.read_texts(self.places(pair_id))

    def categories(self, pair_id: Tensor) -> list[str]:
        """The category of each pair as the file has it; empty where there is no such column."""
        if self.category is None:
            return []
        found: dict[int, str] = {}
        for source in self._sources:
            for where, row in source.rows():
                category = row.get(self.category)
                for pair in parse_rows(row, self.columns, where, self.label_map):
                    if isinstance(pair, PreferencePair):
                        found.setdefault(pair.pair_id, "" if category is None else str(category))
        if not any(found.values()):
            raise UserError(
                f"data.eval_category: got {self.category!r}, which no row of {self.path} has; name a column of it"
            )
        return [found[i] or "none" for i in pair_id.tolist()]

    @cached_property
    def _sources(self) -> list[Source]:
        return open_sources(self.path, 0, 0)

    def _by_role(self) -> dict[str, list[Source]]:
        return {**dict.fromkeys(ROLES, []), "test_path": self._sources}

    def _folder(self, cache: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Path:
        return cache / store_key(self._by_role(), self.columns, tokenizer, max_length, self.label_map)
