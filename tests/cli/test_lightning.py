"""The command line through real `main([...])` calls: composing, printing, refusing, and every problem in one go."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
import yaml
from lightning.pytorch.demos.boring_classes import BoringDataModule

import ser_lightning
from ser_lightning.__main__ import main
from ser_lightning.cli.lightning import use_tensor_cores
from tests.helpers import problems_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

BORING = """
model:
  class_path: lightning.pytorch.demos.boring_classes.BoringModel
data:
  class_path: lightning.pytorch.demos.boring_classes.BoringDataModule
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 1
  log_every_n_steps: 1
  enable_model_summary: false
  enable_progress_bar: false
"""


def printed_config(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *args, "--print_config"])
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_print_config_round_trips(capsys, tmp_path):
    first = printed_config(capsys, "--config", "rm.yaml", "--trainer.max_epochs=7")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(first))
    assert printed_config(capsys, "--config", "again.yaml") == first


def test_the_last_config_wins_and_the_command_line_wins_over_all(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("data:\n  init_args:\n    max_length: 33\n    pairs_per_step: 5\n")
    args = ("--data.max_length=44", "--config", "rm.yaml", "--config", "mine.yaml")
    assert printed_config(capsys, *args)["data"]["init_args"]["max_length"] == 44
    assert printed_config(capsys, *args)["data"]["init_args"]["pairs_per_step"] == 5


def test_a_users_own_run_composes(capsys):
    config = printed_config(
        capsys, "--config", "rm.yaml", "--config", "models/qwen2.5-0.5b.yaml", "--data.path", "my_pairs.jsonl"
    )
    assert config["model"]["init_args"]["backbone"]["path"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert config["model"]["class_path"] == "ser_lightning.RewardModule"
    assert config["data"]["init_args"]["path"] == "my_pairs.jsonl"


def test_a_single_argument_of_the_backbone_can_be_set(capsys):
    config = printed_config(capsys, "--config", "rm.yaml", "--model.backbone.path", "X", "--model.backbone.lora.r", "3")
    assert config["model"]["init_args"]["backbone"]["path"] == "X"
    assert config["model"]["init_args"]["backbone"]["lora"]["r"] == 3
    assert config["model"]["init_args"]["backbone"]["train"] == "full"


@pytest.mark.parametrize("where", ["flag", "overlay"])
def test_callbacks_are_appended(capsys, tmp_path, where):
    (tmp_path / "more.yaml").write_text("trainer:\n  callbacks+:\n    - class_path: DeviceStatsMonitor\n")
    more = ["--trainer.callbacks+=DeviceStatsMonitor"] if where == "flag" else ["--config", "more.yaml"]
    before = printed_config(capsys, "--config", "rm.yaml")["trainer"]["callbacks"]
    after = printed_config(capsys, "--config", "rm.yaml", *more)["trainer"]["callbacks"]
    assert after[:-1] == before
    assert after[-1]["class_path"].endswith("DeviceStatsMonitor")


def test_seed_is_recorded_and_defaults_to_0(capsys, tmp_path):
    (tmp_path / "boring.yaml").write_text(BORING)
    assert printed_config(capsys, "--config", "boring.yaml")["seed_everything"] == 0


def test_every_problem_has_its_line(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "trainer:\n  max_epoch: 3\n  max_epochs: two\nmodel:\n  init_args:\n    backbone:\n      pth: x\n"
    )
    assert problems_of(
        capsys, "fit", "--config", "rm.yaml", "--config", "mine.yaml", "--data.max_lenth=3", "--foo"
    ) == [
        "trainer.max_epoch (mine.yaml): unknown key, got 3; did you mean trainer.max_epochs?",
        "trainer.max_epochs (mine.yaml): got 'two'; give an integer or null",
        "model.backbone.pth (mine.yaml): unknown key, got 'x'; did you mean model.backbone.path?",
        "data.max_lenth (command line): unknown key, got '3'; did you mean data.max_length?",
        "foo (command line): unknown key, got ''",
    ]


def test_problems_inside_a_list_of_callbacks(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "trainer:\n  callbacks+:\n    - class_path: EarlyStopping\n"
        "      init_args: {monitor: x, patienc: 3, mode: up}\n    - class_path: no.such.Callback\n"
    )
    found = problems_of(capsys, "fit", "--config", "rm.yaml", "--config", "mine.yaml")
    assert found[0] == (
        "trainer.callbacks.patienc (mine.yaml): unknown key, got 3; did you mean trainer.callbacks.patience?"
    )
    assert found[1].startswith("trainer.callbacks (mine.yaml): got 'no.such.Callback'; ")
    assert len(found) == 2


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fit", "--config", "rm.yml"], ["--config: got 'rm.yml', neither a file in "]),
        (
            ["fit", "--run_dir=runs/typo", "--ckpt_path=last"],
            ["--run_dir: got runs/typo, which holds no run; check its name, or start one with --config rm.yaml"],
        ),
        (["test", "--ckpt_path=no.ckpt"], ["--ckpt_path: got no.ckpt, which does not exist; check it"]),
        (
            ["fit", "--config", "models/minilm-l6.yaml", "--config", "rm.yaml"],
            ["--config: got models/minilm-l6.yaml before rm.yaml, which it changes; put rm.yaml first"],
        ),
        (
            ["fit", "--config", "models/minilm-l6.yaml"],
            ["--config: got models/minilm-l6.yaml first, which names no model class; put rm.yaml or the like "],
        ),
        *(
            (
                [command, "--config", "rm.yaml"],
                [f"{command}: got no checkpoint, so its model would be untrained; add --run_dir RUN --ckpt_path last"],
            )
            for command in ("test", "validate", "predict")
        ),
        (["fit", "--config", "a.yaml", "-c=b.yaml"], ["--config: got 'a.yaml'", "--config: got 'b.yaml'"]),
        (["fit"], ["data: required", "model: required"]),
        (["fit", "--config", "rm.yaml", "stray"], ["command line: got 'stray'"]),
        (["fit", "--config", "rm.yaml", "--trainer.max_epoch=2"], ["trainer.max_epoch (command line): unknown key"]),
        (["fit", "--config", "rm.yaml", "--trainer.accelerator=warp"], ["trainer: You selected an invalid acc"]),
        (["fit", "--config", "rm.yaml", "--trainer.default_root_dir=x"], ["trainer.default_root_dir: got x"]),
        (
            ["fit", "--config", "rm.yaml", "--model.backbone.train=some"],
            ["model.backbone.train (command line)"],
        ),
        (["fit", "--config", "rm.yaml", "--trainer.logger=CSVLogger"], ["trainer.logger.save_dir: required"]),
        (["fit", "--config", "rm.yaml", "--ckpt_path=last"], ["--ckpt_path: got last without a run"]),
        (["fit", "--config", "rm.yaml", "--ckpt_path=no.ckpt"], ["--ckpt_path: got no.ckpt, which does not exist"]),
        (
            ["fit", "--config", "rm.yaml", '--model={"class_path": "RewardModule", "init_args": 3}'],
            ['model (command line): got \'{"class_path": "RewardModule", "init_args": 3}\'; cannot use class ser_'],
        ),
        *(
            (
                ["fit", "--config", "rm.yaml", f"--{key}=json.JSONDecoder"],
                [f"{key.removesuffix('+')} (command line): got 'json.JSONDecoder'; give a class that is a {base}"],
            )
            for key, base in (
                ("trainer.callbacks+", "Callback"),
                ("model", "LightningModule"),
                ("model.optimizer", "Optimizer"),
                ("evolution.rule", "SelectionRule"),
            )
        ),
        *(
            (["fit", "--config", "rm.yaml", f"--data.{key}=null"], [f"data.{key}: got null; give {kind}"])
            for key, kind in (
                ("path", "str | list[str]"),
                ("max_length", "an integer"),
                ("pairs_per_step", "an integer"),
            )
        ),
        (
            ["fit", "--config", "rm.yaml", "--data.max_length=0", "--model.warmup_share=1.7"],
            ["model.warmup_share: got 1.7", "max_length: got 0"],
        ),
    ],
)
def test_one_line_for_each_problem(capsys, tmp_path, args, expected):
    found = problems_of(capsys, *args)
    assert len(found) == len(expected)
    for line, start in zip(sorted(found), sorted(expected), strict=True):
        assert line.startswith(start)
    assert not list(tmp_path.iterdir())  # a run that never began leaves nothing


@pytest.mark.parametrize("text", ["a: [1", "- a list", "just text", ""])
def test_a_file_that_is_no_config(capsys, tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    (line,) = problems_of(capsys, "fit", "--config", "rm.yaml", "--config", "bad.yaml")
    assert "bad.yaml: " in line


def test_other_exceptions_keep_their_traceback(tmp_path, monkeypatch):
    (tmp_path / "boring.yaml").write_text(BORING)
    monkeypatch.setattr("lightning.pytorch.demos.boring_classes.BoringModel.training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["fit", "--config", "boring.yaml"])


class NotMade(BoringDataModule):
    """Its type is known to a type checker alone, and it cannot be made.

    Args:
        trainer: null.
    """

    def __init__(self, trainer: "Trainer | None" = None) -> None:
        raise ZeroDivisionError("there is nothing")


def test_a_class_that_breaks_when_it_is_made_keeps_its_traceback(tmp_path):
    (tmp_path / "boring.yaml").write_text(BORING)
    with pytest.raises(ValueError, match="there is nothing"):  # what jsonargparse makes of it
        main(["fit", "--config", "boring.yaml", "--data=tests.cli.test_lightning.NotMade"])


def test_what_lightning_refuses_is_one_line(capsys, tmp_path, tiny_run):
    (tmp_path / "boring.yaml").write_text(BORING)
    [line] = problems_of(capsys, "fit", "--config", "boring.yaml", "--model=lightning.pytorch.LightningModule")
    assert line.startswith("No `training_step()` method defined. Lightning `Trainer` expects as minimum a ")
    [line] = problems_of(capsys, "fit", *tiny_run, "--data=lightning.pytorch.LightningDataModule")
    assert line == "data: got LightningDataModule; evolution needs a PreferenceDataModule"


def test_a_command_runs_in_a_thread_too(capsys):
    """Only the main thread may handle signals."""
    with ThreadPoolExecutor() as pool:
        assert pool.submit(main, ["--version"]).result() == 0
    assert capsys.readouterr().out == f"python -m ser_lightning {ser_lightning.__version__}\n"


def test_the_command_line_wins_over_the_checkpoint(tmp_path, tiny_run, tiny_fit):
    tiny_fit()
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=False)
    saved["hyper_parameters"] = {"_class_path": "nowhere.Module", "warmup_share": 0.4}
    torch.save(saved, "other.ckpt")
    assert main(["test", *tiny_run, "--ckpt_path", "other.ckpt", "--run_dir", "test_run"]) == 0
    assert yaml.safe_load((tmp_path / "test_run/config.yaml").read_text())["model"]["init_args"]["warmup_share"] == 0.1


def test_a_run_is_read_with_its_checkpoint(capsys, tiny_fit):
    tiny_fit()
    (line,) = problems_of(capsys, "test", "--run_dir=run")
    assert line == "--run_dir: got run, which holds a run; add --ckpt_path last"


def test_export_of_nothing_is_one_line(capsys):
    assert len(problems_of(capsys, "export", "no_run")) == 1


def test_out_of_memory_names_what_to_lower(capsys, monkeypatch, tiny_run):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.5 GiB. GPU 0 has a total capacity of 11.6 GiB. More.\nAnd more."
        )

    monkeypatch.setattr("ser_lightning.modules.reward.RewardModule.training_step", fail)
    [problem] = problems_of(capsys, "fit", *tiny_run)
    assert "out of memory on the GPU (tried to allocate 2.5 GiB); halve tokens_per_batch" in problem


def test_float32_is_tf32_on_cuda_alone_and_a_users_choice_stays(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    use_tensor_cores(torch.device("cpu"))
    assert not chosen
    use_tensor_cores(torch.device("cuda"))
    assert chosen == ["high"]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    use_tensor_cores(torch.device("cuda"))
    assert chosen == ["high"]


def test_auto_budgets_of_a_cpu_are_those_of_the_base(caplog, tmp_path, tiny_run):
    """`auto` is a word of the config, and only the memory of a GPU makes it more than rm.yaml's numbers."""
    with caplog.at_level("INFO"):
        main(
            ["fit", *tiny_run, "--data.tokens_per_batch=auto", "--data.tokens_per_scoring_batch=auto", "--run_dir=run"]
        )
    assert "Batches: auto is 1,536 tokens in training, 4,096 in scoring." in caplog.messages
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["init_args"]
    assert (recorded["tokens_per_batch"], recorded["tokens_per_scoring_batch"]) == ("auto", "auto")


def test_a_run_without_a_pool_does_not_propose_to_label_it(tiny_run, capsys):
    flags = ["--data.seed_fraction=1.0", "--evolution.max_rounds=0", "--run_dir=run"]
    assert main(["fit", *tiny_run, *flags]) == 0
    said = capsys.readouterr().out
    assert "export run" in said and "label --run" not in said and "the command query" not in said


def test_a_strategy_that_there_is_not_is_one_line(tiny_run, capsys):
    [line] = problems_of(capsys, "fit", *tiny_run, "--trainer.strategy=fdsp")
    assert line == "trainer.strategy: got fdsp; use auto, ddp or fsdp"
