"""The rounds of self-evolution: between epochs the callback scores the pool, selects, and hands over the labels.

A round is a sequence of phases of Lightning's own training loop: one for each fold of the seed (train without it, then
score it), and a main phase that trains on everything and labels the pool. See `docs/design.md`.
"""

import math
import os
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ser_lightning.callbacks.continuation import go_on_with_arrivals
from ser_lightning.callbacks.guards import ask_guards
from ser_lightning.callbacks.rounds import (
    choose_round,
    forecast_figures,
    forecast_text,
    outcome_sentences,
    print_rounds,
    round_figures,
    write_advice,
)
from ser_lightning.callbacks.state import EvolutionState, seed_credits
from ser_lightning.errors import NothingToDo, UserError, raise_problems
from ser_lightning.evolution.forecast import net_label_change
from ser_lightning.evolution.guards import Level
from ser_lightning.evolution.pairwise_judge import hold_vote, joined
from ser_lightning.evolution.selection import SelectionContext, SelectionResult
from ser_lightning.evolution.settings import EvolutionSettings
from ser_lightning.records import PairScores, Selection
from ser_lightning.report.advice import read_advice
from ser_lightning.runs.files import RoundFiles, RoundRow, round_files, write_cost, write_rounds
from ser_lightning.runs.pair_tables import write_audit, write_test_scores
from ser_lightning.runs.weights import read_model, read_weights, write_weights
from ser_lightning.training.scoring import concatenate, score_pairs
from ser_lightning.utils.seeds import hash_seed


