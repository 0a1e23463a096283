"""Where the time of a card goes: the kernels of a batch that is labelled and of one that is trained on."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.job import Job
from benchmarks.gpu.shapes import random_weights, write_folder
from benchmarks.gpu.ways import our_module, synchronize
from benchmarks.speed.lengths import PROFILES, lengths_of, make_pairs
from ser_lightning.training.scoring import evaluating

NUM_KERNELS = 12
PAIRS = {"0.5b": 96, "8b": 24}
KINDS = {
    "matrix products": r"gemm|nvjet|cutlass|cublas|splitK|::(add)?mm$",
    "attention": r"flex_attention|flash|fmha|attention",
    "copies and casts": r"copy|cast|Memcpy|to_copy",
    "elementwise": r"elementwise|triton_|vectorized|reduce",
}
"""Kind -> what names of its kernels have in common; the first that fits counts."""


def kind_of(kernel: str) -> str:
    """Which of `KINDS` a kernel belongs to."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), "others")


def kernels_of(work: Callable[[], Any], is_tiny: bool) -> dict[str, Any]:
    """Milliseconds of the device by kind, the longest kernels, and how long host and device took together."""
    work()
    synchronize()
    activities = [ProfilerActivity.CPU] if is_tiny else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as found:
        work()
        synchronize()
    events = found.key_averages()
    if is_tiny:
        times = {e.key: e.self_cpu_time_total / 1000 for e in events}
    else:  # the kernels themselves: what the host calls would count them twice
        times = {e.key: e.self_device_time_total / 1000 for e in events if e.device_type.name == "CUDA"}
    counts = {e.key: e.count for e in events}
    by_kind: dict[str, float] = {}
    for name, milliseconds in times.items():
        by_kind[kind_of(name)] = by_kind.get(kind_of(name), 0.0) + milliseconds
    longest = sorted(times, key=lambda name: -times[name])[:NUM_KERNELS]
    return {
        "milliseconds": sum(times.values()),
        "milliseconds_by_kind": by_kind,
        "longest": [
            {"kernel": name[:160], "milliseconds": times[name], "count": counts[name], "kind": kind_of(name)}
            for name in longest
        ],
    }


def run(job: Job) -> None:
    """Labelling and training of two shapes in packed rows."""
    found: dict[str, Any] = {}
    for shape, number in PAIRS.items():
        folder = write_folder(job.scratch / f"shape-{shape}{'-tiny' if job.is_tiny else ''}", shape, job.is_tiny)
        with random_weights(job.device):
            module = our_module(folder, "lora", "shared_prompt", job)
        pairs = make_pairs(lengths_of(PROFILES["hh"], 4 if job.is_tiny else number, seed=0), seed=0)
        sequences = [a for a, _ in pairs] + [b for _, b in pairs]
        inputs = module.layout.lay_out(sequences, [*range(len(pairs))] * 2, 0).to(job.device)

        def label(module: Any = module, inputs: Any = inputs) -> None:
            with evaluating(module), torch.autocast(job.device, torch.bfloat16):
                module.reward_model(inputs)

        def train(module: Any = module, inputs: Any = inputs) -> None:
            with torch.autocast(job.device, torch.bfloat16):
                module.reward_model(inputs).sum().backward()

        for name, work in {"label": label, "train": train}.items():
            found[f"{shape}, {name}"] = kernels_of(work, job.is_tiny)
            job.record(tokens={shape: int(inputs.num_tokens.sum())}, tasks=found)
    shares = {k: v["milliseconds_by_kind"].get("matrix products", 0.0) / v["milliseconds"] for k, v in found.items()}
    text = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    job.record(headline=f"share of matrix products: {text}")
