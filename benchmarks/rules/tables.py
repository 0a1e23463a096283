"""Tables of the selection rules on the synthetic dataset: rules, baselines, rounds."""

import math
from collections.abc import Mapping
from pathlib import Path

from benchmarks.rules.run import NAMES
from benchmarks.shared.intervals import share_of_gap, t_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run, delivered

PAGE = "results.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed")
BASELINES = {
    "longer": "take the longer response",
    "bag_of_words_seed": "bag of words, fitted on the seed",
    "bag_of_words_all_labels": "bag of words, fitted on all labels",
    "ceiling": "ceiling: the gold reward itself against the noisy labels",
}
Runs = Mapping[str, Mapping[int, Run]]
"""By condition and random seed."""


def rules_table(results: Runs) -> str:
    """One line a rule: seed, delivered and all-labels accuracy on the test pairs."""
    full = {seed: run["rounds"][0]["test_accuracy"] for seed, run in results["all_labels"].items()}
    header = "rule|random seeds|seed model|delivered|gain|all labels|share of the gap|kept, first round"
    rows = []
    for condition, name in NAMES.items():
        runs = [results[condition][s] for s in sorted(results[condition]) if s in full]
        if not runs:
            continue
        seed = [run["rounds"][0]["test_accuracy"] for run in runs]
        evolved = [delivered(run)["test_accuracy"] for run in runs]
        labels = [full[run["seed"]] for run in runs]
        gain = [e - s for s, e in zip(seed, evolved, strict=True)]
        first = [run["rounds"][0] for run in runs]
        right = [f["pseudo_label_accuracy"] for f in first if not math.isnan(f["pseudo_label_accuracy"])]
        rows.append(
            [
                *(name, str(len(runs)), *map(t_interval, (seed, evolved, gain, labels))),
                share_of_gap(seed, evolved, labels),
                f"{sum(f['kept'] / f['scored'] for f in first) / len(runs):.0%}",
                t_interval(right) if right else "-",
                f"{sum(len(run['rounds']) - 1 for run in runs) / len(runs):.1f}",
            ]
        )
    return table([*header.split("|"), "kept labels right", "rounds"], rows)


def world_share(results: Runs, condition: str = "ours") -> str:
    """Share of the gap that a rule closes on the synthetic world."""
    seeds = sorted(results[condition].keys() & results["all_labels"].keys())
    runs, full = ([results[name][seed] for seed in seeds] for name in (condition, "all_labels"))
    first = [run["rounds"][0]["test_accuracy"] for run in runs]
    last = [delivered(run)["test_accuracy"] for run in runs]
    return share_of_gap(first, last, [run["rounds"][0]["test_accuracy"] for run in full])


def baselines_table(results: Runs) -> str:
    """Baselines and ceiling on the same test pairs."""
    figures = [run["figures"] for run in results["baselines"].values()]
    rows = [[name, t_interval([one[key] for one in figures])] for key, name in BASELINES.items()]
    return table(["on the same test pairs", "accuracy"], rows)


def rounds_table(results: Runs, condition: str = "ours") -> str:
    """Means over random seeds, round by round, of the runs that reached the round."""
    runs = list(results[condition].values())
    names = ["test_accuracy", "seed_oof_accuracy", "pool_accuracy", "pseudo_label_accuracy", "calibration_error"]
    rows = []
    for number in range(max(len(run["rounds"]) for run in runs)):
        found = [run["rounds"][number] for run in runs if len(run["rounds"]) > number]
        kept = sum(row["kept"] / row["scored"] for row in found) / len(found)
        figures = [t_interval([row[name] for row in found]) for name in names]
        rows.append([str(number), str(len(found)), f"{kept:.0%}", *figures])
    return table(["round", "runs", "kept", *names], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    results = RESULTS.by_condition()
    return {
        "rules": rules_table(results),
        "baselines": baselines_table(results),
        "rounds": rounds_table(results),
    }
