"""Memory and time of labelling, selecting and accepting as the pool grows: `python -m benchmarks.pool_size.run`.

Each size is a process of its own: a real `fit` with one round on generated pairs, with a random model of two layers and
two optimiser steps an epoch, so that the pool's share shows. Adds to results.jsonl; then `python -m benchmarks.tables`.
"""

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.shared.results import Results, Run, machine, versions
from benchmarks.shared.runs import GIVE_BACK, run_child


def write_pairs(path: Path, num_pairs: int) -> None:
    """A file of unlabelled pairs of the synthetic world."""
    from ser_lightning.synthetic.world import generate_pairs

    with path.open("w") as file:
        for pair in generate_pairs(num_pairs, seed=7):
            row = {"prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b}
            file.write(json.dumps(row) + "\n")


def write_model(folder: Path) -> None:
    """A random model of two layers with the tokenizer of the synthetic world."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from ser_lightning.models.backbone import Backbone, load_tokenizer

    backbone = Backbone("world_lm")
    config = AutoConfig.from_pretrained(backbone.resolved_path())
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 2
    config.num_attention_heads = config.num_key_value_heads = 2
    config.head_dim = 16
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer(backbone).save_pretrained(folder)


def anonymous_memory() -> int:
    """Bytes of this process that no file backs: what it keeps, without the memory-mapped pairs."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


class Meter:
    """Seconds in some functions, and the peak of anonymous memory inside and outside of them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak: dict[str, int] = defaultdict(int)
        self.stage = "else"
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak[self.stage] = max(self.peak[self.stage], anonymous_memory())
            time.sleep(0.005)

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, measured under a name."""

        def call(*args: Any, **kwargs: Any) -> Any:
            outer, self.stage, start = self.stage, name, time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.monotonic() - start
                self.stage = outer

        return call


def measure(folder: Path, num_pairs: int) -> Run:
    """One fit, with everything that touches the pool measured."""
    from ser_lightning.__main__ import main as ser_lightning
    from ser_lightning.callbacks import evolution
    from ser_lightning.datamodules import base, preference

    meter = Meter()
    evolve, data = evolution.EvolutionCallback, preference.PreferenceDataModule
    for owner, name, label in (
        (base, "build_store", "encode"),
        (data, "setup", "split"),
        (evolve, "score", "score"),
        (evolve, "judge", "select"),
        (data, "accept", "accept"),
        (evolve, "_write_round", "write"),
    ):
        setattr(owner, name, meter.watched(label, getattr(owner, name)))
    rule = ["--evolution.rule=ser_lightning.TopShareRule", "--evolution.folds=0", "--model.reading=last"]
    code = ser_lightning(
        [
            *("fit", "--config", "rm.yaml", *rule),
            *(f"--model.backbone.path={folder / 'model'}", f"--data.pool_path={folder / f'{num_pairs}.jsonl'}"),
            *(f"--run_dir={folder / f'run-{num_pairs}'}", f"--data.cache_dir={folder / 'cache'}"),
            *(
                "--trainer.limit_train_batches=2",
                "--evolution.max_rounds=1",
                "--evolution.seed_epochs=1",
            ),
            *(
                "--data.synthetic_pairs=400",
                "--data.tokens_per_scoring_batch=16384",
                "--trainer.enable_progress_bar=false",
            ),
        ]
    )
    assert code == 0
    return {"pairs": num_pairs, "seconds": dict(meter.seconds), "peak_bytes": dict(meter.peak)}


def main() -> None:
    """Every size in a process of its own, twice: encoding the pairs, and with the encoded pairs at hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--scratch", type=Path, default=Path("runs/pool_scale"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.jsonl")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.scratch, args.only)))
        return
    args.scratch.mkdir(parents=True, exist_ok=True)
    write_model(args.scratch / "model")
    results = Results(args.out, "pairs")
    threads = {"threads": os.environ.get("OMP_NUM_THREADS", "all")}
    made_with = {"machine": machine() | threads, "versions": versions("torch", "lightning", "transformers")}
    for size in args.sizes:
        write_pairs(args.scratch / f"{size}.jsonl", size)
        command = [
            sys.executable,
            "-m",
            "benchmarks.pool_size.run",
            "--scratch",
            str(args.scratch),
            "--only",
            str(size),
        ]
        first, second = (_run(command, args.scratch / f"run-{size}") for _ in range(2))
        encoding = {"encode_seconds": first["seconds"]["encode"], "encode_peak": first["peak_bytes"]["encode"]}
        print(found := {**second, **encoding})
        results.add({**found, **made_with})


def _run(command: list[str], run: Path) -> Run:
    shutil.rmtree(run, ignore_errors=True)
    return json.loads(run_child(command, os.environ | GIVE_BACK).splitlines()[-1])


if __name__ == "__main__":
    main()
