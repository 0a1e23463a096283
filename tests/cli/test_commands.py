"""The commands that are not a run: their flags, their help, and what is mistyped, before anything heavy is imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from ser_lightning.__main__ import main
from ser_lightning.cli.arguments import with_home
from ser_lightning.cli.commands import COMMANDS, RUNS
from ser_lightning.inference.scorer import Device, Dtype

ALL = "fit, validate, test, predict, export, report, compare, bench, score, query, label, serve, plan"
LIGHT = """
import contextlib, io, json, sys
from ser_lightning.__main__ import main
codes = []
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            codes.append(main(line))
        except SystemExit as stop:
            codes.append(stop.code)
loaded = [name for name in ("torch", "transformers", "lightning", "datasets", "numpy") if name in sys.modules]
print(json.dumps([codes, loaded]))
"""
HELP = [["--help"], ["-h"], [], ["--version"], *([name, "--help"] for name in (*COMMANDS, *RUNS))]
TYPOS = [
    *(["fti"], ["fti", "--help"], ["score", "--modle=m"], ["query", "--run=r", "--n=x"], ["compare"]),
    *(["fit", "--config", "rm.yml"], ["plan", "--config", "rm.yml"]),
    *(["fit", "--config", "rm.yaml", "--model.lr=1"], ["test", "--config", "ppo.yaml", "--data.paht=x"]),
    ["plan", "--config", "rm.yaml", "--json", "plan.json", "--data.paht=x"],
]


def test_help_and_typos_need_no_heavy_package():
    run = [sys.executable, "-c", LIGHT, json.dumps([*HELP, *TYPOS])]
    codes, loaded = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert codes == [0] * len(HELP) + [2] * len(TYPOS)
    assert loaded == []


def line_of(capsys, *argv):
    assert main(list(argv)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


SCORE = ("score", "--model=m", "--data=d", "--out=o")
WORDS = [
    (["fti"], f"command: got 'fti'; give one of {ALL}; did you mean fit?"),
    (["train", "--config", "rm.yaml"], f"command: got 'train'; give one of {ALL}"),
    (["score", "--modle=m", "--data=d"], "score: got the unknown flag --modle; did you mean --model?"),
    (
        ["query", "--run=r", "--zzz"],
        "query: got the unknown flag --zzz; it takes --run, --n, --to, --strategy",
    ),
    (["score", "--model=m"], "score: got no --data and no --out; use `score --model FOLDER --data FILE --out FILE`"),
    ([*SCORE, "--max_length=long"], "--max_length: got 'long'; give an integer or null"),
    ([*SCORE, "--device", "gpu"], "--device: got 'gpu'; give one of 'auto', 'cpu', 'cuda'"),
    (
        ["report"],
        "report: the following arguments are required: runs; use `report RUN [RUN ...] [--to FILE]`",
    ),
    (
        ["export"],
        "export: got nothing to export; use `export RUN [--to FOLDER]`, `export --ckpt_path FILE --to FOLDER` or "
        "`export --answer MODEL --to FOLDER`",
    ),
    (
        ["query", "--run=run", "--strategy=X"],
        "--strategy: got 'X'; give Random or MostUncertain, or the dotted path of a class of your own with a "
        "method choose(prob_a, pairs, num_pairs)",
    ),
    (
        ["plan", "--config", "ppo.yaml"],
        "model.reward_model: required, got nothing; set it with --model.reward_model or in a config",
    ),
]


@pytest.mark.parametrize(("argv", "expected"), WORDS, ids=[" ".join(argv) for argv, _ in WORDS])
def test_what_is_mistyped_is_one_line(capsys, argv, expected):
    assert line_of(capsys, *argv) == expected


def test_a_tilde_behind_an_equals_sign_is_the_home_as_it_is_behind_a_space(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = ["query", "--run=r", "--n=1", "--to=~/labels.jsonl"]
    (tmp_path / "labels.jsonl").touch()
    assert line_of(capsys, *run).startswith(f"--to: {tmp_path}/labels.jsonl is there already")
    assert [with_home(word) for word in ("--a=~", "--a=~x/y", "--a=b~/c", "a=~/b")] == [
        *(f"--a={tmp_path}", "--a=~x/y", "--a=b~/c", "a=~/b")
    ]


def test_bench_reads_no_labels_and_takes_none(capsys):
    assert "unknown flag --labels; it takes --model" in line_of(capsys, "bench", "--model=m", "--data=d", "--labels={}")


def test_every_command_is_listed_with_what_it_does(capsys):
    assert main([]) == main(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, text in {**RUNS, **{name: command.help for name, command in COMMANDS.items()}}.items():
        assert f"{name} {text}" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_flag(capsys, name):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for flag, settings in COMMANDS[name].flags.items():
        assert flag in said and " ".join(settings["help"].split()[:2]) in " ".join(said.split())


@pytest.mark.parametrize("command", RUNS)
def test_help_of_a_run_lists_every_key_of_the_classes_that_its_configs_name(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    for key in ("--model.backbone.lora.r int (default: 8)", "--data.seed_fraction float (default: 0.15)"):
        assert f"\n  {key}\n" in text
    assert "--evolution.max_rounds int" in text and "--run_dir" in text and "reload_dataloaders" in text
    assert main([command, "--config", "ppo.yaml", "-h"]) == 0
    text = capsys.readouterr().out
    assert "--model.sampling.temperature" in text and "--data.prompts_per_step" in text and "model.reading" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_help_of_a_run_lists_no_keys_of_another_class_than_its_configs_name(capsys):
    Path("own.yaml").write_text("model: {class_path: my.Module}")
    assert main(["fit", "--config", "own.yaml", "--help"]) == 0
    text = capsys.readouterr().out
    line = "my.Module and ser_lightning.PreferenceDataModule: see --model.help CLASS and --data.help CLASS"
    assert f"\n{line}\n" in text and "--run_dir" in text and "reload_dataloaders" in text
    assert not any(f"--{branch}." in text for branch in ("model.backbone", "data.path", "evolution"))


def test_devices_and_formats_are_those_of_the_scorer():
    flags = COMMANDS["score"].flags
    assert get_args(flags["--device"]["type"]) == get_args(Device)
    assert get_args(flags["--dtype"]["type"]) == get_args(Dtype)
