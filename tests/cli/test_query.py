"""Pairs worth a label: the choice against brute force, the file that comes out, and that it goes back in."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ser_lightning.__main__ import main
from ser_lightning.cli.query import query
from ser_lightning.data.formats import parse_row
from ser_lightning.errors import UserError
from ser_lightning.evolution.query import MostUncertain, Random
from ser_lightning.records import PreferencePair
from tests.helpers import read_csv


def pairs_of(*texts):
    return [PreferencePair(i, [{"role": "user", "content": text}], "yes", "no", None) for i, text in enumerate(texts)]


def test_random_pairs_are_drawn_once_each_and_the_same_again():
    pairs, prob_a = pairs_of(*"abcdefgh"), torch.rand(8)
    chosen = Random().choose(prob_a, pairs, 5)
    assert len(set(chosen)) == 5 and set(chosen) <= set(range(8))
    assert Random().choose(1 - prob_a, pairs, 5) == chosen
    assert sorted(Random().choose(prob_a, pairs, 8)) == list(range(8))


def test_what_the_model_is_sure_of_is_not_asked():
    prob_a = torch.tensor([0.99, 0.5, 0.01, 0.52, 0.45])
    assert MostUncertain().choose(prob_a, pairs_of(*"abcde"), 2) == [1, 3]


@pytest.fixture
def run(tiny_fit):
    return tiny_fit()


def test_the_file_holds_pool_pairs_without_labels_and_goes_back_in(run, tiny_run, capsys):
    assert main(["query", "--run=run", "--n=5", "--to=ask.jsonl"]) == 0
    assert "5 pairs to label: ask.jsonl" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("ask.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all(row["label"] is None and "probability" not in row for row in rows)
    assert [parse_row(row, {}, "here").pair_id for row in rows] == [int(row["id"]) for row in rows]
    Path("ask.jsonl").write_text("".join(json.dumps({**row, "label": 1}) + "\n" for row in rows))
    last = ["--ckpt_path=run/checkpoints/last.ckpt", "--data.new_data_path=ask.jsonl"]
    assert main(["fit", *tiny_run, *last, "--run_dir=on"]) == 0
    scored = {int(line["round"]): int(line["scored"]) for line in read_csv("on/rounds.csv")}
    assert scored[2] == scored[1] - 5  # they have left the pool for the seed


def test_a_strategy_of_ones_own_is_named(run):
    assert main(["query", "--run=run", "--n=3", "--strategy=MostUncertain", "--to=ask.jsonl"]) == 0
    asked = {int(json.loads(line)["id"]) for line in Path("ask.jsonl").read_text().splitlines()}
    assert asked == {pair.pair_id for pair in query(run, 3, MostUncertain())}


class Second:
    """A strategy of one's own."""

    def choose(self, prob_a, pairs, num_pairs):
        return [1, 2][:num_pairs]


def test_a_class_of_ones_own_chooses(run):
    assert main(["query", "--run=run", "--n=2", f"--strategy={__name__}.Second", "--to=ask.jsonl"]) == 0
    asked = [int(json.loads(line)["id"]) for line in Path("ask.jsonl").read_text().splitlines()]
    assert asked == [pair.pair_id for pair in query(run, 2, Second())]


def test_what_is_wrong_with_a_class_of_ones_own_is_said(run, capsys):
    for name, reason in ((f"{__name__}.Missing", "AttributeError"), ("no_such_module.Mine", "ModuleNotFoundError")):
        assert main(["query", "--run=run", f"--strategy={name}", "--to=ask.jsonl"]) == 2
        assert f"--strategy: got '{name}' ({reason}: " in capsys.readouterr().err


def test_what_cannot_be_asked_is_one_line(tiny_run, pairs_file, capsys):
    own = Path(shutil.copy(pairs_file, "own.jsonl"))  # the fixture is everyone's
    assert main(["fit", *tiny_run, f"--data.path={own}", "--run_dir=run"]) == 0
    run = Path("run")
    with pytest.raises(UserError, match=r"--n: got 0; need 1 to \d+, the pairs in the pool of run"):
        query(run, 0, MostUncertain())
    Path("ask.jsonl").write_text("mine")
    assert main(["query", "--run=run", "--to=ask.jsonl"]) == 2
    assert "is there already, perhaps with labels in it" in capsys.readouterr().err
    own.write_text(json.dumps({"prompt": "new", "response_a": "a", "response_b": "b"}) + "\n")
    with pytest.raises(UserError, match=r"0 of \d+ pool pairs of run are in the files"):
        query(run, 3, MostUncertain())
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"run has no config\.yaml; give the folder of a fit"):
        query(run, 3, MostUncertain())
    (run / "rounds.csv").unlink()
    with pytest.raises(UserError, match="has no rounds.csv"):
        query(run, 3, MostUncertain())
