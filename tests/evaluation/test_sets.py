import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ser_lightning.__main__ import main
from ser_lightning.evaluation.sets import LENGTH_GROUPS, Scored, prompt_interval, set_figures, share_interval
from ser_lightning.records import PairScores
from tests.helpers import read_csv, slow


def scored(margin, target, difference, prompt=None, category=()):
    size = len(margin)
    margin = torch.tensor(margin, dtype=torch.float32)
    lengths = torch.tensor(difference) + 100
    scores = PairScores(torch.arange(size), margin, torch.zeros(size), lengths, torch.full((size,), 100))
    return Scored(
        "x", scores, torch.tensor(target, dtype=torch.float32), np.arange(size) if prompt is None else prompt, category
    )


def test_figures_by_hand():
    found = scored([1.0, -2.0, 0.0, 3.0], [1, 1, 1, 1], [4, -4, 8, -8], np.array([1, 1, 2, 3]), ["p", "q", "p", "q"])
    figures = set_figures(found, 1.0)
    assert figures["accuracy"] == pytest.approx(2.5 / 4) and figures["prompts"] == 3 and figures["pairs"] == 4
    assert figures["tie_share"] == 0.25 and figures["longer_accuracy"] == 0.5
    lengths = {name: group["accuracy"] for name, group in figures["by_length"].items()}
    assert lengths == dict(zip(LENGTH_GROUPS, [1.0, 0.0, 1.0, 0.5], strict=True))
    assert {name: g["accuracy"] for name, g in figures["by_category"].items()} == {"p": 0.75, "q": 0.5}


def test_turning_a_and_b_changes_nothing():
    random.seed(0)
    margin = [random.gauss(0.5, 1) for _ in range(60)]
    difference = random.sample(range(-80, 80), 60)
    target = [random.random() < 0.7 for _ in range(60)]
    one = set_figures(scored(margin, target, difference), 1.5)
    other = set_figures(scored([-m for m in margin], [not t for t in target], [-d for d in difference]), 1.5)
    flat = [json.dumps(f, default=lambda x: round(x, 5)) for f in (one["by_length"], other["by_length"])]
    assert flat[0] == flat[1]
    for one_bin, turned in zip(one["reliability"], other["reliability"], strict=True):
        assert one_bin == pytest.approx(turned)
    bins = one["reliability"]  # give the calibration error beside them
    error = sum(abs(b["right"] - b["pairs"] * b["confidence"]) for b in bins) / 60
    assert sum(b["pairs"] for b in bins) == 60 and error == pytest.approx(one["calibration_error"], abs=1e-6)
    assert one["accuracy_low"] == other["accuracy_low"] and one["pairs"] == 60


def test_the_interval_is_that_of_a_loop_over_resampled_prompts():
    generator = np.random.default_rng(3)
    prompt = generator.integers(12, size=40)
    credit = torch.tensor(generator.integers(2, size=40), dtype=torch.float32)
    low, high = prompt_interval(credit, prompt, seed=5)
    names, means = np.unique(prompt), []
    draws = np.random.default_rng(5)
    for _ in range(2000):
        chosen = [names[i] for i in draws.integers(len(names), size=len(names))]
        pairs = [float(credit[i]) for name in chosen for i in np.flatnonzero(prompt == name)]
        means.append(sum(pairs) / len(pairs))
    assert (low, high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))


def test_pairs_of_one_prompt_count_as_little_as_one():
    """Ten copies of every pair: the naive interval would shrink by the root of ten."""
    credit = torch.tensor([1.0, 0.0] * 20)
    alone = prompt_interval(credit, np.arange(40))
    copied = prompt_interval(credit.repeat(10), np.tile(np.arange(40), 10))
    assert copied == pytest.approx(alone)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_pairs_are_right_or_all_wrong_the_interval_is_not_a_point(value):
    """Every resample has the same mean there. Of 5 right prompts of 5 Wilson's lower end is 5 / (5 + 1.96 ** 2)."""
    target = torch.ones(8)
    margin = torch.full((8,), 2 * value - 1)
    scores = PairScores(torch.arange(8), margin, torch.zeros(8), torch.arange(8), torch.zeros(8, dtype=torch.long))
    prompt = np.array([0, 0, 1, 1, 2, 2, 3, 4])
    found = set_figures(Scored("", scores, target, prompt, []), 1.0)
    bound = 1.96**2 / (5 + 1.96**2)
    expected = (1 - bound, 1) if value else (0, bound)
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx(expected, abs=1e-4)
    of_two = found["by_length"]["much shorter"]
    assert of_two["high"] - of_two["low"] == pytest.approx(1.96**2 / (1 + 1.96**2), abs=1e-4)  # pairs of one prompt


def test_pairs_of_one_prompt_have_the_interval_of_one_pair():
    """Every resample is the prompt again. Half of Wilson's width at 0.5 is 1.96 / (2 sqrt(n + 1.96 ** 2)); n is 1."""
    half = 1.96 / (2 * (1 + 1.96**2) ** 0.5)
    found = share_interval(torch.tensor([1.0, 0.0] * 50), np.zeros(100, dtype=np.int64))
    assert found == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)


def test_no_pair_has_no_interval():
    assert np.isnan(share_interval(torch.empty(0), np.empty(0))).all()
    assert np.isnan(prompt_interval(torch.empty(0), np.empty(0))).all()


