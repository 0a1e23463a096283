"""The choice of readings: by the seed alone, the usual set unless another is better beyond doubt."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.readings import Reading
from ser_lightning.models.reward_model import load_reward_model
from ser_lightning.training.reading_choice import (
    candidate_sets,
    choose_readings,
    joined_differences,
    plan_readings,
    question_length,
    seed_data,
)
from ser_lightning.training.strategies import ShardStrategy
from tests.helpers import data, evolution, log_odds, module, slow, trainer, weights

SETS = [[Reading("mean", 1)], [Reading("last", 2)]]
CANDIDATES = [Reading("last", 2), Reading("mean", 1)]


def differences(informative, n=120, size=6):
    """(n, 2, size) of which one candidate tells the label."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (n,), generator=generator).float()
    x = torch.randn(n, 2, size, generator=generator)
    x[:, informative, 0] += 3 * (2 * label - 1)
    return x, label


def test_another_set_is_chosen_only_where_it_is_better_beyond_doubt():
    x, label = differences(informative=0)
    choice = choose_readings(x, CANDIDATES, SETS, label, range(120))
    assert choice.chosen.readings == [Reading("last", 2)] and choice.chosen.accuracy > 0.95
    assert choice.chosen.advantage > 3 * choice.chosen.standard_error
    gap = f"{choice.chosen.advantage:.3f} ± {choice.chosen.standard_error:.3f}"
    assert choice.sentence().endswith(f"out of fold on the seed; its log loss is lower than that of mean@1 by {gap}")
    x, label = differences(informative=1)
    assert choose_readings(x, CANDIDATES, SETS, label, range(120)).chosen.readings == [Reading("mean", 1)]
    noise = torch.randn(120, 2, 6)
    assert choose_readings(noise, CANDIDATES, SETS, label, range(120)).chosen.readings == [Reading("mean", 1)]


def test_the_sets_begin_with_the_usual_one_and_end_with_the_standard_one():
    names = [[str(reading) for reading in readings] for readings in candidate_sets(24)]
    assert names == [["mean@12", "judge@16"], ["mean@12"], ["judge@16"], ["last@16"], ["last@24"]]
    assert [[str(r) for r in s] for s in candidate_sets(24, can_ask=False)] == [["mean@12"], ["last@16"], ["last@24"]]
    assert [[str(r) for r in s] for s in candidate_sets(1)][-1] == ["last@1"]


@pytest.mark.parametrize("train", ["head", *slow("lora", "full")])
def test_auto_reads_the_seed_once_and_the_choice_comes_with_the_weights(tiny_model_dir, pairs_file, train):
    model, callback = module(tiny_model_dir, train=train, reading="auto"), evolution()
    batches = data(pairs_file, max_length=64)
    trainer("run", callback).fit(model, batches)
    state = model.reading_state()
    assert [row["readings"] for row in state["evidence"]] == [
        "mean@1, judge@1",
        "mean@1",
        "judge@1",
        "last@1",
        "last@2",
    ]
    assert [row["is_chosen"] for row in state["evidence"]].count(True) == 1
    saved = torch.load("run/rounds/0/model.pt", weights_only=True)
    assert saved["reading"] == state
    num_readings = len(state["readings"])
    assert saved["weights"]["model.score.weight"].shape == (1, 16 * num_readings)
    again = module(tiny_model_dir, train=train, reading="auto")
    found = trainer("run").test(again, data(pairs_file, max_length=64), ckpt_path=_checkpoint(model), verbose=False)
    assert again.reading_state()["readings"] == state["readings"] and found


@pytest.mark.parametrize("train", ["head", *slow("full")])
def test_the_pass_over_the_seed_measures_the_models_own_answer(tiny_model_dir, pairs_file, train):
    """Against the log-odds of plain transformers; a run that goes on has it from its checkpoint."""
    model, batches = module(tiny_model_dir, train=train, reading="auto"), data(pairs_file, max_length=64)
    trainer("run", evolution()).fit(model, batches)
    ids = batches.pair_ids("seed")
    right = []
    for pair, label in zip(batches.lookup(ids.tolist()), batches.seed_labels(ids).tolist(), strict=True):
        a, b = (
            log_odds(tiny_model_dir, [*pair.prompt, {"role": "assistant", "content": response}])
            for response in (pair.response_a, pair.response_b)
        )
        right.append((a > b) == (label > 0.5))
    assert model.answer_accuracy == pytest.approx(sum(right) / len(right)) and 0 < sum(right) < len(right)
    assert json.loads(Path("run/advice.json").read_text())["answer_accuracy"] == model.answer_accuracy
    again = module(tiny_model_dir, train=train, reading="auto")
    trainer("run").test(again, data(pairs_file, max_length=64), ckpt_path=_checkpoint(model), verbose=False)
    assert again.answer_accuracy == model.answer_accuracy


