"""`score` and the package's `Scorer`, against plain transformers on one unpadded sequence at a time."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

import ser_lightning
import ser_lightning.cli.score as command
from ser_lightning import Scorer
from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.evaluation.metrics import accuracy_interval
from ser_lightning.export.reward import export
from ser_lightning.inference.scoring_rows import RowCounts, open_source, read_rows
from tests.helpers import plain_reward, problems_of, read_csv, save_reward_model

ZERO, TEMPERATURE, MAX_LENGTH = 0.01, 0.05, 60
PAIRS = [
    {"prompt": f"What is {n} plus {n}?", "chosen": f"It is {2 * n}.", "rejected": "No" + " no" * (n % 4)}
    for n in range(9)
]
TURNS = [
    *({"role": "user", "content": "x" * 40}, {"role": "assistant", "content": "y"}),
    {"role": "user", "content": "Why?"},
]


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory) -> Path:
    """A reward model as `export` writes it; rewards of different texts differ clearly."""
    folder = tmp_path_factory.mktemp("score") / "model"
    save_reward_model(folder, tiny_tokenizer, MAX_LENGTH, reward_zero=ZERO, reward_temperature=TEMPERATURE)
    return folder


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def write(rows, name="pairs.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def score(model, data, *flags, out="out.parquet"):
    """Run the command; the columns of its file."""
    assert main(["score", "--model", str(model), "--data", data, "--out", out, "--device", "cpu", *flags]) == 0
    return pq.read_table(out).to_pydict()


def problems(capsys, *argv):
    return problems_of(capsys, "score", *argv)


def as_sides(rows, turn=False):
    """The same pairs as response_a, response_b and label."""
    first, second = ("rejected", "chosen") if turn else ("chosen", "rejected")
    return [
        {"prompt": row["prompt"], "response_a": row[first], "response_b": row[second], "label": int(not turn)}
        for row in rows
    ]


def test_a_file_gets_the_rewards_of_plain_transformers_in_its_order(model):
    found = score(model, write(PAIRS))
    assert list(found) == [
        *(
            "row",
            "reward_chosen",
            "reward_rejected",
            "probability",
            "tokens_chosen",
            "tokens_rejected",
            "is_cut",
            "label",
            "right",
            "content",
        )
    ]
    assert found["row"] == list(range(9)) and not any(found["is_cut"])
    for side in ("chosen", "rejected"):
        expected = [plain_reward(model, row["prompt"], row[side]) for row in PAIRS]
        assert found[f"reward_{side}"] == pytest.approx([reward for reward, _ in expected], abs=1e-5)
        assert found[f"tokens_{side}"] == [tokens for _, tokens in expected]
    margins = [c - r for c, r in zip(found["reward_chosen"], found["reward_rejected"], strict=True)]
    assert found["probability"] == pytest.approx([sigmoid(m / TEMPERATURE) for m in margins], abs=1e-4)
    assert min(found["probability"]) < 0.4 and max(found["probability"]) > 0.6


def test_sides_are_the_files_whoever_won(model):
    chosen = score(model, write(PAIRS))
    straight = score(model, write(as_sides(PAIRS)), out="straight.parquet")
    turned = score(model, write(as_sides(PAIRS, turn=True)), out="turned.parquet")
    bare = [{k: v for k, v in row.items() if k != "label"} for row in as_sides(PAIRS)]
    unlabelled = score(model, write(bare), out="unlabelled.parquet")
    assert straight["reward_a"] == pytest.approx(chosen["reward_chosen"], abs=1e-5)
    assert straight["reward_a"] == unlabelled["reward_a"] and straight["reward_b"] == unlabelled["reward_b"]
    assert turned["reward_a"] == pytest.approx(straight["reward_b"], abs=1e-5)
    assert turned["tokens_a"] == straight["tokens_b"] != straight["tokens_a"]
    assert turned["probability"] == pytest.approx([1 - p for p in straight["probability"]], abs=1e-4)


def test_ties_are_scored_and_left_out_of_the_accuracy(model, capsys):
    rows = as_sides(PAIRS)
    plain = score(model, write(rows[:5]))
    accuracy = [line for line in capsys.readouterr().out.splitlines() if "labelled pairs" in line]
    found = score(model, write([*rows[:5], *({**row, "label": "tie"} for row in rows[5:])]), out="ties.parquet")
    assert found["reward_a"][:5] == pytest.approx(plain["reward_a"], abs=1e-5) and len(found["row"]) == 9
    printed = capsys.readouterr().out
    assert accuracy and all(line in printed for line in accuracy)
    assert "labelled a tie: scored, not in the accuracy" in printed


def test_neither_batches_nor_chunks_matter(model, monkeypatch):
    one = score(model, write(PAIRS))
    small = score(model, "pairs.jsonl", "--tokens_per_batch", "1", out="small.parquet")
    auto = score(model, "pairs.jsonl", "--tokens_per_batch", "auto", out="auto.parquet")
    sizes = []
    encode = Scorer.encode
    monkeypatch.setattr(command, "CHUNK", 4)
    monkeypatch.setattr(Scorer, "encode", lambda self, pairs: sizes.append(len(pairs)) or encode(self, pairs))
    chunks = score(model, "pairs.jsonl", out="chunks.parquet")
    assert sizes == [4, 4, 1]
    for name in one:
        assert small[name] == pytest.approx(one[name], abs=1e-4) and auto[name] == pytest.approx(one[name], abs=1e-4)
        assert chunks[name] == pytest.approx(one[name], abs=1e-4)


def test_the_table_counts_by_hand(model, capsys):
    rows = [
        *PAIRS,
        {"prompt": "Hm?", "chosen": "same", "rejected": "same"},
        {"prompt": "Hm?", "chosen": "long " * 20, "rejected": "x"},
        {"prompt": TURNS, "chosen": "Because.", "rejected": "No."},
        {"prompt": " ", "chosen": "x", "rejected": "y"},
    ]
    found = score(model, write(rows))
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert found["row"] == [*range(9), 11] and found["is_cut"] == [False] * 9 + [True]
    assert found["reward_chosen"][-1] == pytest.approx(plain_reward(model, TURNS[2:], "Because.")[0], abs=1e-5)
    pairs = list(zip(found["reward_chosen"], found["reward_rejected"], strict=True))
    right = sum(chosen > rejected for chosen, rejected in pairs)
    longer = sum(
        0.5 if len(r["chosen"]) == len(r["rejected"]) else len(r["chosen"]) > len(r["rejected"])
        for r in [*PAIRS, rows[11]]
    )
    n, z = 10, 1.959964
    centre, half = (right + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    assert said[:7] == [
        "scored 10 of 13 rows",
        f"prompt cut 1 to fit into {MAX_LENGTH} tokens",
        "dropped 1 empty prompt or response",
        "dropped 1 identical responses",
        "dropped 1 a response does not fit",
        f"accuracy {right / n:.3f} 95 % {centre - half:.3f} to {centre + half:.3f}, on 10 labelled pairs",
        f"take the longer {longer / n:.3f} the baseline",
    ]
    assert said[-1] == "Rewards: out.parquet" and not any("scale" in line for line in said)


def test_pairs_of_one_prompt_widen_the_interval_of_the_accuracy(model, capsys):
    words = "Well, it may be so, or it may not; who could tell what it is today?".split()
    rows = [{"prompt": f"Hm {i % 3}?", "chosen": word, "rejected": "no"} for i, word in enumerate(words)]
    found = score(model, write(rows))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    right = torch.tensor(found["reward_chosen"]) > torch.tensor(found["reward_rejected"])
    low, high = accuracy_interval(right.double(), torch.arange(len(words)) % 3)
    assert "prompts 3 of the labelled pairs" in lines
    assert any(f"95 % {low:.3f} to {high:.3f}, on {len(words)} labelled pairs" in line for line in lines)


def test_no_figure_of_the_table_is_cut_off(capsys):
    many = 1_000_000
    tally = command.Tally(scored=many, ties=many, credits=[torch.ones(many)], prompts=[torch.arange(many) // 2])
    tally.read.rows = many
    scorer = SimpleNamespace(reward=SimpleNamespace(max_length=1024), is_calibrated=True)
    command.print_tally(tally, scorer, "out.parquet")
    said = capsys.readouterr().out
    assert "… " not in said and "on 1,000,000 labelled pairs" in said and "500,000" in said


def test_ids_and_rows_of_both_kinds(model):
    mixed = [{**PAIRS[0], "id": "p0"}, *as_sides(PAIRS[1:2], turn=True), *as_sides(PAIRS[2:3])]
    found = score(model, write(mixed))
    assert found["source_id"] == ["p0", None, None]
    chosen = score(model, write(PAIRS[:3]), out="chosen.parquet")
    for name, turned in (("reward", "reward"), ("tokens", "tokens")):
        one, other = chosen[f"{name}_chosen"], chosen[f"{turned}_rejected"]
        assert found[f"{name}_a"] == pytest.approx([one[0], other[1], one[2]], abs=1e-5)
        assert found[f"{name}_b"] == pytest.approx([other[0], one[1], other[2]], abs=1e-5)


def test_every_format_of_a_pair_keeps_its_sides():
    turn = {"role": "user", "content": "Why?"}
    said = [[turn, {"role": "assistant", "content": text}] for text in ("one", "two")]
    sides = {"prompt": "Why?", "response_a": "one", "response_b": "two"}
    rows = [
        ({"prompt": "Why?", "chosen": "one", "rejected": "two", "label": "whatever"}, "chosen", 1),
        ({"chosen": said[0], "rejected": said[1]}, "chosen", 1),
        ({k: f"\n\nHuman: Why?\n\nAssistant: {v}" for k, v in (("chosen", "one"), ("rejected", "two"))}, "chosen", 1),
        *(({**sides, "label": label}, "sides", int(label in (1, "a"))) for label in (1, 0, "a", "b")),
        ({**sides, "label": ""}, "sides", None),
        (sides, "sides", None),
        ({**sides, "chosen": None, "rejected": None, "label": 0}, "sides", 0),
        ({"prompt": "Why?", "chosen": "one", "rejected": "two", "response_a": None, "response_b": None}, "chosen", 1),
        ({"prompt": "Why?", "x": "one", "y": "two", "z": 0}, "sides", 0),
        ({"prompt": "Why?", "response": "one"}, "single", None),
    ]
    others = ["two", "three", "four", "five", "six"]  # other hashes, so that the project's a and b come in both orders
    rows = [
        (json.loads(json.dumps(row).replace("two", other)), kind, label)
        for other in others
        for row, kind, label in rows
    ]
    source = SimpleNamespace(rows=lambda: ((f"row {i}", row) for i, (row, *_) in enumerate(rows)))
    columns = {"response_a": "x", "response_b": "y", "label": "z"}
    found = list(read_rows(source, columns, counts := RowCounts()))
    assert [(row.number, row.kind, row.pair.label) for row in found] == [
        (i, kind, label) for i, (_, kind, label) in enumerate(rows)
    ]
    assert {row.pair.response_a for row in found} == {"one"} and counts.usable == len(rows)
    assert all(row.pair.prompt == [turn] for row in found)
    assert {row.pair.response_b for row in found if row.kind != "single"} == set(others)


def test_single_responses_under_other_names(model, capsys):
    rows = [{"question": row["prompt"], "answer": row["chosen"], "nr": i} for i, row in enumerate(PAIRS)]
    rows.insert(2, {"question": "Why?", "answer": " ", "nr": 99})
    found = score(model, write(rows), "--columns", "{prompt: question, response: answer, id: nr}")
    assert list(found) == ["row", "source_id", "reward", "probability", "tokens", "is_cut", "content"]
    assert found["row"] == [0, 1, *range(3, 10)] and found["source_id"] == list("012345678")
    expected = [plain_reward(model, row["prompt"], row["chosen"]) for row in PAIRS]
    assert found["reward"] == pytest.approx([reward for reward, _ in expected], abs=1e-5)
    assert found["tokens"] == [tokens for _, tokens in expected]
    by_hand = [sigmoid((reward - ZERO) / TEMPERATURE) for reward, _ in expected]
    assert found["probability"] == pytest.approx(by_hand, abs=1e-4)
    assert "accuracy" not in capsys.readouterr().out


def test_csv_and_json_lines_hold_what_parquet_holds(model):
    found = score(model, write([{**row, "id": f'"{i}", é'} for i, row in enumerate(PAIRS)]))
    for out in ("out.csv", "out.jsonl"):
        assert main(["score", f"--model={model}", "--data=pairs.jsonl", f"--out={out}", "--device=cpu"]) == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    cells = read_csv("out.csv")
    for name, values in found.items():
        assert [line[name] for line in lines] == values
        if name.startswith(("reward", "prob", "label")):
            assert [np.float32(row[name]) for row in cells] == [np.float32(value) for value in values]
        else:
            assert [row[name].lower() for row in cells] == [str(value).lower() for value in values]


def test_a_run_is_scored_as_its_export(tiny_run):
    assert main(["fit", *tiny_run, "--model.backbone.train=lora", "--evolution.max_rounds=0", "--run_dir=run"]) == 0
    export(Path("run"), Path("export"))
    run, exported = score("run", write(PAIRS), out="run.parquet"), score("export", "pairs.jsonl")
    for name in run:
        assert run[name] == pytest.approx(exported[name], abs=1e-4)
    assert "default" in str(Scorer.load("run", device="cpu").reward.reward_model)  # its adapter


# What goes wrong.


def test_a_broken_row_is_named_before_a_model_is_loaded(capsys):
    rows = [*PAIRS[:2], {"prompt": "Why?", "chosen": "x"}, {"prompt": 3, "chosen": "x", "rejected": "y"}]
    lines = problems(capsys, "--model=nowhere", "--data", write(rows), "--out=out.csv")
    assert [line.split(": got")[0] for line in lines] == ["pairs.jsonl, line 3", "pairs.jsonl, line 4"]
    Path("half.jsonl").write_text(json.dumps(PAIRS[0]) + '\n{"prompt": "x\n')
    [line] = problems(capsys, "--model=nowhere", "--data=half.jsonl", "--out=out.csv")
    assert line.startswith("half.jsonl, line 2: got broken JSON")
    assert sorted(path.name for path in Path().iterdir()) == ["half.jsonl", "pairs.jsonl"]


def test_ten_broken_rows_are_enough(capsys):
    rows = [{"prompt": "Why?", "response_a": "x", "response_b": "y", "label": 26 * chr(65 + i)} for i in range(26)]
    lines = problems(capsys, "--model=nowhere", "--data", write(rows), "--out=out.csv")
    assert [line.split(":")[0] for line in lines] == [f"pairs.jsonl, line {i}" for i in range(1, 11)]
    with pytest.raises(UserError, match="pairs.jsonl, line 1: got the label"):
        list(read_rows(open_source("pairs.jsonl"), {}, RowCounts()))


def test_single_responses_among_pairs_are_one_line(capsys):
    data = write([PAIRS[0], {"prompt": "Why?", "response": "x"}])
    expected = "pairs.jsonl: got single responses and pairs; give each a file of its own"
    assert problems(capsys, "--model=nowhere", "--data", data, "--out=out.csv") == [expected]


def test_a_file_is_only_written_over_when_asked(model, capsys):
    Path("out.parquet").write_text("mine")
    flags = ["--data", write(PAIRS), "--out=out.parquet"]
    expected = "--out: got out.parquet, which exists; give another file, or --overwrite"
    assert problems(capsys, "--model=nowhere", *flags) == [expected]
    assert Path("out.parquet").read_text() == "mine"
    assert len(score(model, "pairs.jsonl", "--overwrite")["row"]) == 9


def test_rewards_that_are_no_numbers_stop_and_leave_the_old_file(model, capsys, tmp_path):
    broken = LlamaForSequenceClassification.from_pretrained(model)
    broken.score.weight.data.fill_(float("nan"))
    broken.save_pretrained("broken")
    AutoTokenizer.from_pretrained(model).save_pretrained("broken")
    Path("out.parquet").write_text("mine")
    [line] = problems(capsys, "--model=broken", "--data", write(PAIRS), "--out=out.parquet", "--overwrite")
    assert line == "reward broken: model: cannot read broken (score.weight has NaN or infinity in it); is it damaged?"
    assert Path("out.parquet").read_text() == "mine"
    assert sorted(path.name for path in Path().iterdir()) == ["broken", "out.parquet", "pairs.jsonl"]


def test_rewards_beyond_all_numbers_name_a_row(model, capsys):
    large = LlamaForSequenceClassification.from_pretrained(model)
    large.score.weight.data.mul_(1e38)
    large.model.norm.weight.data.mul_(1e38)
    large.save_pretrained("large")
    AutoTokenizer.from_pretrained(model).save_pretrained("large")
    [line] = problems(capsys, "--model=large", "--data", write(PAIRS), "--out=out.csv")
    told = "rewards: got NaN or infinity for 9 of 9 rows, such as pairs.jsonl, line 1; try --dtype float32, or look "
    assert line == f"{told}whether the model's weights are finite"
    assert not Path("out.csv").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--out=out.txt"], "--out: got out.txt; use a name that ends in .parquet, .csv, .jsonl"),
        (["--data=pears.jsonl"], "pears.jsonl: got no such file; did you mean pairs.jsonl?"),
        (["--data=synthetic"], "--data: got synthetic; give a file"),
        (["--columns", "{promt: question}"], "columns: got the unknown name 'promt'"),
        (["--model=nowhere"], "model: got nowhere, which is no folder; give a run, an export or a transformers folder"),
        (["--model=empty"], "reward empty: got a folder without config.yaml and rounds.csv"),
        (["--tokens_per_batch=0"], "tokens_per_batch: got 0; use at least 1"),
        (["--max_length=129"], r"max_length: got 129 for a model of 128 positions; use at most that"),
        (["--max_length=5"], "pairs.jsonl: got 9 rows and none to score (a response does not fit in 9)"),
        (["--dtype=int8"], "--dtype: got 'int8'; give one of 'auto', 'float32', 'bfloat16'"),
        (["--max_len=5"], "score: got the unknown flag --max_len; did you mean --max_length?"),
    ],
)
def test_what_cannot_work_is_one_line(model, capsys, flags, expected):
    write(PAIRS)
    Path("empty").mkdir()
    [line] = problems(capsys, "--model", model, "--data=pairs.jsonl", "--out=out.csv", *flags)
    assert expected in line
    assert not Path("out.csv").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_line(model, capsys):
    [line] = problems(capsys, "--model", model, "--data", write(PAIRS), "--out=out.csv", "--device=cuda")
    assert line == "device: got cuda, but PyTorch finds no CUDA device; use cpu or auto"


# In Python.


def test_the_package_is_imported_without_pytorch():
    code = "import sys, ser_lightning; assert 'Scorer' in ser_lightning.__all__; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
    assert Scorer is Scorer
    with pytest.raises(AttributeError, match="no attribute 'Score'"):
        ser_lightning.Score  # noqa: B018


def test_three_lines_of_python(model):
    scorer = Scorer.load(model, device="cpu")
    prompts, responses = [row["prompt"] for row in PAIRS], [row["chosen"] for row in PAIRS]
    rewards = scorer.score(prompts, responses)
    expected = [plain_reward(model, *texts)[0] for texts in zip(prompts, responses, strict=True)]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5) and rewards.dtype == torch.float32
    assert scorer.score([TURNS], ["No."]).item() == pytest.approx(plain_reward(model, TURNS[2:], "No.")[0], abs=1e-5)
    others = [row["rejected"] for row in PAIRS]
    probability = scorer.probability(prompts, responses, others)
    by_hand = [sigmoid(m / TEMPERATURE) for m in (rewards - scorer.score(prompts, others)).tolist()]
    assert probability.tolist() == pytest.approx(by_hand, abs=1e-4)
    turned = scorer.probability(prompts, others, responses)
    assert torch.allclose(probability + turned, torch.ones(9), atol=1e-5)
    assert scorer.score([], []).shape == scorer.probability([], [], []).shape == (0,)
    assert (scorer.zero, scorer.temperature, scorer.is_calibrated) == (ZERO, TEMPERATURE, True)


def test_many_responses_to_one_prompt_do_not_become_one_row(model):
    scorer = Scorer.load(model, device="cpu", tokens_per_batch=64)
    shapes = []
    forward = scorer.reward.reward_model.forward
    scorer.reward.reward_model.forward = lambda inputs: shapes.append(inputs.input_ids.numel()) or forward(inputs)
    responses = [f"It is {n}." for n in range(30)]
    rewards = scorer.score(["What is 2 plus 2?"] * 30, responses)
    assert len(shapes) > 1 and max(shapes) <= 64  # in one row they would take 215
    alone = [scorer.score(["What is 2 plus 2?"], [text]).item() for text in responses]
    assert rewards.tolist() == pytest.approx(alone, abs=1e-5)


def test_length_and_number_format_change_the_rewards(model):
    prompts, responses = [TURNS] * 2, ["Because.", "No."]
    cut = Scorer.load(model, device="cpu").score(prompts, responses)
    whole = Scorer.load(model, device="cpu", max_length=128).score(prompts, responses)
    assert whole.tolist() == pytest.approx([plain_reward(model, TURNS, text)[0] for text in responses], abs=1e-5)
    assert not torch.allclose(cut, whole, atol=1e-3)
    half = Scorer.load(model, device="cpu", max_length=128, dtype="bfloat16")
    rough = half.score(prompts, responses)
    assert not torch.allclose(rough, whole, atol=1e-5) and torch.allclose(rough, whole, atol=0.2)
    assert half.reward.reward_model.model.score.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("prompts", "responses", "expected"),
    [
        ("Why?", ["x"], 'got the text "Why?" for a list of texts'),
        (["Why?"], "x", 'got the text "x" for a list of texts'),
        (["Why?"], ["x", "y"], "got 1 prompts and 2 responses"),
        (["Why?", ""], ["x", "y"], "prompt 1: got nothing but white space"),
        ([3], ["x"], "prompt 0: got a int"),
        (["Why?"], [None], "response 0: got a NoneType; use text"),
        (["Why?"], ["x" * 99], f"of more than max_length {MAX_LENGTH} tokens"),
    ],
)
def test_texts_that_cannot_be_scored_are_one_line(model, prompts, responses, expected):
    scorer = Scorer.load(model, device="cpu")
    with pytest.raises(UserError) as caught:
        scorer.score(prompts, responses)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError):
        scorer.probability(prompts, responses, responses)


def test_a_spreadsheet_computes_no_cell_of_a_csv(model):
    ids = ["=1+1", "+1", "-1", "@x", "\tx", "plain", "a=b", "'=x", "9"]
    score(model, write([{**row, "id": one} for row, one in zip(PAIRS, ids, strict=True)]), out="out.parquet")
    assert pq.read_table("out.parquet")["source_id"].to_pylist() == ids
    for name in ("out.csv", "out.jsonl"):
        assert main(["score", f"--model={model}", "--data=pairs.jsonl", f"--out={name}"]) == 0
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source_id"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", *ids[5:]]
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["source_id"] for line in lines] == ids
    rewards = [[float(row["reward_chosen"]) for row in table] for table in (rows, lines)]
    assert rewards[0] == pytest.approx(rewards[1], rel=1e-5) and min(rewards[0]) < 0  # a number keeps its sign


def test_texts_that_no_encoding_has_are_scored_as_those_of_a_file_are(model):
    odd = [{**PAIRS[0], "chosen": "It is \ud800 0.", "id": "\ud800"}]
    found = score(model, write(odd))
    assert found["source_id"] == ["?"]
    scorer = Scorer.load(model, device="cpu")
    prompts, texts = [PAIRS[0]["prompt"]], [odd[0]["chosen"]]
    assert scorer.score(prompts, texts).tolist() == pytest.approx(found["reward_chosen"], rel=2e-6)
    assert scorer.probability(prompts, texts, [PAIRS[0]["rejected"]]).tolist() == pytest.approx(
        found["probability"], abs=1e-5
    )


def test_labels_and_who_is_right_stand_beside_the_rewards(model):
    pairs = [{"prompt": f"What is {n}?", "response_a": f"It is {n}.", "response_b": "No" + " no" * n} for n in range(6)]
    labels = [1, 0, None, 1, 0, None]
    rows = [pair if label is None else {**pair, "label": label} for pair, label in zip(pairs, labels, strict=True)]
    rows.append({"prompt": "Same?", "response_a": "Yes.", "response_b": "No.", "label": 0.5})
    found = score(model, write(rows))
    assert found["label"][:6] == labels
    for label, right, a, b in zip(found["label"], found["right"], found["reward_a"], found["reward_b"], strict=True):
        assert right is (None if label in (None, 0.5) or a == b else (a > b) == (label == 1))
    assert (found["label"][6], found["right"][6]) == (0.5, None)
    assert {True, False} <= {*found["right"]}
    chosen = score(model, write(PAIRS, "chosen.jsonl"), out="chosen.parquet")
    assert chosen["label"] == [1] * len(PAIRS)
    single = [{"prompt": "Hi?", "response": "Ho."}]
    assert "label" not in score(model, write(single, "single.jsonl"), out="single.parquet")


def test_a_pattern_of_several_files_is_refused(model, capsys):
    write(PAIRS, "one.jsonl")
    write(PAIRS, "two.jsonl")
    [line] = problems(capsys, "--model", model, "--data", "*.jsonl", "--out", "out.parquet")
    assert line == "--data: got *.jsonl, which matches 2 files; give one"
