"""The folder of a run: whose it is, how it is resumed, and what is written into it without ever overwriting.

    runs/<name>/config.yaml        the resolved config; replaying it in another folder repeats the run
                config-2.yaml      the config of a later start where it differs from `config.yaml`
                metrics.csv        every logged metric; metrics-test.csv and so on for the other commands
                checkpoints/       `last.ckpt`, `previous.ckpt`, and what other checkpoint callbacks save

Resuming appends to `metrics.csv`. Rows between the last checkpoint and the end of the run stay and are logged again:
of two rows with the same step the later one counts.
"""

import csv
import fcntl
import io
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ser_lightning.errors import UserError, raise_problems
from ser_lightning.runs.config import has_secrets, parse_yaml
from ser_lightning.runs.files import CONFIG, is_run, run_above
from ser_lightning.training.checkpoints import LAST, find_checkpoint
from ser_lightning.utils.atomic import is_running, write_text_atomically

RUNS = Path("runs")
"""Where a run goes that is given no folder."""
LOCK = ".lock"
RUN_DIR_VARIABLE = "SER_LIGHTNING_RUN_DIR"
"""Rank 0 leaves the folder's name here for the ranks that Lightning's launcher starts with the same command."""

FREE_ON_RESUME = tuple(
    f"trainer.{name}"
    for name in (
        *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
        *("accelerator", "strategy", "devices", "num_nodes"),
        *("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "profiler"),
    )
)
"""What a resumed run may set anew: when to stop, where to run, what to show. All else would make it another run."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes and the checkpoint that it starts from."""

    path: Path
    ckpt_path: str | None
    continues: bool
    """Whether the folder's own training goes on in it, so that its config must be the same."""

    def open(self, config: str) -> None:
        """Create the folder and record the resolved config in it, next to the ones of the run that is there."""
        if not holds_run(self.path):
            clear(self.path)
        for name in itertools.chain([CONFIG], (f"config-{n}.yaml" for n in itertools.count(2))):
            path = self.path / name
            if not path.exists():
                write_text_atomically(path, config, mode=0o600 if has_secrets(parse_yaml(config)) else None)
                return
            if path.read_text() == config:
                return

    def check_same_config(self, config: str) -> None:
        """`UserError` where a resumed run would not be the run that the folder holds."""
        recorded = self.path / CONFIG
        if not self.continues or not recorded.exists():
            return
        old, new = (dict(_flatten(parse_yaml(text))) for text in (recorded.read_text(), config))
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k) and not k.startswith(FREE_ON_RESUME)]
        if changed:
            shown = ", ".join(f"{k} was {old.get(k)!r} and is {new.get(k)!r}" for k in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(
                f"run folder {self.path}: its config differs: {shown}{more}; resume without --config to use "
                f"{recorded}, or start another run with another --run_dir"
            )


def recorded_config(run_dir: str | None, ckpt_path: str | None, names_model: bool) -> Path | None:
    """The config of the run that a command without `--config` goes on with or reads a checkpoint of.

    Args:
        ckpt_path: a checkpoint, `last` or `auto`.
        names_model: whether the command line names a model, and so needs no such config.

    Raises:
        UserError: it needs one, and names a run that is not there or no checkpoint of one that is.
    """
    folder = Path(run_dir) if run_dir else None
    if ckpt_path and ckpt_path not in ("last", "auto"):
        folder = run_of(Path(ckpt_path)) if Path(ckpt_path).exists() else None
    if ckpt_path and folder and is_run(folder):
        return folder / CONFIG
    if not names_model:
        raise_problems(_no_run(run_dir, ckpt_path))
    return None


def _no_run(run_dir: str | None, ckpt_path: str | None) -> Iterator[str]:
    if ckpt_path and ckpt_path not in ("last", "auto"):
        is_there = Path(ckpt_path).exists()
        what = "lies in no folder of a run; give its config with --config" if is_there else "does not exist; check it"
        yield f"--ckpt_path: got {ckpt_path}, which {what}"
    elif ckpt_path and not run_dir:
        yield f"--ckpt_path: got {ckpt_path} without a run; name its folder with --run_dir"
    elif run_dir and is_run(Path(run_dir)):
        yield f"--run_dir: got {run_dir}, which holds a run; add --ckpt_path last"
    elif run_dir and ckpt_path:
        yield f"--run_dir: got {run_dir}, which holds no run; check its name, or start one with --config rm.yaml"


def choose_folder(command: str, run_dir: str | None, ckpt_path: str | None, stem: str) -> RunFolder:
    """The folder of a run that is about to start: a new one, or the one it resumes; `UserError` if it is taken.

    Args:
        command: `fit`, or a command that only reads a checkpoint.
        ckpt_path: a checkpoint, `last` for the folder's own, `auto` for that if there is one, None to start anew.
        stem: name of the config, the first half of a new folder's name.
    """
    folder = Path(run_dir) if run_dir else None
    if folder and folder.exists() and not is_run(folder) and (not folder.is_dir() or _holds_files(folder)):
        raise UserError(f"--run_dir: got {folder}, which is not the folder of a run; give a new or an empty folder")
    if ckpt_path is None:
        if folder and holds_run(folder):
            raise UserError(
                f"--run_dir: got {folder}, which holds a run; go on with --ckpt_path last or name another folder"
            )
        return RunFolder(folder or _new_folder(stem), None, continues=False)
    checkpoint = find_checkpoint(folder, ckpt_path)
    if checkpoint is None:
        assert folder is not None
        return RunFolder(folder, None, continues=command == "fit" and holds_run(folder))
    owner = run_of(checkpoint)
    if folder is None:
        folder = owner or _new_folder(stem)
    is_own = owner is not None and folder.resolve() == owner.resolve()
    if command == "fit" and not is_own and is_run(folder):
        if not (folder / LAST).exists():  # a branch that broke off before its first checkpoint
            return RunFolder(folder, str(checkpoint), continues=True)
        raise UserError(
            f"--run_dir: got {folder}, which holds another run than {checkpoint}; name a new folder to branch off"
        )
    return RunFolder(folder, str(checkpoint), continues=command == "fit" and is_own)


def holds_run(folder: Path) -> bool:
    """Whether a run has saved anything there: a config and the metrics of a few steps are a start that failed."""
    return is_run(folder) and any(path.is_file() and not _is_of_start(path) for path in folder.rglob("*"))


def clear(folder: Path) -> None:
    """Take away what a start that failed has left."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file() and _is_of_start(path) and path.name != LOCK:
            path.unlink()


def _is_of_start(path: Path) -> bool:
    is_first = path.name == LOCK or re.fullmatch(r"config(-\d+)?\.yaml|metrics\.csv", path.name) is not None
    return is_first or _is_draft(path) or path.suffix == ".new"


def lock(folder: Path) -> IO[str]:
    """Make this process the only one that trains in a folder, until the file is closed or the process ends.

    Raises:
        UserError: another process trains in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"--run_dir: got {folder}, in which {owner} trains; wait until it ends, or name another folder"
        ) from None
    except OSError:  # a file system without locks
        return file
    if not (folder / LOCK).exists() or not os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
        file.close()  # its last owner has just taken it away
        return lock(folder)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    for path in folder.rglob("*"):  # what a killed process has left; nobody else writes here
        if path.suffix == ".new" or (_is_draft(path) and not is_running(int(path.suffix[1:]))):
            path.unlink(missing_ok=True)
    return file


