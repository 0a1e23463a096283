"""The files of a run folder: their names, how each is read, and the tables and JSON files of its rounds.

    config.yaml              the resolved config
    rounds.csv               a line for each round of self-evolution
    advice.json              what more labels and another round are forecast to gain
    rounds/<r>/              model.pt, audit.parquet, test.parquet, cost.json, guards.json, report.json, drift.json
    checksums.json           beside rounds.csv and in each round's folder: what these files are
    checkpoints/last.ckpt    where the run goes on
    report.html, steps.csv, samples/<step>.jsonl, export/

`docs/metrics.md` defines the columns and keys. Every reader checks what it reads: the checksum, the names, that numbers
are numbers. What does not fit is a `UserError` that names the file. `config.py`, `weights.py` and `pair_tables.py` hold
the others.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from ser_lightning.errors import UserError, describe
from ser_lightning.runs.shapes import COST_PARTS, Shape, check_shape
from ser_lightning.utils.checksums import CHECKSUMS, fits_record, write_recorded

CONFIG = "config.yaml"
ROUNDS = "rounds.csv"
STEPS = "steps.csv"
PAGE = "report.html"
METRICS = "metrics.csv"
EVALUATIONS = {command: f"evaluation-{command}.json" for command in ("validate", "test")}
ADVICE = "advice.json"
SAMPLES = "samples"
EXPORT = "export"


class RoundFiles:
    """Where a round leaves its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model.pt"
        """Trained weights, scale and fingerprint of the round's model."""
        self.audit = folder / "audit.parquet"
        """What became of every pool pair."""
        self.test_scores = folder / "test.parquet"
        """Rewards of the test pairs."""
        self.cost = folder / "cost.json"
        """Tokens and seconds by part."""
        self.guards = folder / "guards.json"
        """What drift guards found."""
        self.notes = folder / "report.json"
        """What only the training process knows of the round, for its report."""
        self.drift = folder / "drift.json"
        """How pairs that arrived before the round differ from the earlier ones."""

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


def first_round(teacher: str | None) -> str:
    """What round 0 is, in a run with or without `data.teacher`."""
    return f"the student of {teacher}: seed and its pseudo-labels" if teacher else "the seed model"


def write_rounds(run: str | Path, rows: Sequence[RoundRow]) -> None:
    """The whole table again, so that `delivered` is true in every line."""
    names = [f.name for f in fields(RoundRow)]
    lines = [names, *([_cell(getattr(row, name)) for name in names] for row in rows)]
    text = "".join(",".join(line) + "\n" for line in lines)
    write_recorded(Path(run) / ROUNDS, lambda file: file.write(text.encode()))


def read_rounds(run: Path) -> list[dict[str, float]]:
    """The lines of `rounds.csv`, by column; `UserError` if the run has finished no round, or the table is damaged."""
    file = run / ROUNDS
    if not file.is_file():
        raise UserError(f"run: {run} has no {ROUNDS}; give the folder of a fit that has finished round 0")
    with reading(file):
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(lines, strict=True)]
        if not rows:
            raise UserError(f"run: {file} has no line; give the folder of a fit that has finished round 0")
        for number, row in enumerate(rows):
            _check_row(number, row)
    return rows


def labels_worth(notes: Mapping[str, Any]) -> dict[str, float]:
    """For each accuracy of a round, by its column, how many independent labels it was counted on.

    Args:
        notes: its `report.json`; of earlier versions, pairs of one prompt count as independent.
    """
    return {**notes.get("labels", {}), **notes.get("effective_labels", {})}


_COUNTS = ("round", "scored", "kept", "flipped", "status", "tokens", "seconds", "delivered")
"""Columns of `rounds.csv` that are numbers in any case; an accuracy is NaN where there is nothing to count."""


def _check_row(number: int, row: Mapping[str, float]) -> None:
    """`ValueError` where a line of `rounds.csv` cannot be what was written."""
    if missing := [f.name for f in fields(RoundRow) if f.default is MISSING and f.name not in row]:
        raise ValueError(f"no column {missing[0]}")
    if row["round"] != number:
        raise ValueError("it does not count its rounds from 0")
    if wrong := [name for name in _COUNTS if not 0 <= row[name] < math.inf]:
        raise ValueError(f"the {wrong[0]} of round {number} is {row[wrong[0]]}")
    shares = [name for name in row if name.endswith("_accuracy")]
    if wrong := [name for name, value in row.items() if math.isinf(value) or (name in shares and not _is_share(value))]:
        raise ValueError(f"the {wrong[0]} of round {number} is {row[wrong[0]]}")


def _is_share(value: float) -> bool:
    return math.isnan(value) or 0 <= value <= 1


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


def labels_before(run: Path, round: int | None = None) -> int:
    """How many labels of its own the model of a round was trained on: what the round before it kept.

    Args:
        round: None = the last one that the run has begun.
    """
    kept = [int(row["kept"]) for row in read_rounds(run) if round is None or int(row["round"]) == round - 1]
    return kept[-1] if kept else 0


def write_cost(path: Path, cost: Mapping[str, Mapping[str, float]]) -> None:
    """Tokens and seconds of a round, for each of `COST_PARTS` that it had."""
    lines = {part: {**cost[part], "seconds": round(cost[part]["seconds"], 3)} for part in COST_PARTS if part in cost}
    write_json(path, lines)


def write_json(path: Path, content: Any) -> None:
    """Notes, guards, cost or drift of a round, or the advice of a run."""
    text = json.dumps(content, indent=1) + "\n"
    write_recorded(path, lambda file: file.write(text.encode()))


def read_json(path: Path, shape: Shape) -> Any:
    """What `write_json` wrote; nothing of its kind where there is no file.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return [] if isinstance(shape, list) else {}
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        check_shape(content, shape, "it")
    return content


@contextmanager
def reading(file: Path, has_record: bool = True, what: str = "run") -> Iterator[None]:
    """Whatever goes wrong with a file, or is wrong with it, names the file."""
    try:
        if has_record and not fits_record(file):
            raise ValueError(f"its checksum is not the one in {CHECKSUMS}")
        yield
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, OSError, RecursionError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # it is the disk, or nobody may read it
        reason = str(error) if type(error) is ValueError else describe(error)
        raise UserError(f"{what}: cannot read {file} ({reason}); is it damaged?") from error


def _cell(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
