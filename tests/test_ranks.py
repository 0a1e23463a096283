"""Two processes of DDP do what one does, and end together."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

ROOT = Path(__file__).parent.parent
DDP = ("--trainer.devices=2", "--trainer.strategy=ddp")


def _fit(tiny_run, name, *extra):
    command = [sys.executable, "-m", "ser_lightning", "fit", *tiny_run, f"--run_dir={name}", *extra]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [pq.read_table(file).to_pydict() for file in sorted(Path(name).glob("rounds/*/audit.parquet"))]


def test_two_ranks_label_and_select_as_one_and_learn_the_same_weights(tiny_run):
    one = _fit(tiny_run, "one")
    two = _fit(tiny_run, "two", *DDP)
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert len(set(b["pair_id"])) == len(b["pair_id"])  # the pool of 55 does not divide evenly
        assert [a[k] for k in ("pair_id", "label", "kept")] == [b[k] for k in ("pair_id", "label", "kept")]
        assert a["reward_a"] == pytest.approx(b["reward_a"], abs=1e-4)
    models = [torch.load(f"{name}/rounds/1/model.pt", weights_only=True)["weights"] for name in ("one", "two")]
    assert all(torch.allclose(models[0][k], models[1][k], atol=1e-4) for k in models[0])


def test_two_ranks_end_alike_when_nothing_is_kept(tiny_run, tmp_path):
    rule = "--trainer.callbacks.rule.target=0.9999999"
    one = _fit(tiny_run, "one", rule, "--model.optimizer.init_args.lr=1e-9")
    two = _fit(tiny_run, "two", rule, "--model.optimizer.init_args.lr=1e-9", *DDP)
    assert len(one) == len(two) == 1
    assert one[0]["kept"] == two[0]["kept"] == [False] * len(one[0]["kept"])


BREAK = """
import os, signal, sys
from ser_lightning.callbacks.evolution import EvolutionCallback
from ser_lightning.errors import UserError
count = EvolutionCallback.on_train_batch_end

def fail(self, trainer, *args):
    count(self, trainer, *args)
    if trainer.current_epoch == 1 and trainer.global_rank == {rank}:
        {action}

EvolutionCallback.on_train_batch_end = fail
from ser_lightning.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("rank", "action", "first"),
    [
        (1, "raise UserError('disk: got a mouse; get a cat')", "error: disk: got a mouse; get a cat"),
        (0, "os.kill(os.getpid(), signal.SIGKILL)", "error: ranks: got 'Connection "),
    ],
)
def test_a_rank_that_dies_ends_the_job_with_the_first_error_on_top(tiny_run, rank, action, first):
    Path("broken.py").write_text(BREAK.format(rank=rank, action=action))
    command = [sys.executable, "broken.py", "fit", *tiny_run, "--run_dir=run", *DDP]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True) as job:
        _, said = job.communicate(timeout=120)  # the pipe closes when the last rank has ended
    assert job.returncode != 0
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert errors and errors[0].startswith(first), said


def test_a_rank_ends_with_the_process_that_started_it():
    """Even where it waits for good, as a collective operation on a GPU does."""
    rank = "import time; from ser_lightning.ranks import end_with_parent; end_with_parent(0.1, 0.1); "
    rank += "print(1, flush=True); time.sleep(600)"
    starter = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {rank!r}]); time.sleep(600)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", starter]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as parent:
        assert parent.stdout.readline() == b"1\n"  # the rank is up
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == b""  # closed by the rank's end
