"""`bench` from the command line, against plain transformers on one response at a time and loops over rows."""

import json
import math
import random
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from ser_lightning import Scorer
from ser_lightning.__main__ import main
from tests.helpers import plain_reward, problems_of, save_reward_model

MAX_LENGTH = 60


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "model"
    save_reward_model(folder, tiny_tokenizer, MAX_LENGTH)
    return folder


def numbers(count, seed):
    return [str(n) for n in random.Random(seed).sample(range(100, 999), count)]


def second_benchmark(model):
    """Made-up rows as RewardBench 2 has them: best of four in three subsets, and eight pairs of ties rows.

    What is chosen is what the model likes best, but for one row in three, two or four, and for three pairs.
    """
    rows = []
    for i in range(24):
        prompt, subset, every = f"Say {i}.", *(("Math", 3), ("Focus", 2), ("Precise IF", 4))[i % 3]
        texts = numbers(4, i)
        if i // 3 % every:
            texts.sort(key=lambda text: -plain_reward(model, prompt, text)[0])
        texts[3] = texts[0] if i == 5 else texts[3]  # the chosen one again: a tie
        row = {"id": str(i), "prompt": prompt, "chosen": texts[:1], "rejected": texts[1:]}
        rows.append({**row, "num_correct": 1, "subset": subset, "models": ["x"]})
    for i in range(8):
        for kind, right in (("ref", 1), ("tied", 3)):
            prompt, texts = f"Any {kind} {i}?", numbers(7, 100 + 2 * i + right)
            if i > 2:
                texts.sort(key=lambda text: -plain_reward(model, prompt, text)[0])
            row = {"id": f"{kind}:{i}", "prompt": prompt, "chosen": texts[:right], "rejected": texts[right:]}
            rows.append({**row, "num_correct": right, "subset": "Ties", "models": None})
    return rows


def first_benchmark():
    names = ("alpacaeval-easy", "mt-bench-med", "hep-go", "math-prm", "math-prm", "donotanswer")
    rows = []
    for i in range(30):
        chosen, rejected = numbers(2, i)
        row = {"prompt": f"Say {i % 26}.", "chosen": chosen, "chosen_model": "x", "rejected": rejected, "id": i}
        rows.append({**row, "rejected_model": "y", "subset": names[i % 6]})
    return rows


def write(rows, name="rows.jsonl"):
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), name)
    else:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def bench(model, data, *flags):
    """Run the command; what it writes."""
    out = ["--json=out.json", "--overwrite", "--device=cpu"]
    assert main(["bench", f"--model={model}", f"--data={data}", *out, *flags]) == 0
    return json.loads(Path("out.json").read_text())


def problems(capsys, *argv):
    return problems_of(capsys, "bench", *argv)


def by_loop(model, rows, measure):
    """Subset -> score by a loop over rows, with the published rules for best-of-n rows and ties.

    measure: 0 takes rewards, 1 takes tokens for rewards.
    """
    credit, ties = defaultdict(list), {}
    for row in rows:
        values = [plain_reward(model, row["prompt"], text)[measure] for text in (*row["chosen"], *row["rejected"])]
        right, wrong = values[: len(row["chosen"])], values[len(row["chosen"]) :]
        if row["subset"] == "Ties":
            ties[row["id"]] = (max(right) - min(right), min(right) - max(wrong))
        else:
            credit[row["subset"]].append(values.count(max(values)) ** -1 if values[0] == max(values) else 0)
    terms = defaultdict(list)
    for name in {name.partition(":")[2] for name in ties}:
        (_, ref), (spread, tied) = ties[f"ref:{name}"], ties[f"tied:{name}"]
        terms["accuracy_ref"].append(ref > 0)
        terms["accuracy_tied"].append(tied > 0)
        terms["correctness_preferred"].append(tied > spread)
        terms["correctness_preferred_hard"].append(min(ref, tied) > spread)
        terms["correctness_margin"].append(math.tanh(min(ref, tied) / spread - 1) if spread else 0.0)
    means = {name: sum(values) / len(values) for name, values in terms.items()}
    score = sum(w * means[n] for w, n in zip((0.3, 0.3, 0.2, 0.2, 0.01), terms, strict=True))
    return {name: sum(values) / len(values) for name, values in credit.items()} | {"Ties": score}, means


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_the_second_benchmark_is_scored_as_by_a_loop(model, capsys, name):
    rows = second_benchmark(model)
    found = bench(model, write(rows, name))
    expected, terms = by_loop(model, rows, 0)
    assert {n: one["score"] for n, one in found["subsets"].items()} == pytest.approx(expected, abs=1e-5)
    assert found["subsets"]["Ties"]["terms"] == pytest.approx(terms, abs=1e-4)
    assert found["overall"]["score"] == pytest.approx(sum(expected.values()) / 4, abs=1e-5)
    assert len({round(value, 3) for value in expected.values()}) == 4  # nothing to mistake for one another
    assert found["benchmark"] == "RewardBench 2" and found["missing"] == ["Factuality", "Safety"]
    assert found["rows"] == 40 and found["not_scored"] == 0 and found["overall"]["items"] == 24 + 8
    shown = " ".join(capsys.readouterr().out.split())
    assert "RewardBench 2" in shown and "No row of Factuality, Safety: overall is the mean of the other" in shown
    for name, value in {"overall": found["overall"]["score"], **expected, **terms}.items():
        assert f"{name} {value:.3f}" in shown


