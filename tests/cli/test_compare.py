import json
from pathlib import Path

import pytest

from ser_lightning.__main__ import main
from ser_lightning.cli.compare import FIGURES


@pytest.fixture
def runs(tiny_fit):
    """Two runs that differ in their learning, and 60 pairs kept aside with a category."""
    tiny_fit("--model.optimizer.init_args.lr=0.01", "--evolution.max_rounds=0", name="good")
    tiny_fit("--model.optimizer.init_args.lr=1e-9", "--evolution.max_rounds=0", name="bad")
    rows = [
        {"prompt": f"What is {n} plus {n}?", "chosen": f"It is {2 * n}.", "rejected": f"It is {2 * n + 3}, I think.",
         "kind": "odd" if n % 2 else "even"}
        for n in range(200, 260)
    ]  # fmt: skip
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_two_runs_and_what_score_wrote_of_them_compare_alike(runs, capsys):
    compare = ["--data=pairs.jsonl", "--category=kind"]
    assert main(["compare", "bad", "good", *compare, "--json=models.json"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(Path("models.json").read_text())
    assert set(FIGURES) <= found.keys() and found["pairs"] == 60 and set(found["by_category_a"]) == {"odd", "even"}
    assert found["accuracy_b"] - found["accuracy_a"] == pytest.approx(found["difference"], abs=1e-6)
    assert f"{found['difference']:+.3f}" in shown and "right: What is" in shown
    for name in ("bad", "good"):
        main(["score", f"--model={name}", "--data=pairs.jsonl", f"--out={name}.parquet"])
    assert main(["compare", "bad.parquet", "good.parquet", *compare, "--json=files.json"]) == 0
    files = json.loads(Path("files.json").read_text())
    assert {k: files[k] for k in FIGURES} == pytest.approx({k: found[k] for k in FIGURES}, abs=0.01, nan_ok=True)


def test_rewards_of_rows_without_a_label_are_no_strangers(runs, capsys):
    texts = Path("pairs.jsonl").read_text()
    bare = {"prompt": "What is 1 plus 1?", "response_a": "It is 2.", "response_b": "It is 5, I think."}
    Path("more.jsonl").write_text(texts + json.dumps(bare) + "\n")
    main(["score", "--model=good", "--data=more.jsonl", "--out=good.parquet"])
    assert main(["compare", "good", "good.parquet", "--data=more.jsonl", "--json=both.json"]) == 0
    assert json.loads(Path("both.json").read_text())["pairs"] == 60


def test_gates_end_in_an_exit_code_and_a_line_for_each_that_fails(runs, capsys):
    assert main(["compare", "good", "good", "--data=pairs.jsonl", "--make_gate=gate.yaml"]) == 0
    capsys.readouterr()
    assert main(["compare", "good", "good", "--data=pairs.jsonl", "--gate=gate.yaml"]) == 0
    Path("gate.yaml").write_text("accuracy_b: {min: 1.01}\npairs: {min: 60}\nagreement: {max: 0.5}\n")
    assert main(["compare", "good", "good", "--data=pairs.jsonl", "--gate=gate.yaml"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gate: ")]
    assert [line.split()[1] for line in lines] == ["accuracy_b", "agreement"]


def test_a_sequential_comparison_says_who_is_better_or_that_it_cannot(runs, capsys):
    assert main(["compare", "good", "good", "--data=pairs.jsonl", "--sequential"]) == 0
    assert "No decision after all 60 pairs: 0 only A right, 0 only B" in capsys.readouterr().out
    perfect = [{"row": n, "reward_chosen": 1.0, "reward_rejected": 0.0, "probability": 0.7} for n in range(60)]
    for name, sign in (("right", 1), ("wrong", -1)):
        rows = [{**r, "reward_chosen": sign * 1.0, "tokens_chosen": 5, "tokens_rejected": 6} for r in perfect]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["compare", "right.jsonl", "wrong.jsonl", "--data=pairs.jsonl", "--sequential"]) == 0
    assert "A is better, sure after 9 of 60 pairs" in capsys.readouterr().out


def test_wrong_input_is_one_line(runs, capsys, tmp_path):
    (tmp_path / "none.jsonl").write_text(json.dumps({"prompt": "a", "response_a": "b", "response_b": "c"}) + "\n")
    Path("gate.yaml").write_text("acuracy_b: {min: 0.5}\n")
    Path("other.jsonl").write_text(json.dumps({"row": 999, "reward_chosen": 1, "reward_rejected": 0, "probability": 0.7,
                                               "tokens_chosen": 1, "tokens_rejected": 1}) + "\n")  # fmt: skip
    Path("none_of_it.jsonl").write_text(
        Path("other.jsonl").read_text().replace("999", "5").replace(": 1,", ": NaN,", 1)
    )
    data = "--data=pairs.jsonl"
    cases = {
        ("good",): "got 1 models",
        ("good", "bad", "--data=none.jsonl"): "no labelled pair",
        ("good", "bad", "--gate=gate.yaml"): "did you mean accuracy_b",
        ("good", "nowhere"): "which is no folder",
        ("good", "bad", "--category=colour"): "which no row",
        ("good", "other.jsonl"): "got rows that --data has not, such as 999; give the same data",
        ("good", "none_of_it.jsonl"): "no pair that both have a reward for",
        ("good", "pairs.jsonl"): "got no rewards of pairs in it",
        ("good", "bad", "--sequential", "--json=x.json"): "--sequential",
    }
    for words, message in cases.items():
        capsys.readouterr()
        assert main(["compare", *([] if "--data=none.jsonl" in words else [data]), *words]) == 2, words
        assert message in capsys.readouterr().err, words
