"""Table of attacks: how many, and how they ended."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "security.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "part", "kind")
PARTS = {
    "data": "data files",
    "run": "damaged runs and checkpoints",
    "model": "damaged models",
    "rewards": "damaged files of rewards and gates",
    "kills": "kills before a file operation",
    "starts": "two starts in one folder",
}
FAULTS = {"traceback": "traceback", "silent": "wrong without a word", "lost": "results lost"}
"""What a fault's text has in it, and the head of its column; all others are in the last column."""


def attacks_table(lines: Sequence[Run]) -> str:
    """One line for each part."""
    rows = []
    for part, name in PARTS.items():
        mine = [line for line in lines if line["part"] == part]
        if not mine:
            continue
        outcomes: Counter[str] = Counter()
        for line in mine:
            outcomes.update(line["outcomes"])
        ended = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        texts = [text for line in mine for *_, text in line["faults"]]
        kinds = Counter(next((word for word in FAULTS if word in text), "other") for text in texts)
        counts = [str(kinds[word]) for word in (*FAULTS, "other")]
        rows.append([name, f"{sum(line['cases'] for line in mine):,}", str(len(mine)), ended, *counts])
    return table(["", "cases", "kinds", "ended", *FAULTS.values(), "other faults"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"attacks": attacks_table(RESULTS.read())}
