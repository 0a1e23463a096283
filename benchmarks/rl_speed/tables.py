"""Table of the time of an RL step, TRL's against ours."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.rl.tables import NAMES
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "rl.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "estimator")


def speed_table(runs: Sequence[Run]) -> str:
    """How many times as long a step of TRL takes, and each of its parts."""
    rows = []
    for run in sorted(runs, key=lambda run: run["estimator"], reverse=True):
        ratios = [f"{run['trl_seconds_over_ours'][part]:.2f}" for part in ("total", "rollout", "scoring", "update")]
        against = f"TRL {run['trl']['versions']['trl']}"
        rows.append([NAMES[run["estimator"]], against, *ratios, str(run["ours"]["steps"])])
    return table("estimator|against|whole step|sampling|scoring|updates|steps of either".split("|"), rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"speed": speed_table(RESULTS.read())}
