"""Memory and time of a pool in many shards: `python benchmarks/cluster_scale.py`.

Every size is a process of its own that goes through the shards one by one: it labels them (rewards drawn in place of a
model's, written as Parquet), finds the target that keeps the most information from counts, and accepts. Writes
`benchmarks/results/cluster_scale.json`; then `python benchmarks/tables.py`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rl_speed import machine

HERE = Path(__file__).parent
PAIRS_PER_SHARD = 1_000_000
TEMPERATURE = 1.7


def label(file: Path, number: int) -> None:
    """One shard of scores, a function of its number alone; a row group at a time."""
    import pyarrow
    import pyarrow.parquet
    import torch

    generator = torch.Generator().manual_seed(number)
    schema = pyarrow.schema(
        [("pair_id", pyarrow.int64()), ("reward_a", pyarrow.float32()), ("reward_b", pyarrow.float32())]
    )
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for first in range(0, PAIRS_PER_SHARD, 100_000):
            ids = torch.arange(first, first + 100_000) + number * PAIRS_PER_SHARD
            rewards = torch.randn(2, len(ids), generator=generator) * 2
            writer.write_batch(pyarrow.record_batch([x.numpy() for x in (ids, *rewards)], schema=schema))


def work(num_shards: int, folder: Path) -> dict[str, Any]:
    """All stages over some shards: seconds of each, and the process's peak memory."""
    from ser_lightning.shards import accept_shard, target_over_shards

    scores = [folder / f"scores-{n}.parquet" for n in range(num_shards)]
    seconds = {}
    start = time.perf_counter()
    for number, file in enumerate(scores):
        label(file, number)
    seconds["label"] = time.perf_counter() - start
    start = time.perf_counter()
    target = target_over_shards(scores, TEMPERATURE)
    seconds["select"] = time.perf_counter() - start
    start = time.perf_counter()
    kept = sum(accept_shard(f, folder / f"accepted-{n}.parquet", TEMPERATURE, target) for n, f in enumerate(scores))
    seconds["accept"] = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    disk = sum(file.stat().st_size for file in folder.iterdir())
    pairs = num_shards * PAIRS_PER_SHARD
    return {"pairs": pairs, "kept": kept, "target": target, "seconds": seconds, "peak_bytes": peak, "disk_bytes": disk}


def main() -> None:
    """Measure every size and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cluster_scale.json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(work(args.one, Path(folder))))
        return
    sizes = []
    for num_shards in args.shards:
        words = [sys.executable, __file__, "--one", str(num_shards)]
        # Freed memory goes back to the system, so that the peak is what is needed and not what allocators hold back.
        frugal = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "ARROW_DEFAULT_MEMORY_POOL": "system"}
        environment = {**os.environ, **frugal, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        sizes.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{sizes[-1]['pairs']:,} pairs: {sizes[-1]['peak_bytes'] / 2**20:.0f} MiB", flush=True)
    versions = {name: version(name) for name in ("torch", "pyarrow")}
    found = {
        "command": "python benchmarks/cluster_scale.py",
        "machine": machine(),
        "versions": versions,
        "sizes": sizes,
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
