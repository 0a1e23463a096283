"""The one loop that scores pairs inside `fit`: evolution and evaluation both call it.

`trainer.predict` inside `fit` would overwrite the trainer's state, so this drives `predict_step` through the strategy.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TypeVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ser_lightning.errors import UserError
from ser_lightning.records import PairScores
from ser_lightning.utils.collectives import gather_over_ranks

T = TypeVar("T")


def score_pairs(trainer: Trainer, loader: DataLoader, expected_ids: Tensor, description: str) -> PairScores:
    """Score every pair of a loader once, over all ranks.

    Args:
        trainer: the running trainer; each rank passes the loader of its own shard.
        loader: yields `PairBatch`; ranks may repeat a batch to have equally many.
        expected_ids: (N,) ids of all pairs, over all ranks.
        description: text on the progress bar.

    Returns:
        N scores in the order of `expected_ids`, the same on every rank, on the CPU.

    Raises:
        RuntimeError: if a pair was not scored, or one that was not expected.
        UserError: if a reward is not finite.
    """
    found = ScoreBuffer(len(expected_ids))
    with evaluating(trainer.lightning_module):
        for batch_idx, batch in enumerate(with_bar(trainer, loader, description)):
            batch = trainer.strategy.batch_to_device(batch)
            found.add(trainer.strategy.predict_step(batch, batch_idx))
    scores = complete_and_unique(gather_scores(found.scores()), expected_ids)
    check_finite(
        scores.margin,
        f" ({description})",
        "lower model.optimizer.init_args.lr, or look for the cause with --config debug/anomaly.yaml",
    )
    return scores


def check_finite(
    margin: Tensor,
    where: str = "",
    fix: str = "compute in float32 (trainer.precision, model.backbone.dtype), or take another checkpoint",
) -> None:
    """`UserError` for margins (N,) that are not finite: they would count as a preference for b.

    Args:
        where: the pairs were scored.
        fix: what to do.
    """
    if num_bad := int((~torch.isfinite(margin)).sum()):
        raise UserError(f"rewards: got NaN or infinity for {num_bad} of {len(margin)} pairs{where}; {fix}")


def with_bar(trainer: Trainer, items: Iterable[T], description: str) -> "tqdm[T]":
    """The same items, under a bar on rank 0 where the trainer shows bars."""
    shows = trainer.is_global_zero and getattr(trainer.progress_bar_callback, "is_enabled", False)
    return tqdm(items, desc=description, leave=False, dynamic_ncols=True, disable=not shows)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is back in the mode it was in."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode


class ScoreBuffer:
    """Collects the scores of batches in one block of memory.

    A list of small tensors would fragment the heap, which cost some 8 KB a pair.

    Args:
        num_pairs: how many are expected; more are taken as well.
    """

    def __init__(self, num_pairs: int = 0) -> None:
        self._columns = [torch.empty(num_pairs, dtype=dtype) for dtype in _DTYPES.values()]
        self._num_pairs = 0
        self._waiting: list[PairScores] = []

    def add(self, scores: PairScores) -> None:
        """Take the scores of one batch, on any device; they come to the CPU with those of a few others.

        The host would otherwise wait for every batch, and the device for the host's next one.
        """
        self._waiting.append(scores)
        if len(self._waiting) >= _BATCHES_PER_COPY:
            self._copy()

    def scores(self) -> PairScores:
        """All that was added, in its order."""
        self._copy()
        return PairScores(*(column[: self._num_pairs] for column in self._columns))

    def _copy(self) -> None:
        start, self._num_pairs = self._num_pairs, self._num_pairs + sum(map(len, self._waiting))
        for i, name in enumerate(_DTYPES if self._waiting else ()):
            missing = self._num_pairs - len(self._columns[i])
            if missing > 0:
                spare = self._columns[i].new_empty(max(missing, len(self._columns[i])))
                self._columns[i] = torch.cat([self._columns[i], spare])
            self._columns[i][start : self._num_pairs] = torch.cat([getattr(scores, name) for scores in self._waiting])
        self._waiting = []


_BATCHES_PER_COPY = 16
_DTYPES = {
    "pair_id": torch.int64,
    "reward_a": torch.float32,
    "reward_b": torch.float32,
    "tokens_a": torch.int64,
    "tokens_b": torch.int64,
}


def gather_scores(scores: PairScores) -> PairScores:
    """The scores of all ranks in one record, repeated pairs included."""
    return concatenate(gather_over_ranks(scores))


def concatenate(parts: list[PairScores]) -> PairScores:
    """One record of many."""
    if not parts:
        return ScoreBuffer().scores()
    return PairScores(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(PairScores)))


def complete_and_unique(scores: PairScores, expected_ids: Tensor) -> PairScores:
    """Remove what ranks repeated to have equal batch counts, and put the scores in the order of `expected_ids`.

    Raises:
        RuntimeError: if the ids are not the expected ones.
    """
    order = scores.pair_id.argsort(stable=True)
    ids = scores.pair_id[order]
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    unique = scores[order[first]]
    ranks = expected_ids.argsort()
    if len(unique) != len(expected_ids) or not torch.equal(unique.pair_id, expected_ids[ranks]):
        raise RuntimeError(f"scored {len(unique)} different pairs where {len(expected_ids)} were to be scored")
    back = torch.empty_like(ranks)
    back[ranks] = torch.arange(len(ranks))
    return unique[back]
