"""What does a frozen body give up? The same data with all weights trained, with adapters, and with the head alone.

    python -m benchmarks.features.run                                        # the synthetic dataset, minutes
    python -m benchmarks.features.run --data-dir FOLDER --model FOLDER       # the human pairs as well
    python -m benchmarks.tables                                              # writes the table into docs/performance.md

FOLDER of the data holds `hh_helpful_base.jsonl`, that of the model `SmolLM2-135M-Instruct.Q4_1.gguf` and what belongs
to it. One random seed; a run that is in results.jsonl is not repeated. The lines there are of 24 November 2026.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.shared.results import Results, Run, machine, read_figures, versions
from benchmarks.shared.runs import QUIET, STANDARD_RECIPE, run_child, run_missing

DATA = {"world": "synthetic dataset, world_lm", "hh_helpful_base": "hh_helpful_base, SmolLM2-135M"}
"""What the table calls the data and their model."""
TRAINED = ("full", "lora", "head")
EVOLUTION = "--evolution."
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
HELPFUL = [
    *("--config", "models/smollm2-135m.yaml", "--config", "hardware/cpu.yaml", f"--model.backbone.gguf_file={GGUF}"),
    *("--data.max_length=128", "--data.pairs_per_step=16", *STANDARD_RECIPE),
]
HEAD = "--model.backbone.train=head"
RUNS = {
    ("world", "full"): [],
    ("world", "lora"): ["--model.backbone.train=lora", "--model.optimizer.init_args.lr=2e-3"],
    ("world", "head"): [
        *(HEAD, "--model.optimizer.init_args.lr=0.01"),
        *(f"{EVOLUTION}seed_epochs=30", f"{EVOLUTION}epochs_per_round=10"),
    ],
    ("hh_helpful_base", "lora"): [*HELPFUL, f"{EVOLUTION}seed_epochs=2", f"{EVOLUTION}max_rounds=0"],
    ("hh_helpful_base", "head"): [
        *(
            *HELPFUL,
            HEAD,
            "--model.optimizer.init_args.lr=1e-3",
            f"{EVOLUTION}seed_epochs=20",
        ),
        *(f"{EVOLUTION}epochs_per_round=10", f"{EVOLUTION}max_rounds=2"),
    ],
}


def measure(data: str, train: str, sources: list[str], more: list[str], scratch: Path) -> Run:
    """One run, and how many test pairs its accuracy is of.

    Args:
        data: which data.
        train: what is trained.
        sources: flags with the paths of data and model, for the human pairs.
        more: flags behind all others.
        scratch: folder of the runs.
    """
    run, flags = scratch / f"{data}-{train}", [*RUNS[data, train], *more]
    words = ["-m", "ser_lightning", "fit", "--config", "rm.yaml", *STANDARD_RECIPE]
    paths = [f"--run_dir={run}", *QUIET, *(sources if data == "hh_helpful_base" else [])]
    run_child([sys.executable, *words, *flags, *paths])
    return {
        "data": data,
        "train": train,
        "test_pairs": pq.read_metadata(run / "rounds" / "0" / "test.parquet").num_rows,
        "command": " ".join(["python", *words, *flags]),
        "rounds": read_figures(run / "rounds.csv"),
        "machine": machine(),
        "versions": versions(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder of hh_helpful_base.jsonl")
    parser.add_argument("--model", type=Path, help=f"folder of {GGUF}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.jsonl")
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmark/features"))
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="more flags of every run, to try it out")
    args = parser.parse_args()
    if (args.data_dir is None) != (args.model is None):
        parser.error("give both --data-dir and --model, or neither")
    sources = [f"--data.path={args.data_dir}/hh_helpful_base.jsonl", f"--model.backbone.path={args.model}"]
    tasks = [task for task in RUNS if task[0] == "world" or args.model is not None]
    work = partial(measure, sources=sources, more=args.more, scratch=args.scratch)
    run_missing(Results(args.out, "data", "train"), tasks, work, jobs=1)


if __name__ == "__main__":
    main()
