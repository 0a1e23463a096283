"""Frozen body, cached features: the states that a head reads, computed once for every pair and memory-mapped.

Where only the head is trained, what it reads never changes. A cache file holds the states of one
store of pairs under one body, lies beside the store's other files, and appears whole or not at all.
"""

import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import transformers
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from ser_lightning.errors import UserError
from ser_lightning.models.readings import Reading
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.records import Features
from ser_lightning.training.linear_head import difference_scale
from ser_lightning.training.scoring import evaluating, with_bar
from ser_lightning.training.strategies import strategy_kind
from ser_lightning.utils.atomic import write_atomically
from ser_lightning.utils.checksums import checksums_fit, record_checksums
from ser_lightning.utils.collectives import gather_over_ranks

_VERSION = 2
_CHUNK = 1024
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FeatureTable:
    """The cached states of a store's pairs, read from disk as they are asked for.

    Args:
        files: one for each part of the store, as `write_features` left them.
        parts: (len(files) + 1,) first row of each part, and the number of rows after the last.
        dtype: of the states.
        num_readings: K, how many are cached of each response.
        scale: of the differences of the states, see `difference_scale`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        parts: np.ndarray,
        dtype: torch.dtype,
        num_readings: int = 1,
        scale: Tensor | None = None,
    ) -> None:
        self.files, self.parts, self.dtype, self.num_readings, self.scale = files, parts, dtype, num_readings, scale
        self._maps = [_open(file, int(n), dtype, num_readings) for file, n in zip(files, np.diff(parts), strict=True)]

    def __reduce__(self) -> tuple[type["FeatureTable"], tuple[Any, ...]]:
        # A worker process maps the files itself.
        return FeatureTable, (self.files, self.parts, self.dtype, self.num_readings, self.scale)

    def read(self, rows: np.ndarray, num_tokens: np.ndarray) -> Features:
        """The states of n pairs.

        Args:
            rows: (n,) of the store.
            num_tokens: (n, 2) tokens of both conversations.

        Returns:
            2n states of each reading, those of the responses a first.
        """
        hidden = self.states(rows).transpose(0, 1).flatten(0, 1)
        return Features(hidden, torch.from_numpy(num_tokens.T.reshape(-1).copy()), self.scale)

    def states(self, rows: np.ndarray) -> Tensor:
        """(n, 2, K, H) states of both responses of n pairs."""
        part = np.searchsorted(self.parts, rows, side="right") - 1
        size = max(one.shape[-1] for one in self._maps)  # an empty part has none
        found = torch.empty(len(rows), 2, self.num_readings, size, dtype=self.dtype)
        for number, one in enumerate(self._maps):
            here = np.flatnonzero(part == number)
            if len(here):
                found[here] = one[rows[here] - self.parts[number]]
        return found

    def scaled_by(self, rows: np.ndarray) -> "FeatureTable":
        """The same table with the scale of these pairs' differences; no label is read."""
        plain = FeatureTable(self.files, self.parts, self.dtype, self.num_readings)
        scale = difference_scale(plain.differences(rows), self.num_readings)
        return FeatureTable(self.files, self.parts, self.dtype, self.num_readings, scale)

    def differences(self, rows: np.ndarray) -> Iterator[Tensor]:
        """Chunks (n, K * H) float32 of the pairs' states of a minus those of b, scaled if the table has a scale."""
        for start in range(0, len(rows), _CHUNK):
            first, second = self.states(rows[start : start + _CHUNK]).float().flatten(2).unbind(1)
            yield first - second if self.scale is None else (first - second) / self.scale


def _open(file: Path, num_pairs: int, dtype: torch.dtype, num_readings: int) -> Tensor:
    """(N, 2, K, H) states, a private (copy-on-write) map of the file: writes never reach the cache."""
    num_values = file.stat().st_size // dtype.itemsize if num_pairs else 0
    if not num_values:
        return torch.empty(0, 2, num_readings, 0, dtype=dtype)
    whole = torch.from_file(str(file), shared=False, size=num_values, dtype=dtype)
    return whole.view(num_pairs, 2, num_readings, -1)


def body_key(reward_model: RewardModel, precision: str, reads: Sequence[Any] | None = None) -> str:
    """A key of the states that the body gives: of its weights, its settings, what is read, and the precision.

    Reads every weight once (about a second per gigabyte).

    Args:
        reward_model: whose body; adapters change nothing before they are trained, and do not count.
        precision: the trainer's.
        reads: what is read and where, None = its readings.
    """
    config: Any = reward_model.model.config
    settings = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "pad_token_id")}
    layout = reward_model.layout
    own = *map(str, reward_model.readings), layout.header, layout.question
    settings["readings"] = list(own if reads is None else reads)
    content = hashlib.sha256(repr((_VERSION, transformers.__version__, precision, sorted(settings.items()))).encode())
    for name, tensor in sorted(reward_model.body.state_dict().items()):
        if isinstance(tensor, Tensor) and "lora_" not in name:
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{content.hexdigest()[:24]}-{str(_dtype(reward_model.body)).removeprefix('torch.')}"


