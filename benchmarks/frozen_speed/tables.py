"""Table of what a frozen body costs: an evolution on cached states, and a pass with `auto` beside the plain one."""

import statistics
from pathlib import Path

from benchmarks.frozen_speed.run import NUM_PAIRS
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results

PAGE = "performance.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed")


def frozen_speed_table() -> str:
    """A line for each figure: median, smallest and largest."""
    runs = RESULTS.by_condition()
    evolutions, passes = runs["evolution"].values(), runs["pass"].values()
    rounds = sorted({int(run["rounds"]) for run in evolutions})
    ratios = [run["auto"]["cpu_seconds"] / run["standard"]["cpu_seconds"] for run in passes]
    number = next(iter(passes))["pairs"]
    rows = {
        f"evolution of {NUM_PAIRS:,} pairs, {rounds[-1]} rounds, five folds, 1,792 numbers: seconds of its rounds": (
            [run["round_seconds"] for run in evolutions],
            ".1f",
        ),
        "the same, CPU seconds of the whole command": ([run["cpu_seconds"] for run in evolutions], ".1f"),
        f"pass over {number} pairs of PandaLM with 0.5B: `auto` over the standard reading": (ratios, ".2f"),
    }
    return table(
        ["", "median", "smallest", "largest", "repetitions"], [[name, *spread(*row)] for name, row in rows.items()]
    )


def spread(values: list[float], form: str) -> list[str]:
    """Median, smallest, largest and their number."""
    return [*(format(value, form) for value in (statistics.median(values), min(values), max(values))), str(len(values))]


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"frozen_speed": frozen_speed_table()} if RESULTS.read() else {}
