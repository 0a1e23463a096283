"""Table of the peak memory of an RL step's models."""

from pathlib import Path

from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "rl.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "device")
NAMES = {"shared": "one base with adapters", "separate": "four models"}


def memory_table(run: Run) -> str:
    """Peak memory of the RL models both ways, and what of it is no model."""
    rows = []
    for way, name in NAMES.items():
        found = run["ways"][way]
        memory = [f"{found[kind]:.0f} MiB" for kind in ("peak_mib", "code_mib")]
        rows.append([name, f"{found['parameters'] / 1e6:.0f}M", *memory])
    return table(["", "weights in memory", "peak memory", "of it code and libraries"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"memory": memory_table(next(run for run in RESULTS.read() if run["device"] == "cpu"))}
