"""DDP and FSDP2 with NCCL at world size 1: the smallest proof that they start, train, save and go on on a GPU."""

from pathlib import Path

import torch

from benchmarks.gpu.job import Job
from benchmarks.gpu.memory import write_pairs
from benchmarks.gpu.shapes import random_weights, write_folder
from ser_lightning.__main__ import main as command_line


def flags_of(folder: Path, pairs: Path, train: str, job: Job) -> list[str]:
    """A fit of one round on a small model."""
    flags = ["fit", "--config", "rm.yaml", "--model.backbone.path", str(folder), "--model.backbone.train", train]
    flags += ["--model.reading", "last"]
    flags += ["--data.path", str(pairs), "--data.seed_fraction", "0.5", "--data.cache_dir", str(job.scratch / "cache")]
    flags += ["--evolution.rule", "ser_lightning.TopShareRule"]
    for name, value in {"max_rounds": 1, "seed_epochs": 1, "epochs_per_round": 1, "folds": 0}.items():
        flags += [f"--evolution.{name}", str(value)]
    flags += [
        "--trainer.accelerator",
        job.accelerator,
        "--trainer.devices",
        "1",
        "--trainer.enable_progress_bar",
        "false",
    ]
    return [*flags, "--trainer.precision", "bf16-mixed" if not job.is_tiny else "32-true"]


def run(job: Job) -> None:
    """A fit under each strategy; FSDP2 needs a GPU."""
    folder = write_folder(job.scratch / "shape-135m-tiny", "135m", True)
    pairs = write_pairs(job.scratch / "pairs-48.jsonl", 48)
    strategies = ["ddp"] if job.is_tiny else ["ddp", "fsdp"]
    found = {}
    for strategy in strategies:
        for train in ("lora",) if job.is_tiny else ("lora", "full"):
            run_dir = job.scratch / f"run-{strategy}-{train}-{job.started}"
            flags = flags_of(folder, pairs, train, job)
            with random_weights(job.device):
                torch.manual_seed(0)
                code = command_line([*flags, "--trainer.strategy", strategy, "--run_dir", str(run_dir)])
            if code:
                raise RuntimeError(f"{strategy} with {train} ended with {code}")
            rounds = (run_dir / "rounds.csv").read_text().count("\n") - 1
            backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
            found[f"{strategy}, {train}"] = {"rounds": rounds, "backend": backend}
            job.record(runs=found)
    job.record(headline=", ".join(f"{name} with {v['backend']}" for name, v in found.items()))
