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
from ser_lightning.labelling.label_file import HumanLabel, LabelFile
from ser_lightning.records import PreferencePair
from ser_lightning.runs.files import RoundRow, delivered_round, read_rounds, round_files, write_rounds
from tests.helpers import often, read_csv


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
    said = capsys.readouterr().out
    assert "5 pairs to label: ask.jsonl" in said and "label --run run --n 5 --strategy Random" in said
    assert 'Set "ser_label" to "a" where response_a is better, "b" where response_b is, "tie" where neither is' in said
    rows = [json.loads(line) for line in Path("ask.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all(row["ser_label"] is None and "probability" not in row for row in rows)
    assert [parse_row(row, {}, "here").pair_id for row in rows] == [int(row["id"]) for row in rows]
    Path("ask.jsonl").write_text("".join(json.dumps({**row, "ser_label": "a"}) + "\n" for row in rows))
    last = ["--ckpt_path=run/checkpoints/last.ckpt", "--data.new_data_path=ask.jsonl"]
    assert main(["fit", *tiny_run, *last, "--run_dir=on"]) == 0
    scored = {int(line["round"]): int(line["scored"]) for line in read_csv("on/rounds.csv")}
    assert scored[2] == scored[1] - 5  # they have left the pool for the seed
    # Nobody is asked for them again, even if a round is delivered in which they were of the pool.
    write_rounds("on", [RoundRow(**{**row, "delivered": row["round"] == 0}) for row in read_rounds(Path("on"))])
    asked = {pair.pair_id for pair in query(Path("on"), scored[2], Random())}
    assert len(asked) == scored[2] and not asked & {int(row["id"]) for row in rows}
    with pytest.raises(UserError, match=f"need 1 to {scored[2]}, the pairs in the pool of on"):
        query(Path("on"), scored[2] + 1, Random())


MAPPED = {
    "labels": ({}, {"0": "a", "1": "b"}),
    "other names": ({"response_a": "x", "response_b": "y", "label": "z"}, {"1": "a", "2": "b", "0": "tie"}),
    "sides swapped": ({"response_a": "response_b", "response_b": "response_a"}, {"a": "b", "b": "a"}),
}


@pytest.mark.parametrize("mapped", often(MAPPED, "other names"))
def test_labels_of_a_run_with_a_map_are_read_as_they_were_given(mapped, tiny_run, load, capsys):
    """On the page and by hand; the right sum is the better response."""
    columns, labels = mapped
    names = [columns.get(name, name) for name in ("response_a", "response_b", "label")]
    first_is_better, second_is_better = ([value for value, side in labels.items() if side == s][0] for s in "ab")
    rows = []
    for n in range(60):
        texts = (f"It is {2 * n}.", f"It is {2 * n + 1}.")
        values = (*texts, first_is_better) if n % 2 else (*reversed(texts), second_is_better)
        row = {"prompt": f"What is {n} plus {n}?", **dict(zip(names, values, strict=True))}
        rows.append(row if n < 40 else {**row, names[2]: None})
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapped = [f"--data.columns={json.dumps(columns)}", f"--data.labels={json.dumps(labels)}"]
    assert main(["fit", *tiny_run, "--data.path=own.jsonl", *mapped, "--run_dir=run"]) == 0
    assert main(["query", "--run=run", "--n=9", "--to=by_hand.jsonl"]) == 0
    asked = [json.loads(line) for line in Path("by_hand.jsonl").read_text().splitlines()]
    for row in asked:
        number = int(row["prompt"][0]["content"].split()[2])
        row["ser_label"] = "a" if row["response_a"] == f"It is {2 * number}." else "b"
    Path("by_hand.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    with LabelFile(Path("run/labels"), "me") as file:
        for row in asked:
            file.add(HumanLabel(int(row["id"]), row["ser_label"], None))
    assert main(["label", "--run=run", "--export=page.jsonl"]) == 0
    pair_id = torch.tensor([int(row["id"]) for row in asked])
    expected = [float(row["ser_label"] == "a") for row in asked]
    assert 0 < sum(expected) < len(expected)
    for name in ("by_hand.jsonl", "page.jsonl"):
        data = load("own.jsonl", columns=columns, labels=labels, new_data_path=name)
        assert data.seed_labels(pair_id).tolist() == expected


def test_a_pool_that_has_lost_pairs_is_said(tiny_run, pairs_file, capsys):
    """By `query` and by every use of `label --run`, which leave the lost labels where they are."""
    assert main(["fit", *tiny_run, f"--data.path={shutil.copy(pairs_file, 'own.jsonl')}", "--run_dir=run"]) == 0
    asked = query(Path("run"), 6, Random())
    with LabelFile(Path("run/labels"), "me") as file:
        for pair in asked:
            file.add(HumanLabel(pair.pair_id, "a", None))
    lost = {pair.prompt[0]["content"] for pair in asked[:2]}
    rows = [json.loads(line) for line in Path("own.jsonl").read_text().splitlines()]
    changed = [{**row, "prompt": row["prompt"] + " "} if row["prompt"] in lost else row for row in rows]
    num_lost = len(lost)
    assert sum(row != other for row, other in zip(rows, changed, strict=True)) == num_lost == 2
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    warning = f"warning: --run: the files that the config of run names have lost {num_lost} pairs of its pool"
    capsys.readouterr()
    assert main(["query", "--run=run", "--n=3"]) == 0
    assert warning in capsys.readouterr().out
    for form in ("training", "argilla", "label_studio"):
        assert main(["label", "--run=run", f"--export={form}.json", f"--form={form}"]) == 0
        said = capsys.readouterr().out
        assert warning in said and f"Left out: the labels of {num_lost} pairs that are not in the pool of run" in said
        assert ("4 labelled pairs" in said) == (form == "training")
    assert len(Path("training.json").read_text().splitlines()) == 4
    assert main(["label", "--run=run", "--to=other", "--import=argilla.json"]) == 0
    assert warning in capsys.readouterr().out


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
    assert main(["query", "--run=run", "--to=ask.csv"]) == 2
    assert "--to: got ask.csv, but the file holds JSON lines; give a name" in capsys.readouterr().err
    assert main(["query", "--run=run", "--to=run/labels/ask.jsonl"]) == 2
    assert "--to: got run/labels/ask.jsonl, but every .jsonl in run/labels" in capsys.readouterr().err
    audit = round_files(run, delivered_round(run)).audit
    audit.rename("audit.parquet")
    with pytest.raises(UserError, match=f"^--run: {audit} is gone, which holds what the model thinks of the pool"):
        query(run, 3, MostUncertain())
    Path("audit.parquet").rename(audit)
    own.write_text(json.dumps({"prompt": "new", "response_a": "a", "response_b": "b"}) + "\n")
    with pytest.raises(UserError, match=r"0 of \d+ pool pairs of run are in the files"):
        query(run, 3, MostUncertain())
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"run has no config\.yaml; give the folder of a fit"):
        query(run, 3, MostUncertain())
    (run / "rounds.csv").unlink()
    with pytest.raises(UserError, match="has no rounds.csv"):
        query(run, 3, MostUncertain())
