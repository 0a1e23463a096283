"""Batches of pairs from literal ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ser_lightning.data.layouts import PADDED, Ids, Layout
from ser_lightning.records import PairBatch


@dataclass(frozen=True)
class PairRow:
    """One encoded pair on its way into a batch.

    Attributes:
        pair_id: the pair's id.
        ids_a: T_a ids of prompt and response a, list or int array.
        ids_b: T_b ids of prompt and response b.
        target: probability that a wins; NaN where the batch must not know.
        weight: the pair's weight in the loss.
    """

    pair_id: int
    ids_a: Ids
    ids_b: Ids
    target: float = float("nan")
    weight: float = 1.0


def collate_pairs(
    rows: Sequence[PairRow],
    pad_token_id: int,
    num_step_pairs: int | None = None,
    layout: Layout = PADDED,
) -> PairBatch:
    """One micro-batch: all responses a, then all responses b.

    Args:
        rows: B pairs.
        pad_token_id: what fills unused places.
        num_step_pairs: pairs in the whole optimiser step; B when the batch is a step of its own.
        layout: of the 2B sequences.
    """
    sequences = [row.ids_a for row in rows] + [row.ids_b for row in rows]
    return PairBatch(
        inputs=layout.lay_out(sequences, [*range(len(rows))] * 2, pad_token_id),
        pair_id=torch.tensor([row.pair_id for row in rows], dtype=torch.int64),
        dialogue=torch.tensor([row.pair_id for row in rows], dtype=torch.int64),
        target=torch.tensor([row.target for row in rows], dtype=torch.float32),
        weight=torch.tensor([row.weight for row in rows], dtype=torch.float32),
        num_step_pairs=len(rows) if num_step_pairs is None else num_step_pairs,
    )
