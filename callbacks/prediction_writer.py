"""`predict` writes its scores into the run folder: one row a pair, readable by pandas, polars and DuckDB."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from ser_lightning.errors import UserError
from ser_lightning.records import PairScores

SCHEMA = pa.schema(
    [
        ("pair_id", pa.int64()),
        ("reward_a", pa.float32()),
        ("reward_b", pa.float32()),
        ("probability", pa.float32()),
        ("label", pa.int8()),
    ]
)


class PredictionWriter(Callback):
    """Writes the rewards of every pair, the calibrated probability that response a wins, and the winner.

    Args:
        path: the file, relative to the run folder; it must not exist.
    """

    def __init__(self, path: str = "predictions.parquet") -> None:
        self.path = path
        self._scores: list[PairScores] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to overwrite before any pair is scored."""
        if stage == "predict" and trainer.is_global_zero and self._file(trainer).exists():
            raise UserError(
                f"predictions: got {self._file(trainer)}, which exists; move it away, or give another --run_dir"
            )
        self._scores = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores of one batch."""
        self._scores += [score.to("cpu") for score in (outputs if isinstance(outputs, list) else [outputs])]

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the ranks' scores together and write them."""
        shards: list[list[PairScores]] = [self._scores]
        if dist.is_available() and dist.is_initialized():
            shards = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(shards, self._scores)
        if trainer.is_global_zero:
            scores = merge_scores([score for shard in shards for score in shard])
            temperature = float(getattr(pl_module, "temperature", 1.0))
            _write_new(self._file(trainer), to_table(scores, temperature))
            print(f"{len(scores)} predictions: {self._file(trainer)}", flush=True)

    def _file(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.path


def merge_scores(parts: list[PairScores]) -> PairScores:
    """All parts as one, ordered by id; a pair that was scored twice to fill up a rank counts once."""
    if not parts:
        return PairScores(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0), torch.empty(0))
    names = ("pair_id", "reward_a", "reward_b", "length_difference")
    scores = PairScores(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
    order = torch.sort(scores.pair_id, stable=True).indices
    ordered = scores[order]
    is_first = torch.ones(len(ordered), dtype=torch.bool)
    is_first[1:] = ordered.pair_id[1:] != ordered.pair_id[:-1]
    return ordered[is_first]


def to_table(scores: PairScores, temperature: float) -> pa.Table:
    """The rows of the file.

    Args:
        scores: N pairs.
        temperature: what the margin is divided by before the sigmoid.
    """
    probability = torch.sigmoid(scores.margin / temperature)
    columns = (scores.pair_id, scores.reward_a, scores.reward_b, probability, (probability > 0.5).to(torch.int8))
    return pa.table([pa.array(column.numpy()) for column in columns], schema=SCHEMA)


def _write_new(path: Path, table: pa.Table) -> None:
    """Write a file that is complete or not there, and that no other process has written meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary)
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise UserError(f"predictions: got {path}, which another run has just written; give another path") from error
    finally:
        temporary.unlink()
