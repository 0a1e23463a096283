"""Training steps and scoring batches: which pair is in which batch of which rank, as a pure function of saved state."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.data.packing import share_by_tokens
from ser_lightning.data.reader import PairStore
from ser_lightning.records import Features, Inputs, PairBatch, Selection
from ser_lightning.training.features import FeatureTable
from ser_lightning.utils.seeds import hash_seed

_PAIRS_PER_FEATURE_BATCH = 4096


@dataclass(frozen=True)
class Phase:
    """Which pairs the next epochs train on.

    Attributes:
        round: 0 = training on the seed alone.
        fold: the fold of the seed that is left out, None = none.
        num_folds: folds of the seed.
        first_epoch: the run's epoch in which it begins.
    """

    round: int = 0
    fold: int | None = None
    num_folds: int = 3
    first_epoch: int = 0


@dataclass(frozen=True)
class Shard:
    """The part of the work that falls to this process.

    Attributes:
        tokens_per_batch: most tokens in a micro-batch, padding included.
        layout: of the sequences in a batch.
        features: what a frozen body made of every pair of the store, in place of token ids.
        needs_equal_counts: every rank has to compute as many micro-batches of a step as the others.
    """

    rank: int
    world_size: int
    tokens_per_batch: int
    pad_token_id: int
    layout: Layout = PADDED
    features: FeatureTable | None = None
    needs_equal_counts: bool = False

    def count(self, batches: Sequence[Any]) -> int:
        """How many of all ranks' batches this rank reads, as many as every other one."""
        return math.ceil(len(batches) / self.world_size)

    def pick(self, batches: Sequence[Any], index: int) -> tuple[Any, bool]:
        """This rank's batch number `index`, and whether it only fills up: the last batch, the cheapest to repeat.

        Raises:
            IndexError: beyond `count`.
        """
        if not 0 <= index < self.count(batches):
            raise IndexError(index)
        place = index * self.world_size + self.rank
        is_filler = place >= len(batches)
        return batches[-1 if is_filler else place], is_filler

    def cut(self, store: PairStore, rows: np.ndarray) -> list[list[int]]:
        """Positions in `rows` (of the store), one list a batch, the largest pair first where tokens matter."""
        if self.features is not None:
            starts = range(0, len(rows), _PAIRS_PER_FEATURE_BATCH)
            return [[*range(start, min(start + _PAIRS_PER_FEATURE_BATCH, len(rows)))] for start in starts]
        return self.layout.cut_pairs(store.num_tokens[rows], store.num_shared[rows], self.tokens_per_batch)

    def lay_out(self, store: PairStore, rows: np.ndarray) -> Inputs | Features:
        """Both responses of the pairs in `rows` (n,): 2n sequences, those of the responses a first."""
        if self.features is not None:
            return self.features.read(rows, store.num_tokens[rows])
        ids = [store.ids(row) for row in rows.tolist()]
        sequences, starts = [a for a, _ in ids] + [b for _, b in ids], np.tile(store.response_start[rows], 2)
        return self.layout.lay_out(sequences, [*range(len(rows))] * 2, self.pad_token_id, starts)


@dataclass(frozen=True)
class PairSet:
    """Pairs with what a loss needs of them.

    Attributes:
        rows: (N,) int64 rows of the store.
        target: (N,) float32 probability that a wins, NaN = must not be known.
    """

    rows: np.ndarray
    target: np.ndarray

    @classmethod
    def unlabelled(cls, rows: np.ndarray) -> "PairSet":
        """Pairs to score."""
        return cls(rows, np.full(len(rows), np.nan, np.float32))

    @classmethod
    def labelled(cls, rows: np.ndarray, labels: np.ndarray) -> "PairSet":
        """Pairs to train or measure on."""
        return cls(rows, labels.astype(np.float32))


def checked_selection(selection: Selection) -> Selection:
    """A selection in the order of its pair ids.

    Raises:
        ValueError: it has a pair twice, or a label that is neither 0 nor 1.
    """
    is_label = (selection.label == 0) | (selection.label == 1)
    if len(selection.pair_id.unique()) < len(selection) or not bool(is_label.all()):
        raise ValueError("selection: needs each pair once, with the label 0 or 1")
    order = selection.pair_id.cpu().argsort()
    return replace(
        selection,
        pair_id=selection.pair_id.cpu()[order],
        label=selection.label.to("cpu", torch.int8)[order],
        probability=selection.probability.to("cpu", torch.float32)[order],
    )


