"""Unknown keys are found without the parser, and said as the parser's own diagnosis says them."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from ser_lightning.cli.arguments import split_arguments
from ser_lightning.settings.check import ELSEWHERE, hint_for, unknown_keys
from ser_lightning.settings.keys import index, tree_of
from tests.helpers import often, problems_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "config_keys.py"


def test_the_index_is_that_of_the_signatures():
    """`python scripts/config_keys.py` writes it anew; the Trainer's part belongs to one version of Lightning."""
    spec = importlib.util.spec_from_file_location("config_keys", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found, kept = json.loads(json.dumps(module.collect())), index()
    assert found["classes"] == kept["classes"]
    assert found["lightning"] != kept["lightning"] or found["trainer"] == kept["trainer"]


def lines(tmp_path, argv, configs=()):
    """What is found without the parser; `configs` are written to files of these names."""
    for name, content in configs:
        (tmp_path / name).write_text(yaml.safe_dump(content))
        argv = [*argv, "--config", str(tmp_path / name)]
    arguments = split_arguments(["fit", "--config", "rm.yaml", *argv])
    return unknown_keys(arguments.read_configs(), arguments.flags), ["fit", "--config", "rm.yaml", *argv]


MISTAKES = {
    "a flag": (["--model.lr", "3"], []),
    "a flag with an equals sign": (["--data.seed_fractoin=0.2"], []),
    "another trainer's name": (["--data.batch_size=8"], []),
    "nothing near": (["--model.backbone.zzz=8"], []),
    "deep": ([], [("a.yaml", {"model": {"backbone": {"lora": {"rr": 4}}}})]),
    "with init_args": ([], [("a.yaml", {"data": {"init_args": {"paht": "x.jsonl"}}})]),
    "beside a class of its own": ([], [("a.yaml", {"model": {"class_path": "ser_lightning.RewardModule", "lr": 3}})]),
    "several": (["--evolution.max_round=2"], [("a.yaml", {"trainer": {"max_epoch": 3}, "model": {"readin": "last"}})]),
    "beside what is right": (["--data.seed_fraction=0.2", "--evolution.fold=3"], []),
    "beside files and devices": (["--data.path=x.jsonl", "--trainer.accelerator=cpu", "--evolution.fold=3"], []),
}
OFTEN = ("another trainer's name", "deep", "beside a class of its own", "several", "beside what is right")


@pytest.mark.parametrize("name", often({name: name for name in MISTAKES}, *OFTEN))
def test_lines_are_those_of_the_parsers_diagnosis(name, tmp_path, capsys, monkeypatch):
    found, argv = lines(tmp_path, *MISTAKES[name])
    monkeypatch.setattr("ser_lightning.__main__.unknown_keys", lambda *_: [])
    assert found == problems_of(capsys, *argv)
    assert all(": unknown key, got " in line for line in found)


def test_names_of_other_trainers_lead_to_keys_that_there_are():
    classes = [("RewardModule", "PreferenceDataModule"), ("SFTModule", "ResponseDataModule")]
    classes.append(("PPOModule", "PromptDataModule"))
    trees = [tree_of({"model": model, "data": data}) for model, data in classes]
    for name, keys in ELSEWHERE.items():
        found = {hint_for(["model", name], tree) for tree in trees}
        assert {f"; did you mean {key}?" for key in keys} <= found, name
    assert hint_for(["trainer", "gpus"], trees[0]) == "; did you mean trainer.devices?"
    assert hint_for(["output_dir"], trees[0]) == "; did you mean run_dir?"
    assert hint_for(["model", "backbone", "lora", "rank"], trees[0]) == "; did you mean model.backbone.lora.r?"


DOUBTS = {
    "nothing wrong": (["--data.seed_fraction=0.2"], []),
    "a wrong value besides": (["--data.max_length=long", "--model.lr=3"], []),
    "a value that takes a parser": (["--model.reading=[last,mean]", "--model.lr=3"], []),
    "a key below a class": (["--model.optimizer.init_args.lr=3e-2", "--model.optimizer.lr=x", "--model.lr=3"], []),
    "a class of one's own": ([], [("a.yaml", {"model": {"class_path": "my.Module", "init_args": {"lr": 3}}})]),
    "a number as text": ([], [("a.yaml", {"data": {"seed_fraction": "0.2"}, "evolution": {"fold": 3}})]),
    "a config that is none": ([], [("a.yaml", [1]), ("b.yaml", {"evolution": {"fold": 3}})]),
    "a table under an unknown key": ([], [("a.yaml", {"model": {"backbon": {"path": "x"}}})]),
    "a word without a flag": (["word", "--model.lr=3"], []),
    "null": ([], [("a.yaml", {"data": {"max_length": None, "paht": "x"}})]),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_on_any_doubt_the_parser_is_asked(name, tmp_path):
    assert lines(tmp_path, *DOUBTS[name])[0] == []


def test_without_a_bundled_config_in_front_the_parser_is_asked(tmp_path):
    (tmp_path / "own.yaml").write_text("model: {class_path: ser_lightning.RewardModule, init_args: {lr: 3}}")
    for configs in ([str(tmp_path / "own.yaml")], ["models/qwen2.5-0.5b.yaml", "rm.yaml"], []):
        arguments = split_arguments(["fit", *(w for name in configs for w in ("--config", name)), "--model.lr=3"])
        assert unknown_keys(arguments.read_configs(), arguments.flags) == []


def test_another_version_of_lightning_may_have_other_arguments(tmp_path, monkeypatch):
    monkeypatch.setattr("ser_lightning.settings.check.knows_trainer", lambda: False)
    assert lines(tmp_path, ["--trainer.max_epoch=3"])[0] == []
    assert len(lines(tmp_path, ["--model.lr=3"])[0]) == 1