def dtype_of(key: str) -> torch.dtype:
    """Number format of the states that are cached under a `body_key`."""
    return _DTYPES[key.rsplit("-", 1)[1]]


def cached_keys(folder: Path) -> list[str]:
    """Every `body_key` under which a folder of a store holds states; a pairwise judge's comparisons have none."""
    keys = [file.stem.removeprefix("features-") for file in sorted(folder.glob("features-*.bin"))]
    return [key for key in keys if key.rpartition("-")[2] in _DTYPES]


def _dtype(body: nn.Module) -> torch.dtype:
    """States are kept as the body holds its weights: half the space for a body in bfloat16, and exact."""
    floats = {p.dtype for p in body.parameters() if p.dtype.is_floating_point}
    return torch.bfloat16 if floats == {torch.bfloat16} else torch.float32


def read_file(file: Path, num_rows: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(num_rows, *shape), a private (copy-on-write) map of a file that `write_features` left."""
    if not num_rows:
        return torch.empty(0, *shape, dtype=dtype)
    return torch.from_file(str(file), shared=False, size=num_rows * prod(shape), dtype=dtype).view(num_rows, *shape)


def is_whole(file: Path, num_pairs: int, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a cache file of states (num_pairs, *shape) is there and intact; reads it."""
    size = num_pairs * prod(shape) * dtype.itemsize
    return file.is_file() and file.stat().st_size == size and checksums_fit(_record(file))


def _record(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


States = tuple[Tensor, Tensor]
"""(n,) int64 pair ids, and their (n, 2, K, H) states at K readings, those of response a first."""


def cache_features(
    trainer: Trainer, reward_model: RewardModel, data: Any, computes: bool = True, known: States | None = None
) -> str:
    """Compute the features of a data module's pairs that the cache lacks, over all ranks.

    Args:
        trainer: the running trainer.
        reward_model: its body is frozen.
        data: a `PreferenceDataModule`; says where the files belong (`feature_files`).
        computes: False only looks for files that are there.
        known: states at the same readings, of pairs that need not be computed again.

    Returns:
        The key of the cache; empty where a file is missing that was not to be computed, or, with one line that says
        why, where features cannot be cached.
    """
    if reason := _obstacle(trainer, reward_model):
        rank_zero_info(f"Features: not cached, {reason}; the body computes every pair in every round")
        return ""
    key = body_key(reward_model, str(trainer.precision))
    for part, file in enumerate(data.feature_files(key)):
        rows = np.arange(*data.data.store.parts[part : part + 2])
        if not _is_there(reward_model, file, len(rows), reward_model.readings):
            if not computes:
                return ""
            _compute(trainer, reward_model, data, file, rows, reward_model.readings, known)
    return key


def feature_bytes(reward_model: RewardModel, num_pairs: int, num_readings: int) -> int:
    """What the states of pairs take on the disk; the model may be on the meta device."""
    return num_pairs * 2 * num_readings * reward_model.hidden_size * _dtype(reward_model.body).itemsize


def seed_states(trainer: Trainer, reward_model: RewardModel, data: Any, readings: Sequence[Reading]) -> States:
    """The states of the seed alone, at more readings than the head is going to have.

    Those of a frozen body come from a cache file of their own, which a later run on the same seed finds.

    Args:
        trainer: the running trainer.
        reward_model: has all of its layers, and the layout that the readings need.
        data: a `PreferenceDataModule`.
        readings: K of them.

    Returns:
        The same on every rank, by ascending id.
    """
    ids = data.pair_ids("seed")
    rows, shape = data.data.rows_of(ids.tolist()), _shape(reward_model, readings)
    if not reward_model.is_body_frozen or _obstacle(trainer, reward_model):
        states = torch.empty(len(ids), *shape)
        for pair_id, some in computed_states(trainer, reward_model, data, rows, readings):
            states[torch.searchsorted(ids, pair_id)] = some.float()
        return ids, states
    layout = reward_model.layout
    reads = ("seed", ids.tolist(), *map(str, readings), layout.header, layout.question)
    body = body_key(reward_model, str(trainer.precision), reads)
    file = data.feature_files(f"seed-{hashlib.sha256(body.encode()).hexdigest()[:24]}")[0]
    if not _is_there(reward_model, file, len(ids), readings):
        _compute(trainer, reward_model, data, file, rows, readings)
    return ids, read_file(file, len(ids), shape, _dtype(reward_model.body))


def _shape(reward_model: RewardModel, readings: Sequence[Reading]) -> tuple[int, int, int]:
    """Of a pair's states."""
    return 2, len(readings), reward_model.hidden_size


def _is_there(reward_model: RewardModel, file: Path, num_pairs: int, readings: Sequence[Reading]) -> bool:
    """Whether every rank has a cache file; each may look at the disk of another node."""
    shape, dtype = _shape(reward_model, readings), _dtype(reward_model.body)
    found = all(gather_over_ranks(is_whole(file, num_pairs, shape, dtype)))
    if found:
        rank_zero_info(f"Features: found in the cache, {file}")
    return found


def _compute(
    trainer: Trainer,
    reward_model: RewardModel,
    data: Any,
    file: Path,
    rows: np.ndarray,
    readings: Sequence[Reading],
    known: States | None = None,
) -> None:
    """Write a cache file of the store's rows, over all ranks, without computing what is known."""
    check_space(file, feature_bytes(reward_model, len(rows), len(readings)))
    ids = torch.from_numpy(data.data.store.pair_id[rows])
    shape, dtype = _shape(reward_model, readings), _dtype(reward_model.body)
    missing = rows if known is None else rows[~np.isin(ids.numpy(), known[0].numpy())]
    states = computed_states(trainer, reward_model, data, missing, readings)
    given = [] if known is None else [known]
    write_features(file if trainer.local_rank == 0 else None, chain(given, states), ids, shape, dtype)
    trainer.strategy.barrier("features")
    rank_zero_info(f"Features: written to {file}")


def check_space(file: Path, num_bytes: int) -> None:
    """`UserError` where features would not fit on the disk, before anything is computed."""
    free = shutil.disk_usage(next(folder for folder in file.parents if folder.is_dir())).free
    if num_bytes > free:
        raise UserError(
            f"data.cache_dir: got {file.parent}, where the features take {num_bytes / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free; name another folder, or fewer readings in model.reading"
        )


def _obstacle(trainer: Trainer, reward_model: RewardModel) -> str:
    if not reward_model.is_decoder:
        return "this model pools its states in its head"
    if strategy_kind(trainer.strategy) not in ("auto", "ddp"):
        return f"{type(trainer.strategy).__name__} spreads the body over devices"
    return ""


def computed_states(
    trainer: Trainer, reward_model: RewardModel, data: Any, rows: np.ndarray, readings: Sequence[Reading]
) -> Iterator[States]:
    """States of the store's rows, on the CPU, as the batches of all ranks give them; counts what they cost."""
    start = time.monotonic()
    bar = with_bar(trainer, data.token_dataloader(rows), f"Computing features of {len(rows):,} pairs")
    with evaluating(reward_model), trainer.precision_plugin.predict_step_context():
        for batch in bar:
            batch = trainer.strategy.batch_to_device(batch)
            states = reward_model.states(batch.inputs, readings).unflatten(0, (2, -1)).transpose(0, 1)
            yield from gather_over_ranks((batch.pair_id.cpu(), states.cpu()))
    data.feature_cost["tokens"] += int(data.data.store.num_tokens[rows].sum())
    data.feature_cost["seconds"] += time.monotonic() - start


def write_features(
    file: Path | None, states: Iterable[States], ids: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Write states as they come to the rows of their pairs.

    Args:
        file: appears whole or not at all; None only consumes the states, since other ranks wait for this one.
        states: pair ids (B,) with states (B, *shape); pairs may come more than once.
        ids: (N,) pair id of each row; a pair may have several.
        shape: of a pair's states.
        dtype: of the file.

    Raises:
        RuntimeError: a pair never came.
    """
    if file is None:
        for _ in states:
            pass
        return
    order = np.argsort(ids.numpy(), kind="stable")
    sorted_ids = ids.numpy()[order]
    size = prod(shape) * dtype.itemsize

    def fill(target: BinaryIO) -> None:
        is_missing = np.ones(len(order), dtype=bool)
        for pair_id, hidden in states:
            blocks = hidden.to(dtype).contiguous().flatten(1).view(torch.uint8).numpy()
            first, end = (np.searchsorted(sorted_ids, pair_id.numpy(), side=side) for side in ("left", "right"))
            for block, rows in zip(blocks, map(slice, first, end), strict=True):
                for row in order[rows]:
                    target.seek(int(row) * size)
                    target.write(block.tobytes())
                    is_missing[row] = False
        if num_missing := int(is_missing.sum()):
            raise RuntimeError(f"features: {num_missing} of {len(order)} pairs were not computed")

    write_atomically(file, fill)
    record_checksums(_record(file), [file])
