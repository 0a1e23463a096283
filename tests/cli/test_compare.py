import hashlib
import json
import math
import random
import shutil
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


def content(n):
    """What the documentation calls the fingerprint of row n - 200 of the pairs kept aside."""
    turns = [{"role": "user", "content": f"What is {n} plus {n}?"}]
    texts = json.dumps([turns, f"It is {2 * n}.", f"It is {2 * n + 3}, I think."])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


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


def test_no_figure_depends_on_how_the_file_calls_the_sides(runs, tiny_run):
    """Chosen and rejected, or the same pairs on other sides; and `test`, which reads another way, has the same."""
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    found = {}
    for name, seed in (("chosen", None), ("turned", 0), ("other", 1)):
        generator, sides = random.Random(seed), []
        for row in rows:
            label = generator.randint(0, 1)
            a, b = (row["chosen"], row["rejected"])[:: 1 if label else -1]
            sides.append({"prompt": row["prompt"], "response_a": a, "response_b": b, "label": label})
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (rows if seed is None else sides)))
        assert main(["compare", "bad", "good", f"--data={name}.jsonl", f"--json={name}.json"]) == 0
        found[name] = json.loads(Path(f"{name}.json").read_text())
    assert found["chosen"]["length_correlation_a"] != pytest.approx(found["chosen"]["length_correlation_b"])
    for name in ("turned", "other"):
        assert {k: found[name][k] for k in FIGURES} == pytest.approx({k: found["chosen"][k] for k in FIGURES}, abs=1e-5)
    assert main(["test", *tiny_run, "--data.eval_sets.x=pairs.jsonl", "--run_dir=good", "--ckpt_path=last"]) == 0
    tested = json.loads(Path("good/evaluation-test.json").read_text())["x"]
    for figure in ("accuracy", "length_correlation", "calibration_error", "tie_share", "longer_accuracy"):
        side = figure if figure == "longer_accuracy" else f"{figure}_b"
        assert found["chosen"][side] == pytest.approx(tested[figure], abs=1e-4), figure


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
        more = {"reward_chosen": sign * 1.0, "tokens_chosen": 5, "tokens_rejected": 6}
        rows = [{**r, **more, "content": content(200 + r["row"])} for r in perfect]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["compare", "right.jsonl", "wrong.jsonl", "--data=pairs.jsonl", "--sequential"]) == 0
    assert "A is better, sure after 9 of 60 pairs" in capsys.readouterr().out


