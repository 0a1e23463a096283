"""Training steps and scoring batches: who sees which pair when, as a pure function of numbers that are saved."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ser_lightning.datamodules.reader import PairStore
from ser_lightning.layouts import PADDED, Layout, PairRow, collate_pairs
from ser_lightning.packing import share_by_tokens
from ser_lightning.records import PairBatch, Selection
from ser_lightning.seeds import hash_seed


@dataclass(frozen=True)
class Phase:
    """Which pairs the next epochs train on.

    Attributes:
        round: 0 = the seed alone has spoken.
        fold: the fold of the seed that is left out, None = none.
        num_folds: folds of the seed.
        seed_share: share of the total weight that the seed pairs carry, None = every pair weighs 1.
        first_epoch: the run's epoch in which it begins.
    """

    round: int = 0
    fold: int | None = None
    num_folds: int = 3
    seed_share: float | None = None
    first_epoch: int = 0


@dataclass(frozen=True)
class Shard:
    """The part of the work that falls to this process.

    Attributes:
        rank: this process, from 0.
        world_size: number of processes.
        tokens_per_batch: most tokens in a micro-batch, padding included.
        pad_token_id: the tokenizer's.
        layout: of the sequences in a batch.
    """

    rank: int
    world_size: int
    tokens_per_batch: int
    pad_token_id: int
    layout: Layout = PADDED

    def cut(self, store: PairStore, rows: np.ndarray) -> list[list[int]]:
        """Positions in `rows` (of the store), one list a batch, the largest pair first."""
        return self.layout.cut_pairs(store.num_tokens[rows], store.num_shared[rows], self.tokens_per_batch)


@dataclass(frozen=True)
class PairSet:
    """Pairs with what a loss needs of them.

    Attributes:
        rows: (N,) int64 rows of the store.
        target: (N,) float32 probability that a wins, NaN = must not be known.
        weight: (N,) float32.
    """

    rows: np.ndarray
    target: np.ndarray
    weight: np.ndarray

    @classmethod
    def unlabelled(cls, rows: np.ndarray) -> "PairSet":
        """Pairs to score."""
        return cls(rows, np.full(len(rows), np.nan, np.float32), np.ones(len(rows), np.float32))

    @classmethod
    def labelled(cls, rows: np.ndarray, labels: np.ndarray) -> "PairSet":
        """Pairs to measure on, all of weight 1."""
        return cls(rows, labels.astype(np.float32), np.ones(len(rows), np.float32))


def seed_and_pseudo_weights(num_seed: int, num_pseudo: int, seed_share: float | None) -> tuple[float, float]:
    """Weight of a seed pair and of a pseudo-labelled pair; over all pairs they are 1 on average."""
    if seed_share is None or not num_seed or not num_pseudo:
        return 1.0, 1.0
    num_pairs = num_seed + num_pseudo
    return seed_share * num_pairs / num_seed, (1 - seed_share) * num_pairs / num_pseudo


def merge_selections(old: Selection, new: Selection) -> Selection:
    """Both selections in the order of their pair id; the newer label wins where they share a pair.

    Raises:
        ValueError: `new` has a pair twice, or a label that is neither 0 nor 1.
    """
    if len(new.pair_id.unique()) < len(new) or not bool(((new.label == 0) | (new.label == 1)).all()):
        raise ValueError("selection: needs each pair once, with the label 0 or 1")
    new_id = new.pair_id.cpu()
    is_kept = ~torch.isin(old.pair_id, new_id)
    pair_id = torch.cat([old.pair_id[is_kept], new_id])
    order = pair_id.argsort()
    return Selection(
        pair_id[order],
        torch.cat([old.label[is_kept], new.label.to("cpu", torch.int8)])[order],
        torch.cat([old.probability[is_kept], new.probability.to("cpu", torch.float32)])[order],
        new.status,
        new.round,
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
) -> PairBatch:
    """One batch of the pairs at `positions`; a filler weighs nothing."""
    rows = []
    for position in positions:
        row = int(pairs.rows[position])
        ids_a, ids_b = store.ids(row)
        weight = 0.0 if is_filler else float(pairs.weight[position])
        rows.append(PairRow(int(store.pair_id[row]), ids_a, ids_b, float(pairs.target[position]), weight))
    return collate_pairs(rows, shard.pad_token_id, num_step_pairs, shard.layout)


class TrainingSteps(Dataset[list[PairBatch]]):
    """The optimiser steps of one epoch; an item is the micro-batches of one step for this rank.

    A step is the same set of pairs for any number of ranks and any token budget.

    Args:
        store: the encoded pairs.
        pairs: the phase's N pairs.
        order: (N,) order in which the epoch goes through them.
        pairs_per_step: pairs in a step, over all ranks.
        shard: this rank's part.
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
        mine = whole[share_by_tokens(num_tokens, self.shard.world_size)[self.shard.rank]]
        is_filler = len(mine) == 0  # every rank must take part in the step's gradient reduction
        if is_filler:
            mine = whole[:1]
        return [
            make_batch(self.store, self.pairs, mine[batch], self.shard, len(whole), is_filler)
            for batch in self.shard.cut(self.store, self.pairs.rows[mine])
        ]


class ScoringBatches(Dataset[PairBatch]):
    """Every pair once, sorted by length; ranks get equally many batches, the last of some a filler of weight 0.

    Args:
        store: the encoded pairs.
        pairs: the N pairs, in an order that does not depend on any file.
        shard: this rank's part.
    """

    def __init__(self, store: PairStore, pairs: PairSet, shard: Shard) -> None:
        self.store, self.pairs, self.shard = store, pairs, shard
        self.batches = shard.cut(store, pairs.rows)

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self.shard.world_size)

    def __getitem__(self, index: int) -> PairBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = index * self.shard.world_size + self.shard.rank
        is_filler = place >= len(self.batches)
        # The last batch holds the shortest pairs: the cheapest one to repeat.
        batch = self.batches[-1] if is_filler else self.batches[place]
        return make_batch(self.store, self.pairs, batch, self.shard, len(batch), is_filler)


def _unchanged(item: object) -> object:
    return item


def make_loader(dataset: Dataset, num_workers: int) -> DataLoader:
    """A loader that takes the items as they are and draws nothing from the global random generator."""
    return DataLoader(
        dataset,
        batch_size=None,
        # Items are sharded already, and this is the one kind of sampler that Lightning never replaces by its own.
        sampler=DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=False),
        num_workers=num_workers,
        collate_fn=_unchanged,
        generator=torch.Generator().manual_seed(0),
    )
