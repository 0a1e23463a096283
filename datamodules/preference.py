"""The data module: files in, batches out, and the only owner of splits and accepted labels."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from ser_lightning.data.labels import TIE
from ser_lightning.data.packing import Tokens
from ser_lightning.datamodules.base import PairFiles
from ser_lightning.datamodules.batches import (
    PairSet,
    Phase,
    ScoringBatches,
    Shard,
    TrainingSteps,
    checked_selection,
    epoch_order,
    make_loader,
)
from ser_lightning.datamodules.evaluation_sets import EvaluationSet
from ser_lightning.datamodules.label_firewall import HeldOutLabels, SplitName
from ser_lightning.datamodules.seed_size import seed_problems
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.planning.memory import CPU_TOKENS, auto_budgets, device_bytes
from ser_lightning.records import PairBatch, PreferencePair, Selection
from ser_lightning.runs.config import setting
from ser_lightning.runs.files import CONFIG
from ser_lightning.runs.teacher import Teacher, read_teacher
from ser_lightning.training.features import FeatureTable, States, cache_features, dtype_of

Split = Literal["pool", "seed", "val", "test", "all"]
"""What `predict` can score."""


class PreferenceDataModule(PairFiles):
    """Pairs from files or the Hub, split by dialogue into seed, pool and test; see `docs/data.md`.

    Args:
        pairs_per_step: pairs in an optimiser step, over all devices.
        tokens_per_batch: most padded tokens in a training micro-batch; changes memory and speed, never the result.
            `auto` fills the GPU's memory, as far as `plan` can tell, and is 1,536 on a CPU.
        tokens_per_scoring_batch: most padded tokens in a batch without gradients; `auto` as above, 4,096 on a CPU.
        predict_split: pairs that `predict` scores.
        teacher: folder of a finished run on the same data. `fit` trains on the pseudo-labels that its delivered round
            keeps, beside the seed, from round 0 on.
        eval_sets: more sets of labelled pairs for `validate` and `test`, each a name and a file such as
            {hard: hard.jsonl}; pairs of dialogues that training sees are left out.
        eval_category: column of these files that holds a pair's category.
    """

    def __init__(
        self,
        *args: Any,
        pairs_per_step: int = 32,
        tokens_per_batch: Tokens = 4096,
        tokens_per_scoring_batch: Tokens = 16384,
        predict_split: Split = "pool",
        teacher: str | None = None,
        eval_sets: dict[str, str] | None = None,
        eval_category: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.pairs_per_step = pairs_per_step
        self.tokens_per_batch = tokens_per_batch
        self.tokens_per_scoring_batch = tokens_per_scoring_batch
        self.predict_split = predict_split
        self.teacher = teacher
        self._teacher: Teacher | None = None
        self.eval_sets = [
            EvaluationSet(n, f, self.columns, eval_category, self.labels) for n, f in (eval_sets or {}).items()
        ]
        self.phase = Phase()
        self.accepted = Selection.empty()
        self.fold_accepted: dict[int, Selection] = {}
        self._feature_key: str | None = None
        self._table: FeatureTable | None = None
        self.feature_cost = {"tokens": 0, "seconds": 0.0}
        """What it took to compute the features that were not in the cache."""
        self._auto_budgets: tuple[int, int] | None = None
        problems = self._problems("pairs_per_step", "tokens_per_batch", "tokens_per_scoring_batch")
        if eval_category is not None and not eval_sets:
            problems.append(f"eval_category: got {eval_category!r} without eval_sets, whose column it is; give both")
        raise_problems(problems)

    def prepare_data(self) -> None:
        """Encode the pairs into the cache, unless they are there."""
        if self.teacher and self.trainer is not None and self.trainer.state.fn == "fit":
            self._read_teacher()  # one that cannot teach stops the run before anything is encoded
        super().prepare_data()
        for one in self.eval_sets:
            one.prepare(self.cache_dir, self.tokenizer, self.max_length)

    def setup(self, stage: str | None = None) -> None:
        """Open the cache and split; done once, whatever the stages."""
        super().setup(stage)
        self._feature_key = self._table = None  # the next module may have another body
        if stage in ("validate", "test"):
            seen = np.concatenate([self.data.rows(name) for name in ("seed", "ties", "pool", "val")])
            for one in self.eval_sets:
                one.open(self.cache_dir, self.tokenizer, self.max_length, self.data.store, seen)
        if stage == "fit":
            labels = self.data.seed_labels(self.data.rows("seed"))
            raise_problems(seed_problems(labels, self.report, self.paths, self._no_label_hint))
            if self.teacher:
                self._learn_from(self._read_teacher())

    def _read_teacher(self) -> Teacher:
        """The teacher, read once: its checkpoint may be large."""
        if self._teacher is None:
            self._teacher = read_teacher(Path(str(self.teacher)))
        return self._teacher

    def _learn_from(self, teacher: Teacher) -> None:
        """Accept the labels of another run of the same splits; where a human has labelled a pair since, that counts.

        Other splits would have pairs of the test set among what the teacher was trained on or has labelled.
        """
        if not self.data.had(teacher.fingerprint):
            differing = self._differing_settings(teacher.run)
            raise UserError(
                f"data.teacher: got {teacher.run}, which has other splits or seed labels"
                f"{': ' + ', '.join(differing) if differing else ', though the same settings: has a file changed?'}; "
                f"give the data of {teacher.run / CONFIG}, or a teacher of this data"
            )
        self.accept(self._still_in_pool(teacher.selection))
        for fold, selection in teacher.fold_selections.items():
            self.accept(self._still_in_pool(selection), fold)
        what = f"{len(self.accepted)} pseudo-labels of round {teacher.selection.round} of {teacher.run}"
        rank_zero_info(f"Teacher: {what} join the seed.")

    def _differing_settings(self, run: Path) -> list[str]:
        """`NAME was X and is Y` for settings that decide the splits, against those of another run."""
        theirs = setting(run, "data", "init_args")
        own = {**self.paths, "new_data_path": self.more_paths, **vars(self.policy), "max_length": self.max_length}
        both = ((name, _as_list(theirs.get(name)), _as_list(value)) for name, value in own.items())
        return [f"{name} was {_shown(old)} and is {_shown(new)}" for name, old, new in both if old != new]

    # What the next epochs train on.

    def begin_phase(self, round: int = 0, fold: int | None = None, num_folds: int = 3, first_epoch: int = 0) -> None:
        """Choose the pairs of the next epochs: the seed without one fold, and the accepted selection.

        Args:
            round: number of the round, enters the order of the batches.
            fold: fold of the seed to leave out, None = none.
            num_folds: folds of the seed, by dialogue.
            first_epoch: the run's epoch in which the phase begins.
        """
        if fold is not None and not 0 <= fold < num_folds:
            raise ValueError(f"fold: got {fold} of {num_folds}")
        if fold is not None and len(self.fold_accepted) not in (0, num_folds):
            raise UserError(
                f"evolution.folds: got {num_folds}, but {self.teacher or 'the run'} has pseudo-labels for "
                f"{len(self.fold_accepted)} folds; set it to {len(self.fold_accepted)}"
            )
        self.phase = Phase(round, fold, num_folds, first_epoch)

    def accept(self, selection: Selection, fold: int | None = None) -> None:
        """Take labels that the model gave to pool pairs; the next phase trains on them.

        Args:
            selection: labels for pairs of the pool.
            fold: the labels are for the phases that leave out this fold, and come from a model that left it out too:
                labels of one that had seen the fold would carry it back in.
        """
        pool = self.pair_ids("pool")
        if num_unknown := int((~torch.isin(selection.pair_id.cpu(), pool)).sum()):
            raise ValueError(f"selection: {num_unknown} of {len(selection)} pairs are not in the pool")
        accepted = checked_selection(selection)
        if fold is None:
            self.accepted = accepted
        else:
            self.fold_accepted[fold] = accepted

    def accepted_in(self, fold: int | None) -> Selection:
        """The accepted labels that a phase without this fold trains on; None is the phase that leaves nothing out."""
        return self.accepted if fold is None else self.fold_accepted.get(fold, Selection.empty())

    @property
    def num_train_pairs(self) -> int:
        """Pairs in an epoch of the current phase."""
        return len(self._training_pairs().rows)

    def _step_size(self, num_pairs: int) -> int:
        """Pairs in an optimiser step: all, where a step solves the head."""
        return max(1, num_pairs) if getattr(self.consumer, "solves_exactly", False) else self.pairs_per_step

    def _training_pairs(self) -> PairSet:
        """Seed labels, ties and accepted labels: the only labels there are on this side of the firewall."""
        phase = self.phase
        seed = self.data.rows("seed")
        if phase.fold is not None:
            seed = seed[~np.isin(seed, self.data.rows("seed", phase.fold, phase.num_folds))]
        selection = self.accepted_in(phase.fold)
        accepted = self.data.rows_of(selection.pair_id.tolist())
        ties = self.data.ties(phase.fold, phase.num_folds)
        labels = [self.data.seed_labels(seed), selection.label.numpy(), np.full(len(ties), TIE)]
        return PairSet.labelled(np.concatenate([seed, accepted, ties]), np.concatenate(labels))

    # Loaders.

    def _budgets(self) -> tuple[int, int]:
        """Tokens in a batch of training and of scoring."""
        given = self.tokens_per_batch, self.tokens_per_scoring_batch
        if "auto" in given and self._auto_budgets is None:
            self._auto_budgets = CPU_TOKENS
            if self.trainer is not None and self.trainer.strategy.root_device.type == "cuda":
                module, memory = self.consumer, device_bytes("cuda")[1]
                self._auto_budgets = auto_budgets(
                    module.reward_model, module.backbone, str(self.trainer.precision), "cuda", memory
                )
            of_training, of_scoring = self._auto_budgets
            rank_zero_info(f"Batches: auto is {of_training:,} tokens in training, {of_scoring:,} in scoring.")
        auto, (training, scoring) = self._auto_budgets or CPU_TOKENS, given
        return auto[0] if training == "auto" else training, auto[1] if scoring == "auto" else scoring

    @property
    def scoring_budget(self) -> int:
        """Most padded tokens in a batch without gradients."""
        return self._budgets()[1]

    def train_dataloader(self) -> DataLoader[list[PairBatch]]:
        """Items: the micro-batches of one optimiser step, for this rank."""
        pairs = self._training_pairs()
        epoch = self.trainer.current_epoch if self.trainer is not None else self.phase.first_epoch
        order = epoch_order(len(pairs.rows), self.policy.split_seed, self.phase, epoch - self.phase.first_epoch)
        shard = self._shard(self._budgets()[0], self._features())
        step_size = self._step_size(len(order))
        return make_loader(TrainingSteps(self.data.store, pairs, order, step_size, shard), self.num_workers)

    def scoring_dataloader(
        self, split: SplitName, fold: int | None = None, num_folds: int = 3
    ) -> DataLoader[PairBatch]:
        """Batches without labels, this rank's share of them; fillers of weight 0 repeat pairs.

        Args:
            split: which pairs; `all` takes validation in as well.
            fold: only this fold of the seed.
            num_folds: folds of the seed, by dialogue.
        """
        return self._scoring_loader(PairSet.unlabelled(self.data.rows(split, fold, num_folds)))

    def val_dataloader(self) -> Any:
        """Labelled pairs out of the seed, and in `validate` the evaluation sets; no loader where there are none."""
        if self.trainer is not None and self.trainer.state.fn == "validate":
            return self._measuring("val", "validate: got no validation pairs; set data.val_fraction or data.eval_sets")
        return self._scoring_loader(self.data.measured("val")) if len(self.data.rows("val")) else []

    def test_dataloader(self) -> Any:
        """The final test's pairs with their labels, and the evaluation sets."""
        return self._measuring(
            "test", "test: got no test pairs; set data.test_path, data.test_fraction or data.eval_sets"
        )

    def _measuring(self, split: Literal["val", "test"], nothing: str) -> Any:
        """A loader for the split, if it has pairs, and one for each evaluation set."""
        loaders = [self._scoring_loader(self.data.measured(split))] if len(self.data.rows(split)) else []
        shard = self._shard(self.scoring_budget)
        for one in self.eval_sets:
            loaders.append(make_loader(ScoringBatches(one.store, one.pairs(), shard, one.name), self.num_workers))
        if not loaders:
            raise UserError(nothing)
        return loaders if self.eval_sets else loaders[0]

    def predict_dataloader(self) -> DataLoader[PairBatch]:
        """The pairs of `predict_split`."""
        return self.scoring_dataloader(self.predict_split)

    def token_dataloader(self, rows: np.ndarray) -> DataLoader[PairBatch]:
        """Rows of the store as tokens, without labels and this rank's share of them."""
        return self._loader(PairSet.unlabelled(rows), self._shard(self.scoring_budget))

    def _scoring_loader(self, pairs: PairSet) -> DataLoader[PairBatch]:
        return self._loader(pairs, self._shard(self.scoring_budget, self._features()))

    def _loader(self, pairs: PairSet, shard: Shard) -> DataLoader[PairBatch]:
        return make_loader(ScoringBatches(self.data.store, pairs, shard), self.num_workers)

    def _features(self) -> FeatureTable | None:
        """The states of every pair, where the body is frozen: computed before the first step of `fit`.

        `validate`, `test` and `predict` read what a fit has left; for themselves they need a part of the pairs only.
        """
        if self.trainer is None or not getattr(self.consumer, "caches_features", False):
            return None
        if self._feature_key is None:
            self.cache_features()
        if not self._feature_key:
            return None
        if self._table is None:
            files, dtype = self.feature_files(self._feature_key), dtype_of(self._feature_key)
            table = FeatureTable(files, self.data.store.parts, dtype, len(self.consumer.reward_model.readings))
            self._table = table.scaled_by(self._seed_and_pool())
        return self._table

    def _seed_and_pool(self) -> np.ndarray:
        return np.concatenate([self.data.rows("seed"), self.data.rows("pool")])

    def scaled_differences(self) -> Iterator[Tensor]:
        """Chunks (n, D) of what a head that is solved exactly reads of the pairs of seed and pool, without labels."""
        table = self._features()
        assert table is not None, "only cached states are scaled"
        yield from table.differences(self._seed_and_pool())

    def cache_features(self, known: States | None = None) -> None:
        """Find the states of every pair in the cache; `fit` computes what is not there.

        Args:
            known: states of some pairs, as `seed_states` gives them at the readings of the head.
        """
        assert self.trainer is not None, "a trainer computes the states"
        is_fit = self.trainer.state.fn == "fit"
        self._feature_key = cache_features(self.trainer, self.consumer.reward_model, self, is_fit, known)

    # Lookups for modules and callbacks.

    @property
    def has_features(self) -> bool:
        """Whether batches hold cached states, so that the body computes no token of them."""
        return bool(self._feature_key)

    def pair_ids(self, split: SplitName, fold: int | None = None, num_folds: int = 3) -> Tensor:
        """(N,) int64 ids that `scoring_dataloader` yields over all ranks, sorted."""
        return self.data.pair_ids(self.data.rows(split, fold, num_folds)).sort().values

    def seed_labels(self, pair_id: Tensor) -> Tensor:
        """(N,) float32 labels of the N seed pairs, 1: a is the better one; KeyError for a pair of no seed."""
        return torch.from_numpy(self.data.seed_labels(self.data.rows_of(pair_id.tolist())))

    def dialogues(self, pair_id: Tensor) -> Tensor:
        """(N,) int64, equal for pairs of one prompt, or of prompts that continue one another."""
        return torch.from_numpy(self.data.store.joint_dialogue_id[self.data.rows_of(pair_id.tolist())])

    def num_tokens(self, pair_id: Tensor) -> Tensor:
        """(N, 2) int64 tokens of both conversations of pairs, prompt included."""
        return torch.from_numpy(self.data.store.num_tokens[self.data.rows_of(pair_id.tolist())])

    def held_out_labels(self, split: Literal["pool", "val", "test"]) -> HeldOutLabels:
        """What the files know of a split's labels, as counts of right answers only."""
        if split not in ("pool", "val", "test"):
            raise ValueError(f"split: got {split!r}; use pool, val or test")
        return self.data.held_out_labels(split)

    def test_labels(self) -> tuple[Tensor, Tensor]:
        """(T,) int64 ids of the test pairs, ascending, and (T,) float32 labels, 1: a is the better one.

        For figures and for people to read; nothing that trains or chooses may ask.
        """
        measured = self.data.measured("test")
        return self.data.pair_ids(measured.rows), torch.from_numpy(measured.target)

    def lookup(self, pair_ids: Tensor | list[int]) -> list[PreferencePair]:
        """Texts of pairs; only those of the seed come with a label. KeyError for a pair that is in no split."""
        return self.data.lookup(pair_ids.tolist() if isinstance(pair_ids, Tensor) else pair_ids)

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Accepted selection, phase and a fingerprint of the data."""
        return {
            "fingerprint": self.data.fingerprint,
            "phase": asdict(self.phase),
            "accepted": vars(self.accepted).copy(),
            "fold_accepted": {fold: vars(selection).copy() for fold, selection in self.fold_accepted.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint stopped; to test or predict, other data are fine and nothing is taken up."""
        if self.trainer is not None and self.trainer.state.fn not in (None, "fit"):
            return
        if not self.data.mark_arrived(state_dict["fingerprint"]):
            raise UserError(
                f"checkpoint: got data {self.data.fingerprint}, but it was made with {state_dict['fingerprint']}; "
                "resume with the same files, fractions and split_seed (new files go to new_data_path), or start anew"
            )
        self.phase = Phase(**state_dict["phase"])
        self.accepted = self._still_in_pool(Selection(**state_dict["accepted"]))
        self.fold_accepted = {f: self._still_in_pool(Selection(**s)) for f, s in state_dict["fold_accepted"].items()}

    def _still_in_pool(self, selection: Selection) -> Selection:
        """Without the pairs that a human has labelled since."""
        keep = torch.isin(selection.pair_id, self.pair_ids("pool"))
        kept = {name: getattr(selection, name)[keep] for name in ("pair_id", "label", "probability")}
        return replace(selection, **kept)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _shown(values: list[Any]) -> str:
    return ", ".join(map(str, values)) or "none"
