"""The files of a run folder: their names, and, with `pair_tables.py`, the one place where each is read and written.

    config.yaml              the resolved config
    rounds.csv               a line for each round of self-evolution
    advice.json              what more labels and another round are forecast to gain
    rounds/<r>/              model.pt, audit.parquet, test.parquet, cost.json, guards.json, report.json, drift.json
    checksums.json           beside rounds.csv and in each round's folder: what these files are
    checkpoints/last.ckpt    where the run goes on
    report.html, steps.csv, samples/<step>.jsonl, export/

`docs/metrics.md` defines the columns and keys. Every reader checks what it reads: the checksum, the names, that numbers
are numbers. What does not fit is a `UserError` that names the file.
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
import torch
import yaml

from ser_lightning.errors import UserError, describe
from ser_lightning.runs.shapes import COST_PARTS, IDENTITY, LARGE, NUMBER, READING, Shape, check_shape
from ser_lightning.training.checkpoints import is_whole
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
    with reading(file, has_record=False):
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"no YAML: {' '.join(str(error).split())[:200]}") from error
        if not isinstance(config, dict):
            raise UserError(f"run: {file} holds no config; give the folder of a fit")
        _check_size(config)
    return config


_MAX_NODES = 100_000
"""Of a config; one that refers to itself, or to the same part again and again, would have no end."""


def _check_size(config: Any) -> None:
    waiting, seen = [config], 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        if seen > _MAX_NODES:
            raise ValueError(f"it has more than {_MAX_NODES:,} values")
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []


def setting(run: Path, *keys: str) -> dict[str, Any]:
    """A table in a run's config.

    Args:
        run: the run folder.
        keys: that lead to the table.

    Raises:
        UserError: there is none.
    """
    table: Any = read_config(run)
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UserError(f"run: {run / CONFIG} has no table {'.'.join(keys)}; give the folder of a fit")
    return table


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
    """The lines of `rounds.csv`, by column.

    Raises:
        UserError: the run has finished no round, or the table is damaged.
    """
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


def write_weights(file: Path, content: Mapping[str, Any]) -> None:
    """Weights and plain values by name, as a round's `model.pt` holds them, or the state at the end of a phase."""
    write_recorded(file, lambda stream: torch.save(content, stream))


def read_weights(file: Path) -> dict[str, Any]:
    """What a round's `model.pt` or a checkpoint holds, as data: nothing in it is run.

    Raises:
        UserError: it is damaged, or holds more than tensors and plain values.
    """
    with reading(file):
        if not is_whole(file):
            raise ValueError("it is cut off, changed, or none")
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # the reader of tensors fails on damage in every way there is
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
            raise ValueError(f"no tensors and plain values: {reason}") from error
        if not isinstance(saved, dict):
            raise ValueError(f"it holds a {type(saved).__name__}, no weights by name")
    return saved


def read_model(file: Path) -> dict[str, Any]:
    """`weights`, `zero`, `temperature`, `identity` and `reading` of a round's `model.pt`.

    Raises:
        UserError: it is damaged.
    """
    saved = read_weights(file)
    check_model(file, saved)
    return {"identity": None, "reading": None, **saved}


def check_model(file: Path, saved: Mapping[str, Any]) -> None:
    """`UserError` where weights, scale or identity of a reward model are none.

    Args:
        file: where they stand.
        saved: what a `model.pt` holds.
    """
    with reading(file, has_record=False):
        if missing := {"weights", "zero", "temperature"} - saved.keys():
            raise ValueError(f"it holds no {min(missing)}")
        _check_tensors(saved["weights"])
        if not saved["weights"]:
            raise ValueError("it holds no weights")
        if problem := scale_problem(saved["zero"], saved["temperature"]):
            raise ValueError(problem)
        if saved.get("identity") is not None:
            check_shape(saved["identity"], IDENTITY, "identity")
        if saved.get("reading") is not None:
            check_shape(saved["reading"], READING, "reading")


def check_weights(file: Path, weights: Any, what: str = "run") -> None:
    """`UserError` where the weights in a file of a `run` or a `model` are no finite tensors by name."""
    with reading(file, has_record=False, what=what):
        _check_tensors(weights)


def _check_tensors(weights: Any) -> None:
    """`ValueError` where these are no finite tensors by name."""
    if not isinstance(weights, dict):
        raise ValueError("it holds no weights by name")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name} is no tensor")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} has NaN or infinity in it")


def scale_problem(zero: Any, temperature: Any) -> str | None:
    """What is wrong with the scale of a reward model; None where nothing is."""
    numbers = [type(value) in NUMBER and abs(value) < LARGE for value in (zero, temperature)]
    if all(numbers) and temperature > 0:
        return None
    return f"it has the zero {zero!r} and the temperature {temperature!r}; need finite numbers, the second above 0"


def labels_before(run: Path, round: int | None = None) -> int:
    """How many labels of its own the model of a round was trained on: what the round before it kept.

    Args:
        run: run folder.
        round: None = the last one that the run has begun.
    """
    kept = [int(row["kept"]) for row in read_rounds(run) if round is None or int(row["round"]) == round - 1]
    return kept[-1] if kept else 0


def write_cost(path: Path, cost: Mapping[str, Mapping[str, float]]) -> None:
    """Tokens and seconds of a round, for each of `COST_PARTS` that it had.

    Args:
        path: JSON file to write.
        cost: by part `tokens` and `seconds`.
    """
    lines = {part: {**cost[part], "seconds": round(cost[part]["seconds"], 3)} for part in COST_PARTS if part in cost}
    write_json(path, lines)


def write_json(path: Path, content: Any) -> None:
    """Notes, guards, cost or drift of a round, or the advice of a run."""
    text = json.dumps(content, indent=1) + "\n"
    write_recorded(path, lambda file: file.write(text.encode()))


def read_json(path: Path, shape: Shape) -> Any:
    """What `write_json` wrote; nothing of its kind where there is no file.

    Args:
        path: the file.
        shape: `NOTES`, `GUARDS`, `COST` or `ADVICE`.

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
