"""Table of pairs that `query` asks labels for, against random ones."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.shared.intervals import t_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "results.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed")
NAMES = {
    "none": "none",
    "random": "at random",
    "cover": "representative ones of the least confident (removed)",
    "uncertain": "`MostUncertain`",
}
FIRST_TUNING_SEED = 1001


def query_table(results: Mapping[str, Mapping[int, Run]]) -> str:
    """One line for each way to choose 100 pairs: accuracy on held-out pairs, and its paired difference to random."""
    rows = []
    for name, title in NAMES.items():
        seeds = sorted(s for s in results[name].keys() & results["random"].keys() if s < FIRST_TUNING_SEED)
        if not seeds:
            continue
        row = [title, str(len(seeds))]
        for model in ("seed_model", "delivered"):
            own, other = ([results[c][s]["held"][model] for s in seeds] for c in (name, "random"))
            row.append(t_interval(own))
            row.append("-" if name == "random" else t_interval([a - b for a, b in zip(own, other, strict=True)]))
        right = [results[name][s]["asked"].get("labels_as_gold") for s in seeds]
        rows.append([*row, "-" if None in right else t_interval(right)])
    header = "100 more labels|random seeds|seed model|against random|after one round|against random"
    return table([*header.split("|"), "of these labels as the gold reward says"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"query": query_table(RESULTS.by_condition())}
