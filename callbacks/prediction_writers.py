"""What `predict` writes into the run folder: scores of pairs as a table, sampled responses as a pool of pairs."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ser_lightning.errors import UserError
from ser_lightning.evaluation.calibration import prob_a_wins
from ser_lightning.records import PairScores, Responses
from ser_lightning.training.scoring import ScoreBuffer, check_finite, complete_and_unique, gather_scores
from ser_lightning.utils.atomic import write_atomically
from ser_lightning.utils.collectives import gather_over_ranks
from ser_lightning.utils.terminal import say

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


class _Writer(Callback):
    """Refuses before the work begins to overwrite a file, and keeps what every batch gives."""

    what: str
    """What a message calls the file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin with nothing, where no file is in the way."""
        file = self._file(trainer)
        if stage == "predict" and trainer.is_global_zero and file.exists():
            raise UserError(f"{self.what}: got {file}, which exists; move it away, or give another --run_dir")
        self._begin()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what one batch gave."""
        for output in outputs if isinstance(outputs, list) else [outputs]:
            self._keep(output)

    def _file(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.path


class PredictionWriter(_Writer):
    """Writes the rewards of every pair, the calibrated probability that response a wins, and the winner.

    Args:
        path: the file, relative to the run folder; it must not exist.
    """

    what = "predictions"

    def __init__(self, path: str = "predictions.parquet") -> None:
        super().__init__(path)
        self._begin()

    def _begin(self) -> None:
        self._scores = ScoreBuffer()

    def _keep(self, output: PairScores) -> None:
        self._scores.add(output)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the ranks' scores together and write them."""
        scores = gather_scores(self._scores.scores())
        scores = complete_and_unique(scores, self._expected_ids(trainer, scores))
        check_finite(scores.margin)
        if trainer.is_global_zero:
            table = to_table(scores, float(getattr(pl_module, "temperature", 1.0)))
            _write_new(self._file(trainer), with_texts(table, trainer.datamodule))
            say(f"{len(scores)} predictions: {self._file(trainer)}")

    def _expected_ids(self, trainer: Trainer, scores: PairScores) -> Tensor:
        """The ids of the pairs to score, ascending; those that were scored, where the data module has no splits."""
        split = getattr(trainer.datamodule, "predict_split", None)
        if split is None or trainer.limit_predict_batches != 1.0:
            return scores.pair_id.unique()
        return trainer.datamodule.pair_ids(split)


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


class PoolWriter(_Writer):
    """Writes one unlabelled pair a line: {"prompt": turns, "response_a": ..., "response_b": ...}.

    The distinct responses to a prompt, in the order in which they were sampled, are paired first with second, third
    with fourth, and so on; an odd last one goes with the first. So every response is in a pair, and none but the first
    is in two. A prompt whose responses are all the same gives no pair.

    Args:
        path: the file, relative to the run folder; it must not exist.
    """

    what = "pool"

    def __init__(self, path: str = "pool.jsonl") -> None:
        super().__init__(path)
        self._begin()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin with nothing, where no file is in the way."""
        super().setup(trainer, pl_module, stage)
        if stage == "predict":  # Lightning would keep the responses a second time, and cannot copy frozen records
            trainer.predict_loop.return_predictions = False

    def _begin(self) -> None:
        self._found: list[Responses] = []

    def _keep(self, output: Responses) -> None:
        self._found.append(output)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the ranks' responses together and write the pairs in the order of the prompt ids."""
        by_prompt = {found.prompt_id: found for part in gather_over_ranks(self._found) for found in part}
        if not trainer.is_global_zero:
            return
        rows, num_alike = [], 0
        for _, found in sorted(by_prompt.items()):
            pairs = pair_up(found.texts)
            num_alike += not pairs
            rows += [{"prompt": found.turns, "response_a": a, "response_b": b} for a, b in pairs]
        if not rows:
            raise UserError(
                f"pool: got no pair from {len(by_prompt)} prompts, all responses to a prompt being the same or empty; "
                "raise model.sampling.temperature or model.responses_per_prompt"
            )
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self._file(trainer), lambda file: file.write(text.encode()), overwrite=False)
        none = f"; {num_alike} prompts without two different responses" if num_alike else ""
        unended = sum(not ended for found in by_prompt.values() for ended in found.has_ended)
        say(f"{len(rows)} pairs: {self._file(trainer)}{none}; {unended} responses were cut off")


def pair_up(texts: list[str]) -> list[tuple[str, str]]:
    """Pairs of the distinct non-empty texts: first with second, and so on; an odd last one goes with the first."""
    distinct = [text for text in dict.fromkeys(texts) if text]
    if len(distinct) < 2:
        return []
    if len(distinct) % 2:
        distinct.append(distinct[0])
    return list(zip(distinct[::2], distinct[1::2], strict=True))
