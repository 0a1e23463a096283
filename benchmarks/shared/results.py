"""`results.jsonl` of a study: one run a line, sorted by what identifies a run; and what a run leaves to be kept."""

import csv
import fcntl
import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

Run = dict[str, Any]
PACKAGES = ("torch", "lightning", "transformers", "peft")


class Results:
    """The runs of a study in a file that is always whole: threads, processes and several commands may add to it.

    Args:
        file: `results.jsonl`; it need not exist.
        key: fields that identify a run; lines are sorted by them.
    """

    def __init__(self, file: Path, *key: str) -> None:
        self.file, self.key = file, key

    def read(self) -> list[Run]:
        """All runs, in the order of the file."""
        if not self.file.is_file():
            return []
        return [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]

    def by_condition(self, **fields: Any) -> dict[str, dict[int, Run]]:
        """Runs by `condition` and `seed`: those that have these fields."""
        found: dict[str, dict[int, Run]] = defaultdict(dict)
        for run in self.read():
            if fields.items() <= run.items():
                found[run["condition"]][run["seed"]] = run
        return found

    def __contains__(self, task: tuple[Any, ...]) -> bool:
        return task in {self._key_of(run) for run in self.read()}

    def missing(self, tasks: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The tasks, each the key of a run, that have no line yet."""
        known = {self._key_of(run) for run in self.read()}
        return [task for task in tasks if task not in known]

    def add(self, *runs: Run) -> None:
        """Write runs, each in place of the line with its key if there is one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.file.parent):
            found = {self._key_of(run): run for run in (*self.read(), *runs)}
            whole = self.file.with_name(f"{self.file.name}.{os.getpid()}.new")
            whole.write_text("".join(json.dumps(found[key]) + "\n" for key in sorted(found)), encoding="utf-8")
            os.replace(whole, self.file)

    def _key_of(self, run: Run) -> tuple[Any, ...]:
        return tuple(run[name] for name in self.key)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: the file in it is replaced, so it cannot carry the lock itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which unlocks


def read_figures(file: Path) -> list[dict[str, float]]:
    """The rows of `rounds.csv` or `steps.csv`, without empty fields."""
    with file.open(newline="") as stream:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]


def delivered(run: Run) -> dict[str, float]:
    """The round whose model the run delivered."""
    return next(row for row in run["rounds"] if row["delivered"])


def versions(*names: str) -> dict[str, str]:
    """Installed versions of packages."""
    return {name: version(name) for name in names or PACKAGES}


def machine() -> dict[str, Any]:
    """What times depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"processor": name or platform.machine(), "cores": os.cpu_count(), "threads": 1, "load": os.getloadavg()[0]}
