"""A scheduler that stops a run must not take it for finished, and the user is told how to go on."""

import os
import signal
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI

from ser_lightning.__main__ import main
from tests.command_process import CommandProcess

SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
AGAIN = "interrupted; give the same command again"


@pytest.fixture(autouse=True)
def _ctrl_c_arrives():
    """A shell that starts the suite in the background has it ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Send(Callback):
    """Sends this process a signal in the middle of an epoch, or of another command's loop.

    Args:
        number: of the signal.
        epoch: when.
    """

    def __init__(self, number: int, epoch: int) -> None:
        self.number, self.epoch = number, epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 0:
            os.kill(os.getpid(), self.number)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        os.kill(os.getpid(), self.number)

    on_predict_batch_start = on_test_batch_start


def sending(number, epoch=1):
    init_args = f'{{"number": {int(number)}, "epoch": {epoch}}}'
    return f'--trainer.callbacks+={{"class_path": "tests.cli.test_interrupts.Send", "init_args": {init_args}}}'


@pytest.fixture
def interrupted(capsys):
    """Runs a command that is interrupted; its exit code and the last line on standard error."""

    def run(*command):
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in command])
        assert signal.getsignal(signal.SIGTERM) == before[0]
        signal.signal(signal.SIGINT, before[1])  # Lightning ignores it from its first arrival on
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return stop.value.code, said.strip().splitlines()[-1]

    return run


@SIGNALS
def test_an_interrupted_run_says_how_to_go_on(tiny_run, interrupted, number, code):
    found = interrupted("fit", *tiny_run, "--run_dir=my run", sending(number))
    assert found == (code, "interrupted; go on with python -m ser_lightning fit --run_dir 'my run' --ckpt_path last")
    assert Path("my run/checkpoints/last.ckpt").exists()


@SIGNALS
def test_a_run_that_has_saved_nothing_begins_again(tiny_run, interrupted, number, code):
    told = "interrupted before anything was saved in run; give the same command again"
    assert interrupted("fit", *tiny_run, "--run_dir=run", sending(number, epoch=0)) == (code, told)


def test_a_signal_before_the_first_epoch_ends_the_command(tiny_run, interrupted, monkeypatch):
    stop = lambda cli: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr(LightningCLI, "before_fit", stop, raising=False)
    assert interrupted("fit", *tiny_run, "--run_dir=run") == (143, AGAIN)


@SIGNALS
def test_the_report_of_an_interrupted_run_says_so(tiny_run, interrupted, number, code):
    assert interrupted("fit", *tiny_run, "--run_dir=run", sending(number, epoch=3))[0] == code
    assert "The run was interrupted and has not finished." in Path("run/report.html").read_text()


@SIGNALS
@pytest.mark.parametrize("command", ["test", "predict"])
def test_every_loop_of_lightning_ends(tiny_fit, interrupted, command, number, code):
    tiny_fit()
    before = sorted(Path("run").rglob("*"))
    more = ["--run_dir=run", "--ckpt_path=last", sending(number)]
    assert interrupted(command, *more) == (code, AGAIN)
    left = {path.name for path in set(Path("run").rglob("*")) - set(before)}
    assert left <= {"config-2.yaml", f"metrics-{command}.csv"}


@SIGNALS
@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("score --model=run --data={data} --out=out/scores.csv", "inference.scorer.Scorer.score_encoded"),
        ("compare run run --data={data} --json=out.json", "inference.scorer.Scorer.score_encoded"),
        ("bench --model=run --data={data} --json=out.json", "inference.scorer.Scorer.score_candidates"),
        ("export run", "export.reward.merged_model"),
        ("report run --to=out.html", "report.page.read_run"),
        ("query --run=run --n=3 --to=out.jsonl", "evolution.query.Random.choose"),
    ],
)
def test_every_other_command_ends_and_leaves_nothing(
    tiny_fit, pairs_file, interrupted, monkeypatch, command, where, number, code
):
    tiny_fit()
    before = sorted(Path().rglob("*"))
    monkeypatch.setattr(f"ser_lightning.{where}", lambda *args, **kwargs: os.kill(os.getpid(), number))
    assert interrupted(*command.format(data=pairs_file).split()) == (code, AGAIN)
    assert [path for path in sorted(Path().rglob("*")) if path.is_file()] == [p for p in before if p.is_file()]


@SIGNALS
def test_plan_ends(tiny_run, interrupted, monkeypatch, number, code):
    monkeypatch.setattr("ser_lightning.cli.plan.load_reward_model", lambda *_: os.kill(os.getpid(), number))
    assert interrupted("plan", *tiny_run, "--json=out.json") == (code, AGAIN)
    assert not Path("out.json").exists()


@pytest.mark.parametrize("command", [("--help",), ("fit", "--help"), ("fit",)])
def test_a_reader_that_is_gone_ends_the_command_quietly(tiny_run, command):
    process = CommandProcess(*command, *(tiny_run if command == ("fit",) else ()))
    process.stdout.close()
    process.stdout = Path(os.devnull).open()  # noqa: SIM115
    _, said = process.communicate()
    assert process.returncode == 141
    assert not any(word in said for word in ("Traceback", "Exception ignored", "error", "interrupted")), said
