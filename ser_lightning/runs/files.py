"""The files of a run folder: their names, and the one place where each is read and written.

    config.yaml              the resolved config
    rounds.csv               a line for each round of self-evolution
    rounds/<r>/              model.pt, audit.parquet, test.parquet, cost.json, guards.json, report.json, drift.json
    checkpoints/last.ckpt    where the run goes on
    report.html, steps.csv, samples/<step>.jsonl, export/

`docs/metrics.md` defines the columns and keys.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from ser_lightning.errors import UserError
from ser_lightning.evolution.selection import SelectionResult
from ser_lightning.records import PairScores
from ser_lightning.utils.atomic import write_atomically, write_text_atomically

CONFIG = "config.yaml"
ROUNDS = "rounds.csv"
STEPS = "steps.csv"
PAGE = "report.html"
SAMPLES = "samples"
EXPORT = "export"

COST_PARTS = {
    "features": "features",
    "train_folds": "folds, training",
    "train_main": "main, training",
    "score_seed": "out of fold",
    "score_pool": "labelling",
    "score_test": "test",
    "other": "other",
}
"""What a round spends tokens and seconds on; names in its `cost.json` and in a report."""
Audit = dict[str, np.ndarray]
"""Columns of an audit file, (N,) each, in the order of `pair_id`."""
_REASONS = ("kept", "not sure enough")


@dataclass(frozen=True)
class RoundFiles:
    """Where a round leaves its files."""

    folder: Path

    @property
    def model(self) -> Path:
        """Trained weights, scale and fingerprint of the round's model."""
        return self.folder / "model.pt"

    @property
    def audit(self) -> Path:
        """What became of every pool pair."""
        return self.folder / "audit.parquet"

    @property
    def test_scores(self) -> Path:
        """Rewards of the test pairs."""
        return self.folder / "test.parquet"

    @property
    def cost(self) -> Path:
        """Tokens and seconds by part."""
        return self.folder / "cost.json"

    @property
    def guards(self) -> Path:
        """What drift guards found."""
        return self.folder / "guards.json"

    @property
    def notes(self) -> Path:
        """What only the training process knows of the round, for its report."""
        return self.folder / "report.json"

    @property
    def drift(self) -> Path:
        """How pairs that arrived before the round differ from the earlier ones."""
        return self.folder / "drift.json"

    def phase(self, fold: int | None) -> Path:
        """Weights and optimiser state at the end of a phase; None is the main one."""
        return self.folder / f"phase_{'main' if fold is None else fold}.pt"


def round_files(run: str | Path, number: int) -> RoundFiles:
    """The files of one round of a run."""
    return RoundFiles(rounds_folder(run) / str(number))


def rounds_folder(run: str | Path) -> Path:
    """Where a run keeps the folders of its rounds."""
    return Path(run) / "rounds"


def is_run(folder: Path) -> bool:
    """Whether `folder` is the folder of a run."""
    return (folder / CONFIG).is_file()


def run_above(file: Path, name: str = CONFIG, levels: int = 3) -> Path | None:
    """The nearest folder above a file, at most so many levels up, that holds a run's `name`; None without one."""
    return next((folder for folder in [*file.absolute().parents][:levels] if (folder / name).is_file()), None)


