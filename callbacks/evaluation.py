"""`validate` and `test` on named sets: figures of each, a table, and a JSON file in the run folder."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ser_lightning.callbacks.baselines import seed_bag_of_words
from ser_lightning.datamodules.evaluation_sets import EvaluationSet
from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.evaluation.baselines import BagOfWords
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evaluation.reward_bench import accuracy_by_section
from ser_lightning.evaluation.sets import Scored, print_sets, set_figures
from ser_lightning.records import PairBatch, PairScores
from ser_lightning.runs.files import EVALUATIONS
from ser_lightning.training.scoring import concatenate
from ser_lightning.utils.atomic import write_text_atomically
from ser_lightning.utils.collectives import gather_over_ranks
from ser_lightning.utils.terminal import new_table, say


class EvaluationCallback(Callback):
    """Collects the scores of every evaluation set and reports their metrics at the end."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[PairScores, Tensor]]] = defaultdict(list)
        self._figures: dict[str, dict[str, Any]] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PairBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores of real pairs of a named set."""
        if isinstance(batch, PairBatch) and batch.eval_set is not None:
            real = batch.weight > 0
            self._found[batch.eval_set].append((outputs["scores"][real].to("cpu"), batch.target[real].cpu()))

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the sets of `validate`."""
        self._report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the sets of `test`."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> None:
        data = trainer.datamodule
        if not isinstance(data, PreferenceDataModule) or trainer.state.fn not in ("validate", "test"):
            return
        has_words = len(data.eval_sets) > 0 and len(data.pair_ids("seed")) > 1
        words = seed_bag_of_words(data) if has_words else None
        figures: dict[str, dict[str, Any]] = {}
        for one in data.eval_sets:
            scored = _gathered(one, self._found[one.name])
            figures[one.name] = set_figures(scored, getattr(pl_module, "temperature", 1.0))
            figures[one.name]["by_section"] = accuracy_by_section(scored)
            if words is not None:
                figures[one.name]["bag_of_words_accuracy"] = _words_accuracy(words, one, scored)
            plain = {k: float(v) for k, v in figures[one.name].items() if isinstance(v, int | float)}
            # They are of all ranks already; Lightning would warn that they are not.
            pl_module.log_dict({f"{prefix}/{one.name}/{k}": v for k, v in plain.items()}, sync_dist=True)
        self._found.clear()
        self._figures = figures

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show and write what was found."""
        self._show(trainer, "val", "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show and write what was found."""
        self._show(trainer, "test", "test")

    def _show(self, trainer: Trainer, prefix: str, command: str) -> None:
        if not trainer.is_global_zero or trainer.state.fn not in ("validate", "test"):
            return
        split = {k.removeprefix(f"{prefix}/"): float(v) for k, v in trainer.callback_metrics.items()}
        if self._figures:
            write_text_atomically(
                Path(trainer.default_root_dir) / EVALUATIONS[command], json.dumps(self._figures, indent=1) + "\n"
            )
        if self._figures or "accuracy_low" in split:
            print_sets({**({prefix: split} if "accuracy_low" in split else {}), **self._figures})
        elif split:
            table = new_table("metric", prefix)
            for name, value in split.items():
                table.add_row(name, f"{value:.4g}")
            say(table)
        self._figures = {}


def _gathered(one: EvaluationSet, parts: list[tuple[PairScores, Tensor]]) -> Scored:
    """The set's scores of all ranks, each pair once, in the order of their ids."""
    by_rank = gather_over_ranks(parts)
    scores = concatenate([s for rank in by_rank for s, _ in rank])
    target = torch.cat([t for rank in by_rank for _, t in rank])
    order = scores.pair_id.argsort(stable=True)
    scores, target = scores[order], target[order]
    prompt = one.store.dialogue_id[one.places(scores.pair_id)]
    return Scored(one.name, scores, target, prompt, one.categories(scores.pair_id))


def _words_accuracy(words: BagOfWords, one: EvaluationSet, scored: Scored) -> float:
    texts = [(pair.response_a, pair.response_b) for pair in one.texts(scored.scores.pair_id)]
    return float(half_credit(words.margin(texts), scored.target).mean())
