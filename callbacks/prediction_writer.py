"""`predict` writes its scores into the run folder: one row a pair, readable by pandas, polars and DuckDB."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ser_lightning.atomic import write_atomically
from ser_lightning.calibration import prob_a_wins
from ser_lightning.errors import UserError
from ser_lightning.records import PairScores
from ser_lightning.scoring import ScoreBuffer, complete_and_unique, gather_scores

SCHEMA = pa.schema(
    [
        ("pair_id", pa.int64()),
        ("reward_a", pa.float32()),
        ("reward_b", pa.float32()),
        ("probability", pa.float32()),
        ("label", pa.int8()),
    ]
)
TEXTS = ("source_id", "prompt", "response_a", "response_b")


class PredictionWriter(Callback):
    """Writes the rewards of every pair, the calibrated probability that response a wins, and the winner.

    Args:
        path: the file, relative to the run folder; it must not exist.
    """

    def __init__(self, path: str = "predictions.parquet") -> None:
        self.path = path
        self._scores = ScoreBuffer()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to overwrite before any pair is scored."""
        if stage == "predict" and trainer.is_global_zero and self._file(trainer).exists():
            raise UserError(
                f"predictions: got {self._file(trainer)}, which exists; move it away, or give another --run_dir"
            )
        self._scores = ScoreBuffer()

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
        for scores in outputs if isinstance(outputs, list) else [outputs]:
            self._scores.add(scores)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the ranks' scores together and write them."""
        scores = gather_scores(self._scores.scores())
        scores = complete_and_unique(scores, self._expected_ids(trainer, scores))
        if trainer.is_global_zero:
            table = to_table(scores, float(getattr(pl_module, "temperature", 1.0)))
            _write_new(self._file(trainer), with_texts(table, trainer.datamodule))
            print(f"{len(scores)} predictions: {self._file(trainer)}", flush=True)

    def _expected_ids(self, trainer: Trainer, scores: PairScores) -> Tensor:
        """The ids of every pair that was to be scored, ascending; those that were, where nobody knows better."""
        split = getattr(trainer.datamodule, "predict_split", None)
        if split is None or trainer.limit_predict_batches != 1.0:
            return scores.pair_id.unique()
        return trainer.datamodule.pair_ids(split).sort().values

    def _file(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.path


def to_table(scores: PairScores, temperature: float) -> pa.Table:
    """The rows of the file.

    Args:
        scores: N pairs.
        temperature: what the margin is divided by before the sigmoid.
    """
    probability = prob_a_wins(scores.margin, temperature)
    columns = (scores.pair_id, scores.reward_a, scores.reward_b, probability, (probability > 0.5).to(torch.int8))
    return pa.table([pa.array(column.numpy()) for column in columns], schema=SCHEMA)


def with_texts(table: pa.Table, datamodule: Any) -> pa.Table:
    """Add the user's id, the last turn of the prompt and both responses: a and b are not the file's order.

    Args:
        table: rows of `to_table`.
        datamodule: knows the texts where it has a `lookup`.
    """
    if not hasattr(datamodule, "lookup"):
        return table
    pairs = datamodule.lookup(table["pair_id"].to_pylist())
    texts = [(p.source_id, p.prompt[-1]["content"] if p.prompt else "", p.response_a, p.response_b) for p in pairs]
    for i, name in enumerate(TEXTS):
        table = table.append_column(pa.field(name, pa.string()), pa.array([row[i] for row in texts], pa.string()))
    return table


def _write_new(path: Path, table: pa.Table) -> None:
    """Write a file that is complete or not there, and that no other process has written meanwhile."""
    try:
        write_atomically(path, lambda file: pq.write_table(table, file), overwrite=False)
    except FileExistsError as error:
        raise UserError(f"predictions: got {path}, which another run has just written; give another path") from error
