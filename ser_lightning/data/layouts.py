"""Ids -> micro-batches under a token budget: padded, or packed so that sequences share their beginnings."""

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ser_lightning.data.packing import Lengths, cut_by_tokens, group_equal, num_shared_tokens, pack_by_tokens
from ser_lightning.records import Inputs, Packed, Padded, Padding, ResponseBatch

Ids = Sequence[int] | np.ndarray
"""The ids of one sequence."""
_NOBODY = -1


@dataclass(frozen=True)
class Layout:
    """How sequences lie in a batch; `masks.choose_layout` finds the one that fits a model and a device.

    Attributes:
        shares_prompts: `Packed` instead of `Padded`.
        max_batch_tokens: most tokens in a packed batch whatever the budget, None = no limit.
        is_one_row: a packed batch is one row, for kernels that skip what is masked; else rows are as long as the
            largest pair, since a dense mask costs the square of their length.
        row_multiple: packed rows are filled up to a multiple of this many tokens, for kernels that want few lengths.
        header: ids that the chat template writes before a response; () = nobody asks where responses begin.
        question: ids that are appended to every sequence.
    """

    shares_prompts: bool = False
    max_batch_tokens: int | None = None
    is_one_row: bool = False
    row_multiple: int = 1
    header: tuple[int, ...] = ()
    question: tuple[int, ...] = ()

    def cut_pairs(self, num_tokens: np.ndarray, num_shared: np.ndarray, budget: int) -> list[list[int]]:
        """Cut pairs into batches.

        Args:
            num_tokens: (N, 2) lengths of both sequences of a pair, without the question.
            num_shared: (N,) tokens that both begin with.
            budget: most tokens in a batch, padding included. A single pair may exceed it.

        Returns:
            Positions of pairs, one list a batch, the largest pair first.
        """
        num_tokens = num_tokens + len(self.question)
        if not self.shares_prompts:
            return cut_by_tokens(num_tokens.max(axis=1, initial=0), budget)
        return [sum(rows, []) for rows in self._pack(num_tokens.sum(axis=1) - num_shared, budget)]

    def cut_sequences(self, sequences: Sequence[Ids], keys: Sequence[Hashable], budget: int) -> list[list[int]]:
        """Cut sequences into batches; where prompts are shared, those of equal keys come together.

        Args:
            sequences: N sequences.
            keys: N, equal for sequences with the same prompt.
            budget: most tokens in a batch, padding included. A single sequence, or those of one key, may exceed it.

        Returns:
            Positions of sequences, one list a batch.
        """
        sequences = self._asked(sequences)
        if not self.shares_prompts:
            return cut_by_tokens([len(ids) for ids in sequences], budget, rows_per_item=1)
        groups, lengths = _groups(sequences, keys)
        batches = self._pack(lengths, budget)
        return [[i for row in rows for place in row for i in groups[place]] for rows in batches]

    def lay_out(
        self,
        sequences: Sequence[Ids],
        keys: Sequence[Hashable],
        pad_token_id: int,
        response_starts: Lengths | None = None,
    ) -> Inputs:
        """One batch.

        Args:
            sequences: R sequences.
            keys: R, equal for sequences that are to share what they begin with.
            pad_token_id: what fills unused places.
            response_starts: R positions, as `data/encode.py` finds them; needed only with a header.
        """
        inputs = self._rows(self._asked(sequences), keys, pad_token_id)
        if not self.header:
            return inputs
        assert response_starts is not None, "a layout with a header needs to know where responses begin"
        ends = torch.tensor([[len(ids)] for ids in sequences])
        # Where a template writes nothing after an empty response, what is before it stands for it.
        starts = torch.as_tensor(np.asarray(response_starts, dtype=np.int64))[:, None].minimum(ends - 1)
        positions = starts + torch.arange(int((ends - starts).max()))
        places = inputs.places(positions.minimum(ends - 1))
        return replace(inputs, response=torch.where(positions < ends, places, -1))

    def _asked(self, sequences: Sequence[Ids]) -> Sequence[Ids]:
        return (
            [np.concatenate([ids, self.question]).astype(np.int64) for ids in sequences] if self.question else sequences
        )

    def _rows(self, sequences: Sequence[Ids], keys: Sequence[Hashable], pad_token_id: int) -> Inputs:
        if not self.shares_prompts:
            return pad_right(sequences, pad_token_id)
        groups, lengths = _groups(sequences, keys)
        # What was cut as one batch comes into the same rows again: the order of the items is the same.
        [rows] = pack_by_tokens(lengths, sum(lengths) if self.is_one_row else sys.maxsize, self.is_one_row)
        grouped = [[groups[place] for place in row] for row in rows]
        return pack_sequences(sequences, grouped, pad_token_id, self.row_multiple)

    def _pack(self, lengths: Lengths, budget: int) -> list[list[list[int]]]:
        return pack_by_tokens(lengths, min(budget, self.max_batch_tokens or budget), self.is_one_row)


