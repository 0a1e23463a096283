"""Table of what `rm.yaml` reaches on generated pairs that no run has seen."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.shared.intervals import share_of_gap, t_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run, delivered

PAGE = "results.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed")
NAMES = {"recipe": "`rm.yaml`", "standard": "last token, 8 epochs, 2 folds"}


def demo_table(results: Mapping[str, Mapping[int, Run]]) -> str:
    """One line a recipe: accuracy of the seed model, the delivered and the last one, and how calibrated it is."""
    header = "recipe|random seeds|seed model|delivered|gain of what is delivered|gain of the last round"
    rows = []
    for condition, name in NAMES.items():
        runs = [run for _, run in sorted(results[condition].items())]
        held = [run["held"] for run in runs]
        first = [one["accuracy"][0] for one in held]
        chosen = [one["accuracy"][int(delivered(run)["round"])] for run, one in zip(runs, held, strict=True)]
        gain = [one - other for one, other in zip(chosen, first, strict=True)]
        last = [one["accuracy"][-1] - other for one, other in zip(held, first, strict=True)]
        scale = [[one[key] for one in held] for key in ("stated", "right", "calibration_error")]
        rows.append([name, str(len(runs)), *map(t_interval, (first, chosen, gain, last, *scale))])
    return table([*header.split("|"), "stated confidence", "labels right", "calibration error"], rows)


def all_labels_table(results: Mapping[str, Mapping[int, Run]]) -> str:
    """How far evolution gets on the way from the seed model to all labels, on the random seeds that have both runs."""
    rows = []
    for condition, name in NAMES.items():
        seeds = sorted({*results[condition]} & {*results.get(f"{condition}_all", {})})
        runs = [results[condition][seed] for seed in seeds]
        first = [run["held"]["accuracy"][0] for run in runs]
        chosen = [run["held"]["accuracy"][int(delivered(run)["round"])] for run in runs]
        whole = [results[f"{condition}_all"][seed]["held"]["accuracy"][0] for seed in seeds]
        rows.append(
            [name, str(len(seeds)), *map(t_interval, (first, chosen, whole)), share_of_gap(first, chosen, whole)]
        )
    return table(["recipe", "random seeds", "seed model", "delivered", "all labels", "share of the gap closed"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"demo": demo_table(RESULTS.by_condition()), "demo_all": all_labels_table(RESULTS.by_condition())}
