"""`docs/security.md`: no file of a run or of a model runs code; trust is granted on the command line alone."""

import json
import os
import pickle
import re
import shutil
import sys
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
def strange_run(tiny_fit, strange_model):
    """A run whose own config asks that the Python files of its model be run."""
    run = tiny_fit()
    backbone = {"path": str(strange_model), "trust_remote_code": True}
    edit_config(run, lambda c: c["model"]["init_args"]["backbone"].update(backbone))
    return run


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


TOUCHING = """
from collections.abc import Sequence
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from ser_lightning.records import PreferencePair

class Touch(Callback):
    def __init__(self, path):
        Path(path).touch()

def rewards(prompts, responses):
    Path({marker!r}).touch()
    return [float(len(response)) for response in responses]

class Strategy:
    def choose(self, prob_a: Tensor, pairs: Sequence[PreferencePair], num_pairs: int) -> list[int]:
        Path({marker!r}).touch()
        return list(range(num_pairs))
"""


@pytest.fixture
def touching_module(tmp_path, marker, monkeypatch):
    """Code of a stranger that lies where Python finds it; its callback leaves the marker when it is built."""
    (tmp_path / "touching_code.py").write_text(TOUCHING.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "touching_code", raising=False)  # of another test, with another marker
    return {"class_path": "touching_code.Touch", "init_args": {"path": str(marker)}}


def test_of_a_runs_config_no_class_is_built_but_by_commands_that_go_on_with_it(
    tiny_fit, pairs_file, tiny_model_dir, touching_module, marker
):
    tiny_fit("--evolution.max_rounds=0")
    edit_config(Path("run"), lambda config: config["trainer"].update(callbacks=[touching_module]))
    reading = [command for command in commands(pairs_file) if command[0] in ("score", "compare", "bench")]
    reading += [["export", "run", "--to=out"], ["report", "run"], ["query", "--run=run", "--n=2"]]
    ppo = ["fit", "--config=ppo.yaml", f"--model.backbone.path={tiny_model_dir}", f"--data.path={pairs_file}"]
    ppo += [
        "--data.max_length=64",
        "--trainer.fast_dev_run=1",
        "--model.judge=null",
        "--model.sampling.max_new_tokens=4",
    ]
    reading += [[*ppo, "--model.reward_model=run", "--run_dir=ppo", "--trainer.accelerator=cpu"]]
    for command in reading:
        assert main(command) == 0, command
        assert not marker.exists(), command
    assert main(["test", "--run_dir=run", "--ckpt_path=last"]) == 0
    assert marker.exists()  # a config that is given to these is a program


def test_names_of_code_on_the_command_line_run_it(tiny_fit, pairs_file, tiny_model_dir, touching_module, marker):
    tiny_fit("--evolution.max_rounds=0")
    assert main(["query", "--run=run", "--n=2", "--strategy=touching_code.Strategy"]) == 0
    assert marker.exists()
    marker.unlink()
    del sys.modules["touching_code"]
    ppo = ["fit", "--config=ppo.yaml", f"--model.backbone.path={tiny_model_dir}", f"--data.path={pairs_file}"]
    ppo += [
        "--data.max_length=64",
        "--trainer.fast_dev_run=1",
        "--model.judge=null",
        "--model.sampling.max_new_tokens=4",
    ]
    assert main([*ppo, "--model.reward_model=touching_code.rewards", "--run_dir=ppo", "--trainer.accelerator=cpu"]) == 0
    assert marker.exists()


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mknod('%s') }}",
    "{{ lipsum.__globals__['os'].mknod('%s') }}",
    "{{ self.__init__.__globals__ }}",
    "{%% include '/etc/passwd' %%}",
    "{{ ''.format.__self__.__class__.__base__ }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_reaches_nothing(tiny_fit, pairs_file, marker, capsys, template):
    tiny_fit("--evolution.max_rounds=0")
    assert main(["export", "run", "--to=out"]) == 0
    Path("out/chat_template.jinja").write_text(
        template % str(marker) if "%s" in template else template.replace("%%", "%")
    )
    capsys.readouterr()
    assert main(["score", "--model=out", f"--data={pairs_file}", "--out=rewards.jsonl"]) == 2
    assert "template" in capsys.readouterr().err
    assert not marker.exists()


