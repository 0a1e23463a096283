"""Two processes of DDP do what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

ROOT = Path(__file__).parent.parent


def _fit(tiny_run, name, *extra):
    command = [sys.executable, "-m", "ser_lightning", "fit", *tiny_run, f"--run_dir={name}", *extra]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [pq.read_table(file).to_pydict() for file in sorted(Path(name).glob("rounds/*/audit.parquet"))]


def test_two_ranks_label_and_select_as_one_and_learn_the_same_weights(tiny_run):
    one = _fit(tiny_run, "one")
    two = _fit(tiny_run, "two", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert len(set(b["pair_id"])) == len(b["pair_id"])  # the pool of 55 does not divide evenly
        assert [a[k] for k in ("pair_id", "label", "kept")] == [b[k] for k in ("pair_id", "label", "kept")]
        assert a["reward_a"] == pytest.approx(b["reward_a"], abs=1e-4)
    models = [torch.load(f"{name}/rounds/1/model.pt", weights_only=True)["weights"] for name in ("one", "two")]
    assert all(torch.allclose(models[0][k], models[1][k], atol=1e-4) for k in models[0])