def test_without_an_output_matrix_to_read_the_run_says_so_and_goes_on(tiny_model_dir, pairs_file, caplog, monkeypatch):
    monkeypatch.setattr("ser_lightning.training.own_answer._read_rows", lambda *_: None)
    model = module(tiny_model_dir, train="head", reading="auto")
    with caplog.at_level("INFO"):
        trainer("run", evolution()).fit(model, data(pairs_file, max_length=64))
    assert "Baseline: the model's own answer is not measured, as" in caplog.text
    assert model.answer_accuracy is None and model.reading_state()["evidence"]


def _checkpoint(model):
    path = "run/saved.ckpt"
    model.trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize(
    ("reading", "line"),
    [
        (["mean@3"], "model.reading: got mean@3; use last, mean, judge, each alone or with a layer of 1 to 2: mean@6"),
        ("first", "model.reading: got first; use last, mean, judge, each alone or with a layer of 1 to 2: mean@6"),
    ],
)
def test_a_reading_that_the_model_lacks_is_one_line(tiny_model_dir, pairs_file, reading, line):
    with pytest.raises(UserError) as error:
        trainer("run", evolution()).fit(module(tiny_model_dir, reading=reading), data(pairs_file))
    assert error.value.problems == [line]


@pytest.mark.parametrize("train", [*slow("lora"), "head"])
def test_a_run_that_goes_on_reads_what_its_checkpoint_says_without_asking_again(tiny_run, caplog, train):
    flags = [*tiny_run, f"--model.backbone.train={train}", "--model.reading=auto"]
    assert main(["fit", *flags, "--run_dir=run"]) == 0
    expected = torch.load("run/rounds/1/model.pt", weights_only=True)["weights"]
    shutil.move("run/checkpoints/previous.ckpt", "run/checkpoints/last.ckpt")
    shutil.rmtree("run/rounds/1")
    caplog.clear()
    with caplog.at_level("INFO"):
        assert main(["fit", "--run_dir=run", "--ckpt_path=last"]) == 0
    assert "Round 1:" in caplog.text and "Reading: the head" not in caplog.text
    again = torch.load("run/rounds/1/model.pt", weights_only=True)["weights"]
    assert again.keys() == expected.keys() and all(torch.equal(again[k], expected[k]) for k in again)


def test_labels_beyond_the_seed_change_nothing(tiny_model_dir, pairs_file):
    """Labels of pool and test turned round on the disk: the same reading, the same penalty, the same head."""
    batches = data(pairs_file, max_length=64)
    found = []
    for run in ("as_they_are", "turned"):
        model = module(tiny_model_dir, train="head", reading="auto")
        trainer(run, evolution(max_rounds=0)).fit(model, batches)
        found.append((model.reading_state(), weights(model)["model.score.weight"].clone()))
        file = batches.data.store.folders[0] / "labels.npy"
        labels = np.load(file)
        hidden = np.setdiff1d(np.arange(len(labels)), batches.data.rows("seed"))
        labels[hidden] = 1 - labels[hidden]
        np.save(file, labels)
        batches.prepare_data = lambda: None  # which would find the cache damaged
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_the_question_counts_against_the_positions_of_the_model(tiny_model_dir, pairs_file):
    """The model has 512 positions: 500 tokens fit, but not with the question after them, a token a byte."""
    asked = module(tiny_model_dir, train="head", reading=["judge"])
    with pytest.raises(UserError) as error:
        trainer("run", evolution()).fit(asked, data(pairs_file, max_length=500))
    [line] = error.value.problems
    assert line.startswith("data.max_length, with ") and "tokens of model.question: got " in line
    assert line.endswith("for a model of 512 positions; use at most that")
    plain = module(tiny_model_dir, train="head", reading=["mean"])
    trainer("plain", evolution(max_rounds=0)).fit(plain, data(pairs_file, max_length=500))


def test_a_seed_of_one_dialogue_takes_the_usual_set_and_says_so():
    x, label = differences(informative=0)
    choice = choose_readings(x, CANDIDATES, SETS, label, [5] * 120)
    assert choice.chosen.readings == SETS[0]
    assert choice.sentence() == "reads mean@1, the usual choice: the seed is one dialogue, too small to choose from"


