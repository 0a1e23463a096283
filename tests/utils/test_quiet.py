"""What reaches the terminal: lines of this project, whole and without noise."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ser_lightning.__main__ import main
from ser_lightning.cli.commands import COMMANDS
from ser_lightning.utils.quiet import plain_warnings, quieten
from ser_lightning.utils.terminal import new_table, say, text_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def formatter(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    plain_warnings()
    plain_warnings()  # once is enough
    return warnings.formatwarning


def test_own_warnings_are_one_line_and_others_stay_as_they_are(formatter):
    own = str(ROOT / "callbacks" / "alerts.py")
    assert formatter("round 0, guard \x1b[1mchance", UserWarning, own, 27) == "warning: round 0, guard \\x1b[1mchance\n"
    assert "elsewhere.py:3" in formatter("x", UserWarning, "elsewhere.py", 3)
    assert "alerts.py:27" in formatter("x", DeprecationWarning, own, 27)


def test_names_from_data_reach_no_log_as_commands(caplog):
    quieten()
    with caplog.at_level(logging.INFO):
        logging.getLogger("lightning.pytorch.utilities.rank_zero").info("read %s", "\x1b[2J\nrows.jsonl")
    assert caplog.messages == ["read \\x1b[2J\nrows.jsonl"]


def test_what_is_said_has_no_markup_and_no_broken_line(capsys):
    table = new_table("", "A", title="[b]")
    table.add_row("[/x]", "\x1b[31m1")
    say("x" * 200, "[bold]", table)
    assert capsys.readouterr().out.splitlines()[:2] == ["x" * 200, "[bold]"]
    title, _, _, row = text_of(table).splitlines()
    assert title == "[b]" and row.split() == ["[/x]", "\\x1b[31m1"]


@pytest.mark.slow
def test_a_run_speaks_in_lines(tiny_run, tmp_path):
    """A whole command in a process of its own: third parties speak where they are imported."""
    flags = [flag for flag in tiny_run if "summary" not in flag] + ["--run_dir=run", "--model.optimizer.lr=0"]
    run = [sys.executable, "-m", "ser_lightning", "fit", *flags]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for noise in (
        "gemm",
        "FLOPs",
        "alerts.py",
        "Loading weights",
        "UserWarning",
        "rank_zero_warn",
        "already configured",
    ):
        assert noise not in done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: round 0, guard ")]
    assert "Model: 9,360 parameters, 9,360 of them trained" in lines
    answer = next(i for i, line in enumerate(lines) if line.startswith(("Did self-evolution", "Only round 0")))
    assert lines[answer - 2].startswith("round 0 | epoch 2, train/loss") and not lines[answer - 1]
    assert not [line for line in lines[answer:] if "train/loss" in line]
    assert any(line.startswith("Rounds of self-evolution") for line in lines[answer:])
    last = lines.index("Report: run/report.html")
    assert lines[last + 1] == "What to do with it:"
    commands = [line.split("#")[0].split()[:4] for line in lines[last + 2 :]]
    assert ["python", "-m", "ser_lightning", "export"] in commands and len(commands) == len(lines) - last - 2 > 2
    assert all(command[3] in COMMANDS for command in commands)


def test_the_table_of_a_test_has_digits_that_mean_something(tiny_fit, capsys):
    tiny_fit()
    assert main(["test", "--run_dir=run", "--ckpt_path=last"]) == 0
    said = capsys.readouterr().out
    figures = next(line for line in said.splitlines() if line.startswith("test ")).split()
    assert [len(figure.partition(".")[2]) for figure in figures[2:]] == [3] * 7 and figures[1] == "16"
    assert "DataLoader 0" not in said and "test/accuracy" not in said
