"""Pairs a second in training and labelling, ours against others.

    python -m benchmarks.speed.run --trl-python PY    # writes results.jsonl
    python -m benchmarks.tables                       # writes the table into docs/performance.md

One run, one random model of 30M weights, the same made-up pairs: our trainer with shared prompts and with padded
rows, TRL's `RewardTrainer` (PY is the Python of an environment with trl 1.16.0), a transformers `text-classification`
pipeline. Every measurement is a process of its own; what is compared takes turns. A grid of batch sizes and orders,
each measured once, finds the others' best setting. The file is begun anew, and gone on with under `--resume`.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.shared.results import Results, Run, machine
from benchmarks.shared.runs import child_environment, run_child
from benchmarks.speed.lengths import PROFILES, lengths_in, lengths_of, make_pairs, write_model
from benchmarks.speed.tables import last_line, matmul_share, speeds

BATCHES = (1, 2, 4, 8, 16)
PAIRS_PER_STEP = 16
OURS = {"ours": "auto", "padded": "padded"}
Way = dict[str, Any]


def ours(task: str, layout: str) -> Way:
    """Our trainer or scoring loop."""
    budget = 4096 if task == "train" else 16384
    return {"work": f"{task}_ours", "layout": layout, "tokens_per_batch": budget}


def theirs(task: str, batch: int, is_sorted: bool) -> Way:
    """TRL or the pipeline with one of its settings."""
    work = {"train": "train_trl", "label": "label_pipeline"}[task]
    return {"work": work, "batch": batch, "is_sorted": is_sorted}


def grid(task: str) -> dict[str, Way]:
    """Every setting of theirs by its name."""
    sort_name = {"train": "grouped", "label": "sorted"}[task]
    return {
        f"{batch} {sort_name if is_sorted else 'random'}": theirs(task, batch, is_sorted)
        for batch in BATCHES
        for is_sorted in (False, True)
    }


class Study:
    """Measurements by name, on disk after each of them.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.results = Results(args.out, "name")
        self.machine = machine() | {"threads": args.threads}

    def measure(self, name: str, work: Way, pairs: list[Any], repetition: int, **fields: Any) -> Run:
        """One measurement in a process of its own, unless it is there.

        Args:
            name: of the measurement.
            work: what `work.py` does.
            pairs: to train on or label.
            repetition: from 0 on, the random seed.
            fields: more that the line of the measurement says.
        """
        for run in self.results.read():
            if run["name"] == name:
                return run
        file = self.args.scratch / "settings.json"
        common = {"pairs": pairs, "seed": repetition, "threads": self.args.threads, "pairs_per_step": PAIRS_PER_STEP}
        paths = {"model": str(self.args.scratch / "model"), "scratch": str(self.args.scratch)}
        file.write_text(json.dumps({**work, **common, **paths}))
        python = self.args.trl_python if work["work"] == "train_trl" else sys.executable
        environment = {**child_environment(self.args.threads), "CUDA_VISIBLE_DEVICES": ""}
        environment["TOKENIZERS_PARALLELISM"] = "false"
        printed = run_child([python, "-m", "benchmarks.speed.work", str(file)], environment)
        found = {"name": name, **fields, "repetition": repetition, **json.loads(printed.splitlines()[-1])}
        if pairs:
            found |= {
                "pairs": len(pairs),
                "pairs_per_second": len(pairs) / found["seconds"],
                "tokens_per_pair": found["tokens"] / len(pairs),
            }
            print(f"{name}: {found['pairs_per_second']:.2f} pairs/s", flush=True)
        self.results.add(found | {"machine": self.machine})
        return found

    def compare(self, profile: str, task: str, pairs: list[Any], best: str | None) -> str | None:
        """Ours, padded, their usual setting and their best one, in turns.

        Args:
            profile: whose lengths the pairs have.
            task: `train` or `label`.
            pairs: to train on or label.
            best: setting of theirs; found on a grid where none is given.

        Returns:
            Their best setting; None where they are not measured.
        """
        place = {"profile": profile, "task": task}
        ways = {name: (ours(task, layout), None) for name, layout in OURS.items()}
        if task == "label" or self.args.trl_python:
            every = grid(task)
            if best is None:
                once = {
                    n: self.measure(f"{profile} {task} grid {n}", w, pairs, 0, **place, way="grid", setting=n)
                    for n, w in every.items()
                }
                best = max(once, key=lambda name: once[name]["pairs_per_second"])
            ways |= {"usual": (every["8 random"], None), "best": (every[best], best)}
        for repetition in range(self.args.repetitions):
            for name, (way, setting) in ways.items():
                spoken = f" ({setting})" if setting else ""
                title = f"{profile} {task} {name}{spoken} {repetition}"
                self.measure(title, way, pairs, repetition, **place, way=name, setting=setting)
        return best


def main() -> None:
    """Measure, write, and say the ratios in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="Python with trl 1.16.0; without it training is not compared")
    parser.add_argument("--data-dir", type=Path, help="folder of .jsonl files whose lengths to take for the profile hh")
    parser.add_argument("--profiles", nargs="+", choices=[*PROFILES], default=[*PROFILES], help="whose lengths")
    parser.add_argument("--pairs", type=int, default=32, help="pairs in a measurement of training; twice in labelling")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--resume", action="store_true", help="keep what the results file has already")
    parser.add_argument("--scratch", type=Path, default=Path("runs/speed"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.jsonl")
    args = parser.parse_args()
    if not args.trl_python:
        print("Training is not compared: give --trl-python, the Python of an environment with trl 1.16.0.")
    if not args.resume:
        args.out.unlink(missing_ok=True)
    (args.scratch / "model").mkdir(parents=True, exist_ok=True)
    write_model(args.scratch / "model")
    study = Study(args)
    for i in range(args.repetitions):
        study.measure(f"matmul {i}", {"work": "matmul"}, [], i)
    best: dict[str, str | None] = {}
    for profile in args.profiles:
        shape = PROFILES[profile]
        for task, factor in (("train", 1), ("label", 2)):
            # UltraFeedback's pairs are twice as long, and take the settings that were best for HH.
            num_pairs = factor * args.pairs // (1 if profile == "hh" else 2)
            if args.data_dir and profile == "hh":
                lengths = lengths_in(args.data_dir, num_pairs, shape.max_length)
            else:
                lengths = lengths_of(shape, num_pairs, seed=0)
            best[task] = study.compare(profile, task, make_pairs(lengths, seed=0), best.get(task))
    measured = study.results.read()
    print(last_line(speeds(measured)[args.profiles[0]], matmul_share(measured, args.profiles[0]), args.profiles[0]))


if __name__ == "__main__":
    main()
