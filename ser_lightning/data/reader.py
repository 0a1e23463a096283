"""Stores of encoded pairs, opened for reading: rows of one table, however many stores they lie in."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np

from ser_lightning.data.store import INDEX, TEXTS, Counts, join_dialogues
from ser_lightning.records import PreferencePair


class PairStore:
    """One store, or a store and what arrived after it; rows of a later part follow those of an earlier one.

    Ids and lengths are in memory, token ids memory-mapped, texts and labels on disk.

    Args:
        folders: the stores, in the order of their arrival.

    Attributes:
        parts: first row of each part, and the number of rows after the last.
        pair_id: (N,) int64.
        dialogue_id: (N,) int64, equal for pairs of one part with one prompt or with prompts that continue one another.
        role: (N,) int8, position in `ROLES`.
        num_tokens: (N, 2) int64, tokens of both conversations of a pair, prompt included.
        num_shared: (N,) int64, tokens that both begin with.
        response_start: (N,) int32, position where both responses begin; 0 if the template does not say.
        counts: for each part, what was read and dropped, per role.
    """

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        indices = [_read_index(folder) for folder in folders]
        self.pair_id, self.dialogue_id, self.num_shared, self.response_start, self.role = (
            np.concatenate([index[name] for index in indices])
            for name in ("pair_id", "dialogue_id", "num_shared", "response_start", "role")
        )
        self._offsets = [index["offsets"] for index in indices]
        self._ids = [_map_ids(folder, offsets) for folder, offsets in zip(folders, self._offsets, strict=True)]
        self.parts = np.cumsum([0, *(len(index["pair_id"]) for index in indices)])
        self.num_tokens = np.concatenate([np.diff(offsets).reshape(-1, 2) for offsets in self._offsets])
        self.counts = [_read_counts(folder) for folder in folders]

    def __reduce__(self) -> tuple[type["PairStore"], tuple[Path, ...]]:
        return PairStore, self.folders  # a worker process maps the files itself instead of getting a copy

    def __len__(self) -> int:
        return len(self.pair_id)

    @cached_property
    def joint_dialogue_id(self) -> np.ndarray:
        """(N,) int64, `dialogue_id` over all parts: a part may continue a dialogue of an earlier one."""
        if len(self.folders) == 1:
            return self.dialogue_id
        indices = [_read_index(folder) for folder in self.folders]
        prompts = np.concatenate([index["prompt_id"] for index in indices])
        continuations = np.concatenate([index["continuations"] for index in indices])
        return np.asarray(join_dialogues(prompts.tolist(), continuations.tolist()), dtype=np.int64)

    def ids(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of both conversations of a pair, (T_a,) and (T_b,) int32."""
        part = int(np.searchsorted(self.parts, row, side="right")) - 1
        first = 2 * (row - self.parts[part])
        start, middle, end = self._offsets[part][first : first + 3]
        return self._ids[part][start:middle], self._ids[part][middle:end]

    def read_texts(self, rows: Sequence[int] | np.ndarray) -> list[PreferencePair]:
        """The pairs of these rows, without a label."""
        rows = np.asarray(rows, dtype=np.int64)
        found: dict[int, PreferencePair] = {}
        for part, folder in enumerate(self.folders):
            mine = rows[(rows >= self.parts[part]) & (rows < self.parts[part + 1])]
            if not len(mine):
                continue
            texts = datasets.Dataset.from_file(str(folder / "texts.arrow"))[(mine - self.parts[part]).tolist()]
            for row, prompt, *rest in zip(mine.tolist(), *(texts[name] for name in TEXTS.names), strict=True):
                first, second, source_id = rest
                found[row] = PreferencePair(int(self.pair_id[row]), json.loads(prompt), first, second, None, source_id)
        return [found[row] for row in rows.tolist()]

    def read_labels(self) -> np.ndarray:
        """(N,) float32 labels of every row, hidden ones too: for the splits and `HeldOutLabels` alone."""
        return np.concatenate([np.load(folder / "labels.npy") for folder in self.folders])

    def read_votes(self) -> np.ndarray:
        """(N, 3) int32 annotators for a, for a tie and for b, hidden ones too; zeros where the files have no votes."""
        sizes = np.diff(self.parts).tolist()
        files = [folder / "votes.npy" for folder in self.folders]
        parts = [np.load(f) if f.is_file() else np.zeros((n, 3), np.int32) for f, n in zip(files, sizes, strict=True)]
        return np.concatenate(parts)


def _read_index(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "index.npz") as index:
        return {name: index[name] for name in INDEX}


def _map_ids(folder: Path, offsets: np.ndarray) -> np.ndarray:
    if not int(offsets[-1]):
        return np.empty(0, np.int32)
    return np.memmap(folder / "ids.bin", dtype=np.int32, mode="r")


def _read_counts(folder: Path) -> Counts:
    return {role: Counter(counts) for role, counts in json.loads((folder / "counts.json").read_text()).items()}
