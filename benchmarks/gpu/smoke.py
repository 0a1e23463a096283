"""First things first: the card's own rates, and whether packed rows under FlexAttention and 4-bit layers run at all."""

import time
from typing import Any

import torch

from benchmarks.gpu.job import Job
from benchmarks.gpu.shapes import random_weights, shape_of, write_folder
from benchmarks.gpu.ways import matmul_rate, synchronize
from benchmarks.speed.lengths import PROFILES, lengths_of, make_pairs
from ser_lightning.data.layouts import PADDED
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.reward_model import load_reward_model


def copy_rate(device: str, num_bytes: int) -> float:
    """Bytes a second that a copy within the device's memory reads and writes."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        synchronize()
        start = time.perf_counter()
        target.copy_(source)
        synchronize()
        times.append(time.perf_counter() - start)
    return 2 * num_bytes / min(times)


def packed_and_padded(job: Job, quantize: str) -> dict[str, Any]:
    """Rewards of the same pairs in both layouts, and the seconds of a step forwards and backwards."""
    folder = write_folder(job.scratch / f"shape-135m{'-tiny' if job.is_tiny else ''}", "135m", job.is_tiny)
    pairs = make_pairs(lengths_of(PROFILES["hh"], 4 if job.is_tiny else 24, seed=0), seed=0)
    sequences = [a for a, _ in pairs] + [b for _, b in pairs]
    settings = Backbone(str(folder), quantize=quantize, dtype="bfloat16", lora=LoraSettings(dropout=0.0))  # type: ignore[arg-type]
    rewards, seconds = {}, {}
    for name in ("shared_prompt", "padded"):
        torch.manual_seed(0)
        with random_weights(job.device):
            torch.manual_seed(1)
            model = load_reward_model(settings, job.device, name).to(job.device)  # type: ignore[arg-type]
        layout = model.layout if name == "shared_prompt" else PADDED
        inputs = layout.lay_out(sequences, [*range(len(pairs))] * 2, 0).to(job.device)
        seconds[name] = []
        for _ in range(3):
            synchronize()
            start = time.perf_counter()
            with torch.autocast(job.device, torch.bfloat16):
                found = model(inputs)
            found.sum().backward()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
        rewards[name] = found.detach().float()
    packed, padded = rewards.values()
    difference = float((packed - padded).abs().max() / padded.std())
    return {
        "largest_difference_over_spread": difference,
        "seconds": seconds,
        "is_finite": bool(packed.isfinite().all()),
    }


def run(job: Job) -> None:
    """What every other part builds on."""
    rates = {
        "matmul_rate": matmul_rate(shape_of("8b", job.is_tiny), job.device, 64 if job.is_tiny else 8192),
        "copy_rate": copy_rate(job.device, 2**20 if job.is_tiny else 2**31),
    }
    job.record(**rates)
    for quantize in ("none", "nf4"):
        found = packed_and_padded(job, quantize)
        job.record(**{f"packed_{quantize}": found})
        if not found["is_finite"]:
            raise RuntimeError(f"packed rows give NaN with quantize {quantize}")
    worst = max(job.figures[f"packed_{q}"]["largest_difference_over_spread"] for q in ("none", "nf4"))
    speeds = f"{rates['matmul_rate'] / 1e12:.1f} TFLOP/s, {rates['copy_rate'] / 1e9:.0f} GB/s"
    job.record(headline=f"{speeds}; packed rows differ by at most {worst:.3f} of the rewards' spread")
