"""Many runs of `rm.yaml` that differ in flags and random seed: what is missing is run, one JSON each is kept."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from record import record
from tqdm import tqdm


def command(flags: list[str], seed: int, run: Path) -> list[str]:
    """The command of one run, as a user would type it."""
    return [
        *(sys.executable, "-m", "ser_lightning", "fit", "--config", "rm.yaml"),
        *(f"--run_dir={run}", f"--seed_everything={seed}", f"--data.split_seed={seed}"),
        *flags,
        "--trainer.enable_progress_bar=false",
    ]


def measure(condition: str, flags: list[str], seed: int, scratch: Path, threads: int = 1) -> dict:
    """One run and all that its `rounds.csv` says."""
    words = command(flags, seed, scratch / f"{condition}-{seed}")
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    spoken = " ".join(["python", *words[1:]]).replace(str(scratch), "runs")
    seconds = round(time.monotonic() - start, 1)
    return {
        "condition": condition,
        "seed": seed,
        "seconds": seconds,
        "threads": threads,
        **record(scratch / f"{condition}-{seed}", spoken),
    }


def run_missing(
    conditions: Mapping[str, list[str]],
    out: Path,
    description: str,
    others: Mapping[str, Callable[[int], dict]] | None = None,
) -> None:
    """The command line of a study: run every condition on every random seed, unless its JSON is there.

    Args:
        conditions: flags of each condition.
        out: default folder of the JSON files.
        description: the study's docstring.
        others: conditions that are no run: random seed -> what to keep.
    """
    others = others or {}
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Random seed 0 is the demo's; its test figures are in view whenever anybody tunes.
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--conditions", nargs="*", default=[*conditions, *others])
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; each gets one thread")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    missing = [(c, s) for c in args.conditions for s in args.seeds if not (args.out / f"{c}-{s}.json").is_file()]

    def work(task: tuple[str, int]) -> None:
        condition, seed = task
        if condition in others:
            result = others[condition](seed)
        else:
            result = measure(condition, conditions[condition], seed, args.scratch)
        (args.out / f"{condition}-{seed}.json").write_text(json.dumps(result, indent=1) + "\n")

    with ThreadPoolExecutor(args.jobs) as pool:
        list(tqdm(pool.map(work, missing), total=len(missing), desc="runs"))
