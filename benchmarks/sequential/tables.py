"""Table of the sequential comparison: error rate and cost."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "evaluation.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "discordant", "share")


def sequential_table(found: Sequence[Run]) -> str:
    """One line for each number of discordant pairs and power of the fixed test."""
    rows = [
        [
            str(run["discordant"]),
            "equal models" if run["power"] is None else f"{run['power']:.2f}",
            *(f"{run[name]:.3f}" for name in ("share", "decided")),
            *(f"{run[name]:.2f}" for name in ("median_share", "mean_share")),
        ]
        for run in found
    ]
    header = "discordant pairs|power of the fixed test|share of them won by B|sequential: decides"
    return table([*header.split("|"), "median, share of the pairs", "mean"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"sequential": sequential_table(RESULTS.read())}
