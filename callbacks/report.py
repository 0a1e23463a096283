"""`report.html` after every round, or at the end of a policy's training, and what only the training process knows for
it: `rounds/<r>/report.json`."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ser_lightning.callbacks.alerts import log_round_tables, log_run_artifact
from ser_lightning.callbacks.baselines import measure_round
from ser_lightning.callbacks.evolution import EvolutionCallback
from ser_lightning.callbacks.state import EvolutionState
from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.evaluation.calibration import prob_a_wins
from ser_lightning.evaluation.metrics import confidence_and_right, effective_pairs, half_credit, reliability
from ser_lightning.modules.policy_base import PolicyModule
from ser_lightning.records import PairScores
from ser_lightning.report.cards import mistake_cards, pool_cards
from ser_lightning.runs.files import PAGE, ROUNDS, RoundFiles, round_files, write_json
from ser_lightning.runs.pair_tables import read_audit, read_test_scores
from ser_lightning.runs.weights import read_weights
from ser_lightning.utils.terminal import say
from ser_lightning.utils.versions import package_versions

NUM_POINTS = 1000
"""Pairs in the picture of reward and length."""


class ReportCallback(Callback):
    """Write `report.html` at the end and after a crash, of a reward model also when a round is over.

    A failure only warns.
    """

    def __init__(self) -> None:
        self._num_rounds = 0
        self._page: Path | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first hook after the end of a round: `EvolutionCallback` stands last and ends it at an epoch's end."""
        state = _state_of(trainer)
        if state is not None and len(state.rows) != self._num_rounds:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """With the last round, or the last step of a policy."""
        state = _state_of(trainer)
        is_cut = state is not None and not state.finished
        note = "The run was ended by a limit or a callback and has not finished." if is_cut else ""
        self._page = self._write(trainer, pl_module, note)
        if self._page is not None:
            log_run_artifact(trainer, self._page.parent)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Where to find it, below all that the others print at the end."""
        if self._page is not None:
            say(f"Report: {self._page}")
            self._page = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The rounds or steps that were finished before a crash."""
        why = "ended by an error" if isinstance(exception, Exception) else "interrupted"
        self._write(trainer, pl_module, f"The run was {why} and has not finished.")

    def _write(self, trainer: Trainer, pl_module: LightningModule, note: str = "") -> Path | None:
        """The page, if there is something to tell of and nothing went wrong."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return None
        state, folder = _state_of(trainer), Path(trainer.default_root_dir)
        if isinstance(pl_module, PolicyModule):
            if note and not trainer.global_step:  # it ended before it began
                return None
        elif state is None or not state.rows or not (folder / ROUNDS).is_file():
            return None  # or only rounds of another run that this one goes on from
        try:
            if state is not None:
                self._num_rounds = len(state.rows)
                for notes in self._write_notes(trainer, state):
                    log_round_tables(trainer, [vars(row) for row in state.rows], notes["cards"], notes["round"])
            from ser_lightning.report.page import write_report  # matplotlib is needed from here on, not before

            return write_report([folder], folder / PAGE, note)
        except Exception as error:
            rank_zero_warn(f"report: not written ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
            return None

    def _write_notes(self, trainer: Trainer, state: EvolutionState) -> list[dict[str, Any]]:
        """Notes of every round that has none yet, or that was finished again after a crash; gives those it wrote."""
        written = []
        for row, seed in zip(state.rows, state.seed_scores, strict=True):
            files = round_files(trainer.default_root_dir, row.round)
            if files.notes.exists() and files.notes.stat().st_mtime_ns >= files.audit.stat().st_mtime_ns:
                continue
            notes = round_notes(trainer.datamodule, Path(trainer.default_root_dir), row.round, seed)
            notes["versions"] = _versions(trainer)
            write_json(files.notes, notes)
            written.append(notes)
        return written


def round_notes(data: PreferenceDataModule, folder: Path, number: int, seed: PairScores) -> dict[str, Any]:
    """What a report shows of a round and no other file has.

    Human labels are in it as counts, and as those of the test pairs that the round is surest of and wrong about.
    """
    files = round_files(folder, number)
    audit, before = read_audit(files.audit), read_audit(round_files(folder, number - 1).audit) if number else None
    model = read_weights(files.model)
    assert audit is not None
    audit = {name: column[np.isin(audit["pair_id"], data.pair_ids("pool").numpy())] for name, column in audit.items()}
    ids, label, kept = (torch.from_numpy(audit[name].copy()) for name in ("pair_id", "label", "kept"))
    measured = measure_round(data, folder, number)
    target = data.seed_labels(seed.pair_id)
    return {
        "round": number,
        "pairs": {split: counts[0] for split, counts in data.report.splits.items()},
        "prompts": {split: counts[1] for split, counts in data.report.splits.items()},
        **_label_counts(
            data, files, seed, {"pseudo_label_accuracy": (ids[kept], label[kept]), "pool_accuracy": (ids, label)}
        ),
        "reliability": reliability(*confidence_and_right(seed.margin, target, model["temperature"])),
        "length": _length_points(data, audit),
        "readings": (model.get("reading") or {}).get("evidence", []),
        "test": measured,
        "baselines": {
            name: measured["accuracy"] - one["difference"]
            for name, one in measured.get("against", {}).items()
            if name != "seed"
        },
        "cards": pool_cards(data.lookup, audit, before) | {"mistakes": _mistakes(data, folder, number, model)},
        "fingerprints": {"data": data.state_dict()["fingerprint"], **_hashes(model.get("identity") or {})},
    }


def _label_counts(
    data: PreferenceDataModule, files: RoundFiles, seed: PairScores, pool: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, dict[str, Any]]:
    """How many labels each accuracy of a round was counted on, and how many independent ones they are worth.

    Args:
        files: of the round.
        seed: scores out of fold.
        pool: ids and pseudo-labels of each accuracy on the pool.
    """
    given = {name: (data.held_out_labels("pool"), *one) for name, one in pool.items()}
    if (found := read_test_scores(files.test_scores)) is not None:
        label = half_credit(torch.from_numpy(found["reward_a"] - found["reward_b"]), torch.ones(len(found["pair_id"])))
        given["test_accuracy"] = (data.held_out_labels("test"), torch.from_numpy(found["pair_id"].copy()), label)
    credit = half_credit(seed.margin, data.seed_labels(seed.pair_id))
    return {
        "labels": {name: truth.count_right(ids, label)[0] for name, (truth, ids, label) in given.items()}
        | {"seed_oof_accuracy": len(seed)},
        "effective_labels": {
            name: truth.effective_labels(ids, label, data.dialogues(ids)) for name, (truth, ids, label) in given.items()
        }
        | {"seed_oof_accuracy": effective_pairs(credit, data.dialogues(seed.pair_id))},
    }


def _mistakes(data: PreferenceDataModule, folder: Path, number: int, model: dict[str, Any]) -> list[dict[str, Any]]:
    """The test pairs that the round is surest of and wrong about."""
    found = read_test_scores(round_files(folder, number).test_scores)
    ids, target = data.test_labels()
    if found is None or not len(ids):
        return []
    margin = torch.from_numpy(found["reward_a"] - found["reward_b"])
    probability = prob_a_wins(margin, model["temperature"]).numpy()
    label = dict(zip(ids.tolist(), target.tolist(), strict=True))
    known = np.isin(found["pair_id"], ids.numpy())
    labels = np.array([label[pair] for pair in found["pair_id"][known].tolist()])
    return mistake_cards(data.lookup, found["pair_id"][known], probability[known], labels)


def _hashes(identity: dict[str, Any]) -> dict[str, str]:
    return {name: identity[name] for name in ("base", "template") if name in identity}


def _length_points(data: PreferenceDataModule, audit: dict[str, np.ndarray]) -> list[list[float]]:
    """Difference in tokens and in reward of some pool pairs: ids are hashes, so every n-th pair is a random sample."""
    num_pairs = len(audit["pair_id"])
    rows = np.unique(np.linspace(0, num_pairs - 1, min(num_pairs, NUM_POINTS)).astype(int))
    tokens = data.num_tokens(torch.from_numpy(audit["pair_id"][rows].copy()))
    margin = (audit["reward_a"] - audit["reward_b"])[rows]
    return [[int(a - b), round(float(m), 4)] for (a, b), m in zip(tokens.tolist(), margin, strict=True)]


def _versions(trainer: Trainer) -> dict[str, str]:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return package_versions() | {"Python": platform.python_version(), "device": f"{name} x {trainer.world_size}"}


def _state_of(trainer: Trainer) -> EvolutionState | None:
    return next((c.state for c in trainer.callbacks if isinstance(c, EvolutionCallback)), None)
