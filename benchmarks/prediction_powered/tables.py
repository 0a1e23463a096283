"""Table of the simulation: coverage and width of the intervals with unlabelled pairs."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "evaluation.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition")
NAMES = {"accuracy_a": "accuracy of A", "accuracy_b": "accuracy of B", "difference": "B less A"}


def coverage_table(found: Sequence[Run]) -> str:
    """A line for each condition and figure."""
    rows = [
        [
            *(run["condition"], NAMES[one["figure"]], f"{one['used']:.2f}"),
            f"{one['width'] / one['labels_width']:.3f}",
            *(f"{one[name]:.3f}" for name in ("covered", "labels_covered")),
            f"{one['error']:+.3f}",
        ]
        for run in found
        for one in run["figures"]
    ]
    header = (
        "condition|figure|unlabelled pairs used|width, over labels alone|coverage|of labels alone|estimate minus truth"
    )
    return table(header.split("|"), rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    runs = sorted(RESULTS.read(), key=lambda run: run["number"])
    return {"coverage": coverage_table(runs)}
