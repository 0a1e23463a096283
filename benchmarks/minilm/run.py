"""One run on human pairs of HH-RLHF with all-MiniLM-L6-v2, all weights trained, on a CPU.

    python -m benchmarks.minilm.run --data-dir FOLDER --model FOLDER   # adds to results.jsonl, unless it is there
    python -m benchmarks.tables                                        # writes the table into docs/results.md

FOLDER of the data holds `hh_helpful_base.jsonl`. One random seed.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from benchmarks.minilm.tables import RESULTS
from benchmarks.shared.results import Results, Run, machine, read_figures, versions
from benchmarks.shared.runs import QUIET, run_child, run_missing

NAME = "minilm-hh-helpful-base"
SETTINGS = {"max_length": 128, "tokens_per_batch": 2048, "pairs_per_step": 16}
EVOLUTION = {"folds": 2, "seed_epochs": 2, "epochs_per_round": 1, "max_rounds": 1}


def measure(condition: str, seed: int, data: Path, model: Path, scratch: Path) -> Run:
    """The run, and all that its `rounds.csv` says."""
    words = ["-m", "ser_lightning", "fit", "--config", "rm.yaml", "--config", "models/minilm-l6.yaml"]
    words += [f"--seed_everything={seed}", *(f"--data.{name}={value}" for name, value in SETTINGS.items())]
    words += [f"--evolution.{name}={value}" for name, value in EVOLUTION.items()]
    run = scratch / condition
    run_child(
        [sys.executable, *words, f"--run_dir={run}", f"--data.path={data}", f"--model.backbone.path={model}", *QUIET]
    )
    return {
        "condition": condition,
        "seed": seed,
        "command": " ".join(["python", *words, f"--data.path={data.name}"]),
        "rounds": read_figures(run / "rounds.csv"),
        "machine": machine(),
        "versions": versions(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of hh_helpful_base.jsonl")
    parser.add_argument("--model", type=Path, required=True, help="folder of all-MiniLM-L6-v2 as transformers has it")
    parser.add_argument("--out", type=Path, default=RESULTS.file)
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmark"))
    args = parser.parse_args()
    paths = {"data": args.data_dir / "hh_helpful_base.jsonl", "model": args.model, "scratch": args.scratch}
    run_missing(Results(args.out, *RESULTS.key), [(NAME, 0)], partial(measure, **paths), jobs=1)


if __name__ == "__main__":
    main()
