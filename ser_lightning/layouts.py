"""Ids -> padded micro-batches under a token budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ser_lightning.records import PairBatch, ResponseBatch


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
    ids_a: Sequence[int] | np.ndarray
    ids_b: Sequence[int] | np.ndarray
    target: float = float("nan")
    weight: float = 1.0


def collate_pairs(rows: Sequence[PairRow], pad_token_id: int, num_step_pairs: int | None = None) -> PairBatch:
    """One micro-batch, padded on the right: all responses a, then all responses b.

    Args:
        rows: B pairs.
        pad_token_id: what stands where the attention mask is 0.
        num_step_pairs: pairs in the whole optimiser step; B when the batch is a step of its own.

    Returns:
        Batch with ids of shape (2B, T), T being the longest row.
    """
    sequences = [row.ids_a for row in rows] + [row.ids_b for row in rows]
    input_ids, attention_mask = _pad_right(sequences, pad_token_id)
    return PairBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        pair_id=torch.tensor([row.pair_id for row in rows], dtype=torch.int64),
        target=torch.tensor([row.target for row in rows], dtype=torch.float32),
        weight=torch.tensor([row.weight for row in rows], dtype=torch.float32),
        num_step_pairs=len(rows) if num_step_pairs is None else num_step_pairs,
    )


def collate_responses(
    sequences: Sequence[Sequence[int] | np.ndarray],
    num_response_tokens: Sequence[int] | np.ndarray,
    pad_token_id: int,
    num_step_tokens: int,
) -> ResponseBatch:
    """One micro-batch of responses to imitate, padded on the right.

    Args:
        sequences: B lists of ids, prompt and response.
        num_response_tokens: (B,) how many of the last ids are the response's; 0 for a row that only fills up a rank.
        pad_token_id: what stands where the attention mask is 0.
        num_step_tokens: response tokens in the whole optimiser step.
    """
    input_ids, attention_mask = _pad_right(sequences, pad_token_id)
    ends = attention_mask.sum(-1, keepdim=True)
    columns = torch.arange(input_ids.shape[1])
    starts = ends - torch.as_tensor(num_response_tokens, dtype=torch.int64)[:, None]
    return ResponseBatch(input_ids, attention_mask, (columns >= starts) & (columns < ends), num_step_tokens)


def _pad_right(sequences: Sequence[Sequence[int] | np.ndarray], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """(B, T) int64 ids and attention mask."""
    longest = max(len(ids) for ids in sequences)
    input_ids = np.full((len(sequences), longest), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for i, ids in enumerate(sequences):
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def cut_by_tokens(lengths: Sequence[int] | np.ndarray, budget: int, rows_per_item: int = 2) -> list[list[int]]:
    """Group items (pairs, responses) of like length into batches of at most `budget` padded tokens.

    The longest come first, so that a batch that does not fit into memory shows at once.

    Args:
        lengths: N lengths in tokens, of the longest row of each item.
        budget: most tokens in a batch, padding included: all rows times the longest one. A single item may exceed it.
        rows_per_item: rows that an item takes; a pair has one for each response.

    Returns:
        Positions in `lengths`, one list a batch; each position exactly once.
    """
    batches: list[list[int]] = []
    longest = 0
    for position in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        if batches and rows_per_item * (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
            longest = int(lengths[position])
    return batches
