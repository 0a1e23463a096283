"""Where commands end: one line for what comes from a file or the disk, a traceback for our own mistakes."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import torch
import yaml

from ser_lightning import __main__ as program
from ser_lightning.__main__ import main


def raising(error):
    def command(argv):
        raise error

    return command


@pytest.fixture
def command_that_raises(monkeypatch):
    def use(error):
        monkeypatch.setattr(program, "_dispatch", raising(error))

    return use


OUTSIDE = [
    PermissionError(errno.EACCES, "Permission denied", "rows.jsonl"),
    OSError(errno.EROFS, "Read-only file system", "out.json"),
    OSError(errno.ENAMETOOLONG, "File name too long", "x"),
    pyarrow.ArrowInvalid("damaged page"),
    pickle.UnpicklingError("bad"),
    yaml.YAMLError("tag"),
    RecursionError("deep"),
    EOFError("cut"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    json.JSONDecodeError("bad", "x", 0),
]


@pytest.mark.parametrize("error", OUTSIDE, ids=lambda error: type(error).__name__)
def test_what_comes_from_outside_is_one_line(command_that_raises, capsys, error):
    command_that_raises(error)
    assert main(["score"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and (getattr(error, "filename", None) or "") in line
    with pytest.raises(type(error)):
        main(["score", "--debug"])


def test_weights_that_are_cut_off_are_one_line(command_that_raises, capsys, tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"x": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(RuntimeError) as damage:
        torch.load(file, weights_only=True)
    command_that_raises(damage.value)
    assert main(["fit"]) == 2
    line = "error: a file of weights: cannot be read, it is cut off or no such file; --debug shows where\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours"), AssertionError(), TypeError("ours")])
def test_our_own_mistakes_keep_their_traceback(command_that_raises, error):
    command_that_raises(error)
    with pytest.raises(type(error)):
        main(["score"])


def test_a_wrapped_error_is_seen(command_that_raises, capsys):
    outer = RuntimeError("worker failed")
    outer.__cause__ = PermissionError(errno.EACCES, "Permission denied", "here")
    command_that_raises(outer)
    assert main(["fit"]) == 2 and "here: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "fix"), [("fit", "--ckpt_path last"), ("score", "then run the command again")])
def test_a_full_disk_gives_advice_that_can_be_followed(command_that_raises, capsys, command, fix):
    command_that_raises(OSError(errno.ENOSPC, "No space left on device"))
    assert main([command]) == 2
    said = capsys.readouterr().err
    assert fix in said and (command == "fit" or "--ckpt_path" not in said)


def test_no_message_carries_control_characters(capsys):
    assert main(["score", "--model=m", "--data=\x1b[2Jrows.jsonl", "--out=o.jsonl"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(pairs_file, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(pairs_file.read_bytes())
    file.chmod(0)
    command = [sys.executable, "-m", "ser_lightning", "score", "--model=m", f"--data={file}", "--out=o.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and str(file) in done.stderr and "Traceback" not in done.stderr


def test_a_category_with_markup_and_commands_is_shown_as_it_is(tiny_fit, pairs_file, capsys):
    tiny_fit("--evolution.max_rounds=0")
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    kinds = ["[/x]", "\x1b[31mred", "[bold]"]
    Path("rows.jsonl").write_text("".join(json.dumps({**r, "kind": kinds[i % 3]}) + "\n" for i, r in enumerate(rows)))
    capsys.readouterr()
    assert main(["compare", "run", "run", "--data=rows.jsonl", "--category=kind"]) == 0
    assert main(["bench", "--model=run", "--data=rows.jsonl", "--category=kind"]) == 0
    said = capsys.readouterr().out
    assert "[/x]" in said and "[bold]" in said and "\x1b[31m" not in said and "\\x1b[31mred" in said


LONG = "x" * 300
ODD_PATHS = {
    "score --out below a file": (
        ["score", "--model=run", "--data=rows.jsonl", "--out=rows.jsonl/x.jsonl"],
        "rows.jsonl",
    ),
    "score --out too long": (["score", "--model=run", "--data=rows.jsonl", f"--out={LONG}.jsonl"], "too long"),
    "score --data of no user": (["score", "--model=run", "--data=~nosuchuser/x.jsonl", "--out=o.jsonl"], "~"),
    "score --out of no user": (["score", "--model=run", "--data=rows.jsonl", "--out=~nosuchuser/x.jsonl"], "~"),
    "score --model of no user": (["score", "--model=~nosuchuser/x", "--data=rows.jsonl", "--out=o.jsonl"], "~"),
    "score --model with markup": (["score", "--model=[/b]", "--data=rows.jsonl", "--out=o.jsonl"], "[/b]"),
    "score --data with markup": (["score", "--model=run", "--data=[/b].jsonl", "--out=o.jsonl"], "[/b].jsonl"),
    "score --data too long": (["score", "--model=run", f"--data={LONG}.jsonl", "--out=o.jsonl"], "too long"),
    "score --data with a zero": (["score", "--model=run", "--data=a\0b.jsonl", "--out=o.jsonl"], "\\x00"),
    "compare --json on a folder": (["compare", "run", "run", "--data=rows.jsonl", "--json=folder"], "folder"),
    "compare --gate on a folder": (["compare", "run", "run", "--data=rows.jsonl", "--gate=folder"], "folder"),
    "bench --json below a file": (["bench", "--model=run", "--data=rows.jsonl", "--json=rows.jsonl/x"], "rows.jsonl"),
    "report --to below a file": (["report", "run", "--to=rows.jsonl/x.html"], "rows.jsonl"),
    "report of no run": (["report", f"{LONG}/{LONG}"], "config.yaml"),
    "query --to below a file": (["query", "--run=run", "--n=2", "--to=rows.jsonl/x"], "rows.jsonl"),
    "export --to below a file": (["export", "run", "--to=rows.jsonl/x"], "rows.jsonl"),
    "export --to too long": (["export", "run", f"--to={LONG}"], "too long"),
    "fit --run_dir below a file": (["fit", "--config=rm.yaml", "--run_dir=rows.jsonl/x"], "rows.jsonl"),
    "fit --run_dir too long": (["fit", "--config=rm.yaml", f"--run_dir={LONG}"], "too long"),
    "fit --config on a folder": (["fit", "--config=folder"], "folder"),
    "fit --config that is binary": (["fit", "--config=binary.yaml"], "binary.yaml"),
    "fit --config that is a list": (["fit", "--config=list.yaml"], "list.yaml"),
    "fit --config with a tag": (["fit", "--config=tag.yaml"], "tag.yaml"),
    "plan --config that is binary": (["plan", "--config=binary.yaml"], "binary.yaml"),
}


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "folder").mkdir()
    (folder / "binary.yaml").write_bytes(b"\x00\xff\xfe\x01")
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "tag.yaml").write_text("model: !!python/object/apply:os.getcwd []\n")
    return folder


@pytest.mark.parametrize("name", ODD_PATHS)
def test_an_odd_path_is_one_line(tiny_fit, pairs_file, odd_folder, capsys, monkeypatch, name):
    words, said = ODD_PATHS[name]
    tiny_fit("--evolution.max_rounds=0")
    for path in odd_folder.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, path.name)
    shutil.copy(pairs_file, "rows.jsonl")
    capsys.readouterr()
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0], lines
