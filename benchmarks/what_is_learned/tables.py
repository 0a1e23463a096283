"""Table of what each round has learned."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared.intervals import t_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "results.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed", "round")
NAMES = {**{("ours", number): f"round {number}" for number in range(10)}, ("all_labels", 0): "all labels"}


def learned_table(found: Sequence[Run]) -> str:
    """Shares of right pairs that differ in one kind of evidence, for our rule round by round and for all labels."""
    groups: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for row in found:
        groups[row["condition"], row["round"]].append(row)
    rows = [
        [
            name,
            str(len(groups[key])),
            *(t_interval([row[kind] for row in groups[key]]) for kind in ("plain", "manners")),
        ]
        for key, name in NAMES.items()
        if key in groups
    ]
    return table(["", "random seeds", "plain faults", "manners"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"learned": learned_table(RESULTS.read())}