class EvolutionCallback(Callback):
    """Evolve the reward model on its own labels until they teach it nothing new (SER, section 3).

    Its arguments are those of `EvolutionSettings`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.settings = EvolutionSettings(*args, **kwargs)
        self.state = EvolutionState()
        self._round_start = self._spent_until = time.monotonic()
        self._rank_tokens = 0

    # Hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what would fail silently, and put the DataModule into the first phase."""
        if stage != "fit":
            return
        problems = []
        if trainer.reload_dataloaders_every_n_epochs != 1:
            problems.append(
                f"trainer.reload_dataloaders_every_n_epochs: got {trainer.reload_dataloaders_every_n_epochs}; "
                "evolution needs 1, or it would train on old labels"
            )
        if not hasattr(trainer.datamodule, "begin_phase"):
            problems.append(f"data: got {type(trainer.datamodule).__name__}; evolution needs a PreferenceDataModule")
        elif len(trainer.datamodule.pair_ids("pool")) == 0 and self.settings.max_rounds > 0:
            problems.append("data: got a pool of no pairs; lower seed_fraction, give pool_path, or set max_rounds to 0")
        if getattr(pl_module, "compares", False) and self.settings.folds == 0:
            problems.append(
                "evolution.folds: got 0 with model.pairwise_judge, which is used where it helps out of fold; set 2 or "
                "more"
            )
        raise_problems(problems)
        self._begin_data_phase(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a checkpoint's state is back: the running phase's learning rates, or a first phase for new pairs."""
        self._round_start = self._spent_until = time.monotonic()
        self._count_features(trainer)
        self.settings = self.settings.settled(getattr(pl_module, "solves_exactly", False))
        has_arrivals = any(len(trainer.datamodule.pair_ids(split)) > 0 for split in ("arrived_seed", "arrived_pool"))
        if not self.state.finished and has_arrivals:
            raise UserError(
                "data.new_data_path: got pairs that arrived in the middle of a round; resume the run without them to "
                "its end, then go on with them"
            )
        if not self.state.finished:
            pl_module.begin_phase(self.state.phase_first_epoch, self.phase_epochs(trainer))
        elif has_arrivals:
            go_on_with_arrivals(self, trainer, pl_module)
        else:
            given = ", and data.new_data_path has no pair or label that is new to it (is ser_label filled in?)"
            raise NothingToDo(
                f"run: its evolution is finished{given if trainer.datamodule.more_paths else ''}; give new pairs with "
                "--data.new_data_path and another --run_dir, or start a new run"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Dropout depends on seed, round, fold and the phase's epoch alone: on no phase before, and on no break."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        epoch = self.state.epochs_done - self.state.phase_first_epoch
        torch.manual_seed(hash_seed(seed, self.state.round, self.fold, epoch, trainer.global_rank))
        self._spend("other")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the tokens that were trained on."""
        for micro in () if trainer.datamodule.has_features else batch:  # a row that only fills up a rank weighs nothing
            self._rank_tokens += int((pl_module.num_tokens(micro).unflatten(0, (2, -1)) * (micro.weight > 0)).sum())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the end of a phase: score; at the end of a round: label, select, accept."""
        # Labels are accepted here and not at the next epoch's start: by then Lightning has reloaded the training data.
        # Over all ranks before any of them saves: what one rank has counted is not what the others have.
        counted = torch.tensor(self._rank_tokens, device=trainer.strategy.root_device)
        tokens = int(trainer.strategy.reduce(counted, reduce_op="sum"))
        self._spend("train_main" if self.fold is None else "train_folds", tokens)
        self._rank_tokens = 0
        self.state.epochs_done += 1
        if self.state.epochs_done - self.state.phase_first_epoch < self.phase_epochs(trainer):
            return
        if self.settings.restart != "weights":
            self._save(
                trainer, self._phase_file(trainer, self.state.round, self.fold), self._phase_state(trainer, pl_module)
            )
        if self.fold is not None:
            self._end_fold(trainer)
            self.state.phase_index += 1
        else:
            self._end_round(trainer, pl_module)
            if self.state.finished:
                return
            self.state.round, self.state.phase_index = self.state.round + 1, 0
        self.begin_phase(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how it went."""
        if self.state.finished and trainer.is_global_zero:
            rows, counts = self.state.rows, [len(scores) for scores in self.state.seed_scores]
            sentences = outcome_sentences(trainer.datamodule, Path(trainer.default_root_dir), rows, counts)
            advice = read_advice(Path(trainer.default_root_dir))
            print_rounds(rows, [*sentences, *advice], counts, trainer.datamodule.teacher)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where something else has ended the training, or has not let it begin."""
        if not self.state.finished and not trainer.fast_dev_run:
            run = shlex.quote(str(trainer.default_root_dir))
            rank_zero_warn(
                f"evolution: ended in round {self.state.round}, which is not finished, by trainer.max_epochs, "
                f"max_steps or max_time, or by a callback; go on with --run_dir {run} --ckpt_path auto and a higher "
                "limit (--trainer.max_epochs -1 is none)"
            )

    def state_dict(self) -> dict[str, Any]:
        """Round, phase, history and all that a later round looks back on, as plain values and tensors."""
        return self.state.to_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.state = EvolutionState.from_dict(state_dict)

    # Phases

    @property
    def fold(self) -> int | None:
        """Fold that the running phase leaves out; None in the main phase, which comes last."""
        return self.state.phase_index if self.state.phase_index < self.settings.folds else None

    def phase_epochs(self, trainer: Trainer) -> int:
        """Epochs of the running phase."""
        steps = math.ceil(trainer.datamodule.num_train_pairs / trainer.datamodule.pairs_per_step)
        return self.settings.phase_epochs(self.state.round, steps)

    @property
    def last_round(self) -> int:
        """Number of the round after which evolution ends in any case."""
        return max(0, self.state.first_round - 1) + self.settings.max_rounds

    def _begin_data_phase(self, trainer: Trainer) -> None:
        state = self.state
        trainer.datamodule.begin_phase(state.round, self.fold, max(1, self.settings.folds), state.phase_first_epoch)

    def begin_phase(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Data, weights, optimiser and learning rates of the phase that the state names."""
        self.state.phase_first_epoch = self.state.epochs_done
        self._begin_data_phase(trainer)
        pl_module.begin_phase(self.state.phase_first_epoch, self.phase_epochs(trainer))
        if self.state.round == 0 or self.settings.restart == "weights":
            pl_module.restart()
            trainer.optimizers[0].state.clear()
            return
        # A run that goes on with new pairs does so from the delivered round, whose model has labelled them.
        is_first = self.state.round == self.state.first_round
        before = self.state.delivered if is_first else self.state.round - 1
        state = read_weights(self._phase_file(trainer, before, self.fold))
        pl_module.reward_model.load_trainable_state(state["weights"])
        trainer.strategy.load_optimizer_state_dict({"optimizer_states": [state["optimizer"]]})

    def _phase_state(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        optimizer = trainer.strategy.optimizer_state(trainer.optimizers[0])
        return {"weights": pl_module.reward_model.trainable_state(), "optimizer": optimizer}

    def _files(self, trainer: Trainer) -> RoundFiles:
        return round_files(trainer.default_root_dir, self.state.round)

    def _phase_file(self, trainer: Trainer, round: int, fold: int | None) -> Path:
        return round_files(trainer.default_root_dir, round).phase(fold)

    def _end_fold(self, trainer: Trainer) -> None:
        name = f"round {self.state.round} | scoring fold {self.state.phase_index + 1}/{self.settings.folds}"
        self.state.fold_scores.append(self.score(trainer, "seed", name, self.fold))
        if self.state.round < self.last_round:
            name = f"round {self.state.round} | labelling for fold {self.state.phase_index + 1}/{self.settings.folds}"
            self.state.fold_pool_scores.append(self.score(trainer, "pool", name))

    def score(self, trainer: Trainer, split: str, name: str, fold: int | None = None) -> PairScores:
        """Rewards of a split's pairs (of one fold of the seed) under a progress bar of this name; counts the cost."""
        data, folds = trainer.datamodule, max(1, self.settings.folds)
        self._spend("other")
        scores = score_pairs(
            trainer, data.scoring_dataloader(split, fold, folds), data.pair_ids(split, fold, folds), name
        )
        tokens = 0 if data.has_features else int((scores.tokens_a + scores.tokens_b).sum())
        self._spend(f"score_{split.removeprefix('arrived_')}", tokens)
        return scores

    def _count_features(self, trainer: Trainer) -> None:
        """What the data module has computed before training began belongs to the round that needed it first."""
        spent = trainer.datamodule.feature_cost
        if spent["tokens"]:
            self.state.spend("features", spent["tokens"], spent["seconds"])
            self._round_start -= spent["seconds"]

    def _spend(self, part: str, tokens: int = 0) -> None:
        """All time since the last call went for this; so every moment between two checkpoints counts once."""
        now = time.monotonic()
        self.state.spend(part, tokens, now - self._spent_until)
        self._spent_until = now

    # Rounds

    def _end_round(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule
        pool = self.score(trainer, "pool", f"round {self.state.round} | labelling the pool")
        context = self.context(trainer, self.state.fold_scores)
        labelling, seen = self.with_judge(trainer, pool, context)
        result, selection = self.select(trainer, seen, labelling)
        pl_module.set_scale(*context.scale())
        self.state.rows.append(self._row(trainer, pool, context, result, selection))
        self._forecast(trainer)
        level = self._ask_guards(trainer, seen, labelling, result)
        self._write_round(trainer, pl_module, pool, result)
        rank_zero_info(f"Round {self.state.round}: {result.message}; {forecast_text(self.state.rows[-1])}.")
        self.state.history.append(selection)
        is_last = result.converged or len(selection) == 0 or self.state.round >= self.last_round
        if is_last or self._is_forecast_to_converge() or level in ("stop", "rollback"):
            self._finish(trainer, pl_module)
        else:
            data.accept(selection)
            self._accept_for_folds(trainer, labelling)
        self.state.fold_scores, self.state.fold_pool_scores = [], []
        self.state.cost = {}
        self.state.earlier_label, self.state.pool_label = self.state.pool_label, result.label
        self._round_start = time.monotonic()

    def context(self, trainer: Trainer, parts: list[PairScores]) -> SelectionContext:
        """Human labels of seed pairs beside these scores of them, and the history."""
        seed = concatenate(parts)
        has_zero = not getattr(trainer.lightning_module, "solves_exactly", False)
        return SelectionContext(seed, trainer.datamodule.seed_labels(seed.pair_id), self.state.history, has_zero)

    def with_judge(
        self, trainer: Trainer, pool: PairScores, context: SelectionContext
    ) -> tuple[SelectionContext, PairScores]:
        """Seed and pool as both views see them, where the module has a pairwise judge and the seed speaks for it.

        So do the scores of the pool by the models of the folds, each with a judge that has not seen its fold.
        """
        judge = getattr(trainer.lightning_module, "judge", None)
        if judge is None:
            return context, pool
        data = trainer.datamodule
        seed = context.scores.pair_id
        head = judge.learn(seed, context.target, data.dialogues(seed).tolist(), pool.pair_id)
        vote = hold_vote(context, head)
        rank_zero_info(f"Round {self.state.round}: {vote.message}.")
        if not vote.is_used:
            return context, pool
        for fold, scores in enumerate(self.state.fold_pool_scores):
            left_out = data.pair_ids("seed", fold, self.settings.folds)
            self.state.fold_pool_scores[fold] = joined(scores, vote.temperature, head.logits(scores.pair_id, left_out))
        return vote.context, joined(pool, vote.temperature, head.logits(pool.pair_id))

    def select(
        self, trainer: Trainer, pool: PairScores, context: SelectionContext
    ) -> tuple[SelectionResult, Selection]:
        """What the rule says of the pool, and the selection that all ranks take."""
        result = self.settings.rule.select(pool, context)
        keep = result.keep
        selection = Selection(
            pool.pair_id[keep], result.label[keep], result.confidence[keep], result.status, self.state.round
        )
        return result, trainer.strategy.broadcast(selection)

    def _ask_guards(
        self, trainer: Trainer, pool: PairScores, context: SelectionContext, result: SelectionResult
    ) -> Level:
        """What the guards say of the round; bars it from delivery where they take it back."""
        state = self.state
        level = ask_guards(trainer, state, self._seed_credits(trainer), pool, context, result)
        if level == "rollback" and any(row.round not in state.barred for row in state.rows[:-1]):
            state.barred.append(state.round)
        return level

    def _seed_credits(self, trainer: Trainer) -> list[Tensor]:
        seed = trainer.datamodule.pair_ids("seed")
        return seed_credits(self.state.seed_scores, seed, trainer.datamodule.seed_labels(seed))

    def _accept_for_folds(self, trainer: Trainer, context: SelectionContext) -> None:
        """Each fold has a chain of its own: its next model learns from labels of a model that never saw the fold.

        With the main model's labels the fold would come back in through the pool, and the seed would be scored by
        models that know it. All that the chains share is what is chosen on the whole seed, such as the scale.
        """
        for fold, pool in enumerate(self.state.fold_pool_scores):
            past = self.state.fold_history.setdefault(fold, [])
            _, selection = self.select(trainer, pool, replace(context, history=past))
            past.append(selection)
            trainer.datamodule.accept(selection, fold)

    def _row(
        self,
        trainer: Trainer,
        pool: PairScores,
        context: SelectionContext,
        result: SelectionResult,
        selection: Selection,
    ) -> RoundRow:
        test = self.score(trainer, "test", f"round {self.state.round} | scoring the test pairs")
        if trainer.is_global_zero:
            write_test_scores(self._files(trainer).test_scores, test)
        self.state.seed_scores.append(context.scores)
        figures = round_figures(trainer.datamodule, pool, test, context, result, selection)
        before, earlier = self.state.pool_label, self.state.earlier_label
        return RoundRow(
            round=self.state.round,
            flipped=0 if before is None else int((before != result.label).sum()),
            net_label_change=math.nan if before is None else net_label_change(result.label, before, earlier),
            tokens=self.state.tokens,
            seconds=round(time.monotonic() - self._round_start, 1),
            delivered=False,
            **figures,
        )

    def _forecast(self, trainer: Trainer) -> None:
        """Into the last row. New pairs change what a round can gain: a run that goes on with some forecasts anew."""
        rows = [row for row in self.state.rows if row.round >= self.state.first_round]
        credits = self._seed_credits(trainer)[-len(rows) :]
        figures = forecast_figures(rows, credits, self.settings.min_gain)
        vars(rows[-1]).update(trainer.strategy.broadcast(figures))  # it may stop: all ranks alike

    def _is_forecast_to_converge(self) -> bool:
        return self.settings.stop_by == "forecast" and self.state.rows[-1].predicted_last_round <= self.state.round

    def _write_round(
        self, trainer: Trainer, pl_module: LightningModule, pool: PairScores, result: SelectionResult
    ) -> None:
        delivered = choose_round(self._seed_credits(trainer), self.state.barred)
        for row in self.state.rows:
            row.delivered = row.round == delivered
        model = {
            "weights": {k: v.cpu() for k, v in pl_module.reward_model.trainable_state().items()},
            "temperature": pl_module.temperature,
            "zero": pl_module.zero,
            "reading": pl_module.reading_state(),
            "identity": getattr(pl_module, "identity", None),
        }
        self._save(trainer, self._files(trainer).model, model)
        self._spend("other")
        if trainer.is_global_zero:
            write_cost(self._files(trainer).cost, self.state.cost)
            write_audit(self._files(trainer).audit, pool, result)
            write_rounds(trainer.default_root_dir, self.state.rows)
        for logger in trainer.loggers:
            logger.log_metrics(self.state.rows[-1].figures(), step=trainer.global_step)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the delivered round's model."""
        trainer.strategy.barrier("evolution: delivered model")
        model = read_model(round_files(trainer.default_root_dir, self.state.delivered).model)
        pl_module.reward_model.load_trainable_state(model["weights"])
        pl_module.set_scale(model["temperature"], model["zero"])
        rows = self.state.rows
        delivered_accuracy = next(row.seed_oof_accuracy for row in rows if row.delivered)
        write_advice(trainer, pl_module, rows[-1].predicted_gain, self.settings.min_gain, delivered_accuracy)
        self.state.finished = True
        trainer.should_stop = True  # `max_epochs: -1` has no other end

    def _save(self, trainer: Trainer, path: Path, content: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            write_weights(path, content)
