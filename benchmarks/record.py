"""Keep a run's table of rounds as JSON: `python benchmarks/record.py RUN benchmarks/real/NAME.json "COMMAND"`."""

import csv
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "lightning", "transformers", "peft")


def read_figures(file: Path) -> list[dict[str, float]]:
    """The rows of a CSV table of figures; empty cells are left out."""
    with file.open(newline="") as stream:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]


def record(run: Path, command: str) -> dict:
    """What `rounds.csv` says, with the command and the versions."""
    return {
        "command": command,
        "rounds": read_figures(run / "rounds.csv"),
        "machine": {"processor": platform.machine()},
        "versions": {name: version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    source, target, text = sys.argv[1:]
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(record(Path(source), text), indent=1) + "\n")