def unlock(file: IO[str]) -> None:
    """Let others train in the folder; one in which nothing came to be goes away."""
    Path(file.name).unlink(missing_ok=True)
    _remove_empty(Path(file.name).parent)
    file.close()


def tidy(folder: Path) -> None:
    """Take away what a start that failed has left, unless another process is about to train there."""
    if not folder.is_dir() or holds_run(folder) or (folder / LOCK).exists():
        return
    if not (folder / "metrics.csv").exists():  # a few losses may say what went wrong
        clear(folder)
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        if folder.parent == RUNS and not any(RUNS.iterdir()):
            RUNS.rmdir()


def _is_draft(path: Path) -> bool:
    """Whether `utils.atomic` was writing it."""
    return re.fullmatch(r"\..+\.\d+", path.name) is not None and path.is_file()


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint lies in, directly or in `checkpoints/`."""
    run, here = run_above(checkpoint, levels=2), Path.cwd()
    return run.relative_to(here) if run and run.is_relative_to(here) else run


def _holds_files(folder: Path) -> bool:
    return any(not _is_of_start(path) for path in folder.iterdir())


def _new_folder(stem: str) -> Path:
    name = RUNS / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    taken = (name, *(name.with_name(f"{name.name}-{n}") for n in range(2, 10_000)))
    return next(folder for folder in taken if not folder.exists())


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a config by their dotted keys; lists count as leaves."""
    if not isinstance(node, dict) or not node:
        yield prefix, node
        return
    for key, value in node.items():
        yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))


class MetricsFile(Logger):
    """Appends every metric to one CSV file as it is logged, also when a run goes on in the same folder.

    Lightning's own `CSVLogger` deletes the file of a folder that it finds in use, and holds rows back.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """Nothing: the file lies directly in the run folder."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: a run folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """Nothing to talk to but the file."""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` has them all."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row."""
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        exists = self.path.exists()
        if exists and not self._columns:
            with self.path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            self._write(self._read() if exists else [])
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _read(self) -> list[dict[str, str]]:
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, str]]) -> None:
        """The whole file under the present columns, at once."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomically(self.path, text.getvalue())
