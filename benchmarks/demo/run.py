"""What `rm.yaml` reaches on the synthetic dataset, and whether it knows how good it is.

    python -m benchmarks.demo.run     # makes the runs that are missing in results.jsonl
    python -m benchmarks.tables       # writes the table into docs/results.md

Every round's model is held against 10,000 generated pairs that no run has seen: accuracies are those against the gold
reward, the calibration error of the delivered model is that against the labels, which are noisy as the seed's are.
`standard` is the recipe of earlier versions: the last token, eight epochs, two folds. `..._all` trains the same model
on all labels, once and without evolution: what the pool's labels would add.
"""

import argparse
from itertools import product
from pathlib import Path

import torch

from benchmarks.shared.held_out import HeldOut
from benchmarks.shared.results import Results, Run, delivered
from benchmarks.shared.runs import STANDARD_RECIPE, fit, run_missing, study_arguments
from ser_lightning import Scorer
from ser_lightning.evaluation.metrics import calibration_error, confidence_and_right, half_credit

NUM_HELD = 10_000
ALL_LABELS = (
    *("--data.seed_fraction=1", "--evolution.max_rounds=0"),
    *("--evolution.folds=0", "--evolution.rule=ser_lightning.TopShareRule"),
)
CONDITIONS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "standard": STANDARD_RECIPE,
    "recipe_all": ALL_LABELS,
    "standard_all": (*STANDARD_RECIPE, *ALL_LABELS),
}


def measure(condition: str, seed: int, scratch: Path) -> Run:
    """One run, and what its models say of pairs that it has not seen."""
    torch.set_num_threads(1)
    result = fit(condition, CONDITIONS[condition], seed, scratch, recipe=())
    run, rounds = scratch / f"{condition}-{seed}", list(range(len(result["rounds"])))
    held = HeldOut(NUM_HELD)
    margins = torch.cat(list(held.margins(run, rounds)), 1)
    last = margins[int(delivered(result)["round"])]
    stated, right = confidence_and_right(last, held.label, Scorer.load(run).temperature)
    return {
        **result,
        "held": {
            "pairs": margins.shape[1],
            "accuracy": [float(half_credit(margin, held.gold).mean()) for margin in margins],
            "stated": float(stated.mean()),
            "right": float(right.double().mean()),
            "calibration_error": calibration_error(stated, right),
        },
    }


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, Path(__file__).parent / "results.jsonl", "runs/benchmark/demo")
    parser.add_argument("--conditions", nargs="+", choices=[*CONDITIONS], default=[*CONDITIONS])
    args: argparse.Namespace = parser.parse_args()

    def run_one(condition: str, seed: int) -> Run:
        return measure(condition, seed, args.scratch)

    run_missing(Results(args.out, "condition", "seed"), product(args.conditions, args.seeds), run_one, args.jobs)


if __name__ == "__main__":
    main()
