"""The table of rounds of the run on HH-RLHF with MiniLM-L6."""

from pathlib import Path

from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "results.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed")


def run_table(run: Run) -> str:
    """The table of rounds of one run, as it stands in `rounds.csv`."""
    names = [name for name in run["rounds"][0] if name != "seconds"]
    return table(names, [[f"{row[name]:.4g}" for name in names] for row in run["rounds"]])


def tables() -> dict[str, str]:
    """All tables by name."""
    return {run["condition"]: run_table(run) for run in RESULTS.read()}
