"""Attacks in small: the generators of the long script (`benchmarks/attacks/run.py`), and what they are to find."""

import json
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.attacks import checks
from benchmarks.attacks.checks import CHECKS, Judged
from benchmarks.attacks.data_files import FORMATS, clear, data_file
from benchmarks.attacks.run import summary
from benchmarks.attacks.scene import Ended, fit_words, make_scene, run_command
from benchmarks.attacks.tables import attacks_table
from tests.command_process import CommandProcess

pytestmark = pytest.mark.usefixtures("real_pictures")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("attacks") / "scene")


def cases(part: str, everyday: int, number: int) -> list[object]:
    """The first of a part, which have every kind of it, and more of the same that is left to `make test-all`."""
    return [pytest.param(part, n, marks=pytest.mark.slow if n >= everyday else ()) for n in range(number)]


@pytest.mark.parametrize(
    ("part", "number"),
    [
        *cases("data", 24, 72),  # every format once whole, once with a fault and once with other bytes
        *(*cases("run", 6, 27), *cases("model", 8, 18), *cases("rewards", 6, 12)),
    ],
)
def test_damage_is_refused_or_changes_nothing(scene, tmp_path, part, number):
    judged = CHECKS[part](number, scene, tmp_path / "case")
    assert judged.faults == (), judged.kind


def test_every_format_and_reading_is_among_the_data_files(tmp_path):
    made = [data_file(number, clear(tmp_path / "case")) for number in range(72)]
    assert {one.kind.split(",")[0].split(":")[0] for one in made} == set(FORMATS)
    assert {one.reading for one in made} == {"whole", "refused", "some"}


# The judges see what they are to see.


def test_a_silent_misreading_is_a_fault(scene, tmp_path, monkeypatch):
    """Number 0 is a sound file: a reader that loses its last row is found out by both judges."""
    whole = checks.open_sources

    def short(*arguments):
        [source] = whole(*arguments)
        return [type(source)(source.name, source.fingerprint, lambda: list(source.rows())[:-1])]

    monkeypatch.setattr(checks, "open_sources", short)
    monkeypatch.setattr("ser_lightning.inference.scoring_rows.open_sources", short)
    judged = CHECKS["data"](0, scene, tmp_path / "case")
    assert sum("silent" in fault for fault in judged.faults) == 2


def test_a_traceback_is_a_fault(monkeypatch):
    monkeypatch.setattr("benchmarks.attacks.scene.main", lambda words: 1 // 0)
    assert "ZeroDivisionError" in run_command("score").fault


@pytest.mark.parametrize(("code", "said"), [(0, "error: x\n"), (2, ""), (1, ""), (2, "error: \x1b[2J\n")])
def test_an_end_that_is_none_is_a_fault(monkeypatch, code, said):
    monkeypatch.setattr("benchmarks.attacks.scene.main", lambda words: print(said, end="", file=sys.stderr) or code)
    assert run_command("score").fault


def test_damage_that_is_believed_is_a_fault(scene, tmp_path, monkeypatch):
    """As if nobody looked at checksums and shapes: number 15 gives all models another base."""
    monkeypatch.setattr(checks, "produce", lambda name, *_: (Ended(0, ""), {"content": name}))
    monkeypatch.setattr(checks, "reference", lambda *_: {"content": "sound"})
    assert any("silent" in fault for fault in CHECKS["run"](15, scene, tmp_path / "case").faults)


# Kills and double starts.

KILLED = """
import os, signal, sys
from pathlib import Path
from benchmarks.attacks.run import count_operations, ended_with, start
from benchmarks.attacks.scene import run_command
of, folder, *words = sys.argv[1:]
def fit():
    count_operations(Path(folder), lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == int(of) else None)
    return run_command(*words).code
print(ended_with(start(fit, Path("said.txt"))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("of", [1, 2, 3, 4, 9, 40])
def test_a_kill_before_a_file_operation_leaves_a_folder_that_a_new_start_takes(scene, tmp_path, of):
    words = fit_words(scene, tmp_path / "run", "--evolution.max_rounds=0")
    Path("killed.py").write_text(KILLED)
    killed = CommandProcess(str(of), str(tmp_path / "run"), *words, script="killed.py")
    ended, said = killed.communicate()
    assert ended == f"{-signal.SIGKILL:d}\n", said
    flags = ["--ckpt_path=auto"] if list(tmp_path.glob("run/checkpoints/*.ckpt")) else []
    assert run_command(*words, *flags) == Ended(0, "")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {
        "advice.json",
        "checkpoints",
        "checksums.json",
        "config.yaml",
        "metrics.csv",
        "report.html",
        "rounds",
        "rounds.csv",
    }
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.startswith(".") or path.suffix == ".new"]


# What the study leaves.


def test_a_summary_keeps_every_fault_with_its_number():
    cases = [(0, Judged("cut", "refused")), (1, Judged("cut", "read", ("silent: x",))), (2, Judged("empty", "refused"))]
    cut, empty = summary("data", cases, 3.0)
    assert (cut["cases"], cut["outcomes"], cut["faults"]) == (2, {"read": 1, "refused": 1}, [[1, "cut", "silent: x"]])
    assert (empty["cases"], empty["seconds"], empty["faults"]) == (1, 1.0, [])
    row = attacks_table([cut, empty]).splitlines()[-1]
    assert row == "| data files | 3 | 2 | 1 read, 2 refused | 0 | 1 | 0 | 0 |"


def test_the_figures_in_the_docs_are_free_of_faults():
    """A long run that finds something is mended before its figures are published."""
    file = ROOT / "benchmarks" / "attacks" / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [fault for line in lines for fault in line["faults"]] == []
    cases = {part: sum(line["cases"] for line in lines if line["part"] == part) for part in ("data", "kills", "starts")}
    assert cases["data"] >= 2000 and cases["kills"] >= 100 and cases["starts"] >= 20
