"""Table of what `plan` expects of the overlays of `hardware/`."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.hardware_plan.run import OVERLAYS, SHAPES
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "hardware.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "model", "overlay")
KINDS = {
    "weights": "weights",
    "adapters": "adapters",
    "optimiser": "optimiser",
    "gradients": "gradients",
    "activations, estimate": "activations",
    "workspace, estimate": "workspace",
}


def plans_table(plans: Sequence[Run]) -> str:
    """One line for each model under each overlay: GiB by kind, as `plan` expects them."""
    models, overlays = [*SHAPES], [*OVERLAYS]
    rows = []
    for plan in sorted(plans, key=lambda plan: (models.index(plan["model"]), overlays.index(plan["overlay"]))):
        tokens = plan["batch_tokens"]
        sizes = [plan["kinds"].get(kind, {}).get("training", 0) for kind in KINDS]
        sizes += [plan["all"][phase] for phase in ("training", "labelling")]
        row = [plan["model"], plan["overlay"], f"{tokens['training']:,} and {tokens['labelling']:,}"]
        rows.append([*row, *(f"{size / 2**30:.1f}" for size in sizes), f"{plan['gigabytes']} GB"])
    header = ["`models/`", "`hardware/`", "tokens a batch, training and labelling", *KINDS.values()]
    return table([*header, "all, training", "all, labelling", "the card"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"plans": plans_table(RESULTS.read())}
