"""The conductor of self-evolution: between epochs it scores the pool, selects, and hands the labels to the DataModule.

A round is a sequence of phases of Lightning's own training loop: one for each fold of the seed (train without it, then
score it), and a main phase that trains on everything and labels the pool. See `docs/design.md`.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ser_lightning.atomic import write_atomically
from ser_lightning.callbacks.rounds import (
    RoundRow,
    choose_round,
    print_rounds,
    round_figures,
    write_audit,
    write_rounds,
)
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.metrics import half_credit
from ser_lightning.records import PairScores, Selection
from ser_lightning.scoring import concatenate, score_pairs
from ser_lightning.selection import Evidence, SelectionRule, Verdict, balance_by_length


class EvolutionCallback(Callback):
    """Evolve the reward model on its own labels until they teach it nothing new (SER, section 3).

    Args:
        rule: which of its own labels the model is trusted with.
        max_rounds: rounds after the seed model, at most.
        seed_epochs: epochs over the seed in round 0.
        epochs_per_round: epochs over seed and selected pairs in every later round.
        folds: parts of the seed that are left out in turn, to score the seed by models that have not seen it; each
            costs one more training a round. 0 goes without: no calibration, and the last round is delivered.
        committee: label the pool with the mean reward of the fold models and the main one, not the main one alone.
        restart: what starts anew in a round: the `weights` (and the optimiser), the `optimizer`, or `nothing`.
        combine: new labels `replace` the earlier ones, or `add` to them.
        seed_share: share of the seed in the training weight; null weighs every pair the same.
        length_quota: `seed` drops the least sure pairs until the longer response wins as often as in the seed.
    """

    def __init__(
        self,
        rule: SelectionRule,
        max_rounds: int = 4,
        seed_epochs: int = 3,
        epochs_per_round: int = 2,
        folds: int = 3,
        committee: bool = False,
        restart: Literal["nothing", "optimizer", "weights"] = "weights",
        combine: Literal["replace", "add"] = "replace",
        seed_share: float | None = None,
        length_quota: Literal["none", "seed"] = "none",
    ) -> None:
        self.rule, self.max_rounds = rule, max_rounds
        self.seed_epochs, self.epochs_per_round = seed_epochs, epochs_per_round
        self.folds, self.committee, self.restart, self.combine = folds, committee, restart, combine
        self.seed_share, self.length_quota = seed_share, length_quota
        raise_problems(self._problems())
        self.round = 0
        self.phase_index = 0
        self.epochs_done = 0
        self.phase_first_epoch = 0
        self.finished = False
        self.rows: list[RoundRow] = []
        self.history: list[Selection] = []
        self.fold_history: dict[int, list[Selection]] = {}
        self._fold_scores: list[PairScores] = []
        self._fold_pool_scores: list[PairScores] = []
        self._seed_credit: list[Tensor] = []
        self._pool_label: Tensor | None = None
        self._tokens = self._scored_tokens = 0
        self._round_start = time.monotonic()

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
        elif len(trainer.datamodule.pair_ids("pool")) == 0 and self.max_rounds > 0:
            problems.append("data: got a pool of no pairs; lower seed_fraction, give pool_path, or set max_rounds to 0")
        raise_problems(problems)
        self._begin_data_phase(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a checkpoint's state is back: the learning-rate schedule of the running phase."""
        if self.finished:
            raise UserError("run: its evolution is finished; start a new run, in another --run_dir")
        pl_module.begin_phase(self.phase_first_epoch, self._phase_epochs)
        self._round_start = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Dropout depends on seed, round, fold and the phase's epoch alone: on no phase before, and on no break."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        epoch = self.epochs_done - self.phase_first_epoch
        key = f"{seed}:{self.round}:{self.fold}:{epoch}:{trainer.global_rank}"
        torch.manual_seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big"))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the tokens that were trained on."""
        self._tokens += sum(int(micro.attention_mask.sum()) for micro in batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the end of a phase: score; at the end of a round: label, select, accept."""
        self.epochs_done += 1
        if self.epochs_done - self.phase_first_epoch < self._phase_epochs:
            return
        if self.restart != "weights":
            self._save(trainer, self._phase_file(trainer, self.round, self.fold), self._phase_state(trainer, pl_module))
        if self.fold is not None:
            self._end_fold(trainer)
            self.phase_index += 1
        else:
            self._end_round(trainer, pl_module)
            if self.finished:
                return
            self.round, self.phase_index = self.round + 1, 0
        self._begin_phase(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Round, phase, history and all that a later round looks back on, as plain values and tensors."""
        return {
            "round": self.round,
            "phase_index": self.phase_index,
            "epochs_done": self.epochs_done,
            "phase_first_epoch": self.phase_first_epoch,
            "finished": self.finished,
            "rows": [dict(vars(row)) for row in self.rows],
            "history": [dict(vars(s)) for s in self.history],
            "fold_scores": [dict(vars(s)) for s in self._fold_scores],
            "fold_history": {k: [dict(vars(s)) for s in past] for k, past in self.fold_history.items()},
            "fold_pool_scores": [dict(vars(s)) for s in self._fold_pool_scores],
            "seed_credit": self._seed_credit,
            "pool_label": self._pool_label,
            "tokens": (self._tokens, self._scored_tokens),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.round, self.phase_index = state_dict["round"], state_dict["phase_index"]
        self.epochs_done, self.phase_first_epoch = state_dict["epochs_done"], state_dict["phase_first_epoch"]
        self.finished = state_dict["finished"]
        self.rows = [RoundRow(**row) for row in state_dict["rows"]]
        self.history = [Selection(**s) for s in state_dict["history"]]
        self._fold_scores = [PairScores(**s) for s in state_dict["fold_scores"]]
        self.fold_history = {k: [Selection(**s) for s in past] for k, past in state_dict["fold_history"].items()}
        self._fold_pool_scores = [PairScores(**s) for s in state_dict["fold_pool_scores"]]
        self._seed_credit, self._pool_label = state_dict["seed_credit"], state_dict["pool_label"]
        self._tokens, self._scored_tokens = state_dict["tokens"]

    # Phases

    @property
    def fold(self) -> int | None:
        """Fold that the running phase leaves out; None in the main phase, which comes last."""
        return self.phase_index if self.phase_index < self.folds else None

    @property
    def _phase_epochs(self) -> int:
        return self.seed_epochs if self.round == 0 else self.epochs_per_round

    def _begin_data_phase(self, trainer: Trainer) -> None:
        seed_share = None if self.round == 0 else self.seed_share
        folds, first_epoch = max(1, self.folds), self.phase_first_epoch
        trainer.datamodule.begin_phase(self.round, self.fold, folds, seed_share, first_epoch)

    def _begin_phase(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.phase_first_epoch = self.epochs_done
        self._begin_data_phase(trainer)
        pl_module.begin_phase(self.phase_first_epoch, self._phase_epochs)
        optimizer = trainer.optimizers[0]
        if self.round == 0 or self.restart == "weights":
            pl_module.restart()
            optimizer.state.clear()
            return
        state = torch.load(self._phase_file(trainer, self.round - 1, self.fold), weights_only=True)
        pl_module.scorer.load_trainable_state(state["weights"])
        if self.restart == "nothing":
            optimizer.load_state_dict(state["optimizer"])
        else:
            optimizer.state.clear()

    def _phase_state(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {"weights": pl_module.scorer.trainable_state(), "optimizer": trainer.optimizers[0].state_dict()}

    def _phase_file(self, trainer: Trainer, round: int, fold: int | None) -> Path:
        return _round_folder(trainer, round) / f"phase_{'main' if fold is None else fold}.pt"

    def _end_fold(self, trainer: Trainer) -> None:
        name = f"round {self.round} | scoring fold {self.phase_index + 1}/{self.folds}"
        self._fold_scores.append(self._score(trainer, "seed", name, self.fold))
        if self.committee or self.round < self.max_rounds:
            name = f"round {self.round} | labelling for fold {self.phase_index + 1}/{self.folds}"
            self._fold_pool_scores.append(self._score(trainer, "pool", name))

    def _score(self, trainer: Trainer, split: str, name: str, fold: int | None = None) -> PairScores:
        data, folds = trainer.datamodule, max(1, self.folds)
        scores = score_pairs(
            trainer, data.scoring_dataloader(split, fold, folds), data.pair_ids(split, fold, folds), name
        )
        self._scored_tokens += int((scores.tokens_a + scores.tokens_b).sum())
        return scores

    def _total_tokens(self, trainer: Trainer) -> int:
        trained = trainer.strategy.reduce(
            torch.tensor(self._tokens, device=trainer.strategy.root_device), reduce_op="sum"
        )
        return int(trained) + self._scored_tokens

    # Rounds

    def _end_round(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule
        pool = self._score(trainer, "pool", f"round {self.round} | labelling the pool")
        if self.committee:
            pool = _mean_scores([pool, *self._fold_pool_scores])
        seed = concatenate(self._fold_scores)
        evidence = Evidence(seed, data.seed_labels(seed.pair_id), self.history)
        verdict = self.rule.select(pool, evidence)
        keep = self._apply_quota(verdict, pool, evidence)
        selection = trainer.strategy.broadcast(self._selection(pool, verdict, keep))
        pl_module.set_scale(*evidence.scale())
        self.rows.append(self._row(trainer, pool, evidence, verdict, selection))
        self._write_round(trainer, pl_module, pool, verdict, keep)
        rank_zero_info(f"Round {self.round}: {verdict.message}.")
        self.history.append(selection)
        if verdict.converged or len(selection) == 0 or self.round >= self.max_rounds:
            self._finish(trainer, pl_module)
        else:
            data.accept(selection, add=self.combine == "add")
            self._accept_for_folds(trainer, evidence)
        self._fold_scores, self._fold_pool_scores = [], []
        self._tokens = self._scored_tokens = 0
        self._pool_label, self._round_start = verdict.label, time.monotonic()

    def _selection(self, pool: PairScores, verdict: Verdict, keep: Tensor) -> Selection:
        return Selection(pool.pair_id[keep], verdict.label[keep], verdict.confidence[keep], verdict.status, self.round)

    def _accept_for_folds(self, trainer: Trainer, evidence: Evidence) -> None:
        """Each fold has a chain of its own: its next model learns from labels of a model that never saw the fold.

        With the main model's labels the fold would come back in through the pool, and the seed would be scored by
        models that know it. All that the chains share is the scale and the target that the rule fits.
        """
        for fold, pool in enumerate(self._fold_pool_scores):
            past = self.fold_history.setdefault(fold, [])
            own = Evidence(evidence.scores, evidence.target, past)
            verdict = self.rule.select(pool, own)
            selection = self._selection(pool, verdict, self._apply_quota(verdict, pool, own))
            past.append(trainer.strategy.broadcast(selection))
            trainer.datamodule.accept(past[-1], add=self.combine == "add", fold=fold)

    def _apply_quota(self, verdict: Verdict, pool: PairScores, evidence: Evidence) -> Tensor:
        if self.length_quota == "none":
            return verdict.keep
        longer_wins = half_credit(evidence.scores.length_difference.float(), evidence.target)
        unequal = evidence.scores.length_difference != 0
        if not unequal.any():
            return verdict.keep
        return balance_by_length(verdict, pool.length_difference, float(longer_wins[unequal].mean()))

    def _row(
        self, trainer: Trainer, pool: PairScores, evidence: Evidence, verdict: Verdict, selection: Selection
    ) -> RoundRow:
        test = self._score(trainer, "test", f"round {self.round} | scoring the test pairs")
        order = evidence.scores.pair_id.argsort()
        self._seed_credit.append(half_credit(evidence.scores.margin, evidence.target)[order])
        figures = round_figures(trainer.datamodule, pool, test, evidence, verdict, selection)
        return RoundRow(
            round=self.round,
            flipped=0 if self._pool_label is None else int((self._pool_label != verdict.label).sum()),
            tokens=self._total_tokens(trainer),
            seconds=round(time.monotonic() - self._round_start, 1),
            delivered=False,
            **figures,
        )

    def _write_round(
        self, trainer: Trainer, pl_module: LightningModule, pool: PairScores, verdict: Verdict, keep: Tensor
    ) -> None:
        delivered = choose_round(self._seed_credit)
        for row in self.rows:
            row.delivered = row.round == delivered
        model = {
            "weights": {k: v.cpu() for k, v in pl_module.scorer.trainable_state().items()},
            "temperature": pl_module.temperature,
            "zero": pl_module.zero,
        }
        self._save(trainer, _round_folder(trainer, self.round) / "model.pt", model)
        if trainer.is_global_zero:
            write_audit(_round_folder(trainer, self.round) / "audit.parquet", pool, verdict, keep)
            write_rounds(Path(trainer.default_root_dir) / "rounds.csv", self.rows)
        for logger in trainer.loggers:
            logger.log_metrics(self.rows[-1].figures(), step=trainer.global_step)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the delivered round's model."""
        delivered = next(row.round for row in self.rows if row.delivered)
        trainer.strategy.barrier("evolution: delivered model")
        model = torch.load(_round_folder(trainer, delivered) / "model.pt", weights_only=True)
        pl_module.scorer.load_trainable_state(model["weights"])
        pl_module.set_scale(model["temperature"], model["zero"])
        self.finished = True
        trainer.should_stop = True
        if trainer.is_global_zero:
            print_rounds(self.rows)

    def _save(self, trainer: Trainer, path: Path, content: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            write_atomically(path, lambda file: torch.save(content, file))

    def _problems(self) -> list[str]:
        found = []
        for name in ("seed_epochs", "epochs_per_round"):
            if getattr(self, name) < 1:
                found.append(f"evolution.{name}: got {getattr(self, name)}; need at least 1")
        if self.max_rounds < 0:
            found.append(f"evolution.max_rounds: got {self.max_rounds}; need 0 or more")
        if self.folds < 0 or self.folds == 1:
            found.append(f"evolution.folds: got {self.folds}; need 0 or at least 2")
        if self.folds == 0 and self.rule.needs_evidence:
            found.append(
                f"evolution.folds: got 0 with {type(self.rule).__name__}, which calibrates on them; set 2 or more"
            )
        if self.folds == 0 and (self.committee or self.length_quota == "seed"):
            found.append("evolution.folds: got 0 with committee or length_quota, which use them; set 2 or more")
        if self.seed_share is not None and not 0 < self.seed_share < 1:
            found.append(f"evolution.seed_share: got {self.seed_share}; need a share in (0, 1) or null")
        return found


def _round_folder(trainer: Trainer, round: int) -> Path:
    return Path(trainer.default_root_dir) / "rounds" / str(round)


def _mean_scores(members: list[PairScores]) -> PairScores:
    """Mean rewards of several models on the same pairs."""
    first = members[0]
    reward_a = torch.stack([m.reward_a for m in members]).mean(0)
    reward_b = torch.stack([m.reward_b for m in members]).mean(0)
    return PairScores(first.pair_id, reward_a, reward_b, first.tokens_a, first.tokens_b)
