"""`predict --config generate.yaml` writes pairs of sampled responses, as a pool that `rm.yaml` takes."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ser_lightning.atomic import write_atomically
from ser_lightning.collectives import gather_over_ranks
from ser_lightning.errors import UserError
from ser_lightning.records import Responses


class PoolWriter(Callback):
    """Writes one unlabelled pair a line: {"prompt": turns, "response_a": ..., "response_b": ...}.

    The distinct responses to a prompt, in the order in which they were sampled, are paired first with second, third
    with fourth, and so on; an odd last one goes with the first. So every response is in a pair, and none but the first
    is in two. A prompt whose responses are all the same gives no pair.

    Args:
        path: the file, relative to the run folder; it must not exist.
    """

    def __init__(self, path: str = "pool.jsonl") -> None:
        self.path = path
        self._found: list[Responses] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to overwrite before anything is sampled."""
        if stage == "predict" and trainer.is_global_zero and self._file(trainer).exists():
            raise UserError(f"pool: got {self._file(trainer)}, which exists; move it away, or give another --run_dir")
        self._found = []
        if stage == "predict":  # Lightning would keep the responses a second time, and cannot copy frozen records
            trainer.predict_loop.return_predictions = False

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the responses of one batch."""
        self._found += outputs

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
        print(f"{len(rows)} pairs: {self._file(trainer)}{none}; {unended} responses were cut off", flush=True)

    def _file(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.path


def pair_up(texts: list[str]) -> list[tuple[str, str]]:
    """Pairs of the distinct non-empty texts: first with second, and so on; an odd last one goes with the first."""
    distinct = [text for text in dict.fromkeys(texts) if text]
    if len(distinct) < 2:
        return []
    if len(distinct) % 2:
        distinct.append(distinct[0])
    return list(zip(distinct[::2], distinct[1::2], strict=True))
