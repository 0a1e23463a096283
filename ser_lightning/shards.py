"""Selecting from a pool that no process holds: counts of confidences in place of a sort.

A confidence is a float32 in [0.5, 1], of which there are 2 ** 23 + 1. Counting each of them takes 64 MiB, however many
pairs there are, adds up over shards and ranks, and holds all that `selection.most_informative_target` sorts for: the
target is the same to the bit.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from ser_lightning.atomic import write_atomically
from ser_lightning.calibration import prob_a_wins
from ser_lightning.collectives import sum_over_ranks
from ser_lightning.errors import UserError

NUM_CONFIDENCES = 2**23 + 1
_BITS_OF_A_HALF = 0x3F000000
_PLACES_AT_ONCE = 2**17
ACCEPTED = pyarrow.schema([("pair_id", pyarrow.int64()), ("label", pyarrow.int8()), ("confidence", pyarrow.float32())])
"""Columns of a shard of accepted labels."""


def no_counts() -> Tensor:
    """(2 ** 23 + 1,) int64 zeros, for `count_confidences`."""
    return torch.zeros(NUM_CONFIDENCES, dtype=torch.int64)


def count_confidences(confidence: Tensor, counts: Tensor) -> None:
    """Add to `counts` how often each float32 from 0.5 to 1 occurs.

    Args:
        confidence: (N,) float32 in [0.5, 1].
        counts: (2 ** 23 + 1,) int64, changed in place.

    Raises:
        UserError: if a confidence is none, such as NaN.
    """
    place = confidence.contiguous().view(torch.int32).long() - _BITS_OF_A_HALF
    if len(place) and not 0 <= int(place.min()) <= int(place.max()) < NUM_CONFIDENCES:
        raise UserError("confidence: got a value outside of 0.5 to 1, or NaN; look for rewards that are not finite")
    counts.index_add_(0, place, torch.ones_like(place))


def most_informative_target(counts: Tensor) -> float:
    """What `selection.most_informative_target` gives for all confidences that were counted.

    Args:
        counts: (2 ** 23 + 1,) of all shards, see `count_confidences`.
    """
    best, target, before, total_before = -1.0, 0.5, 0, 0.0
    parts = counts.split(_PLACES_AT_ONCE)
    for part in range(len(parts) - 1, -1, -1):  # the surest first, and never all places at once
        places = parts[part].nonzero().squeeze(-1).flip(0)
        if len(places) == 0:
            continue
        times = parts[part][places]
        values = (places + part * _PLACES_AT_ONCE + _BITS_OF_A_HALF).to(torch.int32).view(torch.float32)
        number = before + times.cumsum(0)
        total = total_before + (times.double() * values.double()).cumsum(0)  # exact: multiples of 2 ** -24
        information = number.double() * (2 * total / number - 1).square()
        here = int(information.argmax())
        if float(information[here]) > best:
            best, target = float(information[here]), float(values[here])
        before, total_before = int(number[-1]), float(total[-1])
    return target


def target_over_shards(files: Iterable[Path], temperature: float) -> float:
    """The most informative target of the pairs in all shards of all ranks; every rank gets the same.

    Args:
        files: this rank's shards of scores, Parquet files with the columns `reward_a` and `reward_b`.
        temperature: of the rewards, as fitted on the seed.
    """
    counts = no_counts()
    for file in files:
        for _, prob_a in _probabilities(file, temperature):
            count_confidences(torch.maximum(prob_a, 1 - prob_a), counts)
    return most_informative_target(sum_over_ranks(counts))


def accept_shard(scores: Path, accepted: Path, temperature: float, target: float) -> int:
    """Write the labels of a shard's pairs that reach the target; how many they are.

    Args:
        scores: a Parquet file with the columns `pair_id`, `reward_a` and `reward_b`.
        accepted: Parquet file to write, with the columns `pair_id`, `label` (1 = a is better) and `confidence`.
        temperature: of the rewards.
        target: smallest confidence to accept.
    """
    num_accepted = 0

    def write(file: BinaryIO) -> None:
        nonlocal num_accepted
        with pyarrow.parquet.ParquetWriter(file, ACCEPTED) as writer:
            for pair_id, prob_a in _probabilities(scores, temperature):
                confidence = torch.maximum(prob_a, 1 - prob_a)
                keep = confidence >= target
                columns = (pair_id[keep], (prob_a > 0.5).to(torch.int8)[keep], confidence[keep])
                writer.write_batch(pyarrow.record_batch([column.numpy() for column in columns], schema=ACCEPTED))
                num_accepted += int(keep.sum())

    write_atomically(accepted, write)
    return num_accepted


def _probabilities(file: Path, temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair ids and probabilities that a wins, some ten thousand at a time."""
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(columns=["pair_id", "reward_a", "reward_b"]):
        pair_id, reward_a, reward_b = (torch.from_numpy(column.to_numpy().copy()) for column in batch.columns)
        yield pair_id, prob_a_wins((reward_a - reward_b).float(), temperature)
