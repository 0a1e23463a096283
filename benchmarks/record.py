"""Keep a run's table of rounds as JSON: `python benchmarks/record.py RUN benchmarks/real/NAME.json "COMMAND"`."""

import csv
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "lightning", "transformers", "peft")


def record(run: Path, command: str) -> dict:
    """What `rounds.csv` says, with the command and the versions."""
    with (run / "rounds.csv").open(newline="") as file:
        rounds = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return {
        "command": command,
        "rounds": rounds,
        "machine": {"processor": platform.machine()},
        "versions": {name: version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    source, target, text = sys.argv[1:]
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(record(Path(source), text), indent=1) + "\n")