@pytest.fixture
def sets(tmp_path):
    """Two files of sums, the second with a category and some pairs of the training data's prompts."""
    files = {}
    for name, numbers in (("easy", range(200, 230)), ("mixed", [*range(5), *range(300, 320)])):
        rows = [
            {"prompt": f"What is {n} plus {n}?", "chosen": f"It is {2 * n}.", "rejected": f"{2 * n + 3}, I think.",
             "kind": "odd" if n % 2 else "even"}
            for n in numbers
        ]  # fmt: skip
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


@pytest.mark.parametrize("command", ["test", *slow("validate")])
def test_named_sets_are_reported_beside_the_split(tiny_run, tiny_fit, sets, capsys, command):
    flags = ["--data.test_fraction=0", "--data.val_fraction=0"] if command == "validate" else []
    named = json.dumps({name: str(file) for name, file in sets.items()})
    given = [f"--data.eval_sets={named}", "--data.eval_category=kind"]
    tiny_fit(*flags)
    with pytest.warns(UserWarning, match="pairs of mixed are of dialogues that training sees, and are left out"):
        assert main([command, *tiny_run, *flags, *given, "--run_dir=run", "--ckpt_path=last"]) == 0
    shown = capsys.readouterr()
    found = json.loads(Path(f"run/evaluation-{command}.json").read_text())
    assert set(found) == {"easy", "mixed"} and found["easy"]["pairs"] == 30 == found["easy"]["prompts"]
    assert 20 <= found["mixed"]["pairs"] < 25  # less what the test split has of them
    assert set(found["easy"]["by_category"]) == {"odd", "even"}
    assert "bag_of_words_accuracy" in found["easy"] and "Evaluation sets" in shown.out
    [row] = read_csv(f"run/metrics-{command}.csv")
    prefix = "val" if command == "validate" else "test"
    assert float(row[f"{prefix}/easy/accuracy"]) == pytest.approx(found["easy"]["accuracy"])
    assert (f"{prefix}/accuracy" in row) == (command == "test")


def test_a_sets_scores_are_those_of_the_score_command(tiny_run, tiny_fit, sets):
    given = [f"--data.eval_sets.easy={sets['easy']}"]
    tiny_fit()
    main(["test", *tiny_run, *given, "--run_dir=run", "--ckpt_path=last"])
    main(["score", "--model=run", f"--data={sets['easy']}", "--out=scores.csv", "--max_length=64"])
    right = [float(r["reward_chosen"]) > float(r["reward_rejected"]) for r in read_csv("scores.csv")]
    found = json.loads(Path("run/evaluation-test.json").read_text())["easy"]
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))


def test_rows_of_the_first_reward_bench_are_a_named_set_with_sections(tiny_run, tiny_fit, tmp_path, capsys):
    names = ("alpacaeval-easy", "math-prm", "hep-go")
    rows = [
        {"prompt": f"What is {n} plus {n}?", "chosen": f"It is {2 * n}.", "chosen_model": "x", "id": n,
         "rejected": f"It is {2 * n + 3}, I think.", "rejected_model": "y", "subset": names[n % 3]}
        for n in range(200, 230)
    ]  # fmt: skip
    for row in rows[::6]:  # five of the ten of `hep-go` are the wrong way round
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    file = tmp_path / "first.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_fit("--evolution.max_rounds=0")
    named = [f"--data.eval_sets.first={file}", "--data.eval_category=subset"]
    assert main(["test", *tiny_run, *named, "--run_dir=run", "--ckpt_path=last"]) == 0
    found = json.loads(Path("run/evaluation-test.json").read_text())["first"]
    share = {name: one["accuracy"] for name, one in found["by_category"].items()}
    assert share["math-prm"] != share["hep-go"]
    reasoning = (984 * share["math-prm"] + 164 * share["hep-go"]) / 1148
    assert found["by_section"]["Reasoning"]["accuracy"] == pytest.approx(reasoning)
    assert found["by_section"]["Chat"]["accuracy"] == pytest.approx(share["alpacaeval-easy"])
    assert "Reasoning" in capsys.readouterr().out and "by_section" in found
    # The same model from the other side: no two rewards are equal, so that half credit makes no difference.
    assert main(["bench", "--model=run", f"--data={file}", "--max_length=64", "--json=bench.json"]) == 0
    sections = json.loads(Path("bench.json").read_text())["sections"]
    assert found["tie_share"] == 0 and set(sections) == set(found["by_section"])
    for name, one in sections.items():
        assert one["score"] == pytest.approx(found["by_section"][name]["accuracy"])


def test_wrong_sets_are_one_line_each(tiny_run, tiny_fit, sets, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"prompt": "a", "response_a": "b", "response_b": "c"}) + "\n")
    tiny_fit()
    again = ["test", *tiny_run, "--run_dir=run", "--ckpt_path=last"]
    capsys.readouterr()
    assert main([*again, f"--data.eval_sets.x={empty}"]) == 2
    assert main([*again, f"--data.eval_sets.x={sets['easy']}", "--data.eval_category=nothing"]) == 2
    assert main([*again, "--data.eval_category=kind"]) == 2
    assert main([*again, "--data.eval_sets.x=nowhere.jsonl"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 4
    for line, part in zip(
        errors, ("no labelled pair", "which no row of", "without eval_sets", "nowhere.jsonl"), strict=True
    ):
        assert part in line
