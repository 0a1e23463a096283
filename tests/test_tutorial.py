"""The tutorial and the how-to pages run: their commands in the order of the page, their Python as it is printed."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from ser_lightning.__main__ import main
from tests.helpers import save_reward_model

DOCS = Path(__file__).parent.parent / "docs"
NEED_SOMEBODY = ("label", "serve")
"""Commands that wait for a person or a client; they have tests of their own."""


def commands(page):
    """The arguments of every command in a block of a page."""
    text = DOCS.joinpath(page).read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    plain = "\n".join(block for language, block in blocks if not language)
    found = re.findall(r"^ *(?:\w+=\S+ )?python -m ser_lightning (.*)$", plain, flags=re.MULTILINE)
    return [shlex.split(line) for line in found]


def python_of(page):
    """The blocks of Python on a page."""
    text = DOCS.joinpath(page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path, pairs_file, tiny_tokenizer, monkeypatch):
    """A folder with a file of pairs under the names of the pages, and a reward model `runs/mine`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("pairs.jsonl", "labelled.jsonl", "heldout.jsonl", "unlabelled.jsonl"):
        shutil.copy(pairs_file, tmp_path / name)
    for name in ("mine", "old", "new", "base-1", "base-2", "base-3"):
        save_reward_model(tmp_path / "runs" / name, tiny_tokenizer, 128, reward_temperature=2.0, reward_zero=0.5)
    return tmp_path


def test_the_tutorial_trains_scores_and_exports(here, tiny_run):
    shutil.rmtree("runs/mine")
    done = []
    for words in commands("tutorial.md"):
        if words[0] not in NEED_SOMEBODY:
            # the pretrained model of the page is too large for a test: a tiny one in its place
            tiny = [*tiny_run, "--data.path", "labelled.jsonl", "--run_dir", "runs/mine"] if words[0] == "fit" else []
            assert main([*words, *tiny]) == 0, words
            done.append(words[0])
    assert done == ["fit", "score", "export"]
    assert Path("runs/mine/report.html").is_file()
    assert Path("runs/mine/export/config.json").is_file()
    assert len(Path("scores.csv").read_text().splitlines()) > 10


def test_files_are_scored_as_the_page_says(here):
    Path("answers.csv").write_text("question,answer\nWhy?,So.\nWho?,Me.\n")
    for words in commands("howto/score.md"):
        assert main(words) == 0, words
    assert len(Path("scores.csv").read_text().splitlines()) == 3


def test_models_are_compared_as_the_page_says(here, tiny_model_dir):
    assert main(["score", "--model", "runs/old", "--data", "heldout.jsonl", "--out", "old.parquet"]) == 0
    for words in commands("howto/compare.md"):
        words = [str(tiny_model_dir) if word.startswith("Qwen/") else word for word in words]
        assert main(words) == 0, words
    assert "accuracy" in Path("gate.yaml").read_text()


def test_a_rule_of_ones_own_keeps_more_in_each_round(here, tiny_run, monkeypatch):
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)  # another test's
    [code] = python_of("howto/selection-rule.md")
    Path("my_rules.py").write_text(code)
    [words] = commands("howto/selection-rule.md")
    rule = words[words.index("--evolution.rule") :]
    assert main(["fit", *tiny_run, *rule, "--run_dir", "runs/rule"]) == 0
    header, seed_model, *_ = Path("runs/rule/rounds.csv").read_text().splitlines()
    row = dict(zip(header.split(","), seed_model.split(","), strict=True))
    assert int(row["kept"]) == round(0.2 * int(row["scored"]))


def test_a_run_goes_on_with_the_labels_that_query_asked_for(here, tiny_run):
    shutil.rmtree("runs/mine")
    assert main(["fit", *tiny_run, "--run_dir", "runs/mine"]) == 0
    query, fit = (words for words in commands("howto/more-labels.md") if words[0] not in NEED_SOMEBODY)
    query[query.index("--n") + 1] = "4"
    assert main(query) == 0
    rows = [json.loads(line) | {"ser_label": "a"} for line in Path("to_label.jsonl").read_text().splitlines()]
    Path("to_label.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(fit) == 0
    assert Path("runs/mine-2/rounds.csv").is_file()