def test_the_floor_takes_the_longest_response(model):
    rows = second_benchmark(model)
    for row in rows[::2]:
        row["chosen"] = [f"{text} or so" for text in row["chosen"]]
    found = bench(model, write(rows))
    baselines, _ = by_loop(model, rows, 1)
    assert {n: one["longer"] for n, one in found["subsets"].items()} == pytest.approx(baselines, abs=1e-5)
    assert found["overall"]["longer"] == pytest.approx(sum(baselines.values()) / 4, abs=1e-5)


def test_the_order_of_responses_and_rows_changes_nothing(model):
    rows = second_benchmark(model)
    one = bench(model, write(rows))
    generator = random.Random(0)
    turned = [
        {**row, **{side: generator.sample(row[side], len(row[side])) for side in ("chosen", "rejected")}}
        for row in generator.sample(rows, len(rows))
    ]
    other = bench(model, write(turned))
    for key in ("subsets", "sections"):
        for name in one[key]:
            for figure in ("score", "low", "high", "longer"):
                assert other[key][name][figure] == pytest.approx(one[key][name][figure], abs=1e-5)


def test_the_first_benchmark_is_scored_as_by_a_loop(model, capsys):
    rows = first_benchmark()
    rows[3]["chosen"] = rows[3]["rejected"]  # a tie is wrong here, and not half right
    found = bench(model, write(rows))
    right = defaultdict(list)
    for row in rows:
        rewards = [plain_reward(model, row["prompt"], row[side])[0] for side in ("chosen", "rejected")]
        right[row["subset"]].append(rewards[0] > rewards[1])
    share = {name: sum(values) / len(values) for name, values in right.items()}
    assert not right["math-prm"][0]
    sections = {
        "Chat": (100 * share["alpacaeval-easy"] + 40 * share["mt-bench-med"]) / 140,
        "Safety": share["donotanswer"],
        "Reasoning": (984 * share["math-prm"] + 164 * share["hep-go"]) / 1148,
    }
    assert {name: one["score"] for name, one in found["sections"].items()} == pytest.approx(sections)
    assert found["overall"]["score"] == pytest.approx(sum(sections.values()) / 3)
    other = bench(model, "rows.jsonl", "--weights={math-prm: 0}")
    assert other["sections"]["Reasoning"]["score"] == pytest.approx(share["hep-go"])
    assert other["subsets"]["math-prm"]["score"] == pytest.approx(share["math-prm"])
    assert "No row of Chat Hard: overall" in capsys.readouterr().out


