"""A scheduler that stops a run must not take it for finished, and the user is told how to go on."""

import os
import signal
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback

from ser_lightning.__main__ import main


class Send(Callback):
    """Sends this process a signal in the middle of an epoch.

    Args:
        number: of the signal.
        epoch: when.
    """

    def __init__(self, number: int, epoch: int) -> None:
        self.number, self.epoch = number, epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_says_how_to_go_on(tiny_run, capsys, number, code):
    handler = signal.getsignal(signal.SIGINT)
    callback = (
        f'{{"class_path": "tests.cli.test_interrupts.Send", "init_args": {{"number": {int(number)}, "epoch": 1}}}}'
    )
    with pytest.raises(SystemExit) as stop:
        main(["fit", *tiny_run, "--run_dir=run", f"--trainer.callbacks+={callback}"])
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it from its first arrival on
    assert stop.value.code == code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == "interrupted; go on with python -m ser_lightning fit --run_dir run --ckpt_path last"
    assert Path("run/checkpoints/last.ckpt").exists()
