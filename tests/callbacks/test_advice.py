"""`advice.json`: what a finished run says of more labels and another round."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from ser_lightning.__main__ import main
from ser_lightning.callbacks import baselines
from ser_lightning.callbacks.baselines import BaselineCallback
from ser_lightning.evolution.learning_curve import label_gains
from tests.helpers import data, evolution, module, read_csv, trainer


def read_advice(run):
    return json.loads(Path(run, "advice.json").read_text())


@pytest.fixture
def solved(tiny_model_dir, pairs_file):
    """A finished run of a frozen body, with just enough labels."""
    model, batches = module(tiny_model_dir, train="head", reading=["mean@1"]), data(pairs_file, seed_fraction=0.85)
    trainer("run", evolution()).fit(model, batches)
    return model, batches


def test_the_forecast_is_that_of_heads_on_the_seeds_own_states(solved):
    model, batches = solved
    found = read_advice("run")
    seed = batches.pair_ids("seed")
    states = {}
    for batch in batches.scoring_dataloader("seed"):
        first, second = batch.inputs.hidden.flatten(1).float().split(batch.num_pairs)
        states |= dict(zip(batch.pair_id.tolist(), (first - second) / batch.inputs.scale, strict=True))
    assert set(states) == set(seed.tolist()) and found["seed_pairs"] == len(seed) >= 50
    ids = sorted(states)
    target = batches.seed_labels(torch.tensor(ids))
    prompts = batches.dialogues(torch.tensor(ids)).tolist()
    expected = label_gains(torch.stack([states[i] for i in ids]), target, prompts, model.penalty)
    assert [one["labels"] for one in found["labels"]] == [100, 200]
    for one, other in zip(found["labels"], map(asdict, expected), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert found["is_solved"] and found["min_gain"] == 0.005


def test_no_label_of_the_pool_or_the_test_has_a_part_in_it(tiny_model_dir, pairs_file, solved, tmp_path):
    batches = solved[1]
    seed = {(pair.prompt[-1]["content"]) for pair in batches.lookup(batches.pair_ids("seed").tolist())}
    lines = []
    for line in map(json.loads, pairs_file.read_text().splitlines()):
        if line["prompt"] not in seed:
            line["chosen"], line["rejected"] = line["rejected"], line["chosen"]
        lines.append(json.dumps(line) + "\n")
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(lines))
    assert turned.read_text() != pairs_file.read_text()
    model = module(tiny_model_dir, train="head", reading=["mean@1"])
    trainer("other", evolution()).fit(model, data(turned, seed_fraction=0.85))
    assert read_advice("other") == read_advice("run")


def test_a_trained_body_says_that_labels_are_not_forecast(tiny_model_dir, pairs_file, capsys):
    trainer("run", evolution()).fit(module(tiny_model_dir), data(pairs_file))
    assert read_advice("run")["labels"] == [] and not read_advice("run")["is_solved"]
    assert "What more labels gain is not forecast: the body is trained" in " ".join(capsys.readouterr().out.split())


def words(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("train", "folds"), [("full", 2), ("lora", 0), ("head", 2)])
def test_a_head_on_the_frozen_body_stands_beside_a_body_that_is_trained(
    tiny_model_dir, pairs_file, capsys, train, folds
):
    batches = data(pairs_file)
    trainer("run", BaselineCallback(), evolution(folds=folds)).fit(module(tiny_model_dir, train=train), batches)
    found, rows = read_advice("run"), read_csv("run/rounds.csv")
    delivered = float(next(row for row in rows if row["delivered"] == "1")["seed_oof_accuracy"])
    assert found["delivered_accuracy"] == (delivered if folds else None)
    is_measured = train == "full"
    assert ("Did fine-tuning pay off?" in words(capsys)) == is_measured
    if is_measured:
        assert found["frozen_accuracy"] > 0.9  # the pretrained states hold the sums
    else:
        assert found["frozen_accuracy"] is None


def test_a_large_seed_is_not_held_up(tiny_model_dir, pairs_file, monkeypatch):
    monkeypatch.setattr(baselines, "MAX_FROZEN_PAIRS", 18)  # the seed has 19
    trainer("run", BaselineCallback(), evolution()).fit(module(tiny_model_dir), data(pairs_file))
    assert read_advice("run")["frozen_accuracy"] is None


@pytest.mark.slow  # a second run
def test_a_run_that_goes_on_has_it_from_its_checkpoint(tiny_run, tiny_fit, capsys):
    run = tiny_fit()
    expected = read_advice(run)["frozen_accuracy"]
    assert expected is not None
    shutil.move(run / "checkpoints/previous.ckpt", run / "checkpoints/last.ckpt")
    shutil.rmtree(run / "rounds/1")
    (run / "advice.json").unlink()
    assert main(["fit", "--run_dir=run", "--ckpt_path=last"]) == 0
    assert read_advice("run")["frozen_accuracy"] == expected
    assert "Did fine-tuning pay off?" in words(capsys)


def test_it_is_not_held_against_a_seed_that_has_grown(tiny_fit, pairs_file):
    tiny_fit(name="old")
    lines = pairs_file.read_text().splitlines()[:6]
    new = [{**json.loads(line), "prompt": f"new {number}"} for number, line in enumerate(lines)]
    Path("new.jsonl").write_text("".join(json.dumps(one) + "\n" for one in new))
    command = ["fit", "--ckpt_path=old/checkpoints/last.ckpt", "--run_dir=new", "--data.new_data_path=new.jsonl"]
    assert main(command) == 0
    assert read_advice("new")["seed_pairs"] > read_advice("old")["seed_pairs"]
    assert read_advice("old")["frozen_accuracy"] is not None and read_advice("new")["frozen_accuracy"] is None
