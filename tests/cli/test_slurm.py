"""The batch script with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_rm.sbatch"


@pytest.fixture
def start(tmp_path):
    """Starts the script; `srun` and `scontrol` write down their words, and `srun` runs for as long as it is told."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, then in (("srun", 'sleep "$SECONDS_TO_RUN"'), ("scontrol", ":")):
        (tools / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/{name}.txt\n{then}\n')
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "8"}

    def run(seconds):
        environment = {**os.environ, **slurm, "PATH": f"{tools}:{os.environ['PATH']}", "SECONDS_TO_RUN": str(seconds)}
        words = ["bash", str(SCRIPT), "runs/mine", "--config", "rm.yaml", "--data.path", "my pairs.jsonl"]
        return subprocess.Popen(words, env=environment, start_new_session=True)

    return run


def test_the_ranks_get_the_flags_and_resume_by_themselves(start, tmp_path):
    assert start(0).wait(600) == 0
    words = (tmp_path / "srun.txt").read_text().splitlines()
    assert words[:2] == ["--kill-on-bad-exit=1", "--cpus-per-task=8"]
    words = words[2:]
    assert words[:4] == ["python", "-m", "ser_lightning", "fit"]
    assert words[4:8] == ["--config", "rm.yaml", "--data.path", "my pairs.jsonl"]
    assert words[8:12] == ["--run_dir", "runs/mine", "--ckpt_path", "auto"]
    flags = dict(zip(words[12::2], words[13::2], strict=True))
    assert flags == {"--trainer.num_nodes": "2", "--trainer.devices": "4", "--trainer.strategy": "ddp"}
    assert not (tmp_path / "scontrol.txt").exists()


def test_before_the_time_limit_the_job_goes_back_into_the_queue(start, tmp_path):
    """SLURM ends a job that goes back; the script itself may be waiting for its ranks by then, or not yet."""
    job, said = start(3600), tmp_path / "scontrol.txt"
    try:
        while not (tmp_path / "srun.txt").exists():
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        while not said.exists() or len(said.read_text().split()) < 2:
            time.sleep(0.01)
        assert said.read_text().split() == ["requeue", "77"]
    finally:
        os.killpg(job.pid, signal.SIGKILL)