@pytest.mark.parametrize(("num_prompts", "decided"), [(5, None), (6, 6), (30, 8)])
def test_a_prompt_is_one_step_of_a_sequential_comparison_however_many_pairs_it_has(num_prompts, decided, capsys):
    """A wins all: of n prompts k decide if 2 / 2^k <= 0.05 k / n. One pair of each has no reward, and one is a tie."""
    assert decided is None or 2 / 2**decided <= 0.05 * decided / num_prompts < 2 / 2 ** (decided - 1)
    rows = [(f"Question {i % num_prompts}?", f"Yes {i}.", f"No {i}.") for i in range(12 * num_prompts)]
    texts = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    for name, reward in (("right", 1.0), ("wrong", -1.0)):
        lines = []
        for i, (prompt, *responses) in enumerate(rows):
            given = math.nan if i < num_prompts else 0.0 if i < 2 * num_prompts else reward
            words = json.dumps([[{"role": "user", "content": prompt}], *responses])
            sides = {"reward_chosen": given, "reward_rejected": 0.0, "tokens_chosen": 5, "tokens_rejected": 6}
            content = hashlib.sha256(words.encode()).hexdigest()[:16]
            lines.append(json.dumps({"row": i, **sides, "probability": 0.7, "content": content}) + "\n")
        Path(f"{name}.jsonl").write_text("".join(lines))
    assert main(["compare", "right.jsonl", "wrong.jsonl", "--data=pairs.jsonl", "--sequential"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    total, scored = 12 * num_prompts, 10 * num_prompts
    if decided is None:
        assert f"No decision after all {total} pairs: {scored} only A right, 0 only B." in shown
        assert f"By prompts, A wins {num_prompts} of {num_prompts}, B 0." in shown
    else:
        of_prompts = f"{decided} of {num_prompts} prompts (5 % error)"
        assert f"A is better, sure after {12 * decided} of {total} pairs, {of_prompts}" in shown


def test_rewards_that_are_no_numbers_decide_nothing(runs, capsys):
    """All NaN: refused with and without --sequential. Some NaN: the other pairs count, and it is said how many."""
    for name, num_nan in (("none", 60), ("some", 20)):
        reward = [float("nan") if n < num_nan else 1.0 for n in range(60)]
        sides = {"reward_rejected": 0.0, "probability": 0.7, "tokens_chosen": 5, "tokens_rejected": 6}
        rows = [{"row": n, "reward_chosen": reward[n], **sides, "content": content(200 + n)} for n in range(60)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for flags in ([], ["--sequential"]):
        assert main(["compare", "good", "none.jsonl", "--data=pairs.jsonl", *flags]) == 2
        assert "got no pair that both have a reward for" in capsys.readouterr().err
    assert main(["compare", "some.jsonl", "some.jsonl", "--data=pairs.jsonl", "--sequential"]) == 0
    said = capsys.readouterr().out
    assert "20 pairs have no reward from one of both and count for neither" in said and "No decision" in said


def test_wrong_input_is_one_line(runs, capsys, tmp_path):
    (tmp_path / "none.jsonl").write_text(json.dumps({"prompt": "a", "response_a": "b", "response_b": "c"}) + "\n")
    Path("gate.yaml").write_text("acuracy_b: {min: 0.5}\n")
    rewards = {"row": 999, "reward_chosen": 1, "reward_rejected": 0, "probability": 0.7}
    tokens = {"tokens_chosen": 1, "tokens_rejected": 1, "content": content(205)}
    Path("other.jsonl").write_text(json.dumps({**rewards, **tokens}) + "\n")
    Path("none_of_it.jsonl").write_text(
        Path("other.jsonl").read_text().replace("999", "5").replace(": 1,", ": NaN,", 1)
    )
    lacking = {**rewards, **tokens, "row": 5}
    del lacking["content"]
    Path("lacking.jsonl").write_text(json.dumps(lacking) + "\n")
    Path("words.jsonl").write_text(json.dumps({**lacking, "content": content(205), "reward_chosen": "high"}) + "\n")
    data = "--data=pairs.jsonl"
    cases = {
        ("good", "good", "good"): "got 3 models",
        ("good", "bad", "--data=none.jsonl"): "no labelled pair",
        ("good", "bad", "--gate=gate.yaml"): "did you mean accuracy_b",
        ("good", "nowhere"): "which is no folder",
        ("good", "bad", "--category=colour"): "which no row",
        ("good", "other.jsonl"): "got rewards of other texts than those of --data, such as row 999; give the same data",
        ("good", "lacking.jsonl"): "lacking.jsonl: got no column content; run `score` again",
        ("good", "words.jsonl"): "words.jsonl: got rewards that are no numbers (",
        ("good", "none_of_it.jsonl"): "no pair that both have a reward for",
        ("good", "pairs.jsonl"): "got no rewards of pairs in it",
        ("good", "bad", "--sequential", "--json=x.json"): "--sequential: got it with --json, which it does not use",
        ("good", "bad", "--sequential", "--category=kind", "--examples=2"): "got it with --category and --examples,",
        ("good", "--make_gate=made.yaml", "--json=x.json"): "--make_gate: got it with --json, which it does not use",
        ("good", "bad", "--make_gate=made.yaml", "--sequential", "--gate=gate.yaml"): "with --gate and --sequential,",
        ("good", "--make_gate=made.yaml", "--category=kind"): "--make_gate: got it with --category",
        ("good", "--make_gate=made.yaml", "--examples=1"): "--make_gate: got it with --examples",
        ("good", "--examples=5"): "--examples: got it with one model",
        ("good", "bad", "--examples=-1"): "--examples: got -1; use at least 0",
    }
    for words, message in cases.items():
        capsys.readouterr()
        assert main(["compare", *([] if "--data=none.jsonl" in words else [data]), *words]) == 2, words
        assert message in capsys.readouterr().err, words
    assert not Path("made.yaml").exists() and not Path("x.json").exists()


def test_as_many_examples_as_asked(runs, capsys):
    for flags, number in (([], 3), (["--examples=0"], 0), (["--examples=7"], 7)):
        assert main(["compare", "bad", "good", "--data=pairs.jsonl", *flags]) == 0
        assert capsys.readouterr().out.count(" right: What is") == number


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_rewards_of_other_texts_are_refused(runs, capsys, suffix):
    main(["score", "--model=good", "--data=pairs.jsonl", f"--out=good.{suffix}"])
    lines = Path("pairs.jsonl").read_text().splitlines(keepends=True)
    others = {
        "turned": "".join(lines[::-1]),
        "swapped": "".join([lines[1], lines[0], *lines[2:]]),
        "unrelated": "".join(lines).replace("plus", "and"),
        "longer_answer": "".join(lines).replace("I think", "I know", 1),
    }
    for name, text in others.items():
        Path(f"{name}.jsonl").write_text(text)
        assert main(["compare", f"good.{suffix}", f"good.{suffix}", f"--data={name}.jsonl"]) == 2, name
        assert "got rewards of other texts than those of --data" in capsys.readouterr().err
    Path("shorter.jsonl").write_text("".join(lines[:20]))
    assert main(["compare", f"good.{suffix}", f"good.{suffix}", "--data=shorter.jsonl"]) == 2
    assert main(["compare", f"good.{suffix}", f"good.{suffix}", "--data=pairs.jsonl"]) == 0


DAMAGED = {
    "half.jsonl": b'{"row": 0, "reward_chosen": 1.0, "rewa',
    "list.jsonl": b"[1, 2]\n",
    "binary.jsonl": b"\xff\xfe\x00",
    "other_keys.jsonl": b'{"row": 0, "reward_a": 1}\n{"row": 1}\n',
    "deep.jsonl": b"[" * 100_000,
    "text.jsonl": b'{"row": 0, "reward_a": "x", "tokens_a": 1, "reward_b": 1, "tokens_b": 1, '
    b'"probability": 0.5, "content": "c"}\n',
    "half.parquet": b"PAR1\x00\x00",
    "empty.parquet": b"",
    "ragged.csv": b"row,reward_a\n1\n1,2,3\n",
    "empty.csv": b"",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_rewards_is_one_line(pairs_file, capsys, name):
    Path(name).write_bytes(DAMAGED[name])
    assert main(["compare", name, name, f"--data={pairs_file}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {name}: got ")


def test_no_command_destroys_what_it_reads(runs, tiny_run, capsys):
    """Neither by name, pattern nor link, with or without `--overwrite`; other files need it."""
    text = Path("pairs.jsonl").read_text()
    Path("link.jsonl").hardlink_to("pairs.jsonl")
    Path("soft.jsonl").symlink_to("pairs.jsonl")
    data, model = "--data=pairs.jsonl", "--model=good"
    inputs = ["pairs.jsonl", "./pairs.jsonl", "link.jsonl", "soft.jsonl"]
    reads = [
        *(["score", model, data, f"--out={name}"] for name in [*inputs, "good/rounds.csv"]),
        *(["compare", "good", "good", data, f"--json={name}"] for name in [*inputs, "good/config.yaml"]),
        *(["compare", "good", "good", data, f"--make_gate={name}"] for name in inputs),
        *(["bench", model, data, f"--json={name}"] for name in inputs),
        *(["report", "good", f"--to={name}"] for name in ("good/config.yaml", "good/rounds.csv")),
        ["plan", *tiny_run, "--data.path=pairs.jsonl", "--json=pairs.jsonl"],
        ["score", model, "--data=pai?s.jsonl", "--out=pairs.jsonl"],
        *(["compare", "good", "good", "--data=pai*s.jsonl", f"--{f}=pairs.jsonl"] for f in ("json", "make_gate")),
        ["compare", "good", "good", data, "--unlabelled=**/only.jsonl", "--json=kept/only.jsonl"],
        ["bench", model, "--data=pai*.jsonl", "--json=pairs.jsonl"],
        ["plan", *tiny_run, "--data.path=[pai?s.jsonl, kept/*.jsonl]", "--json=kept/only.jsonl"],
        ["plan", *tiny_run, "--data.eval_sets={mine: kept/*.jsonl}", "--json=kept/only.jsonl"],
    ]
    Path("kept").mkdir()
    Path("kept/only.jsonl").write_text(text)
    config = Path("good/config.yaml").read_text()
    for command in reads:
        for more in ([], ["--overwrite"]):
            assert main([*command, *more]) == 2, command
            assert "which this command reads; give another file" in capsys.readouterr().err, command
    assert Path("pairs.jsonl").read_text() == Path("kept/only.jsonl").read_text() == text
    assert Path("good/config.yaml").read_text() == config

    Path("notes.csv").write_text("mine")
    for command in (
        ["score", model, data, "--out=notes.csv"],
        ["compare", "good", "good", data, "--json=notes.csv"],
        ["bench", model, data, "--json=notes.csv"],
        ["report", "good", "--to=notes.csv"],
        ["plan", *tiny_run, "--json=notes.csv"],
    ):
        assert main(command) == 2 and Path("notes.csv").read_text() == "mine", command
        assert "or --overwrite" in capsys.readouterr().err
        assert main([*command, "--overwrite"]) == 0 and Path("notes.csv").read_text() != "mine", command
        Path("notes.csv").write_text("mine")
    assert main(["report", "good"]) == main(["report", "good"]) == 0  # its own page is its own to renew


def test_the_pairs_that_a_run_was_trained_on_are_read_too(runs, pairs_file, capsys):
    """`compare` asks the files of a run which prompts it knows."""
    shutil.copy(pairs_file, "own.jsonl")
    config = Path("good/config.yaml")
    config.write_text(config.read_text().replace(str(pairs_file), "o?n.jsonl"))
    text = Path("own.jsonl").read_text()
    for flag in ("--json", "--make_gate"):
        assert main(["compare", "good", "good", "--data=pairs.jsonl", f"{flag}=own.jsonl", "--overwrite"]) == 2
        assert f"{flag}: got own.jsonl, which this command reads; give another file" in capsys.readouterr().err
    assert Path("own.jsonl").read_text() == text

    compare = ["compare", "good", "good", "--data=own.jsonl"]
    assert main(compare) == 0
    assert "good may know the dialogues of" in capsys.readouterr().out
    Path("own.jsonl").write_text("".join(text.splitlines(keepends=True)[::2]))  # whose prompts are known, nobody knows
    assert main(compare) == 0
    said = capsys.readouterr().out
    assert (
        "whether good was trained on these pairs is not known: good: the files that its config names have lost" in said
    )
