"""Table of the RL stage by estimator."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.shared.intervals import t_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "rl.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed")
NAMES = {"gae": "`gae` (with a critic)", "rloo": "`rloo`", "grpo": "`grpo`"}


def rl_table(results: Mapping[str, Mapping[int, Run]]) -> str:
    """One line an estimator: gold score of starting and trained policy, and what it cost."""
    rows = []
    for name, label in NAMES.items():
        if not (runs := list(results.get(name, {}).values())):
            continue
        columns = [
            *([run[when]["gold"] for run in runs] for when in ("before", "after")),
            *([run["change"][figure] for run in runs] for figure in ("gold", "reward")),
            [run["steps"][-1]["kl"] for run in runs],
            [run["change"]["length"] for run in runs],
        ]
        rows.append([label, str(len(runs)), *map(t_interval, columns)])
    header = "estimator|random seeds|gold, starting policy|gold, trained|change of gold|change of reward"
    return table([*header.split("|"), "KL, nats", "change of length, tokens"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"rl": rl_table(RESULTS.by_condition())}
