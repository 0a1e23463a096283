"""Which sequences come into a batch together: by their lengths alone, in numbers that need no model."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

Lengths = Sequence[int] | np.ndarray
Tokens = int | Literal["auto"]
"""A budget of tokens in a batch; `auto` asks how much fits into the memory of a GPU."""


def num_shared_tokens(sequences: Sequence[np.ndarray]) -> int:
    """Length of the longest beginning that all sequences share.

    Taken from the encoded sequences: a prompt encoded by itself may end in other tokens than inside a conversation.
    """
    first, *others = sequences
    shortest = min(map(len, sequences))
    for other in others:
        differs = first[:shortest] != other[:shortest]
        shortest = int(differs.argmax()) if differs.any() else shortest
    return shortest


def cut_by_tokens(lengths: Lengths, budget: int, rows_per_item: int = 2) -> list[list[int]]:
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
    for position in _longest_first(lengths):
        if batches and rows_per_item * (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
            longest = int(lengths[position])
    return batches


def pack_by_tokens(lengths: Lengths, budget: int, is_one_row: bool = False) -> list[list[list[int]]]:
    """Pack items into batches of rows: longest first, each into the fullest row that has room for it.

    A row is as long as the longest item of its batch, so that attention within rows wastes little; what is left of it
    is filled with the largest items that fit, so that hardly any padding is.

    Args:
        lengths: N lengths in tokens.
        budget: most tokens in a batch, padding included. A single item may exceed it.
        is_one_row: a batch is one row, as long as the budget.

    Returns:
        Batches of rows of positions in `lengths`; each position exactly once.
    """
    order = _longest_first(lengths)[::-1]
    left = [int(lengths[position]) for position in order]  # ascending, beside `order`
    batches: list[list[list[int]]] = []
    while left:
        row_length = max(budget, left[-1]) if is_one_row else left[-1]
        most_rows = max(1, budget // row_length)
        rows: list[list[int]] = []
        room: list[tuple[int, int]] = []  # free tokens and row, sorted
        while True:
            most = row_length if len(rows) < most_rows else room[-1][0] if room else 0
            place = bisect_right(left, most) - 1
            if place < 0:
                break
            length, position = left.pop(place), order.pop(place)
            fullest = bisect_left(room, (length, 0))
            if fullest < len(room):
                free, row = room.pop(fullest)
                rows[row].append(position)
            else:
                free, row = row_length, len(rows)
                rows.append([position])
            if free > length:
                insort(room, (free - length, row))
        batches.append(rows)
    return batches


def share_by_tokens(lengths: Lengths, num_ranks: int) -> list[list[int]]:
    """Share items between ranks, longest first, each to the rank that has the fewest tokens so far.

    Args:
        lengths: N lengths in tokens.
        num_ranks: with more ranks than items, some get none.

    Returns:
        Positions in `lengths`, one ascending list a rank; each position exactly once.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for position in _longest_first(lengths):
        rank = tokens.index(min(tokens))
        shares[rank].append(position)
        tokens[rank] += int(lengths[position])
    return [sorted(share) for share in shares]


def group_equal(keys: Sequence[Hashable]) -> list[list[int]]:
    """Positions of equal keys together, in the order in which the keys come first."""
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    return list(groups.values())


def _longest_first(lengths: Lengths) -> list[int]:
    return np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
