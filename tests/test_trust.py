"""`docs/security.md`: no file of a run or of a model runs code; trust is granted on the command line alone."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ser_lightning.__main__ import main

MODELING = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
class StrangeConfig(LlamaConfig):
    model_type = "strange"
class StrangeModel(LlamaModel):
    config_class = StrangeConfig
AutoModel.register(StrangeConfig, StrangeModel)
class StrangeForSequenceClassification(LlamaForSequenceClassification):
    config_class = StrangeConfig
class StrangeForCausalLM(LlamaForCausalLM):
    config_class = StrangeConfig
"""


@pytest.fixture
def marker(tmp_path):
    """A file that code of a stranger leaves behind."""
    return tmp_path / "code_ran"


@pytest.fixture
def strange_model(tiny_model_dir, marker):
    """The tiny model as one that comes with its own Python file."""
    folder = Path("strange")
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    names = {
        "AutoConfig": "StrangeConfig",
        "AutoModelForSequenceClassification": "StrangeForSequenceClassification",
        "AutoModelForCausalLM": "StrangeForCausalLM",
    }
    config |= {"model_type": "strange", "auto_map": {key: f"modeling_strange.{name}" for key, name in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_strange.py").write_text(MODELING.format(marker=str(marker)))
    return folder


def edit_config(run, change):
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def strange_run(tiny_run, strange_model):
    """A run whose own config asks that the Python files of its model be run."""
    assert main(["fit", *tiny_run, "--run_dir=run", "--trainer.enable_progress_bar=false"]) == 0
    backbone = {"path": str(strange_model), "trust_remote_code": True}
    edit_config(Path("run"), lambda c: c["model"]["init_args"]["backbone"].update(backbone))
    return Path("run")


def commands(pairs_file):
    return [
        ["score", "--model=run", f"--data={pairs_file}", "--out=rewards.jsonl"],
        ["compare", "run", "run", f"--data={pairs_file}"],
        ["bench", "--model=run", f"--data={pairs_file}"],
        ["export", "run", "--to=out"],
        ["export", "--ckpt_path=run/checkpoints/last.ckpt", "--to=out"],
        ["test", "--run_dir=run", "--ckpt_path=last"],
        ["predict", "--run_dir=run", "--ckpt_path=last"],
        ["fit", "--run_dir=run", "--ckpt_path=last"],
        ["fit", "--config=run/config.yaml"],
        ["plan", "--config=run/config.yaml"],
    ]


def test_no_file_of_a_run_lets_its_model_run_code(strange_run, pairs_file, marker, capsys):
    for command in commands(pairs_file):
        assert main(command) == 2, command
        assert "command line" in capsys.readouterr().err, command
        assert not marker.exists(), command


def test_reports_and_queries_load_no_model(strange_run, marker):
    assert main(["report", "run"]) == 0
    assert main(["query", "--run=run", "--n=2"]) == 0
    assert not marker.exists()


def test_a_reward_of_ppo_runs_no_code(strange_run, pairs_file, tiny_model_dir, marker, capsys):
    flags = ["--config=ppo.yaml", f"--model.backbone.path={tiny_model_dir}", f"--data.path={pairs_file}"]
    assert main(["fit", *flags, "--model.reward_model=run", "--data.max_length=64", "--run_dir=ppo"]) == 2
    assert "comes with Python files" in capsys.readouterr().err
    assert not marker.exists()


def test_the_command_line_grants_what_a_file_cannot(strange_run, pairs_file, marker, capsys):
    command = ["score", "--model=run", f"--data={pairs_file}", "--out=out.jsonl", "--trust_remote_code"]
    assert main(command) == 0, capsys.readouterr().err
    assert marker.exists() and len(Path("out.jsonl").read_text().splitlines()) == 80


def test_an_exported_folder_runs_no_code(strange_model, pairs_file, marker, capsys):
    assert main(["score", "--model=strange", f"--data={pairs_file}", "--out=rewards.jsonl"]) == 2
    assert "comes with Python files" in capsys.readouterr().err
    assert not marker.exists()


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def armed_run(tiny_run, marker):
    """A run whose config asks to unpickle, with a checkpoint and a model that run code when they are."""
    assert main(["fit", *tiny_run, "--run_dir=run", "--trainer.enable_progress_bar=false"]) == 0
    run = Path("run")
    with (run / "config.yaml").open("a") as file:
        file.write("weights_only: false\n")
    for name in ("checkpoints/last.ckpt", "rounds/0/model.pt", "rounds/1/model.pt"):
        saved = torch.load(run / name, weights_only=True)
        torch.save({**saved, "bomb": Bomb(marker)}, run / name)
    return run


def test_no_checkpoint_is_unpickled(armed_run, pairs_file, marker, capsys):
    for command in [c for c in commands(pairs_file) if c[0] != "plan" and c[:2] != ["fit", "--config=run/config.yaml"]]:
        try:
            code = main(command)
        except pickle.UnpicklingError:
            code = 2
        assert code == 2 and not marker.exists(), command


def test_weights_only_in_a_config_names_the_flag(armed_run, marker, capsys):
    assert main(["test", "--run_dir=run", "--ckpt_path=last"]) == 2
    assert "weights_only: got false in a config" in capsys.readouterr().err
    main(["test", "--run_dir=run", "--ckpt_path=last", "--weights_only=false"])
    assert marker.exists()  # what the flag says is done
