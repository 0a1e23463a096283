"""The rounds that log loss and accuracy deliver, each out of fold on the seed; the test pairs say which were better."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from benchmarks.readings.grouping import Settings, blocks_of, names
from benchmarks.shared.bootstrap import Estimate, Floats, accuracies, credits
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Run

CRITERIA = ("accuracy_0", "loss_0")
PARTS = ("5", "15", "judge_5", "judge_15")
GROUPS: Mapping[str, Callable[[str], bool]] = {
    "`auto`, `CalibratedRule`": lambda name: name == "ours_calibrated",
    "`auto` and two views, every rule": lambda name: name.startswith(("ours", "views")),
    "standard, `CalibratedRule`": lambda name: name == "standard_calibrated",
    "standard, every rule": lambda name: name.startswith("standard"),
    "`auto` with a pairwise judge, both rules": lambda name: name.startswith("judge"),
}


def loss_table(results: Settings) -> str:
    """One line for each setting and group of conditions; a run is the mean of its conditions."""
    rows = []
    for where, parts in results.items():
        for part in (part for part in PARTS if part in parts):
            runs, shares = [*parts[part].values()], f"{part.removeprefix('judge_')} %"
            for group, ways in _ways(part, runs).items():
                own = [run for run in runs if run["conditions"].keys() >= set(ways)]
                rows.append([*names(where), shares, group, *_line(own, ways)])
    header = "data|body|labels|conditions|random seeds|chooses another round|gain by accuracy|gain by log loss"
    return table([*header.split("|"), "log loss minus accuracy"], rows)


def _ways(part: str, runs: Sequence[Run]) -> dict[str, list[str]]:
    """Conditions of each group, without groups that are one that stands above: on large data sets few were run."""
    every = dict.fromkeys(name for run in runs for name in run["conditions"])
    found: dict[str, list[str]] = {}
    for group, is_in in GROUPS.items():
        ways = [name for name in every if is_in(name)]
        if ways and ways not in found.values() and part.startswith("judge") == ways[0].startswith("judge"):
            found[group] = ways
    return found


def _line(runs: Sequence[Run], ways: Sequence[str]) -> list[str]:
    """How often the criteria differ, what either gains over the seed model, and the difference with its interval."""
    mean, drawn = accuracies(blocks_of(runs, partial(_models, ways=ways)))
    chosen = [[run["conditions"][way]["delivered"][one] for one in CRITERIA] for run in runs for way in ways]
    differs = np.mean([by_accuracy != by_loss for by_accuracy, by_loss in chosen])
    difference = Estimate.of(float(mean[2] - mean[1]), drawn[:, 2] - drawn[:, 1])
    return [str(len(runs)), f"{differs:.0%}", *(f"{mean[i] - mean[0]:+.4f}" for i in (1, 2)), str(difference)]


def _models(run: Run, ways: Sequence[str]) -> list[Floats]:
    """Credits of the seed model and of what either criterion delivers, each the mean over some conditions."""
    found = [run["conditions"][way] for way in ways]
    numbers = [[0, *(one["delivered"][criterion] for criterion in CRITERIA)] for one in found]
    every = [[credits(one["credit"][r]) for r in chosen] for one, chosen in zip(found, numbers, strict=True)]
    return [*np.mean(every, axis=0)]