def test_files_without_subsets_and_with_strangers(model, capsys):
    rows = [{"question": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in first_benchmark()]
    columns = "--columns={prompt: question, chosen: good, rejected: bad}"
    plain = bench(model, write(rows), columns)
    assert list(plain["subsets"]) == ["all"] and plain["benchmark"] is None and plain["overall"]["items"] == 30
    assert "Best of n" in capsys.readouterr().out
    kinds = [{**row, "kind": row["subset"] if i else "[mine]"} for i, row in enumerate(first_benchmark())]
    found = bench(model, write(kinds), "--category=kind")
    assert found["sections"]["[mine]"]["is_counted"] is False and found["sections"]["[mine]"]["items"] == 1
    said = capsys.readouterr().out
    assert "Not in RewardBench 1, each a section of its own outside of overall: [mine]." in said
    assert said.count("[mine]") == 2


def test_rows_whose_responses_do_not_fit_are_left_out_with_their_partner(model, capsys):
    rows = second_benchmark(model)
    whole = bench(model, write([row for row in rows if row["id"] not in ("0", "ref:2", "tied:2")]))
    rows[0]["rejected"][1] = "much too long a text " * 4
    next(row for row in rows if row["id"] == "tied:2")["chosen"][0] = "much too long a text " * 4
    capsys.readouterr()
    found = bench(model, write(rows))
    assert found["subsets"] == whole["subsets"] and (found["rows"], found["not_scored"]) == (40, 3)
    assert "3 of 40 rows are left out: a response does not fit." in capsys.readouterr().out
    assert bench(model, "rows.jsonl", "--max_length=128")["not_scored"] == 0


def test_neither_batches_nor_chunks_matter(model, monkeypatch):
    one = bench(model, write(second_benchmark(model)))
    monkeypatch.setattr("ser_lightning.cli.bench.CHUNK", 7)
    other = bench(model, "rows.jsonl", "--tokens_per_batch=1")
    assert {n: s["score"] for n, s in one["subsets"].items()} == pytest.approx(
        {n: s["score"] for n, s in other["subsets"].items()}, abs=1e-5
    )


# What the rewards rest on.


def test_responses_to_a_prompt_see_it_cut_alike_and_equal_ones_are_scored_once(model):
    scorer = Scorer.load(model, device="cpu")
    prompt = [{"role": "user", "content": "x" * 30 + "Why so?"}]
    texts = ["No.", "Because it is so.", "No.", "Yes."]
    counts = []
    found, missing = scorer.score_candidates([prompt, prompt], [texts, ["long " * 20, "No."]], counts.append)
    assert sum(counts) == 3 and missing is None
    # 20 of the 60 tokens are not of texts, and the longest response leaves 23 of the 37 characters of the prompt.
    tail = ("x" * 30 + "Why so?")[-23:]
    expected = [plain_reward(model, tail, text) for text in texts]
    assert found[0].tolist() == pytest.approx([reward for reward, _ in expected], abs=1e-5)
    assert found[1].tolist() == [tokens for _, tokens in expected] and max(found[1]) == MAX_LENGTH
    assert scorer.score_candidates([prompt], [["long " * 20]]) == [None]


# What goes wrong.


def test_a_broken_file_is_named_before_a_model_is_loaded(model, capsys):
    Path("empty.jsonl").write_text("")
    good = second_benchmark(model)
    cases = {
        "empty.jsonl": "empty.jsonl: got no row; give a file with at least one pair",
        write([good[0], {"prompt": "Hm?", "rejected": ["a"], "subset": "Math"}], "a.jsonl"): (
            "a.jsonl, line 2: got no chosen, but the columns prompt, rejected, subset; give a text, or a list of texts"
        ),
        write([{**good[0], "chosen": []}], "b.jsonl"): "b.jsonl, line 1: got no chosen, but the columns ",
        write([{**good[0], "chosen": [3]}], "c.jsonl"): (
            "c.jsonl, line 1: got a int in chosen; give a text, or a list of texts"
        ),
        write(
            [{**good[0], "prompt": " "}], "d.jsonl"
        ): "d.jsonl, line 1: got an empty prompt; fill it, or remove the row",
        write(good[:-1], "e.jsonl"): "e.jsonl, line 39: got the ties row ref:7 without tied:7; give both",
        write([good[0], {**good[1], "subset": None}], "f.jsonl"): (
            "f.jsonl, line 2: got no subset, as in 1 of 2 rows; fill it in all"
        ),
        "nowhere.jsonl": "nowhere.jsonl: got no such file; did you mean",
    }
    for data, message in cases.items():
        [line] = problems(capsys, "--model=nowhere", f"--data={data}")
        assert line.startswith(message), line
    broken = [{**row, "rejected": None} for row in good]
    [line] = problems(capsys, "--model=nowhere", "--data", write(broken))
    assert line.startswith("rows.jsonl, line 1: got no rejected, ") and line.endswith(
        f"({len(good) - 1} more like this)"
    )


def test_wrong_flags_are_a_line_each(model, capsys):
    data = write(first_benchmark())
    assert problems(capsys, f"--data={data}")[0].endswith("use `bench --model FOLDER --data FILE`")
    assert problems(capsys, "--model=x", f"--data={data}", "--weights={math-prn: 1}") == [
        "--weights: got math-prn, which no row of --data has; did you mean math-prm?"
    ]
    assert problems(capsys, "--model=x", f"--data={data}", "--category=sbset") == [
        "--category: got 'sbset', which no row of rows.jsonl has; give one of prompt, chosen, chosen_model, "
        "rejected, id, rejected_model, subset"
    ]
    assert "which is no folder" in problems(capsys, "--model=x", f"--data={data}")[0]
    [line] = problems(capsys, f"--model={model}", f"--data={data}", "--max_length=20", "--device=cpu")
    assert line == "bench: got no row whose responses all fit, of 30; raise --max_length"
    rows = [{**r, "chosen": "long " * 20} if r["subset"] == "math-prm" else r for r in first_benchmark()]
    [line] = problems(capsys, f"--model={model}", "--data", write(rows), "--weights={hep-go: 0}", "--device=cpu")
    assert line.startswith("--weights: got 0 for all of Reasoning")


def test_rewards_that_are_no_number_are_one_line(model, capsys):
    broken = LlamaForSequenceClassification.from_pretrained(model)
    torch.nn.init.constant_(broken.score.weight, math.nan)
    broken.save_pretrained("broken")
    AutoTokenizer.from_pretrained(model).save_pretrained("broken")
    [line] = problems(capsys, "--model=broken", "--data", write(second_benchmark(model)), "--device=cpu")
    assert line == "reward broken: model: cannot read broken (score.weight has NaN or infinity in it); is it damaged?"


def test_other_commands_point_lists_of_texts_here(model, capsys):
    data = write(second_benchmark(model))
    assert main(["score", "--model=nowhere", f"--data={data}", "--out=out.csv"]) == 2
    first = next(x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert first.startswith("error: rows.jsonl, line 1: got a list of texts") and "the command `bench`" in first


def test_ten_broken_rows_are_enough(model, capsys):
    rows = [{"prompt": "Why?", "chosen": "x", chr(ord("A") + i): "y"} for i in range(26)]
    lines = problems(capsys, f"--model={model}", f"--data={write(rows)}")
    assert [line.split(":")[0] for line in lines] == [f"rows.jsonl, line {i}" for i in range(1, 11)]
