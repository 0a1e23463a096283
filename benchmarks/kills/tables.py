"""Table of runs that were killed and resumed."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "howto/resume.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "number")


def kills_table(kills: Sequence[Run]) -> str:
    """One line a kill, in the order of the moments."""
    rows = [
        [
            f"{kill['moment']:.0%} of the run",
            kill["resumed_from"],
            "other " + ", ".join(kill["differs"]) if kill["differs"] else "the same",
        ]
        for kill in sorted(kills, key=lambda kill: kill["moment"])
    ]
    return table(["killed at", "resumed from", "ends with"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"kills": kills_table(RESULTS.read())}
