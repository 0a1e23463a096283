"""The folder of a run: never overwritten, resumed or refused, the same for all ranks."""

import errno
import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
import wandb
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from ser_lightning.__main__ import main
from ser_lightning.callbacks.prediction_writers import PredictionWriter, to_table
from ser_lightning.callbacks.progress import describe_phase
from ser_lightning.errors import UserError
from ser_lightning.records import PairScores
from ser_lightning.runs.folder import MetricsFile, choose_folder, lock, run_of
from ser_lightning.training.checkpoints import CheckpointsInPlace, _swap, is_whole
from tests.command_process import CommandProcess
from tests.helpers import break_off, problems_of, read_csv

ROOT = Path(__file__).parents[2]
BORING = """
model:
  class_path: lightning.pytorch.demos.boring_classes.BoringModel
data:
  class_path: lightning.pytorch.demos.boring_classes.BoringDataModule
trainer:
  accelerator: cpu
  max_epochs: 2
  limit_train_batches: 2
  limit_val_batches: 1
  limit_test_batches: 1
  log_every_n_steps: 1
  enable_model_summary: false
  enable_progress_bar: false
"""
FIT = ["fit", "--config", "boring.yaml"]


@pytest.fixture(autouse=True)
def _boring(_isolated, monkeypatch):
    Path("boring.yaml").write_text(BORING)

    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        self.log("train/loss", loss)
        return loss

    monkeypatch.setattr(BoringModel, "training_step", training_step)


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def only_problem(capsys, *args):
    (line,) = problems_of(capsys, *args)
    return line


def test_a_run_gets_a_folder_named_after_its_config():
    assert main(FIT) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("boring-2")
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*")} == {
        "checkpoints",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "config.yaml",
        "metrics.csv",
    }
    assert {p.name for p in Path().iterdir()} == {"boring.yaml", "runs"}


def test_a_lock_that_its_owner_has_just_taken_away_is_made_anew(monkeypatch):
    """Between opening the file and locking it."""
    flock = fcntl.flock

    def late(file, operation):
        monkeypatch.setattr("fcntl.flock", flock)
        Path("run/.lock").unlink()
        flock(file, operation)

    monkeypatch.setattr("fcntl.flock", late)
    with lock(Path("run")) as file:
        assert Path("run/.lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        assert os.path.samestat(os.fstat(file.fileno()), Path("run/.lock").stat())


def test_a_file_system_without_locks_is_none_in_the_way(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock(Path("run")), lock(Path("run")):  # nothing keeps two from each other there
        assert Path("run/.lock").is_file()


def test_two_runs_at_once_get_two_folders(monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "now")
    choose_folder("fit", None, None, "rm").open("a: 1\n")
    assert choose_folder("fit", None, None, "rm").path == Path("runs/rm-now-2")


def test_the_recorded_config_repeats_the_run_elsewhere():
    assert main([*FIT, "--run_dir", "one"]) == 0
    assert main(["fit", "--config", "one/config.yaml", "--run_dir", "two"]) == 0
    assert Path("one/config.yaml").read_text() == Path("two/config.yaml").read_text()
    assert "run_dir" not in yaml.safe_load(Path("one/config.yaml").read_text())
    assert read_csv("one/metrics.csv") == read_csv("two/metrics.csv")


def test_a_taken_folder_is_refused_untouched(capsys):
    assert main([*FIT, "--run_dir", "run"]) == 0
    before = contents("run")
    assert "which holds a run; go on with --ckpt_path last" in only_problem(capsys, *FIT, "--run_dir", "run")
    assert contents("run") == before


def test_a_folder_of_something_else_is_refused(capsys):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    assert "is not the folder of a run" in only_problem(capsys, *FIT, "--run_dir", "mine")


def test_resuming_goes_on_where_the_run_ended():
    assert main([*FIT, "--run_dir", "run"]) == 0
    first = Path("run/metrics.csv").read_text()
    assert main([*FIT, "--run_dir", "run", "--ckpt_path", "last", "--trainer.max_epochs=3"]) == 0
    assert Path("run/metrics.csv").read_text().startswith(first)
    losses = [row for row in read_csv("run/metrics.csv") if row["train/loss"]]
    assert [int(row["step"]) for row in losses] == [0, 1, 2, 3, 4, 5]
    assert torch.load("run/checkpoints/last.ckpt", weights_only=False)["global_step"] == 6
    assert yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]["max_epochs"] == 2
    assert yaml.safe_load(Path("run/config-2.yaml").read_text())["trainer"]["max_epochs"] == 3


def test_resuming_needs_no_config():
    assert main([*FIT, "--run_dir", "run"]) == 0
    assert main(["fit", "--run_dir", "run", "--ckpt_path", "last", "--trainer.max_epochs=3"]) == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=False)["epoch"] == 2


