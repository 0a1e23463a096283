"""What a report is made of, read from the folder of a run: `rounds.csv`, audits, notes, config, loss, evaluations.

`rounds/<r>/report.json` holds what only the training process knows: texts of some pairs, how many labels an accuracy
is based on, baselines, versions. A run from before it, or without `ReportCallback`, is read without these.
"""

import csv
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ser_lightning.evaluation.metrics import wilson_interval
from ser_lightning.runs.config import has_secrets, read_config, without_secrets
from ser_lightning.runs.files import (
    CONFIG,
    EVALUATIONS,
    METRICS,
    ROUNDS,
    RoundFiles,
    is_run,
    labels_worth,
    read_json,
    read_rounds,
    reading,
    round_files,
)
from ser_lightning.runs.pair_tables import Audit, read_audit, read_test_scores
from ser_lightning.runs.shapes import COST, EVALUATION, GUARDS, NOTES
from ser_lightning.runs.weights import read_model


@dataclass(frozen=True, eq=False)
class Round:
    """A finished round."""

    row: dict[str, float]
    """Its line of `rounds.csv`."""
    audit: Audit | None
    """What became of every pool pair; None where the file is gone."""
    notes: dict[str, Any]
    """Its `report.json`, empty without one."""
    guards: list[dict[str, Any]] = field(default_factory=list)
    """What drift guards found, empty without any."""
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    """Its `cost.json`, empty without one."""

    @property
    def number(self) -> int:
        """0 for the seed model."""
        return int(self.row["round"])

    def spent(self, what: str) -> dict[str, float]:
        """`tokens` or `seconds` by part; a round from before there were parts has one, `all`."""
        parts = {part: spent[what] for part, spent in self.cost.items()}
        return parts or {"all": self.row[what]}

    def interval(self, column: str) -> tuple[float, float] | None:
        """95 % interval of an accuracy; None where the number of labels it was counted on is unknown."""
        count, share = labels_worth(self.notes).get(column), self.row[column]
        return wilson_interval(share * count, count) if count and share == share else None


@dataclass(frozen=True)
class Run:
    """A run of `rm.yaml`, as far as its rounds are finished."""

    name: str
    path: Path
    config: dict[str, Any]
    config_text: str
    rounds: list[Round]
    losses: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    """(N, 2) optimizer step and training loss."""
    round_ends: list[int] = field(default_factory=list)
    """Optimizer steps at which rounds ended."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Figures of `test` and `validate` on named sets, by name."""

    @property
    def seed_counts(self) -> list[int]:
        """Seed pairs that each round was scored on out of fold, as far as noted; other numbers are other pairs."""
        counts = (r.notes.get("labels", {}).get("seed_oof_accuracy") for r in self.rounds)
        return [count for count in counts if count is not None]

    @property
    def delivered(self) -> Round:
        """The round whose model is handed over, as far as is known."""
        return next((r for r in self.rounds if r.row["delivered"]), self.rounds[-1])

    def before(self, one: Round) -> Round | None:
        """The round before another one; None before the first."""
        place = self.rounds.index(one)
        return self.rounds[place - 1] if place else None


@dataclass(frozen=True)
class Flow:
    """What became of the N pool pairs of a round, held against the round before."""

    kept: np.ndarray
    """(N,) bool."""
    flipped: np.ndarray
    """(N,) bool: has another label than in the round before; False without one."""
    kept_before: np.ndarray
    """(N,) bool."""


def flow_of(now: Audit, before: Audit | None) -> Flow:
    """Compare a round's audit with the one before; pairs that arrived in between have no past."""
    kept = now["kept"]
    flipped, kept_before = np.zeros(len(kept), bool), np.zeros(len(kept), bool)
    if before is not None:
        _, here, there = np.intersect1d(now["pair_id"], before["pair_id"], assume_unique=True, return_indices=True)
        flipped[here] = now["label"][here] != before["label"][there]
        kept_before[here] = before["kept"][there]
    return Flow(kept, flipped, kept_before)


def confidence_of(audit: Audit) -> np.ndarray:
    """(N,) the rule's max(P, 1 - P)."""
    return np.maximum(audit["probability"], 1 - audit["probability"])


def shown_config(run: Path) -> tuple[dict[str, Any], str]:
    """The config of a run and the text of its file, without secrets."""
    config, text = read_config(run), (run / CONFIG).read_text(encoding="utf-8")
    if not has_secrets(config):
        return config, text
    config = without_secrets(config)
    return config, yaml.safe_dump(config, sort_keys=False)


def read_run(path: Path) -> Run:
    """A run with its finished rounds; its delivered model is read as well, since the page vouches for it.

    Raises:
        UserError: it has finished none, or a file in it is damaged.
    """
    rounds = [_read_round(round_files(path, int(row["round"])), row) for row in read_rounds(path)]
    config, text = shown_config(path) if is_run(path) else ({}, "")
    found = Run(path.absolute().name, path, config, text, rounds, *read_losses(path), _read_evaluations(path))
    if (model := round_files(path, found.delivered.number).model).is_file():
        read_model(model)
    return found


def read_losses(path: Path, column: str = "train/loss") -> tuple[np.ndarray, list[int]]:
    """Step and loss of each line of `metrics.csv` that has one, and the steps of the lines of rounds."""
    file = path / METRICS
    losses, ends = [], []
    if file.is_file():
        with reading(file, has_record=False), file.open(newline="", encoding="utf-8") as lines:
            for line in csv.DictReader(lines):
                if line.get(column):
                    losses.append((float(line["step"]), float(line[column])))
                if line.get("select/round"):
                    ends.append(int(float(line["step"])))
    return np.array(losses).reshape(-1, 2), ends


def _read_evaluations(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in EVALUATIONS.values():
        found |= read_json(path / name, EVALUATION)
    return found


def tested_pairs(run: Run) -> frozenset[int] | None:
    """Ids of the test pairs of the delivered round; None where they are not noted."""
    scores = read_test_scores(round_files(run.path, run.delivered.number).test_scores)
    return None if scores is None else frozenset(scores["pair_id"].tolist())


def _read_round(files: RoundFiles, row: dict[str, float]) -> Round:
    notes, guards, cost = read_json(files.notes, NOTES), read_json(files.guards, GUARDS), read_json(files.cost, COST)
    return Round(row, read_audit(files.audit), notes, guards, cost)


def file_hashes(run: Run) -> dict[str, str]:
    """SHA-256 of the files that say what the run is and what it delivered, by their names in the folder."""
    delivered = round_files(run.path, run.delivered.number)
    found = {}
    for path in (run.path / CONFIG, run.path / ROUNDS, delivered.audit, delivered.model):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(run.path).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a config by their dotted keys, without `init_args`; entries of a list count from 0."""
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        children = dict(enumerate(node)).items()
    else:
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in children:
        found |= flat(value, prefix if key == "init_args" else f"{prefix}.{key}" if prefix else str(key))
    return found
