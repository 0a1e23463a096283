"""Table of what a frozen body gives up: the same data with `full`, `lora` and `head`."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.features.run import DATA, TRAINED
from benchmarks.shared.intervals import wilson_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run, delivered

PAGE = "performance.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "data", "train")


def features_table(runs: Sequence[Run]) -> str:
    """One line for each way to train a body: its seed model and its delivered model."""
    rows = []
    for run in sorted(runs, key=lambda run: ([*DATA].index(run["data"]), TRAINED.index(run["train"]))):
        first = run["rounds"][0]
        row = [DATA[run["data"]], f"`{run['train']}`", f"{first['seed_oof_accuracy']:.3f}"]
        for one in (first, delivered(run) if len(run["rounds"]) > 1 else None):
            row += [share(one["test_accuracy"], run["test_pairs"]), f"{one['pool_accuracy']:.3f}"] if one else "--"
        rows.append(row)
    header = "data, model|trained|seed model: seed, out of fold|test|pool|delivered: test|pool"
    return table(header.split("|"), rows)


def share(right: float, num_pairs: int) -> str:
    """A share of pairs with its 95 % interval."""
    low, high = wilson_interval(round(right * num_pairs), num_pairs)
    return f"{right:.3f} ({low:.3f} to {high:.3f})"


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"features": features_table(RESULTS.read())}