BOMBS = {
    "pickle.jsonl": pickle.dumps(os.getcwd),
    "yaml.json": b"!!python/object/apply:os.system ['touch %s']",
    "python.jsonl": b"{'prompt': __import__('pathlib').Path('%s').touch()}",
    "jinja.jsonl": b'{"prompt": "{{ cycler.__init__.__globals__.os.mknod(\'%s\') }}", "chosen": "x", "rejected": "y"}',
    "turns.jsonl": b"{\"chosen\": \"[{'role': __import__('os').mknod('%s'), 'content': 1}]\", \"rejected\": \"y\"}",
    "sheet.csv": b'prompt,chosen,rejected\n"=SYSTEM(""touch %s"")",x,y\n',
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_data_file_runs_nothing(tiny_fit, marker, name):
    tiny_fit("--evolution.max_rounds=0")
    Path(name).write_bytes(BOMBS[name].replace(b"%s", str(marker).encode()))
    assert main(["score", "--model=run", f"--data={name}", "--out=rewards.jsonl"]) in (0, 2)
    assert not marker.exists()


SENTENCES = {
    "data files": "tests/test_trust.py::test_a_data_file_runs_nothing",
    "a model: `config.json`": "tests/test_trust.py::test_an_exported_folder_runs_no_code",
    "a chat template": "tests/test_trust.py::test_a_chat_template_reaches_nothing",
    "weights and checkpoints": "tests/test_trust.py::test_no_checkpoint_is_unpickled",
    "a run folder": "tests/test_trust.py::test_of_a_runs_config_no_class_is_built",
    "**a config**": "tests/test_trust.py::test_of_a_runs_config_no_class_is_built",
    "the dotted path": "tests/test_trust.py::test_names_of_code_on_the_command_line_run_it",
    "**Trust is granted": "tests/test_trust.py::test_the_command_line_grants_what_a_file_cannot",
    "**No command destroys": "tests/cli/test_compare.py::test_no_command_destroys_what_it_reads",
    "**Secrets.**": "tests/runs/test_folder.py::test_a_config_with_a_secret_is_for_its_owner",
    "**The terminal**": "tests/cli/test_boundary.py::test_a_category_with_markup_and_commands",
    "**A template has limits**": "tests/data/test_templates.py::test_a_template_that_loops_is_ended",
    "**A row of data has a limit**": "tests/data/test_sources.py::test_a_row_beyond_all_measure_is_one_line",
    "**A cache is checked**": "tests/data/test_store.py::test_a_damaged_store_is_built_again",
    "**A run is checked**": "tests/runs/test_files.py::test_every_byte_of_a_file_with_a_checksum_counts",
    "**A base is checked**": "tests/models/test_fingerprint.py::test_a_run_on_a_base_with_one_changed_matrix",
    "**Rewards in a file**": "tests/cli/test_compare.py::test_rewards_of_other_texts_are_refused",
    "**A file that cannot be read**": "tests/cli/test_boundary.py::test_what_comes_from_outside_is_one_line",
    "labels, and files of Label Studio": "tests/labelling/test_exchange.py::test_what_is_neither_is_refused",
    "**The label page**": "tests/labelling/test_server.py::test_another_name_of_the_host_is_refused",
    "**`serve`**": "tests/serving/test_app.py::test_a_body_that_is_too_large_is_not_read",
    "**Two runs started in one folder**": "tests/runs/test_folder.py::test_one_process_trains_in_a_folder",
}
"""How a row or an item of `docs/security.md` begins -> how the name of a test of it begins."""


def test_every_sentence_on_trust_has_its_test():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "security.md").read_text().partition("## Tried")[0]
    said = re.findall(r"^(?:\| |- )(?!comes|---)(.*)", page, re.MULTILINE)
    assert len(said) >= 17
    for sentence in said:
        (test,) = [test for start, test in SENTENCES.items() if sentence.startswith(start)]
        file, _, name = test.partition("::")
        assert f"def {name}" in (root / file).read_text(), test