# The config.


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config of a run.

    Raises:
        UserError: the folder has none, or it is no mapping.
    """
    file = run / CONFIG
    if not file.is_file():
        raise UserError(f"run: {run} has no {CONFIG}; give the folder of a fit")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"run: {file} is no YAML file ({reason}); is it damaged?") from error
    if not isinstance(config, dict):
        raise UserError(f"run: {file} holds no config; give the folder of a fit")
    return config


SECRET_KEYS = ("url", "token", "key", "secret", "password", "authorization")
HIDDEN = "(hidden)"


def without_secrets(config: Any) -> Any:
    """A config for others to read: what lies under keys such as `url` or `api_key` is hidden."""
    if isinstance(config, dict):
        return {k: HIDDEN if _is_secret(k, value) else without_secrets(value) for k, value in config.items()}
    return [without_secrets(item) for item in config] if isinstance(config, list) else config


def has_secrets(config: Any) -> bool:
    """Whether `without_secrets` would hide anything."""
    return bool(without_secrets(config) != config)


def _is_secret(key: Any, value: Any) -> bool:
    """The last word of the key tells; the name of an environment variable is no secret."""
    is_named = str(key).lower().replace("-", "_").rpartition("_")[2] in SECRET_KEYS
    return is_named and isinstance(value, str) and bool(value) and not value.startswith("$")


# Rounds.


@dataclass
class RoundRow:
    """One line of `rounds.csv`; round 0 is the seed model. `docs/metrics.md` defines the columns."""

    round: int
    scored: int
    kept: int
    flipped: int
    status: int
    pseudo_label_accuracy: float
    pool_accuracy: float
    seed_oof_accuracy: float
    test_accuracy: float
    calibration_error: float
    length_correlation: float
    tokens: int
    seconds: float
    delivered: bool
    net_label_change: float = math.nan
    forecast_accuracy: float = math.nan
    forecast_low: float = math.nan
    forecast_high: float = math.nan
    forecast_error: float = math.nan
    predicted_gain: float = math.nan
    predicted_last_round: float = math.nan

    def figures(self) -> dict[str, float]:
        """The columns by their logger names, `select/...`."""
        return {f"select/{f.name}": float(getattr(self, f.name)) for f in fields(self)}


def how_delivered(seed_accuracies: Iterable[float]) -> str:
    """How the delivered round was chosen, by the accuracies out of fold of all rounds."""
    is_judged = any(accuracy == accuracy for accuracy in seed_accuracies)
    return "chosen out of fold on the seed" if is_judged else "the last round, unjudged: there were no folds"


def write_rounds(run: str | Path, rows: Sequence[RoundRow]) -> None:
    """The whole table again, so that `delivered` is true in every line."""
    names = [f.name for f in fields(RoundRow)]
    lines = [names, *([_cell(getattr(row, name)) for name in names] for row in rows)]
    write_text_atomically(Path(run) / ROUNDS, "".join(",".join(line) + "\n" for line in lines))


def read_rounds(run: Path) -> list[dict[str, float]]:
    """The lines of `rounds.csv`, by column.

    Raises:
        UserError: the run has finished no round, or the table is damaged.
    """
    file = run / ROUNDS
    if not file.is_file():
        raise UserError(f"run: {run} has no {ROUNDS}; give the folder of a fit that has finished round 0")
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(lines)]
    except (ValueError, TypeError) as error:
        raise UserError(f"run: cannot read {file} ({error}); is it damaged?") from error
    if rows and [row.get("round") for row in rows] != [*range(len(rows))]:
        raise UserError(f"run: {file} does not count its rounds from 0; is it damaged?")
    if not rows:
        raise UserError(f"run: {file} has no line; give the folder of a fit that has finished round 0")
    return rows


def delivered_round(run: Path) -> int:
    """The round that `rounds.csv` marks as delivered.

    Raises:
        UserError: the run has finished no round, or none is marked.
    """
    found = [int(row["round"]) for row in read_rounds(run) if row.get("delivered")]
    if len(found) != 1:
        marked = f"{len(found)} rounds" if found else "no round"
        raise UserError(f"run: {run / ROUNDS} marks {marked} as delivered; is it damaged?")
    return found[0]


def read_weights(file: Path) -> dict[str, Any]:
    """What a round's `model.pt` or a checkpoint holds, as data: nothing in it is run.

    Raises:
        UserError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of tensors fails on damage in every way there is
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"run: cannot read {file} as tensors and plain values ({reason}); is it damaged?") from error
    if not isinstance(saved, dict):
        raise UserError(f"run: {file} holds a {type(saved).__name__}, no weights by name; is it damaged?")
    return saved


def check_scale(file: Path, zero: Any, temperature: Any) -> None:
    """`UserError` where the scale of rewards is none."""
    numbers = [isinstance(v, (int, float)) and math.isfinite(v) for v in (zero, temperature)]
    if not all(numbers) or temperature <= 0:
        raise UserError(f"run: {file} has the zero {zero!r} and the temperature {temperature!r}; is it damaged?")


def labels_before(run: Path, round: int | None = None) -> int:
    """How many labels of its own the model of a round was trained on: what the round before it kept.

    Args:
        run: run folder.
        round: None = the last one that the run has begun.
    """
    kept = [int(row["kept"]) for row in read_rounds(run) if round is None or int(row["round"]) == round - 1]
    return kept[-1] if kept else 0


def write_audit(path: Path, pool: PairScores, result: SelectionResult) -> None:
    """One line for every pool pair: its rewards, its label and whether it was kept.

    Args:
        path: Parquet file to write.
        pool: (N,) scores.
        result: (N,) the rule's result.
    """
    columns = {
        "pair_id": pool.pair_id.numpy(),
        "reward_a": pool.reward_a.numpy(),
        "reward_b": pool.reward_b.numpy(),
        "probability": result.prob_a.numpy(),
        "label": result.label.numpy(),
        "kept": result.keep.numpy(),
        "reason": np.where(result.keep.numpy(), *_REASONS),
    }
    write_atomically(path, lambda file: pq.write_table(pa.table(columns), file))


def read_audit(path: Path) -> Audit | None:
    """The columns of an audit file; None where there is none."""
    if not path.is_file():
        return None
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def write_test_scores(path: Path, test: PairScores) -> None:
    """The rewards of the test pairs, without labels: what a paired comparison of rounds or runs needs.

    Args:
        path: Parquet file to write.
        test: (N,) scores.
    """
    columns = {name: getattr(test, name).numpy() for name in ("pair_id", "reward_a", "reward_b")}
    write_atomically(path, lambda file: pq.write_table(pa.table(columns), file))


def write_cost(path: Path, cost: Mapping[str, Mapping[str, float]]) -> None:
    """Tokens and seconds of a round, for each of `COST_PARTS` that it had.

    Args:
        path: JSON file to write.
        cost: by part `tokens` and `seconds`.
    """
    lines = {part: {**cost[part], "seconds": round(cost[part]["seconds"], 3)} for part in COST_PARTS if part in cost}
    write_json(path, lines)


def write_json(path: Path, content: Any) -> None:
    """Notes, guards, cost or drift of a round."""
    write_text_atomically(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path, default: Any) -> Any:
    """What `write_json` wrote; `default` where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def _cell(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
