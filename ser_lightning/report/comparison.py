"""Several runs side by side: their figures, and in what they differ."""

import math
from collections.abc import Sequence
from typing import Any

from ser_lightning.report.data import Run, flat, tested_pairs
from ser_lightning.report.outcome import BASELINE_NAMES
from ser_lightning.report.tables import ROUND_COLUMNS, Table, difference, number_text, plain, thousands, with_interval


def comparison_table(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """A line for each figure, a column for each run."""
    shown = [run.delivered for run in runs]
    rows = [["delivered round", *(str(r.number) for r in shown)]]
    rows += [[name, *(with_interval(r, column) for r in shown)] for column, name in reversed(ROUND_COLUMNS.items())]
    rows.append(["test, less seed model", *(difference(r, "seed") for r in shown)])
    for key, name in BASELINE_NAMES.items():
        rows.append(
            [f"baseline: {name}", *(number_text(r.notes.get("baselines", {}).get(key, math.nan)) for r in shown)]
        )
    rows += [
        ["pool pairs", *(f"{r.row['scored']:.0f}" for r in shown)],
        ["kept", *(f"{r.row['kept']:.0f}" for r in shown)],
        ["calibration error", *(number_text(r.row["calibration_error"]) for r in shown)],
        ["length correlation", *(number_text(r.row["length_correlation"], "+.3f") for r in shown)],
        ["tokens", *(thousands(sum(r.row["tokens"] for r in run.rounds)) for run in runs)],
        ["seconds", *(f"{sum(r.row['seconds'] for r in run.rounds):.1f}" for run in runs)],
    ]
    return Table(["", *names], rows)


def difference_table(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """Settings in which the runs differ."""
    configs = [_comparable(run.config) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
    return Table(
        ["", *names], [[key, *(plain(config.get(key)) for config in configs)] for key in differing], is_text=True
    )


def data_warning(runs: Sequence[Run]) -> str:
    """A sentence where the runs are known to have been measured on different pairs, else nothing."""
    data = {run.delivered.notes.get("fingerprints", {}).get("data") for run in runs} - {None}
    tested = [tested_pairs(run) for run in runs]
    if None not in tested and len(set(tested)) > 1:
        return "The runs have different test pairs: their test accuracies cannot be compared."
    if len(data) < 2:
        return ""
    if None in tested:
        return "The runs split different data: their accuracies may be of different pairs."
    return "The runs have the same test pairs, but other seed or pool pairs: accuracies out of fold are of other pairs."


def run_names(runs: Sequence[Run]) -> list[str]:
    """The folders' names; where two are the same, all of them with the folders above."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a config, with callbacks by their class; which of them there are is no setting of the method."""
    trainer = config.get("trainer") or {}
    callbacks = trainer.get("callbacks")
    if not isinstance(callbacks, list):
        return flat(config)
    named = {str(c["class_path"]).rpartition(".")[2]: c.get("init_args") or {} for c in callbacks}
    rest = {name: value for name, value in trainer.items() if name != "callbacks"}
    return flat({**config, "trainer": rest}) | {k: v for k, v in flat(named).items() if v != {}}