PADDED = Layout()


def collate_responses(
    sequences: Sequence[Ids], num_response_tokens: Lengths, pad_token_id: int, num_step_tokens: int
) -> ResponseBatch:
    """One micro-batch of responses to imitate, padded on the right.

    Args:
        sequences: B lists of ids, prompt and response.
        num_response_tokens: (B,) how many of the last ids are the response's; 0 for a row that only fills up a rank.
        pad_token_id: what stands where the attention mask is 0.
        num_step_tokens: response tokens in the whole optimiser step.
    """
    padded = pad_right(sequences, pad_token_id)
    ends, columns = np.array([[len(ids)] for ids in sequences]), np.arange(padded.input_ids.shape[1])
    starts = np.maximum(
        ends - np.asarray(num_response_tokens)[:, None], 1
    )  # no state predicts the first token of a row
    places = np.flatnonzero((columns >= starts) & (columns < ends))
    return ResponseBatch(padded, torch.from_numpy(places), num_step_tokens)


def pad_right(sequences: Sequence[Ids], pad_token_id: int) -> Padded:
    """A row for each sequence, as long as the longest."""
    longest = max(len(ids) for ids in sequences)
    input_ids = np.full((len(sequences), longest), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for i, ids in enumerate(sequences):
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
    padding: Padding = "none" if attention_mask.all() else "right"
    return Padded(torch.from_numpy(input_ids), torch.from_numpy(attention_mask), padding=padding)


def pack_sequences(
    sequences: Sequence[Ids], rows: Sequence[Sequence[Sequence[int]]], pad_token_id: int = 0, row_multiple: int = 1
) -> Packed:
    """Rows of groups of sequences, each group with the longest beginning that all of it have in common only once.

    Args:
        sequences: R sequences; none may be empty.
        rows: which sequences are a group, and which groups a row; each sequence exactly once.
        pad_token_id: what stands where a row ends before the longest one.
        row_multiple: rows are as long as the longest, filled up to a multiple of this.
    """
    arrays = [np.asarray(ids, dtype=np.int64) for ids in sequences]
    shared = [[num_shared_tokens([arrays[i] for i in group]) for group in row] for row in rows]
    used = [
        sum(sum(len(arrays[i]) - n for i in group) + n for group, n in zip(row, counts, strict=True))
        for row, counts in zip(rows, shared, strict=True)
    ]
    length = -(-max(used) // row_multiple) * row_multiple
    ids, positions = np.full((len(rows), length), pad_token_id), np.zeros((len(rows), length), dtype=np.int64)
    # Padding is a group of its own, in which all is shared.
    group_start, shared_end, part_start = (
        np.repeat(np.array(fill, dtype=np.int32)[:, None], length, axis=1)
        for fill in (used, [length] * len(rows), used)
    )
    spans = np.empty((3, len(arrays)), dtype=np.int64)
    for r, (row, counts) in enumerate(zip(rows, shared, strict=True)):
        end = 0
        for group, num_shared in zip(row, counts, strict=True):
            start = end
            parts = [
                (_NOBODY, arrays[group[0]][:num_shared], 0),
                *((i, arrays[i][num_shared:], num_shared) for i in group),
            ]
            for owner, part, first in parts:
                place = slice(end, end + len(part))
                ids[r, place], positions[r, place] = part, np.arange(first, first + len(part))
                group_start[r, place], shared_end[r, place], part_start[r, place] = start, start + num_shared, end
                if owner != _NOBODY:
                    spans[:, owner] = r * length + start, num_shared, r * length + end
                end += len(part)
    shared_starts, shared_counts, own_starts = map(torch.from_numpy, spans)
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(group_start),
        torch.from_numpy(shared_end),
        torch.from_numpy(part_start),
        shared_starts,
        shared_counts,
        own_starts,
        torch.tensor([len(array) for array in arrays], dtype=torch.int64),
    )


def _groups(sequences: Sequence[Ids], keys: Sequence[Hashable]) -> tuple[list[list[int]], list[int]]:
    """Sequences of equal keys, and how many tokens each group takes when it is packed."""
    groups = group_equal(keys)
    return groups, [_packed_length([np.asarray(sequences[i]) for i in group]) for group in groups]


def _packed_length(sequences: Sequence[np.ndarray]) -> int:
    return sum(map(len, sequences)) - (len(sequences) - 1) * num_shared_tokens(sequences)