def test_ranks_are_joined_by_id_and_each_reading_has_a_mean_square_of_one():
    x, target = torch.randn(9, 8) * torch.logspace(0, 2, 8), torch.arange(9.0)
    halves = [
        (torch.tensor([8, 2, 6, 4, 0]), x[:5], target[:5], None),
        (torch.tensor([1, 3, 5, 7]), x[5:], target[5:], None),
    ]
    pair_id, joined, labels, scale = joined_differences(halves, num_readings=2)
    order = [4, 5, 1, 6, 3, 7, 2, 8, 0]
    assert pair_id.tolist() == list(range(9)) and torch.equal(joined, x[order]) and torch.equal(labels, target[order])
    assert torch.allclose((joined / scale).square().mean(0).view(2, 4).sum(1), torch.ones(2))
    known = torch.ones(8)
    assert joined_differences([(*halves[0][:3], None), (*halves[1][:3], known)], 2)[3] is known


def test_a_checkpoint_without_the_penalty_of_its_head_is_one_line(tiny_model_dir, pairs_file):
    model = module(tiny_model_dir, train="head")
    runner = trainer("run", evolution(max_rounds=0))
    runner.fit(model, data(pairs_file))
    model.penalty = None
    with pytest.raises(UserError, match="got one without the penalty of its head"):
        model.training_step([next(iter(runner.datamodule.scoring_dataloader("seed")))], 0)


def test_auto_asks_no_question_where_the_model_has_no_positions_for_it(tiny_model_dir, pairs_file, caplog):
    """The same 500 tokens: `auto`, the default, chooses among the places that need no question."""
    model, batches = module(tiny_model_dir, train="head", reading="auto"), data(pairs_file, max_length=500)
    with caplog.at_level("INFO"):
        trainer("run", evolution(max_rounds=0)).fit(model, batches)
    assert [row["readings"] for row in model.reading_state()["evidence"]] == ["mean@1", "last@1", "last@2"]
    assert "auto tries fewer places, as data.max_length, with 95 tokens of model.question: got 595" in caplog.text


SEED = SimpleNamespace(seed_labels=None)


@pytest.mark.parametrize(
    ("data_module", "strategy", "reason"),
    [
        (None, SingleDeviceStrategy("cpu"), "there is no PreferenceDataModule, whose seed would tell"),
        (SEED, ShardStrategy(), "a body that is going to be sharded is not read whole before"),
        (SEED, SingleDeviceStrategy("cpu"), None),
    ],
)
def test_auto_takes_the_usual_readings_where_it_cannot_choose(tiny_model_dir, caplog, data_module, strategy, reason):
    backbone = Backbone(str(tiny_model_dir))
    plan = plan_readings(load_reward_model(backbone), load_tokenizer(backbone), "auto", "Good?")
    with caplog.at_level("INFO"):
        can_choose = plan.can_choose(SimpleNamespace(datamodule=data_module, strategy=strategy))
    assert can_choose == (reason is None)
    assert reason is None or f"Reading: auto takes mean@1, judge@1, the usual choice: {reason}." in caplog.text


def test_a_template_that_can_neither_ask_nor_be_averaged_leaves_auto_the_last_token(tiny_model_dir, caplog):
    backbone = Backbone(str(tiny_model_dir))
    tokenizer = load_tokenizer(backbone)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with caplog.at_level("INFO"):
        plan = plan_readings(load_reward_model(backbone), tokenizer, "auto", "Good?")
    assert (plan.sets, plan.candidates) == ([[Reading("last", 2)]], [Reading("last", 2)])
    assert caplog.text.count("Reading: auto tries fewer places, as model.reading: got mean or judge with a chat") == 2
    assert question_length(tokenizer, "auto", "Good?") == 0
    with pytest.raises(UserError, match="writes nothing fixed before a response"):
        question_length(tokenizer, ["last", "judge"], "Good?")


@pytest.mark.parametrize("data", [None, object()])
def test_without_a_seed_nothing_can_be_chosen(data):
    with pytest.raises(UserError, match=r"^data: got no PreferenceDataModule, whose seed chooses the penalty"):
        seed_data(SimpleNamespace(datamodule=data))


def test_a_checkpoint_of_a_version_without_readings_reads_the_last_token(tiny_model_dir, pairs_file):
    model, batches = module(tiny_model_dir, reading="last"), data(pairs_file)
    trainer("run", evolution(max_rounds=0)).fit(model, batches)
    expected = trainer("run").test(model, batches, verbose=False)
    file = _checkpoint(model)
    saved = torch.load(file, weights_only=True)
    del saved["reading"]
    torch.save(saved, file)
    again = module(tiny_model_dir, reading="auto")
    assert trainer("run").test(again, data(pairs_file), ckpt_path=file, verbose=False) == expected
    assert again.reading_state()["readings"] == ["last@2"]
