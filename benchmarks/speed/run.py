"""Pairs a second in training and labelling, ours against others: `python benchmarks/speed.py --trl-python PY`.

One run, one random model of 30M weights, the same made-up pairs: our trainer with shared prompts and with padded
rows, TRL's `RewardTrainer` (PY is the Python of an environment with trl 1.16.0), a transformers `text-classification`
pipeline.
Every measurement is a process of its own; what is compared takes turns. A grid of batch sizes and orders, each measured
once, finds the others' best setting. Writes `benchmarks/results/speed.json` after every measurement, and goes on there
with `--resume`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rl_speed import machine
from speed_lengths import PROFILES, lengths_in, lengths_of, make_pairs, write_model

HERE = Path(__file__).parent
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
        command: what to say that made the results.
    """

    def __init__(self, args: argparse.Namespace, command: str) -> None:
        self.args = args
        self.found: dict[str, Any] = {"command": command, "machine": machine() | {"threads": args.threads}}
        self.found["measured"] = {}
        if args.resume and args.out.is_file():
            self.found = {**json.loads(args.out.read_text()), "command": command}

    def measure(self, name: str, way: Way, pairs: list[Any], seed: int) -> dict[str, Any]:
        """One measurement in a process of its own, unless it is there."""
        measured = self.found["measured"]
        if name in measured:
            return measured[name]
        file = self.args.scratch / "settings.json"
        common = {"pairs": pairs, "seed": seed, "threads": self.args.threads, "pairs_per_step": PAIRS_PER_STEP}
        paths = {"model": str(self.args.scratch / "model"), "scratch": str(self.args.scratch)}
        file.write_text(json.dumps({**way, **common, **paths}))
        python = self.args.trl_python if way["work"] == "train_trl" else sys.executable
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.args.threads), "HF_HUB_OFFLINE": "1"}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
        words = [python, str(HERE / "speed_work.py"), str(file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        result = json.loads(done.stdout.splitlines()[-1])
        if pairs:
            result |= {
                "pairs_per_second": len(pairs) / result["seconds"],
                "tokens_per_pair": result["tokens"] / len(pairs),
            }
            print(f"{name}: {result['pairs_per_second']:.2f} pairs/s", flush=True)
        measured[name] = result
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        self.args.out.write_text(json.dumps(self.found, indent=1) + "\n")
        return result

    def compare(self, profile: str, task: str, pairs: list[Any], best: str | None) -> dict[str, Any]:
        """Ours, padded, their usual setting and their best one, in turns; the best of the grid if none is given."""
        ways = {name: ours(task, layout) for name, layout in OURS.items()}
        has_theirs = task == "label" or bool(self.args.trl_python)
        if has_theirs:
            every = grid(task)
            if best is None:
                once = {n: self.measure(f"{profile} {task} grid {n}", w, pairs, 0) for n, w in every.items()}
                best = max(once, key=lambda name: once[name]["pairs_per_second"])
            ways |= {"usual": every["8 random"], "best": every[best]}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
        for seed in range(self.args.repetitions):
            for name, way in ways.items():
                setting = f" ({best})" if name == "best" else ""
                runs[name].append(self.measure(f"{profile} {task} {name}{setting} {seed}", way, pairs, seed))
        found = {name: summary(results) for name, results in runs.items()}
        return {"best_setting": best, "pairs": len(pairs), "ways": found}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over repetitions."""
    names = ("pairs_per_second", "tokens_per_pair", "peak_bytes")
    medians = {name: statistics.median(result[name] for result in results) for name in names}
    return {**medians, "versions": results[0]["versions"], "runs": [r["pairs_per_second"] for r in results]}


def layer_parameters() -> int:
    """Weights of the model without its embeddings: two operations each for a token."""
    from speed_lengths import MODEL

    hidden, inner = MODEL["hidden_size"], MODEL["intermediate_size"]
    return MODEL["num_hidden_layers"] * (4 * hidden * hidden + 3 * hidden * inner)


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
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speed.json")
    args = parser.parse_args()
    if not args.trl_python:
        print("Training is not compared: give --trl-python, the Python of an environment with trl 1.16.0.")
    (args.scratch / "model").mkdir(parents=True, exist_ok=True)
    write_model(args.scratch / "model")
    sizes = f"--profiles {' '.join(args.profiles)} --pairs {args.pairs} --repetitions {args.repetitions}"
    study = Study(args, f"python benchmarks/speed.py --trl-python PYTHON {sizes}")
    rates = [study.measure(f"matmul {i}", {"work": "matmul"}, [], i)["rate"] for i in range(args.repetitions)]
    results: dict[str, dict[str, Any]] = {}
    best: dict[str, str | None] = {}
    for profile in args.profiles:
        shape = PROFILES[profile]
        results[profile] = {}
        for task, factor in (("train", 1), ("label", 2)):
            # UltraFeedback's pairs are twice as long, and take the settings that were best for HH.
            num_pairs = factor * args.pairs // (1 if profile == "hh" else 2)
            if args.data_dir and profile == "hh":
                lengths = lengths_in(args.data_dir, num_pairs, shape.max_length)
            else:
                lengths = lengths_of(shape, num_pairs, seed=0)
            found = study.compare(profile, task, make_pairs(lengths, seed=0), best.get(task))
            best[task] = found["best_setting"]
            results[profile][task] = found
    labelled = results[args.profiles[0]]["label"]["ways"]["ours"]
    rate = statistics.median(rates)
    tokens_per_second = labelled["pairs_per_second"] * labelled["tokens_per_pair"]
    share = 2 * layer_parameters() * tokens_per_second / rate
    study.found |= {
        "results": results,
        "matmul_rate": rate,
        "matmul_share": share,
        "layer_parameters": layer_parameters(),
    }
    args.out.write_text(json.dumps(study.found, indent=1) + "\n")
    print(last_line(results[args.profiles[0]], share, args.profiles[0]))


def last_line(found: dict[str, Any], share: float, profile: str) -> str:
    """Pairs a second of ours over theirs."""

    def ratio(task: str, other: str) -> str:
        ways = found[task]["ways"]
        return f"{ways['ours']['pairs_per_second'] / ways[other]['pairs_per_second']:.2f}" if other in ways else "-"

    names = {"trl": ("train", "usual"), "best_trl": ("train", "best")}
    parts = [f"train_vs_{name}_{profile}={ratio(*way)}" for name, way in names.items()]
    names = {"pipeline": ("label", "usual"), "best_pipeline": ("label", "best")}
    parts += [f"label_vs_{name}_{profile}={ratio(*way)}" for name, way in names.items()]
    return " ".join([*parts, f"matmul_share={share:.2f}"])


if __name__ == "__main__":
    main()
