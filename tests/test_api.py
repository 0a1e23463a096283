"""`docs/api.md` keeps its word: every public name stands on it, and its examples run as they are printed."""

import re
import runpy
import shutil
from pathlib import Path

import pytest

import ser_lightning
from tests.helpers import save_reward_model

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
"""In the order of the page."""


@pytest.fixture
def here(tmp_path, tiny_model_dir, tiny_tokenizer, pairs_file, monkeypatch):
    """A folder with the files that the examples name."""
    shutil.copytree(tiny_model_dir, tmp_path / "models" / "my-model")
    shutil.copytree(tiny_model_dir, tmp_path / "models" / "my-policy")
    shutil.copy(pairs_file, tmp_path / "my_pairs.jsonl")
    save_reward_model(tmp_path / "runs" / "mine", tiny_tokenizer, 128, reward_temperature=2.0, reward_zero=0.5)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(folder, name, code):
    """The variables that a script of this code ends with."""
    script = folder / f"{name}.py"
    script.write_text(code, encoding="utf-8")
    return runpy.run_path(str(script), run_name="__main__")


def example(words):
    """The one example with these words in it."""
    [found] = [code for code in EXAMPLES if words in code]
    return found


def test_every_public_name_stands_on_the_page():
    cells = re.findall(r"^\| (.*?) \|", TEXT, flags=re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted(ser_lightning.__all__)


def test_every_public_name_can_be_imported():
    assert all(getattr(ser_lightning, name) is not None for name in ser_lightning.__all__)


@pytest.mark.slow
def test_a_script_trains_a_reward_model(here):
    left = run(here, "script", example("EvolutionCallback("))
    rows = left["evolution"].state.rows
    assert [row.round for row in rows] == list(range(len(rows)))
    assert sum(row.delivered for row in rows) == 1
    assert (here / "runs" / "script" / "rounds.csv").is_file()


@pytest.mark.slow  # the commands have tests of their own
def test_a_script_calls_the_command_line(here):
    run(here, "script", example("import main"))
    assert (here / "runs" / "from-python" / "config.yaml").is_file()
    assert ser_lightning.Scorer.load("runs/from-python").score(["Hi"], ["Yes."]).shape == (1,)


def test_a_script_scores_texts(here):
    left = run(here, "script", example("Scorer.load"))
    reward = float(left["rewards"])
    assert float(left["calibrated"]) == pytest.approx((reward - 0.5) / 2.0)
    assert 0 < float(left["probability"]) < 1


def test_a_script_trains_a_policy(here):
    left = run(here, "script", example("PPOModule("))
    assert left["policy"].rl_step == 4
    assert len((here / "runs" / "policy" / "steps.csv").read_text().splitlines()) == 1 + 3


def test_dir_names_all_that_is_public_before_it_is_imported():
    assert {*ser_lightning.__all__, "__version__"} <= {*dir(ser_lightning)}
