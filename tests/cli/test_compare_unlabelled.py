"""`compare` with pairs without labels: figures against the formula by hand, and when such pairs are not used."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scipy import stats

from ser_lightning.__main__ import main
from ser_lightning.data.formats import canonical_pair
from ser_lightning.errors import UserError
from ser_lightning.inference.scoring_rows import RowCounts, open_source, read_rows
from ser_lightning.inference.sides import open_side, predicting_side
from ser_lightning.runs.files import round_files
from ser_lightning.runs.pair_tables import read_audit, read_test_scores
from ser_lightning.runs.pool import in_trained_dialogues
from ser_lightning.utils.checksums import write_recorded

NUM_LABELS, NUM_POOL = 200, 2000
SCALE = 4.0
"""Spread of the margins: a model that is right where it is sure has much to say about pairs without labels."""


def write_rewards(name, margin, texts):
    """A file as `score` writes it, of margins whose temperature is 1."""
    lines = []
    for row, (one, (prompt, a, b)) in enumerate(zip(margin.tolist(), texts, strict=True)):
        turns = [{"role": "user", "content": prompt}]
        content = hashlib.sha256(json.dumps([turns, a, b]).encode()).hexdigest()[:16]
        rewards = {
            "reward_a": one,
            "tokens_a": 5,
            "reward_b": 0.0,
            "tokens_b": 6,
            "probability": 1 / (1 + np.exp(-one)),
        }
        lines.append(json.dumps({"row": row, **rewards, "content": content}) + "\n")
    Path(name).write_text("".join(lines))


def texts_of(name):
    """Prompt and both responses of each row of a file."""
    rows = map(json.loads, Path(f"{name}.jsonl").read_text().splitlines())
    return [(row["prompt"], row["response_a"], row["response_b"]) for row in rows]


@pytest.fixture
def drawn():
    """200 pairs with a label and 2,000 without in one file, and rewards of two models of different noise."""
    generator = np.random.default_rng(4)
    size = NUM_LABELS + NUM_POOL
    logit = generator.normal(0, SCALE, size)
    label = (generator.random(size) < 1 / (1 + np.exp(-logit))).astype(int)
    margin = {name: logit + generator.normal(0, noise, size) for name, noise in (("old", 4.0), ("new", 0.5))}
    margin = {name: one.astype(np.float32).astype(float) for name, one in margin.items()}
    texts = [(f"Question {i}?", f"Yes {i}.", f"No {i}.") for i in range(size)]
    rows = [dict(zip(("prompt", "response_a", "response_b"), text, strict=True)) for text in texts]
    for i in range(NUM_LABELS):
        rows[i]["label"] = int(label[i])
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, one in margin.items():
        write_rewards(f"{name}.jsonl", one, texts)
    return label, margin


def by_hand(outcome, prediction):
    """PPI++ for a mean, as Angelopoulos et al. write it, where every pair has its own prompt."""
    y, f, pool = outcome[:NUM_LABELS], prediction[:NUM_LABELS], prediction[NUM_LABELS:]
    power = np.cov(y, f)[0, 1] / NUM_LABELS / (f.var(ddof=1) / NUM_LABELS + pool.var(ddof=1) / NUM_POOL)
    power = min(power, 1.0)
    error = ((y - power * f).var(ddof=1) / NUM_LABELS + power**2 * pool.var(ddof=1) / NUM_POOL) ** 0.5
    mean = y.mean() + power * (pool.mean() - f.mean())
    return mean, *stats.t.interval(0.95, NUM_LABELS - 1, mean, error)


def test_one_model_and_two_have_the_interval_of_the_formula_and_say_what_was_used(drawn, capsys):
    label, margin = drawn
    data = ["--data=pairs.jsonl", "--unlabelled=pairs.jsonl"]
    assert main(["compare", "new.jsonl", *data, "--json=one.json"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert main(["compare", "old.jsonl", "new.jsonl", *data, "--json=two.json"]) == 0
    assert main(["compare", "old.jsonl", "new.jsonl", data[0], "--json=alone.json"]) == 0
    one, two, alone = (json.loads(Path(f"{name}.json").read_text()) for name in ("one", "two", "alone"))
    right = ((margin["new"] > 0) == label).astype(float)
    prob = 1 / (1 + np.exp(-margin["new"]))
    expected = by_hand(right, np.maximum(prob, 1 - prob))
    assert [one[name] for name in ("accuracy_a", "accuracy_low_a", "accuracy_high_a")] == pytest.approx(
        expected, abs=1e-5
    )
    assert [two[name] for name in ("accuracy_b", "accuracy_low_b", "accuracy_high_b")] == pytest.approx(
        expected, abs=1e-5
    )
    assert not any(name.endswith("_b") or name == "difference" for name in one)
    both = f"with 200 labels and 2,000 unlabelled pairs: A {expected[2] - expected[1]:.3f} (labels alone "
    before = alone["accuracy_high_b"] - alone["accuracy_low_b"]
    assert f"Width of the 95 % intervals {both}{before:.3f})" in shown
    assert expected[2] - expected[1] < before and two["unlabelled"]["pairs"] == NUM_POOL
    kept = two["unlabelled"]["accuracy_b"]
    assert (kept["labels_low"], kept["labels_high"]) == (alone["accuracy_low_b"], alone["accuracy_high_b"])
    assert two["p_value"] == alone["p_value"] and two["calibration_error_b"] == alone["calibration_error_b"]


def test_an_interval_that_they_do_not_narrow_is_that_of_the_labels(drawn, capsys):
    label, margin = drawn
    data, texts = ["--data=pairs.jsonl"], [(f"Question {i}?", f"Yes {i}.", f"No {i}.") for i in range(len(label))]
    sides = np.where(margin["new"] > 0, 1.0, -1.0)
    write_rewards("blind.jsonl", sides, texts)  # as sure of every pair: nothing to predict with
    assert main(["compare", "blind.jsonl", *data, "--json=alone.json"]) == 0
    assert main(["compare", "blind.jsonl", *data, "--unlabelled=./pairs.jsonl", "--json=with.json"]) == 0
    alone, found = (json.loads(Path(f"{name}.json").read_text()) for name in ("alone", "with"))
    assert {name: found[name] for name in alone} == alone
    assert "(labels alone: the unlabelled pairs do not narrow it)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_gate_may_pass_for_the_narrower_interval_and_is_made_from_it(drawn, capsys):
    data = ["--data=pairs.jsonl", "--unlabelled=pairs.jsonl"]
    assert main(["compare", "new.jsonl", *data, "--json=with.json"]) == 0
    found = json.loads(Path("with.json").read_text())
    low, alone = found["accuracy_low_a"], found["unlabelled"]["accuracy_a"]["labels_low"]
    assert low > alone
    Path("gate.yaml").write_text(f"accuracy_low_a: {{min: {(low + alone) / 2}}}\n")
    assert main(["compare", "new.jsonl", *data, "--gate=gate.yaml"]) == 0
    assert main(["compare", "new.jsonl", data[0], "--gate=gate.yaml"]) == 1
    Path("gate.yaml").write_text("accuracy_b: {min: 0.5}\n")
    assert main(["compare", "new.jsonl", data[0], "--gate=gate.yaml"]) == 2
    assert "unknown figure accuracy_b; did you mean accuracy_a?" in capsys.readouterr().err
    least = {}
    for name, words in {"with": data, "alone": data[:1]}.items():
        assert main(["compare", "new.jsonl", *words, f"--make_gate={name}.yaml"]) == 0
        least[name] = float(Path(f"{name}.yaml").read_text().partition("difference:")[2].partition("min:")[2])
    width = found["accuracy_high_a"] - found["accuracy_low_a"]
    assert least["with"] == pytest.approx(-width / 2, abs=1e-3) and least["with"] > least["alone"]


def test_pairs_that_may_mislead_are_not_used_and_a_line_says_why(drawn, capsys):
    lines = Path("pairs.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[0])
    Path("ties.jsonl").write_text("".join([json.dumps({**row, "label": 0.5}) + "\n", *lines[1:]]))
    Path("few.jsonl").write_text("".join([*lines[:20], *lines[NUM_LABELS:]]))
    kept = [*range(20), *range(NUM_LABELS, NUM_LABELS + NUM_POOL)]
    write_rewards("rewards.jsonl", drawn[1]["new"][kept], texts_of("few"))
    cases = {
        "ties": ("new.jsonl", "--data has 1 ties"),
        "few": ("rewards.jsonl", "--data has labels of 20 prompts, and 100 are needed"),
    }
    for name, (rewards, why) in cases.items():
        data = [f"--data={name}.jsonl", f"--unlabelled={name}.jsonl"]
        assert main(["compare", rewards, *data, f"--json={name}.json"]) == 0
        assert f"Unlabelled pairs are not used: {why}" in " ".join(capsys.readouterr().out.split())
        assert "unlabelled" not in json.loads(Path(f"{name}.json").read_text())
    assert main(["compare", "new.jsonl", "--data=pairs.jsonl", "--unlabelled=few.jsonl"]) == 2
    assert "--unlabelled: got another file than --data beside new.jsonl" in capsys.readouterr().err
    Path("labelled.jsonl").write_text("".join(lines[:NUM_LABELS]))
    assert main(["compare", "new.jsonl", "--data=labelled.jsonl", "--unlabelled=labelled.jsonl"]) == 2
    assert "--unlabelled: got no pair to use in labelled.jsonl" in capsys.readouterr().err
    both = ["compare", "new.jsonl", "old.jsonl", "--data=pairs.jsonl"]
    assert main([*both, "--unlabelled=pairs.jsonl", "--sequential"]) == 2
    assert "--sequential: got it with --unlabelled, which it does not use" in capsys.readouterr().err
    assert main(["compare", "new.jsonl", "--data=pairs.jsonl", "--sequential"]) == 2
    assert "--sequential: got one model" in capsys.readouterr().err


def without_what_is_empty(rows):
    """The rows, the first with an empty answer, the second with two equal ones and the third with an empty prompt."""
    first, second, third, *rest = rows
    first, third = {**first, "response_a": " "}, {**third, "prompt": ""}
    return [first, {**second, "response_b": second["response_a"]}, third, *rest]


def test_rows_that_are_not_used_are_counted_by_reason(drawn, capsys):
    """In print and in `--json`: of the labelled pairs, of unlabelled ones in the same file and in one of their own."""
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    rows[NUM_LABELS - 1]["label"] = 0.5
    given = without_what_is_empty(rows)
    Path("given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    margin, texts = drawn[1]["new"].copy(), texts_of("given")
    margin[[NUM_LABELS - 2, *range(NUM_LABELS, NUM_LABELS + 4)]] = np.nan
    write_rewards("rewards.jsonl", margin, texts)
    dropped = [
        "--data: dropped 2 of 2,200 rows: empty prompt or response",
        "--data: dropped 1 of 2,200 rows: identical responses",
    ]
    tie, bare = (
        f"--data: left out {n} of 2,200 rows: {why}" for n, why in (("1", "labelled a tie"), ("2,000", "no label"))
    )
    words = ["compare", "rewards.jsonl", "--data=given.jsonl"]
    for flags, lines, name in (
        ([], [*dropped, bare, tie], "one"),
        (["--unlabelled=given.jsonl"], [*dropped, tie], "same"),
    ):
        assert main([*words, *flags, f"--json={name}.json"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert [line for line in shown if line.startswith("--data:")] == lines
        assert "1 pairs have no reward from every model and are left out." in shown
        found = json.loads(Path(f"{name}.json").read_text())
        counts = {"rows": 2200, "dropped": {"empty": 2, "identical": 1}, "unlabelled": 2000, "ties": 1}
        assert found["rows"] == {"data": counts}
        assert (found["pairs"], found["not_scored"]) == (NUM_LABELS - 5, 1)
    assert main(["compare", "rewards.jsonl", "rewards.jsonl", "--data=given.jsonl", "--sequential"]) == 0
    assert {*dropped, bare, tie} <= {*capsys.readouterr().out.splitlines()}
    rows[NUM_LABELS - 1]["label"] = 1
    Path("given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in without_what_is_empty(rows)))
    assert main([*words, "--unlabelled=given.jsonl", "--json=used.json"]) == 0
    assert "4 unlabelled pairs have no reward from every model and are left out." in capsys.readouterr().out
    used = json.loads(Path("used.json").read_text())["unlabelled"]
    assert (used["pairs"], used["not_scored"]) == (NUM_POOL - 4, 4)
    Path("empty.jsonl").write_text("".join(json.dumps(row) + "\n" for row in without_what_is_empty(rows)[:3]))
    assert main(["compare", "rewards.jsonl", "--data=empty.jsonl"]) == 2
    why = "empty prompt or response in 2, identical responses in 1"
    assert f"got no labelled pair in empty.jsonl (3 rows; {why})" in capsys.readouterr().err


@pytest.fixture
def evolved(tiny_fit):
    """A run that delivers round 1, since without folds the last round is delivered."""
    rule = "--evolution.rule=ser_lightning.TopShareRule"
    return tiny_fit("--evolution.folds=0", rule, "--model.optimizer.init_args.lr=0.01")


def noted_margins(run, number):
    """By the id of a pair what the run noted of it in a round: of pool and test pairs."""
    files = round_files(run, number)
    tables = [read_audit(files.audit), read_test_scores(files.test_scores)]
    ids = np.concatenate([table["pair_id"] for table in tables]).tolist()
    return dict(zip(ids, np.concatenate([t["reward_a"] - t["reward_b"] for t in tables]).tolist(), strict=True))


def num_trained(run, file):
    """How many pairs of a file are of dialogues that a run was trained on."""
    rows = read_rows(open_source(str(file)), {}, RowCounts())
    return sum(in_trained_dialogues(run, [row.pair.prompt for row in rows]))


def test_the_seed_model_predicts_for_a_run_that_evolved(evolved, pairs_file):
    """Its rewards are those that the run noted in round 0, and those of the delivered model are of round 1."""
    rows = [*read_rows(open_source(str(pairs_file)), {}, RowCounts())]
    side = open_side("run", rows, len(rows))
    pairs = [canonical_pair(r.pair.prompt, r.pair.response_a, r.pair.response_b, None) for r in rows]
    before, after = (noted_margins(evolved, number) for number in (0, 1))
    known = [i for i, pair in enumerate(pairs) if pair.pair_id in before]
    sign = torch.tensor([1.0 if pairs[i].response_a == rows[i].pair.response_a else -1.0 for i in known])
    assert len(known) > 40
    for by, noted in ((predicting_side("run", side), before), (side, after)):
        margin = by.score([rows[i] for i in known])
        expected = sign * torch.tensor([noted[pairs[i].pair_id] for i in known])
        torch.testing.assert_close(margin[0] - margin[2], expected, atol=1e-3, rtol=1e-3)
    assert max(abs(before[i] - after[i]) for i in before) > 0.01
    # The seed model may know all other dialogues, and knows none of these.
    expected = [i not in known for i in range(len(rows))]
    assert in_trained_dialogues(evolved, [row.pair.prompt for row in rows]) == expected


def test_pairs_that_people_have_labelled_since_round_0_are_known(evolved, pairs_file):
    """A run that goes on with new labels keeps the earlier audits, in which these pairs are of the pool."""
    file = round_files(evolved, 1).audit
    moved, *rest = np.array_split(read_audit(file)["pair_id"], 3)
    table = pq.ParquetFile(file).read()
    table = table.filter(np.isin(table["pair_id"], np.concatenate(rest)))
    write_recorded(file, lambda stream: pq.write_table(table, stream))
    rows = [*read_rows(open_source(str(pairs_file)), {}, RowCounts())]
    pairs = [canonical_pair(r.pair.prompt, r.pair.response_a, r.pair.response_b, None) for r in rows]
    is_moved = [pair.pair_id in moved for pair in pairs]
    prompts = [pair.prompt for pair, was_moved in zip(pairs, is_moved, strict=True) if was_moved]
    assert len(prompts) == len(moved) > 5 and all(in_trained_dialogues(evolved, prompts))
    others = [pair.prompt for pair in pairs if pair.pair_id in np.concatenate(rest)]
    assert not all(in_trained_dialogues(evolved, others))


def test_a_run_that_delivers_its_seed_model_predicts_for_itself(tiny_fit):
    tiny_fit("--evolution.max_rounds=0")
    side = open_side("run", [], 0)
    assert predicting_side("run", side) is side


def test_a_student_is_not_helped(evolved, capsys):
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    config["data"]["init_args"]["teacher"] = "runs/teacher"
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    rows = [{"prompt": f"What is {n} plus {n}?", "chosen": f"{2 * n}.", "rejected": f"{n}!"} for n in range(300, 420)]
    Path("heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["compare", "run", "--data=heldout.jsonl", "--unlabelled=heldout.jsonl"]) == 2  # it has labels only
    Path("more.jsonl").write_text(Path("heldout.jsonl").read_text())
    assert main(["compare", "run", "--data=heldout.jsonl", "--unlabelled=more.jsonl"]) == 0
    assert "Unlabelled pairs are not used: run is a student" in " ".join(capsys.readouterr().out.split())


def test_prompts_of_the_seed_are_left_out_of_the_unlabelled_pairs(evolved, pairs_file, capsys):
    rows = [{"prompt": f"What is {n} plus {n}?", "chosen": f"{2 * n}.", "rejected": f"{n}!"} for n in range(300, 420)]
    Path("heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["compare", "run", "--data=heldout.jsonl", f"--unlabelled={pairs_file}", "--json=found.json"]
    assert main(words) == 0
    left_out = num_trained(evolved, pairs_file)
    total = len(pairs_file.read_text().splitlines())
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{left_out} unlabelled pairs are of dialogues that run was trained on, and left out." in shown
    assert json.loads(Path("found.json").read_text())["unlabelled"]["pairs"] == total - left_out
    # Its columns are those of --data, but for what says who is better, which it need not have.
    renamed = [{"prompt": r["prompt"], "one": r["chosen"], "two": r["rejected"], "who": "one"} for r in rows]
    Path("renamed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    bare = [{name: value for name, value in row.items() if name != "who"} for row in renamed]
    bare += [{**bare[0], "one": ""}, {**bare[0], "two": bare[0]["one"]}]
    Path("bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    mapped = "--columns={response_a: one, response_b: two, label: who}"
    more = [mapped, "--labels={one: a}", "--unlabelled=bare.jsonl", "--json=mapped.json"]
    assert main(["compare", "run", "--data=renamed.jsonl", *more]) == 0
    found = json.loads(Path("mapped.json").read_text())
    assert found["unlabelled"]["pairs"] == len(rows)
    assert found["rows"]["unlabelled"] == {"rows": len(rows) + 2, "dropped": {"empty": 1, "identical": 1}}
    shown = capsys.readouterr().out
    assert f"--unlabelled: dropped 1 of {len(rows) + 2} rows: identical responses" in shown and "no label" not in shown
    assert main(["compare", "run", "--data=heldout.jsonl", "--unlabelled=nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(pairs_file), "gone.jsonl"))
    assert main([*words, "--overwrite"]) == 2
    assert "--unlabelled: got run, whose files do not tell which pairs it knows" in capsys.readouterr().err
    with pytest.raises(UserError, match="gone"):
        in_trained_dialogues(evolved, [])


def test_labelled_pairs_that_a_run_was_trained_on_are_named(evolved, pairs_file, capsys):
    """Its file of training pairs holds its test pairs as well, which it has not seen."""
    number, total = num_trained(evolved, pairs_file), len(pairs_file.read_text().splitlines())
    assert 0 < number < total
    line = f"warning: --data: run may know the dialogues of {number} of {total} labelled pairs"
    for words in (["compare", "run"], ["score", "--model=run", "--out=seen.csv"]):
        assert main([*words, f"--data={pairs_file}"]) == 0
        assert line in " ".join(capsys.readouterr().out.split())
    asked = [json.loads(text) for text in pairs_file.read_text().splitlines()]
    later = [[("user", row["prompt"]), ("assistant", row["chosen"]), ("user", "And then?")] for row in asked]
    turns = [[{"role": role, "content": text} for role, text in prompt] for prompt in later]
    rows = [{"prompt": prompt, "chosen": f"Good {i}.", "rejected": f"Bad {i}."} for i, prompt in enumerate(turns)]
    Path("later.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["compare", "run", "--data=later.jsonl"]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    rows = [{"prompt": f"What is {n} plus {n}?", "chosen": f"{2 * n}.", "rejected": f"{n}!"} for n in range(300, 420)]
    Path("heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in (["compare", "run"], ["score", "--model=run", "--out=fresh.csv"]):
        assert main([*words, "--data=heldout.jsonl"]) == 0
        assert "may know" not in capsys.readouterr().out
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(pairs_file), "gone.jsonl"))
    assert main(["compare", "run", f"--data={pairs_file}"]) == 0
    assert "note: --data: whether run was trained on these pairs is not known" in " ".join(
        capsys.readouterr().out.split()
    )