def test_resuming_with_another_config_is_refused(capsys):
    assert main([*FIT, "--run_dir", "run"]) == 0
    resume = [*FIT, "--run_dir", "run", "--ckpt_path", "last"]
    problem = only_problem(capsys, *resume, "--seed_everything=1", "--trainer.limit_train_batches=1")
    assert "seed_everything was 0 and is 1, trainer.limit_train_batches was 2 and is 1;" in problem


def test_last_without_a_checkpoint_is_refused(capsys):
    assert "there is no run/checkpoints/last.ckpt" in only_problem(
        capsys, *FIT, "--run_dir", "run", "--ckpt_path", "last"
    )


def test_auto_starts_or_resumes(capsys):
    auto = [*FIT, "--run_dir", "run", "--ckpt_path", "auto"]
    assert main(auto) == 0
    assert main([*auto, "--trainer.max_epochs=3"]) == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=False)["global_step"] == 6
    assert "auto without a run" in only_problem(capsys, *FIT, "--ckpt_path", "auto")
    line = "--ckpt_path: got last without a run; name its folder with --run_dir"
    assert only_problem(capsys, "fit", "--ckpt_path", "last") == line


def test_auto_starts_again_what_was_killed_before_its_first_checkpoint(capsys):
    assert main([*FIT, "--run_dir", "run"]) == 0
    shutil.rmtree("run/checkpoints")
    assert "nothing to resume" in only_problem(capsys, *FIT, "--run_dir", "run", "--ckpt_path", "last")
    auto = [*FIT, "--run_dir", "run", "--ckpt_path", "auto"]
    assert main([*auto, "--seed_everything=1"]) == 0  # nothing of the other run is left to agree with
    assert torch.load("run/checkpoints/last.ckpt", weights_only=False)["global_step"] == 4
    assert "its config differs" in only_problem(capsys, *auto, "--seed_everything=2")
    assert [path.name for path in Path("run").glob("config*")] == ["config.yaml"]


def test_a_start_that_failed_leaves_nothing_and_one_that_was_killed_can_be_given_again(tiny_run, monkeypatch, capsys):
    flags = [*tiny_run, "--run_dir=run"]
    assert "there is no such folder" in only_problem(capsys, "fit", *flags, "--model.backbone.path=./nowhere")
    assert main(["fit", *tiny_run, "--model.backbone.path=./nowhere"]) == 2  # under runs/
    assert not Path("run").exists() and not Path("runs").exists()
    Path("run").mkdir()
    Path("run/config.yaml").write_text("seed_everything: 7")  # killed after its first write
    Path("run/metrics.csv").write_text("step,train/loss\n0,0.7\n")
    assert main(["fit", *flags, "--evolution.max_rounds=0"]) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["seed_everything"] == 0
    capsys.readouterr()
    assert not Path("run/config-2.yaml").exists() and "0,0.7\n" not in Path("run/metrics.csv").read_text()
    assert "holds a run; go on with --ckpt_path last" in only_problem(capsys, "fit", *flags)


