"""How often `torch.compile` compiles FlexAttention again over batches of random lengths, in training and labelling."""

import time
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.job import Job
from benchmarks.gpu.shapes import random_weights, write_folder
from benchmarks.gpu.ways import our_module, synchronize
from benchmarks.speed.lengths import PROFILES, lengths_of, make_pairs
from ser_lightning.training.scoring import evaluating


def num_graphs() -> int:
    """Graphs that were compiled in this process so far."""
    return int(counters["stats"]["unique_graphs"])


def run(job: Job) -> None:
    """50 batches of 1 to 48 pairs each, forward and backward, then forward alone; which of them had to wait for it."""
    folder = write_folder(job.scratch / f"shape-135m{'-tiny' if job.is_tiny else ''}", "135m", job.is_tiny)
    with random_weights(job.device):
        module = our_module(folder, "lora", "shared_prompt", job)
    draw, num_batches = np.random.default_rng(0), 3 if job.is_tiny else 50
    found: dict[str, Any] = {}
    for task in ("train", "label"):
        before, compiled_at, seconds = num_graphs(), [], []
        for number in range(num_batches):
            num_pairs = int(draw.integers(1, 4 if job.is_tiny else 49))
            pairs = make_pairs(lengths_of(PROFILES["hh"], num_pairs, seed=number), seed=number)
            sequences = [a for a, _ in pairs] + [b for _, b in pairs]
            inputs = module.layout.lay_out(sequences, [*range(num_pairs)] * 2, 0).to(job.device)
            start, graphs = time.perf_counter(), num_graphs()
            with torch.autocast(job.device, torch.bfloat16):
                if task == "train":
                    module.reward_model(inputs).sum().backward()
                else:
                    with evaluating(module):
                        module.reward_model(inputs)
            synchronize()
            seconds.append(time.perf_counter() - start)
            if num_graphs() > graphs:
                compiled_at.append(number)
            found[task] = {"graphs": num_graphs() - before, "compiled_at": compiled_at, "seconds": seconds}
            job.record(batches=num_batches, row_multiple=module.layout.row_multiple, **found)
    parts = [f"{task} {v['graphs']} graphs, {len(v['compiled_at'])} batches waited" for task, v in found.items()]
    job.record(headline=f"{'; '.join(parts)} of {num_batches}")
