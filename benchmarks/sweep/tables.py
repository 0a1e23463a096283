"""Table of the sweep over settings of the evolution, against the default that `rules` has run."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.rules.tables import RESULTS as RULES
from benchmarks.shared.intervals import t_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run, delivered

PAGE = "defaults.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed")
DEFAULT = "nothing: `restart: weights`, `combine: replace`, 2 epochs, target set by the rule"
SETTINGS = {
    "add": "`combine: add`",
    "epochs_1": "`epochs_per_round: 1`",
    "epochs_4": "`epochs_per_round: 4`",
    "quota": "`length_quota: seed`",
    "restart_nothing": "`restart: nothing`",
    "restart_optimizer": "`restart: optimizer`",
    "seed_share_0.3": "`seed_share: 0.3`",
    "seed_share_0.5": "`seed_share: 0.5`",
    "target_0.75": "`rule.target: 0.75`",
    "target_0.9": "`rule.target: 0.9`",
}


def settings_table(default: Mapping[int, Run], conditions: Mapping[str, Mapping[int, Run]]) -> str:
    """One line a setting: out-of-fold accuracy of the seed, which chooses, and test accuracy.

    Args:
        default: runs of the default by random seed.
        conditions: runs of each changed setting by random seed.
    """
    rows = []
    for name, runs in {DEFAULT: default, **{SETTINGS[c]: runs for c, runs in conditions.items()}}.items():
        seeds = sorted(runs.keys() & default.keys())
        row = [name, str(len(seeds))]
        for column in ("seed_oof_accuracy", "test_accuracy"):
            own, other = ([delivered(group[seed])[column] for seed in seeds] for group in (runs, default))
            row.append(t_interval(own))
            row.append("-" if runs is default else t_interval([a - b for a, b in zip(own, other, strict=True)]))
        rows.append(row)
    header = ["changed", "random seeds", "seed, out of fold", "against the default", "test", "against the default"]
    return table(header, rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"settings": settings_table(RULES.by_condition()["ours"], RESULTS.by_condition())}