def test_a_logger_that_has_no_key_leaves_no_folder_that_holds_a_run(tiny_run, monkeypatch, capsys):
    def refuse(logger):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    with monkeypatch.context() as patch:
        patch.setattr("lightning.pytorch.loggers.WandbLogger.experiment", property(refuse))
        line = only_problem(capsys, "fit", *tiny_run, "--config", "loggers/wandb.yaml", "--run_dir=run")
    assert line == (
        "wandb: No API key configured. Use `wandb login` to log in. Or set WANDB_MODE=offline, and send the run later"
    )
    assert main(["fit", *tiny_run, "--run_dir=run", "--evolution.max_rounds=0"]) == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_checkpoint_names_the_newest_good_one(capsys, share):
    assert main([*FIT, "--run_dir", "run"]) == 0
    last = Path("run/checkpoints/last.ckpt")
    whole = last.read_bytes()
    last.write_bytes(whole[: int(share * len(whole))])
    resume = ["fit", "--run_dir", "run", "--ckpt_path"]
    problem = only_problem(capsys, *resume, "last")
    assert "which is damaged" in problem and "--ckpt_path run/checkpoints/previous.ckpt" in problem
    assert main([*resume, "run/checkpoints/previous.ckpt"]) == 0
    assert torch.load(last, weights_only=False)["global_step"] == 4
    for file in Path("run/checkpoints").iterdir():
        file.write_bytes(b"rubbish")
    assert "no good one lies beside it" in only_problem(capsys, *resume, "last")


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_kill_in_any_step_of_the_swap_leaves_a_whole_checkpoint(tmp_path, monkeypatch, step):
    """The calls of the file system that put a new checkpoint in the place of the last, broken off before the n-th."""
    last, new = tmp_path / "last.ckpt", tmp_path / "last.ckpt.new"
    for path, number in ((last, 1), (tmp_path / "previous.ckpt", 0), (new, 2)):
        torch.save(number, path)
    break_off(monkeypatch, step, "fsync", "link", "replace")
    with pytest.raises(KeyboardInterrupt):
        _swap(new, last)
    monkeypatch.undo()
    assert is_whole(last) and torch.load(last) == 1
    _swap(new, last)  # the resumed run writes it again
    assert torch.load(last) == 2 and torch.load(tmp_path / "previous.ckpt") == 1


def test_a_folder_of_shards_takes_the_place_of_the_last(tmp_path):
    """As sharded strategies save it."""
    last = tmp_path / "last.ckpt"
    for number in range(3):
        new = tmp_path / "last.ckpt.new"
        new.mkdir()
        (new / "shard").write_text(str(number))
        _swap(new, last)
        assert is_whole(last) and (last / "shard").read_text() == str(number)
    assert (tmp_path / "previous.ckpt" / "shard").read_text() == "1" and not new.exists()


