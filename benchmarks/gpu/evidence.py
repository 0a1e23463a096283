"""Evolution of bodies that are trained, on real preferences: as many runs as there is time for, one JSON line each.

`--data` holds the files of `benchmarks/real_preferences/`, `--models` a folder for each pretrained model. A run is one
model, data set and random seed; those that earlier calls finished are not repeated.
"""

import json
import os
import random
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import Job, commit, machine
from benchmarks.gpu.memory import write_pairs
from benchmarks.gpu.shapes import write_folder
from benchmarks.shared.results import read_figures

MODELS = {"smollm2-135m": "SmolLM2-135M-Instruct", "qwen2.5-0.5b": "Qwen2.5-Coder-0.5B-Instruct"}
"""Overlay of `models/` -> folder of the weights; others are asked for by the same names."""
DATA = {"pandalm": ("pandalm_test.jsonl",), "hh": ("hh_helpful_base.jsonl", "hh_helpful_rs.jsonl")}
NUM_PAIRS = 4000
"""Most pairs of a data set, chosen by the random seed, so that a run ends within a few minutes."""
CONDITIONS = {
    "last": ("--model.reading=last",),
    "mean_judge": ("--model.reading=[mean,judge]",),
    "all_labels": ("--model.reading=last", "--data.seed_fraction=1", "--evolution.max_rounds=0", "--evolution.folds=0"),
}
"""Flags of each: the standard reading, ours, and the standard one with every label."""
FLAGS = ("--model.backbone.dtype=bfloat16", "--trainer.precision=bf16-mixed", "--data.max_length=512")


def plans(job: Job) -> list[tuple[str, Path, str, int, str]]:
    """Overlay, folder, data set, random seed and condition of every run, the cheapest first."""
    assert job.models is not None and job.data is not None
    models = [(name, job.models / folder) for name, folder in MODELS.items() if (job.models / folder).is_dir()]
    data = [name for name, files in DATA.items() if all((job.data / file).is_file() for file in files)]
    return [
        (*model, name, seed, condition)
        for seed, model, name, condition in product(range(1, 6), models, data, CONDITIONS)
    ]


def chosen_pairs(files: list[Path], seed: int, file: Path) -> Path:
    """Some pairs of a data set."""
    lines = [line for source in files for line in source.read_text(encoding="utf-8").splitlines()]
    random.Random(seed).shuffle(lines)
    file.write_text("".join(line + "\n" for line in lines[:NUM_PAIRS]), encoding="utf-8")
    return file


def one_run(
    job: Job, name: str, folder: Path, pairs: Path, seed: int, condition: str, run: Path, seconds: float
) -> dict[str, Any]:
    """A fit by command line, in a process of its own, and its rounds."""
    extra = (*FLAGS, *CONDITIONS[condition])
    if job.is_tiny:
        extra = (
            *CONDITIONS[condition],
            "--evolution.max_rounds=0",
            "--evolution.seed_epochs=1",
            "--data.max_length=64",
        )
    gguf = next(iter(folder.glob("*.gguf")), None)
    words = [sys.executable, "-m", "ser_lightning", "fit", "--config", "rm.yaml", "--config", f"models/{name}.yaml"]
    words += [f"--model.backbone.path={folder}", f"--data.path={pairs}", f"--seed_everything={seed}"]
    words += [f"--data.split_seed={seed}", f"--run_dir={run}", "--trainer.enable_progress_bar=false", *extra]
    words += [f"--trainer.accelerator={job.accelerator}", "--trainer.devices=1"]
    words += [
        f"--data.cache_dir={job.scratch / 'cache'}",
        *([f"--model.backbone.gguf_file={gguf.name}"] if gguf else []),
    ]
    start = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds, env={**os.environ})
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:] or done.stdout[-2000:])
    return {"rounds": read_figures(run / "rounds.csv"), "seconds": round(time.monotonic() - start, 1)}


def run(job: Job) -> str | None:
    """Runs until the time is over; why none was done, where that is so."""
    lines = job.out / "evidence.jsonl"
    if job.is_tiny:
        _tiny_inputs(job)
    elif job.data is None or job.models is None:
        return "needs --data and --models"
    done = [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []
    finished = {(row["model"], row["data"], row["seed"], row["condition"]) for row in done}
    todo = [plan for plan in plans(job) if (plan[0], *plan[2:]) not in finished]
    if not todo and not done:
        return f"found no model of {', '.join(MODELS.values())} with files of {', '.join(DATA)}"
    assert job.data is not None
    longest = 0.0
    for name, folder, data, seed, condition in todo[: 1 if job.is_tiny else None]:
        if job.seconds_left < 1.2 * longest + 5:
            break
        pairs = chosen_pairs([job.data / file for file in DATA[data]], seed, job.scratch / f"{data}-{seed}.jsonl")
        where = job.scratch / f"run-{name}-{data}-{seed}-{condition}-{job.started}"
        try:
            found = one_run(job, name, folder, pairs, seed, condition, where, max(10.0, job.seconds_left - 5))
        except subprocess.TimeoutExpired:
            break
        longest = max(longest, found["seconds"])
        row = {"model": name, "data": data, "seed": seed, "condition": condition, **found}
        row |= {"commit": commit(), "machine": machine(job.device)}
        lines.parent.mkdir(parents=True, exist_ok=True)
        with lines.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        done.append(row)
        job.record(runs=done, headline=f"{len(done)} runs, the last one {found['seconds']:.0f} s")
    if not done:
        raise RuntimeError("no run ended within the time box")
    job.record(runs=done)
    return None


def _tiny_inputs(job: Job) -> None:
    """A random model and made-up pairs in the places of the real ones."""
    from transformers import AutoConfig, AutoModelForCausalLM

    job.data, job.models = job.scratch / "data", job.scratch / "models"
    job.data.mkdir(exist_ok=True)
    write_pairs(job.data / DATA["pandalm"][0], longest=24, number=80)
    folder = write_folder(job.models / MODELS["smollm2-135m"], "135m", True)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
