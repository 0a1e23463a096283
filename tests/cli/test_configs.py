"""Every YAML that ships parses through the real parser, and opens with the command that runs it."""

import re
import shlex
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from ser_lightning.__main__ import main
from tests.helpers import read_csv, write_own_config
from tests.policy_runs import QUIET, sft_flags

ROOT = Path(str(files("ser_lightning.configs")))
ALL = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.yaml"))
POLICIES = [name for name in ALL if name.startswith("policies/")]


def test_there_are_configs():
    assert len(ALL) > 0
    assert "rm.yaml" in ALL


@pytest.mark.parametrize("name", ALL)
def test_its_own_command_parses(name, capsys):
    commands = re.findall(r"^#\s+python -m ser_lightning (\w+) (.*)$", (ROOT / name).read_text(), flags=re.MULTILINE)
    assert commands
    assert any(f"--config {name}" in arguments for _, arguments in commands)
    for command, arguments in commands:
        write_own_config(capsys, shlex.split(arguments))
        with pytest.raises(SystemExit) as stopped:
            main([command, *shlex.split(arguments), "--print_config"])
        assert stopped.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"]


def brevity(prompts, responses):
    """A reward."""
    return [-len(response) for response in responses]


@pytest.mark.parametrize("overlay", POLICIES)
@pytest.mark.parametrize("base", ["sft.yaml", "ppo.yaml", "generate.yaml"])
def test_a_policy_goes_behind_each_of_its_stages(base, overlay, capsys):
    command = "predict" if base == "generate.yaml" else "fit"
    reward = ["--model.reward_model=runs/RM"] if base == "ppo.yaml" else []
    with pytest.raises(SystemExit):
        main([command, "--config", base, "--config", overlay, *reward, "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["backbone"]
    given = yaml.safe_load((ROOT / overlay).read_text())["model"]["backbone"]
    lora, given_lora = found.pop("lora"), given.pop("lora")
    assert given_lora.items() <= lora.items() and given.items() <= found.items()


def test_two_steps_of_sft_run(tiny_model_dir, pairs_file):
    flags = [*sft_flags(tiny_model_dir, pairs_file), "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"]
    assert main(["fit", *flags, "--trainer.log_every_n_steps=1", "--data.val_fraction=0.3", "--run_dir=run"]) == 0
    rows = read_csv("run/metrics.csv")
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1"]
    assert sum(bool(row["val/loss"]) for row in rows) == 1


def test_two_steps_of_ppo_run(tiny_model_dir, pairs_file):
    flags = [
        *("--config", "ppo.yaml", f"--model.backbone.path={tiny_model_dir}", "--model.judge=null"),
        *(f"--model.reward_model={brevity.__module__}.brevity", "--model.sampling.max_new_tokens=4"),
        *(f"--data.path={pairs_file}", "--data.max_length=64", "--data.prompts_per_step=8"),
        *("--data.steps_per_epoch=2", "--trainer.max_epochs=1", *QUIET),
    ]
    assert main(["fit", *flags, "--run_dir=run"]) == 0
    assert [row["step"] for row in read_csv("run/steps.csv")] == ["0", "2"]
    assert sum(bool(row["train/reward"]) for row in read_csv("run/metrics.csv")) == 2


def test_two_steps_run(tiny_run):
    assert main(["fit", *tiny_run[:2], "--config", "debug/two_steps.yaml", *tiny_run[2:], "--run_dir=run"]) == 0
    assert Path("run/rounds.csv").read_text().count("\n") == 3  # the header, the seed model and one round


def test_overfit_learns(tiny_run):
    own = [flag for flag in tiny_run[2:] if "evolution" not in flag and "seed_fraction" not in flag]
    command = ["fit", *tiny_run[:2], "--config", "debug/overfit.yaml", *own, "--run_dir=run"]
    assert main([*command, "--trainer.max_epochs=2", "--data.test_fraction=0.1"]) == 0
    assert "train/loss" in Path("run/metrics.csv").read_text().splitlines()[0]
