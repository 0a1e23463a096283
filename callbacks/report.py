"""`report.html` after every round, and what only the training process knows for it: `rounds/<r>/report.json`."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from ser_lightning.callbacks.alerts import log_round_tables, log_run_artifact
from ser_lightning.callbacks.baselines import bag_of_words_accuracy, longer_accuracy
from ser_lightning.callbacks.evolution import EvolutionCallback
from ser_lightning.callbacks.state import EvolutionState
from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.evaluation.metrics import confidence_and_right, reliability
from ser_lightning.records import PairScores, PreferencePair
from ser_lightning.runs.files import PAGE, ROUNDS, read_audit, read_weights, round_files, write_json
from ser_lightning.utils.terminal import say
from ser_lightning.utils.versions import package_versions

NUM_CARDS = 5
"""Pairs of each kind to read."""
NUM_POINTS = 1000
"""Pairs in the picture of reward and length."""
MAX_CHARACTERS = 700
"""Of a text on the page."""
MAX_BASELINE_PAIRS = 20_000
"""A bag of words is fitted between rounds only up to this seed: it must not hold up a run for long."""


class ReportCallback(Callback):
    """Write `report.html` when a round is over, at the end, and after a crash. A failure only warns."""

    def __init__(self) -> None:
        self._num_rounds = 0
        self._page: Path | None = None
        self._baselines: dict[str, float] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first hook behind the end of a round: `EvolutionCallback` stands last and ends it at an epoch's end."""
        state = _state_of(trainer)
        if state is not None and len(state.rows) != self._num_rounds:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """With the last round."""
        self._page = self._write(trainer)
        if self._page is not None:
            log_run_artifact(trainer, self._page.parent)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Where to find it, below all that the others print at the end."""
        if self._page is not None:
            say(f"Report: {self._page}")
            self._page = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The rounds that were finished before a crash."""
        why = "ended by an error" if isinstance(exception, Exception) else "interrupted"
        self._write(trainer, f"The run was {why} and has not finished.")

    def _write(self, trainer: Trainer, note: str = "") -> Path | None:
        """The page, if there is a finished round and nothing went wrong."""
        state = _state_of(trainer)
        if state is None or not state.rows or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return None
        self._num_rounds, folder = len(state.rows), Path(trainer.default_root_dir)
        if not (folder / ROUNDS).is_file():  # rounds of another run that this one goes on from
            return None
        try:
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
            notes |= {"baselines": self._baselines_of(trainer.datamodule), "versions": _versions(trainer)}
            write_json(files.notes, notes)
            written.append(notes)
        return written

    def _baselines_of(self, data: PreferenceDataModule) -> dict[str, float]:
        if self._baselines is None:
            seed, test = len(data.pair_ids("seed")), len(data.pair_ids("test"))
            self._baselines = {"longer": longer_accuracy(data, "test")} if test else {}
            if test and 1 < seed <= MAX_BASELINE_PAIRS:
                self._baselines["bag_of_words"] = bag_of_words_accuracy(data, "test")
        return self._baselines


def round_notes(data: PreferenceDataModule, folder: Path, number: int, seed: PairScores) -> dict[str, Any]:
    """What a report shows of a round and no other file has. Human labels are in it only as counts, those of the seed.

    Args:
        data: a DataModule that is set up.
        folder: of the run.
        number: of the round.
        seed: (M,) out-of-fold scores of the seed.
    """
    files = round_files(folder, number)
    audit, before = read_audit(files.audit), read_audit(round_files(folder, number - 1).audit) if number else None
    model = read_weights(files.model)
    assert audit is not None
    audit = {name: column[np.isin(audit["pair_id"], data.pair_ids("pool").numpy())] for name, column in audit.items()}
    ids, label, kept = (torch.from_numpy(audit[name].copy()) for name in ("pair_id", "label", "kept"))
    pool, test = data.held_out_labels("pool"), data.pair_ids("test")
    return {
        "round": number,
        "pairs": {split: len(data.pair_ids(split)) for split in ("seed", "pool", "val", "test")},  # type: ignore[arg-type]
        "labels": {
            "pseudo_label_accuracy": pool.count_right(ids[kept], label[kept])[0],
            "pool_accuracy": pool.count_right(ids, label)[0],
            "seed_oof_accuracy": len(seed),
            "test_accuracy": data.held_out_labels("test").count_right(test, torch.ones(len(test)))[0],
        },
        "reliability": reliability(
            *confidence_and_right(seed.margin, data.seed_labels(seed.pair_id), model["temperature"])
        ),
        "length": _length_points(data, audit),
        "readings": (model.get("reading") or {}).get("evidence", []),
        "cards": choose_cards(data, audit, before),
        "fingerprints": {"data": data.state_dict()["fingerprint"], **_hashes(model.get("identity") or {})},
    }


def _hashes(identity: dict[str, Any]) -> dict[str, str]:
    return {name: identity[name] for name in ("base", "template") if name in identity}


def choose_cards(
    data: PreferenceDataModule, audit: dict[str, np.ndarray], before: dict[str, np.ndarray] | None
) -> dict[str, list[dict[str, Any]]]:
    """Pool pairs to read: the surest, the least sure, and the surest of those whose label has flipped.

    Args:
        data: gives their texts, which come without a label.
        audit: (N,) columns of the round's audit.
        before: those of the round before.
    """
    probability = audit["probability"]
    order = np.argsort(np.maximum(probability, 1 - probability), kind="stable")[::-1]
    earlier = np.full(len(probability), np.nan)
    if before is not None:
        _, here, there = np.intersect1d(audit["pair_id"], before["pair_id"], return_indices=True)
        earlier[here] = before["probability"][there]
    # As in the audit: a wins above one half, and nothing has flipped where there was no label.
    flipped = ~np.isnan(earlier) & ((earlier > 0.5) != (probability > 0.5))
    chosen = {"most": order[:NUM_CARDS], "least": order[::-1][:NUM_CARDS], "flipped": order[flipped[order]][:NUM_CARDS]}
    return {
        kind: [
            _card(pair, audit, int(row), float(earlier[row]))
            for row, pair in zip(rows, data.lookup(audit["pair_id"][rows].tolist()), strict=True)
        ]
        for kind, rows in chosen.items()
    }


def _card(pair: PreferencePair, audit: dict[str, np.ndarray], row: int, earlier: float) -> dict[str, Any]:
    prompt = [f"{turn['role']}: {turn['content']}" for turn in pair.prompt]
    return {
        "pair_id": str(pair.pair_id),  # JSON readers other than Python's round such numbers
        "prompt": shorten("\n\n".join(prompt), from_end=True),
        "response_a": shorten(pair.response_a),
        "response_b": shorten(pair.response_b),
        "probability": float(audit["probability"][row]),
        "before": None if np.isnan(earlier) else earlier,
        "label": int(audit["label"][row]),
        "reason": str(audit["reason"][row]),
    }


def shorten(text: str, from_end: bool = False) -> str:
    """A text of at most `MAX_CHARACTERS` and a word on what is missing, which any file can hold.

    Args:
        text: may hold halves of surrogate pairs, as JSON allows; they become question marks.
        from_end: keep the end: of a conversation the last turn matters most.
    """
    text = text.encode("utf-8", "replace").decode()
    cut = len(text) - MAX_CHARACTERS
    if cut <= 0:
        return text
    missing = f"[{cut} more characters]"
    return f"{missing} … {text[cut:]}" if from_end else f"{text[:MAX_CHARACTERS]} … {missing}"


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