def epoch_order(num_pairs: int, seed: int, phase: Phase, epoch: int) -> np.ndarray:
    """(N,) permutation of the phase's pairs, the same wherever and however often it is asked for.

    `epoch` counts from the start of the phase: what other phases came before does not change the order.
    """
    generator = torch.Generator().manual_seed(hash_seed(seed, phase.round, phase.fold, epoch))
    return torch.randperm(num_pairs, generator=generator).numpy()


def make_batch(
    store: PairStore,
    pairs: PairSet,
    positions: Sequence[int] | np.ndarray,
    shard: Shard,
    num_step_pairs: int,
    is_filler: bool,
    eval_set: str | None = None,
) -> PairBatch:
    """One batch of the pairs at `positions`; a filler weighs nothing."""
    rows = pairs.rows[positions]
    return PairBatch(
        inputs=shard.lay_out(store, rows),
        pair_id=torch.from_numpy(store.pair_id[rows]),
        dialogue=torch.from_numpy(store.joint_dialogue_id[rows]),
        target=torch.from_numpy(pairs.target[positions]),
        weight=torch.full((len(rows),), 0.0 if is_filler else 1.0),
        num_step_pairs=num_step_pairs,
        eval_set=eval_set,
    )


class TrainingSteps(Dataset[list[PairBatch]]):
    """The optimiser steps of one epoch; an item is the micro-batches of one step for this rank.

    A step is the same set of pairs for any number of ranks and any token budget.

    Args:
        order: (N,) order in which the epoch goes through them.
        pairs_per_step: pairs in a step, over all ranks.
    """

    def __init__(self, store: PairStore, pairs: PairSet, order: np.ndarray, pairs_per_step: int, shard: Shard) -> None:
        self.store, self.pairs, self.order, self.pairs_per_step, self.shard = store, pairs, order, pairs_per_step, shard

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.pairs_per_step)

    def __getitem__(self, step: int) -> list[PairBatch]:
        if not 0 <= step < len(self):
            raise IndexError(step)
        whole = self.order[step * self.pairs_per_step : (step + 1) * self.pairs_per_step]
        num_tokens = self.store.num_tokens[self.pairs.rows[whole]].sum(axis=1)
        shares = [whole[share] for share in share_by_tokens(num_tokens, self.shard.world_size)]
        mine = shares[self.shard.rank]
        batches = [mine[batch] for batch in self._cut(mine)]
        # Every rank must take part in the step's gradient reduction, with the step's shortest pair at least.
        num_batches = max(1, *(len(self._cut(share)) for share in shares)) if self.shard.needs_equal_counts else 1
        fillers = [whole[[int(num_tokens.argmin())]]] * (num_batches - len(batches))
        return [
            make_batch(self.store, self.pairs, batch, self.shard, len(whole), is_filler)
            for is_filler, group in ((False, batches), (True, fillers))
            for batch in group
        ]

    def _cut(self, positions: np.ndarray) -> list[list[int]]:
        return self.shard.cut(self.store, self.pairs.rows[positions])


class ScoringBatches(Dataset[PairBatch]):
    """Every pair once, sorted by length; ranks get equally many batches, the last of some a filler of weight 0.

    Args:
        pairs: the N pairs, in an order that does not depend on any file.
        eval_set: name of the evaluation set that the pairs are, None for those of a split.
    """

    def __init__(self, store: PairStore, pairs: PairSet, shard: Shard, eval_set: str | None = None) -> None:
        self.store, self.pairs, self.shard, self.eval_set = store, pairs, shard, eval_set
        self.batches = shard.cut(store, pairs.rows)

    def __len__(self) -> int:
        return self.shard.count(self.batches)

    def __getitem__(self, index: int) -> PairBatch:
        batch, is_filler = self.shard.pick(self.batches, index)
        return make_batch(self.store, self.pairs, batch, self.shard, len(batch), is_filler, self.eval_set)


_END = object()


def _unchanged(item: object) -> object:
    return item


class AheadLoader(DataLoader):
    """A loader that makes the next batch while the model is busy with this one, in a thread where no worker does."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        if self.num_workers:
            yield from batches
            return
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(next, batches, _END)
            while (batch := coming.result()) is not _END:
                coming = thread.submit(next, batches, _END)
                yield batch


def make_loader(dataset: Dataset, num_workers: int) -> DataLoader:
    """A loader that takes the items as they are and draws nothing from the global random generator."""
    return AheadLoader(
        dataset,
        batch_size=None,
        # Items are sharded already, and this is the one kind of sampler that Lightning never replaces by its own.
        sampler=DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=False),
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),  # in the thread that is ahead
        generator=torch.Generator().manual_seed(0),
    )
