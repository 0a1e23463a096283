"""Which defaults? One setting of the evolution changed at a time, on the synthetic dataset.

    python -m benchmarks.sweep.run      # makes the runs that are missing in results.jsonl
    python -m benchmarks.tables         # writes the table into docs/defaults.md

The conditions share pairs, split and seed model with those of `benchmarks/rules`, whose `ours` is the default. A
setting is chosen by the out-of-fold accuracy of the seed; test accuracy is only reported.
"""

from itertools import product
from pathlib import Path

from benchmarks.shared.results import Results, Run
from benchmarks.shared.runs import fit, run_missing, study_arguments

EVOLUTION = "--evolution."
# results.jsonl holds more: options that no longer exist (docs/results.md).
CONDITIONS = {
    "restart_nothing": [f"{EVOLUTION}restart=nothing"],
    "epochs_4": [f"{EVOLUTION}epochs_per_round=4"],
    "target_0.75": [f"{EVOLUTION}rule.target=0.75"],
    "epochs_1": [f"{EVOLUTION}epochs_per_round=1"],
    "target_0.9": [f"{EVOLUTION}rule.target=0.9"],
}


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, Path(__file__).parent / "results.jsonl", "runs/benchmark")
    parser.add_argument("--conditions", nargs="+", choices=[*CONDITIONS], default=[*CONDITIONS])
    args = parser.parse_args()

    def run_one(condition: str, seed: int) -> Run:
        return fit(condition, CONDITIONS[condition], seed, args.scratch)

    run_missing(Results(args.out, "condition", "seed"), product(args.conditions, args.seeds), run_one, args.jobs)


if __name__ == "__main__":
    main()
