"""Which defaults? One setting of the evolution changed at a time, on the embedded synthetic world.

    python benchmarks/sweep.py                    # resumable: a run whose JSON is there is not repeated
    python benchmarks/tables.py                   # writes the table into docs/defaults.md

The conditions share pairs, split and seed model with those of `rules.py`, whose `ours` is the default. A setting is
chosen by the out-of-fold accuracy of the seed; test accuracy is only reported.
"""

from pathlib import Path

from runs import run_missing

EVOLUTION = "--trainer.callbacks."
CONDITIONS = {
    "restart_nothing": [f"{EVOLUTION}restart=nothing"],
    "epochs_4": [f"{EVOLUTION}epochs_per_round=4"],
    "seed_share_0.5": [f"{EVOLUTION}seed_share=0.5"],
    "target_0.75": [f"{EVOLUTION}rule.target=0.75"],
    "add": [f"{EVOLUTION}combine=add"],
    "quota": [f"{EVOLUTION}length_quota=seed"],
    "epochs_1": [f"{EVOLUTION}epochs_per_round=1"],
    "restart_optimizer": [f"{EVOLUTION}restart=optimizer"],
    "target_0.9": [f"{EVOLUTION}rule.target=0.9"],
    "seed_share_0.3": [f"{EVOLUTION}seed_share=0.3"],
}

if __name__ == "__main__":
    run_missing(CONDITIONS, Path(__file__).parent / "sweep", __doc__)