def test_a_file_system_without_hard_links_keeps_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    for number in (1, 2):
        torch.save(number, tmp_path / "last.ckpt.new")
        _swap(tmp_path / "last.ckpt.new", tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt") == 2 and torch.load(tmp_path / "previous.ckpt") == 1


def test_a_checkpoint_elsewhere_is_saved_as_lightning_does():
    CheckpointsInPlace().save_checkpoint({"epoch": 3}, "memory://elsewhere/last.ckpt")
    with fsspec.open("memory://elsewhere/last.ckpt") as file:
        assert torch.load(file) == {"epoch": 3}


def test_a_checkpoint_that_is_none_of_lightnings_is_one_line(tmp_path):
    (tmp_path / "odd.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"^--ckpt_path: got .*odd.ckpt, which is no checkpoint \(.*\)$"):
        CheckpointsInPlace().load_checkpoint(tmp_path / "odd.ckpt")


def test_a_checkpoint_of_another_run_branches_off_only_into_a_new_folder(capsys):
    assert main([*FIT, "--run_dir", "one"]) == 0
    assert main([*FIT, "--run_dir", "two"]) == 0
    branch = [*FIT, "--ckpt_path", "one/checkpoints/last.ckpt", "--trainer.max_epochs=3", "--run_dir"]
    assert "holds another run" in only_problem(capsys, *branch, "two")
    assert main([*branch, "three"]) == 0
    assert Path("three/checkpoints/last.ckpt").exists()
    shutil.rmtree("three/checkpoints")  # as if it had been killed before its first checkpoint
    assert "its config differs" in only_problem(capsys, *branch, "three", "--trainer.limit_train_batches=1")
    assert main([*branch, "three"]) == 0
    assert Path("three/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_reading_a_checkpoint_writes_beside_it(command):
    assert main([*FIT, "--run_dir", "run"]) == 0
    before = contents("run")
    assert main([command, "--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.limit_val_batches=1"]) == 0
    assert main([command, "--ckpt_path", "run/checkpoints/last.ckpt", "--run_dir", "elsewhere"]) == 0
    assert before.items() <= contents("run").items()
    assert {p.name for p in Path("run").iterdir()} == {"checkpoints", "config.yaml", "metrics.csv"}
    assert Path("elsewhere/config.yaml").exists()


def test_checkpoint_callbacks_and_loggers_write_into_the_run_folder():
    more = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=best"]
    assert main([*FIT, *more, "--config", "loggers/tensorboard.yaml", "--run_dir", "run"]) == 0
    assert {p.name for p in Path("run/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert list(Path("run/tensorboard").glob("events*"))
    assert read_csv("run/metrics.csv")
    assert not Path("checkpoints").exists()


@pytest.mark.slow
def test_wandb_offline_writes_into_the_run_folder():
    assert main([*FIT, "--config", "loggers/wandb.yaml", "--run_dir", "run"]) == 0
    assert list(Path("run/wandb").glob("offline-run-*"))


def test_no_logger_is_no_logger():
    assert main([*FIT, "--trainer.logger=false", "--run_dir", "run"]) == 0
    assert not Path("run/metrics.csv").exists()


class _Killed(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 3:
            raise KeyError("killed")


def test_a_broken_run_keeps_its_last_whole_epoch(monkeypatch):
    monkeypatch.setattr(BoringModel, "configure_callbacks", lambda self: [_Killed()])
    with pytest.raises(KeyError, match="killed"):
        main([*FIT, "--run_dir", "run"])
    monkeypatch.setattr(_Killed, "on_train_batch_end", Callback.on_train_batch_end)
    assert torch.load("run/checkpoints/last.ckpt", weights_only=False)["global_step"] == 2
    assert main([*FIT, "--run_dir", "run", "--ckpt_path", "last"]) == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=False)["global_step"] == 4


def test_metrics_keep_earlier_rows_when_columns_come(tmp_path):
    MetricsFile(tmp_path / "m.csv").log_metrics({"a": 1.0}, step=0)
    again = MetricsFile(tmp_path / "m.csv")
    again.log_metrics({"a": 2.0}, step=1)
    again.log_metrics({"b": torch.tensor(3.0)}, step=2)
    assert read_csv(tmp_path / "m.csv") == [
        {"step": "0", "a": "1.0", "b": ""},
        {"step": "1", "a": "2.0", "b": ""},
        {"step": "2", "a": "", "b": "3.0"},
    ]


def test_the_run_of_a_checkpoint(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    assert run_of(tmp_path / "run/checkpoints/x.ckpt") is None
    (tmp_path / "run/config.yaml").write_text("")
    assert run_of(tmp_path / "run/checkpoints/x.ckpt") == Path("run")


@pytest.mark.slow  # for two processes; tests/training has fits of two ranks in one folder
def test_two_ranks_share_one_folder(monkeypatch):
    Path("script.py").write_text("import sys; from ser_lightning.__main__ import main; sys.exit(main(sys.argv[1:]))")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the rank that Lightning starts
    flags = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_epochs=1"]
    started = CommandProcess(*FIT, *flags, script="script.py")
    _, said = started.communicate()
    assert started.returncode == 0, said
    (run,) = Path("runs").iterdir()
    assert (run / "checkpoints/last.ckpt").exists()
    assert {p.name for p in Path().iterdir()} == {"boring.yaml", "runs", "script.py"}


def test_ranks_that_are_started_one_by_one_need_a_name(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert only_problem(capsys, *FIT).startswith("--run_dir: got none, but the ranks were started one by one")


def scores(ids, a, b):
    tokens = torch.ones(len(ids), dtype=torch.int64)
    return PairScores(torch.tensor(ids), torch.tensor(a), torch.tensor(b), tokens, tokens)


def test_predictions_by_hand():
    rows = to_table(scores([5, 9], [2.0, 0.0], [0.0, 1.0]), temperature=2.0).to_pylist()
    assert rows[0]["probability"] == pytest.approx(0.7310586)  # sigmoid(2 / 2)
    assert rows[1]["probability"] == pytest.approx(0.3775407)  # sigmoid(-1 / 2)
    assert [row["label"] for row in rows] == [1, 0]


def test_predictions_are_ordered_unique_and_never_overwritten(tmp_path):
    trainer = SimpleNamespace(
        default_root_dir=str(tmp_path), is_global_zero=True, datamodule=None, limit_predict_batches=1.0
    )
    module = SimpleNamespace(temperature=1.0)
    writer = PredictionWriter()
    writer.setup(trainer, module, "predict")
    writer.on_predict_batch_end(trainer, module, scores([9, 5], [1.0, 2.0], [0.0, 0.0]), None, 0)
    writer.on_predict_batch_end(trainer, module, scores([5], [2.0], [0.0]), None, 1)
    writer.on_predict_epoch_end(trainer, module)
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert table["pair_id"].to_pylist() == [5, 9]
    assert [str(kind) for kind in table.schema.types] == ["int64", "float", "float", "float", "int8"]
    with pytest.raises(UserError, match="which exists"):
        PredictionWriter().setup(trainer, module, "predict")


def test_predictions_that_are_no_numbers_are_not_written(tmp_path):
    trainer = SimpleNamespace(
        default_root_dir=str(tmp_path), is_global_zero=True, datamodule=None, limit_predict_batches=1.0
    )
    writer = PredictionWriter()
    writer.setup(trainer, None, "predict")
    writer.on_predict_batch_end(trainer, None, scores([9, 5], [1.0, float("nan")], [0.0, 0.0]), None, 0)
    with pytest.raises(UserError, match="rewards: got NaN or infinity for 1 of 2 pairs"):
        writer.on_predict_epoch_end(trainer, None)
    assert not (tmp_path / "predictions.parquet").exists()


def test_predict_writes_into_the_run_of_the_checkpoint(capsys, tiny_fit):
    tiny_fit()
    predict = ["predict", "--ckpt_path", "run/checkpoints/last.ckpt"]
    assert main(predict) == 0
    ids = pq.read_table("run/predictions.parquet")["pair_id"].to_pylist()
    assert len(ids) > 0
    assert ids == sorted(set(ids))
    assert "which exists" in only_problem(capsys, *predict)
    named = ["--trainer.callbacks+=ser_lightning.PredictionWriter"]
    assert main([*predict, *named, "--trainer.callbacks.path=again.parquet"]) == 0
    assert Path("run/again.parquet").exists()


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (None, ""),
        (SimpleNamespace(round=1, fold=None, num_folds=3), "round 1 | "),
        (SimpleNamespace(round=1, fold=1, num_folds=3), "round 1 | fold 2/3 | "),
    ],
)
def test_the_bar_names_the_phase(phase, expected):
    assert describe_phase(SimpleNamespace(datamodule=SimpleNamespace(phase=phase))) == expected


def test_one_line_for_each_phase(capsys, monkeypatch):
    phases = [(0, 0), (0, 0), (0, 1), (0, None), (1, None)]

    class Phases(Callback):
        def on_train_epoch_end(self, trainer, module):
            round, fold = phases[trainer.current_epoch + 1]
            trainer.datamodule.phase = SimpleNamespace(round=round, fold=fold, num_folds=2)

    monkeypatch.setattr(BoringDataModule, "phase", SimpleNamespace(round=0, fold=0, num_folds=2), raising=False)
    monkeypatch.setattr(BoringModel, "configure_callbacks", lambda self: [Phases()])
    assert main([*FIT, "--trainer.max_epochs=4", "--trainer.enable_progress_bar=true", "--run_dir", "run"]) == 0
    shown = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("round")]
    assert shown == ["round 0 | fold 1/2 | epoch 1", "round 0 | fold 2/2 | epoch 2", "round 0 | epoch 3"]


def test_one_process_trains_in_a_folder(tiny_run, capsys):
    """Another process holds the lock; it is told of, and gone with its owner however that ends."""
    code = "import time; from pathlib import Path; from ser_lightning.runs.folder import lock; "
    code += "file = lock(Path('run')); print('held', flush=True); time.sleep(600)"
    Path("holds.py").write_text(code)
    owner = CommandProcess(script="holds.py")
    try:
        assert owner.stdout.readline() == "held\n"
        for more in ([], ["--ckpt_path=auto"]):
            assert main(["fit", *tiny_run, "--run_dir=run", *more]) == 2
            assert f"--run_dir: got run, in which process {owner.pid} on " in capsys.readouterr().err
    finally:
        owner.kill()
        owner.communicate()
    Path("run/.rounds.csv.999999999").write_text("half")
    assert main(["fit", *tiny_run, "--run_dir=run", "--evolution.max_rounds=0"]) == 0
    assert not Path("run/.rounds.csv.999999999").exists()


def test_a_failed_start_leaves_no_folder(tiny_run):
    assert (
        main(
            ["fit", *tiny_run, "--run_dir=run", "--data.seed_fraction=0.01", "--model.center_rewards_coefficient=null"]
        )
        == 2
    )
    assert not Path("run").exists()


def test_checkpoints_do_not_pass_through_the_temporary_folder(tiny_run, monkeypatch):
    """A temporary folder that takes nothing kills no run whose own disk has room."""
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")
    assert main(["fit", *tiny_run, "--run_dir=run", "--evolution.max_rounds=0"]) == 0
    assert is_whole(Path("run/checkpoints/last.ckpt"))


def test_a_config_with_a_secret_is_for_its_owner_and_no_report_shows_it(tiny_run, monkeypatch, capsys):
    address = "http://127.0.0.1:9/T000/SECRET"
    callback = {"class_path": "ser_lightning.WebhookCallback", "init_args": {"url": address}}
    overlay = {"trainer": {"callbacks+": [callback]}}
    Path("hook.yaml").write_text(yaml.safe_dump(overlay))
    short = ["--config=hook.yaml", "--evolution.max_rounds=0"]
    assert main(["fit", *tiny_run, *short, "--run_dir=run"]) == 0
    assert Path("run/config.yaml").stat().st_mode & 0o077 == 0 and address in Path("run/config.yaml").read_text()
    assert main(["report", "run"]) == main(["export", "run"]) == 0
    for file in (*Path("run/export").glob("*.md"), Path("run/report.html")):
        assert "SECRET" not in file.read_text()
    assert "(hidden)" in Path("run/report.html").read_text()

    overlay["trainer"]["callbacks+"][0]["init_args"]["url"] = "$HOOK"
    Path("hook.yaml").write_text(yaml.safe_dump(overlay))
    assert main(["fit", *tiny_run, *short, "--run_dir=other"]) == 2
    assert "got $HOOK, which is not set" in capsys.readouterr().err
    monkeypatch.setenv("HOOK", address)
    assert main(["fit", *tiny_run, *short, "--run_dir=other"]) == 0
    assert not any(b"SECRET" in file.read_bytes() for file in Path("other").rglob("*") if file.is_file())


def test_a_folder_in_which_nothing_was_saved_is_taken_by_a_new_start_with_another_config(capsys):
    """As a kill at the first writes leaves it: drafts, a lock whose owner is gone, a config, half a checkpoint."""
    Path("run/checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "config-2.yaml", ".config.yaml.999999999", ".lock", "metrics.csv"):
        Path("run", name).write_text("seed_everything: 5\n")
    for name in (".last.ckpt.new.999999999", "last.ckpt.new"):
        Path("run/checkpoints", name).write_text("half")
    assert main([*FIT, "--run_dir", "run"]) == 0, capsys.readouterr().err
    assert {path.relative_to("run").as_posix() for path in Path("run").rglob("*") if path.is_file()} == {
        *("checkpoints/last.ckpt", "checkpoints/previous.ckpt", "config.yaml", "metrics.csv")
    }
    assert yaml.safe_load(Path("run/config.yaml").read_text())["seed_everything"] == 0
