"""Runs of the command line that differ in flags and random seed: those that a study lacks are made and kept."""

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.shared.results import Results, Run, machine, read_figures, versions

ROOT = Path(__file__).resolve().parents[2]
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Freed memory goes back to the system, so that the peak is what is kept and not what glibc holds in reserve."""
STANDARD_RECIPE = ("--model.reading=last", "--evolution.seed_epochs=8", "--evolution.folds=2")
"""What `rm.yaml` had when most studies were made; its own recipe is measured by `benchmarks/demo`."""
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


def child_environment(threads: int = 1) -> dict[str, str]:
    """Environment of a child process: so many threads, no network, and the modules of `benchmarks` at hand."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}


def run_child(words: list[str], environment: Mapping[str, str] | None = None) -> str:
    """What a child process prints; `RuntimeError` with the end of its output where it fails."""
    environment = child_environment() if environment is None else environment
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def fit_words(
    run: Path, seed: int, flags: Iterable[str], config: str = "rm.yaml", recipe: Sequence[str] = STANDARD_RECIPE
) -> list[str]:
    """The command of one fit; reward models have the recipe, unless a study's own configs have another."""
    flags = list(flags)
    is_own = config != "rm.yaml" or "--config" in flags  # flags of a recipe would win over any config
    return [
        *(sys.executable, "-m", "ser_lightning", "fit", "--config", config),
        *(f"--run_dir={run}", f"--seed_everything={seed}", f"--data.split_seed={seed}"),
        *(() if is_own else recipe),
        *flags,
        *QUIET,
    ]


def as_typed(words: list[str], run: Path) -> str:
    """A command as a user would type it."""
    return " ".join(["python", *words[1:]]).replace(str(run.parent), "runs")


def fit(condition: str, flags: Sequence[str], seed: int, scratch: Path, recipe: Sequence[str] = STANDARD_RECIPE) -> Run:
    """One run of `rm.yaml` with one thread, and all that its `rounds.csv` says."""
    run = scratch / f"{condition}-{seed}"
    words, start = fit_words(run, seed, flags, recipe=recipe), time.monotonic()
    run_child(words)
    return {
        "condition": condition,
        "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
        "command": as_typed(words, run),
        "rounds": read_figures(run / "rounds.csv"),
        "machine": machine(),
        "versions": versions(),
    }


def study_arguments(description: str | None, results: Path, scratch: str) -> argparse.ArgumentParser:
    """Arguments that every study takes: `--seeds`, `--out`, `--scratch`, `--jobs`.

    Args:
        description: the study's docstring.
        results: default file of the results.
        scratch: default folder of the runs.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Random seed 0 is the demo's; its test figures are in view whenever anybody tunes.
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=results, help="file of the results; what is in it is not repeated")
    parser.add_argument("--scratch", type=Path, default=Path(scratch), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; each gets one thread")
    return parser


def add_pairs_and_model(parser: argparse.ArgumentParser) -> None:
    """Arguments of studies on real pairs: `--data-dir` and `--model`."""
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the files of preference pairs")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct as transformers has it"
    )


def run_missing(
    results: Results,
    tasks: Iterable[tuple[Any, ...]],
    work: Callable[..., Run],
    jobs: int,
    together: Callable[[tuple[Any, ...]], Hashable] = lambda task: task,
    in_processes: bool = False,
) -> None:
    """Run every task that has no result yet, and keep each result when it is there.

    Args:
        results: file of the results.
        tasks: keys of runs.
        work: from the parts of a key to the run; of module level where `in_processes`.
        jobs: tasks at a time.
        together: tasks of the same value go one after the other, since they share folders.
        in_processes: for work that computes in this process and not in a child.

    Raises:
        ExceptionGroup: what failed, after everything else has been run.
    """
    groups: dict[Hashable, list[tuple[Any, ...]]] = defaultdict(list)
    for task in results.missing(tasks):
        groups[together(task)].append(task)
    # A forked process that has used torch may hang.
    pool = ProcessPoolExecutor(jobs, get_context("spawn")) if in_processes else ThreadPoolExecutor(jobs)
    with pool:
        waiting = [pool.submit(_run_group, results, work, group) for group in groups.values()]
        done = list(tqdm(as_completed(waiting), total=len(waiting), desc="runs"))
    if failed := [error for one in done if isinstance(error := one.exception(), Exception)]:
        raise ExceptionGroup(
            f"{len(failed)} of {len(groups)} failed; the same command again repeats these alone", failed
        )


def _run_group(results: Results, work: Callable[..., Run], group: list[tuple[Any, ...]]) -> None:
    for task in group:
        results.add(work(*task))
