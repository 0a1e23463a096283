"""Every YAML that ships parses through the real parser, and opens with the command that runs it."""

import re
import shlex
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from ser_lightning.__main__ import main

ROOT = Path(str(files("ser_lightning.configs")))
ALL = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.yaml"))


def test_there_are_configs():
    assert len(ALL) > 0
    assert "rm.yaml" in ALL


@pytest.mark.parametrize("name", ALL)
def test_its_own_command_parses(name, capsys):
    commands = re.findall(r"^#\s+python -m ser_lightning (\w+) (.*)$", (ROOT / name).read_text(), flags=re.MULTILINE)
    assert commands
    assert any(f"--config {name}" in arguments for _, arguments in commands)
    for command, arguments in commands:
        with pytest.raises(SystemExit) as stopped:
            main([command, *shlex.split(arguments), "--print_config"])
        assert stopped.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"]


def test_two_steps_run(tiny_run):
    assert main(["fit", *tiny_run[:2], "--config", "debug/two_steps.yaml", *tiny_run[2:], "--run_dir=run"]) == 0
    assert Path("run/rounds.csv").read_text().count("\n") == 3  # the header, the seed model and one round


def test_overfit_learns(tiny_run):
    own = [flag for flag in tiny_run[2:] if "callbacks" not in flag and "seed_fraction" not in flag]
    command = ["fit", *tiny_run[:2], "--config", "debug/overfit.yaml", *own, "--run_dir=run"]
    assert main([*command, "--trainer.max_epochs=2", "--data.test_fraction=0.1"]) == 0
    assert "train/loss" in Path("run/metrics.csv").read_text().splitlines()[0]
