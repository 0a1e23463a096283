import contextlib
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

from ser_lightning.errors import UserError
from ser_lightning.evolution.selection import CalibratedRule, PaperRule, TopShareRule
from tests.helpers import data, equal, evolution, fit, module, read_csv, slow, trainer, weights


class Recorder(Callback):
    """What each epoch trained on, and what the module was in."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append({"phase": trainer.datamodule.phase, "ids": [], "weight": {}, "target": {}})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert pl_module.training and torch.is_grad_enabled()
        for micro in batch:
            self.epochs[-1]["ids"] += micro.pair_id.tolist()
            self.epochs[-1]["weight"].update(zip(micro.pair_id.tolist(), micro.weight.tolist(), strict=True))
            self.epochs[-1]["target"].update(zip(micro.pair_id.tolist(), micro.target.tolist(), strict=True))


def rows(run):
    return read_csv(f"{run}/rounds.csv")


def audit(run, number):
    return pq.read_table(Path(run, "rounds", str(number), "audit.parquet")).to_pylist()


def pairs_of(pairs_file, split, fold=None, folds=2):
    pairs = data(pairs_file)
    pairs.tokenizer = module(TINY["dir"]).tokenizer
    pairs.prepare_data()
    pairs.setup("fit")
    return set(pairs.pair_ids(split, fold, folds).tolist())


def _prompts(pairs_file, ids):
    pairs = data(pairs_file)
    pairs.tokenizer = module(TINY["dir"]).tokenizer
    pairs.prepare_data()
    pairs.setup("fit")
    return {p.prompt[-1]["content"] for p in pairs.lookup(sorted(ids))}


def _turn(pairs_file, prompts, target):
    """Write the file with the labels of some prompts turned round; how many there were."""
    lines = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    turned = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} if r["prompt"] in prompts else r for r in lines]
    target.write_text("".join(json.dumps(r) + "\n" for r in turned))
    return sum(a != b for a, b in zip(lines, turned, strict=True))


TINY: dict = {}


@pytest.fixture(autouse=True)
def _tiny(tiny_model_dir):
    TINY["dir"] = tiny_model_dir


@pytest.fixture(scope="module")
def recorded(tiny_model_dir, pairs_file, tmp_path_factory):
    """Folder of a run as `fit` has it, and what its epochs trained on."""
    run, log = tmp_path_factory.mktemp("recorded"), Recorder()
    with contextlib.chdir(run):
        fit(tiny_model_dir, pairs_file, str(run), log)
    return run, log


def test_a_round_trains_without_each_fold_and_then_on_all(pairs_file, recorded):
    _, log = recorded
    seed, pool = pairs_of(pairs_file, "seed"), pairs_of(pairs_file, "pool")
    folds = [pairs_of(pairs_file, "seed", k) for k in range(2)]
    assert [(e["phase"].round, e["phase"].fold) for e in log.epochs] == [
        (0, 0), (0, 1), (0, None), (1, 0), (1, 1), (1, None),
    ]  # fmt: skip
    for epoch in log.epochs:
        expected = seed - folds[epoch["phase"].fold] if epoch["phase"].fold is not None else seed
        assert set(epoch["ids"]) & seed == expected and len(epoch["ids"]) == len(set(epoch["ids"]))
        pseudo = set(epoch["ids"]) - seed
        assert pseudo <= pool and bool(pseudo) == (epoch["phase"].round == 1)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_seed_model_does_not_depend_on_the_folds_before_it(tiny_model_dir, pairs_file, train):
    """The order of the batches and LoRA's dropout start anew in every phase."""
    found = []
    for folds in (0, 2):
        seed_everything(0, verbose=False)
        model = module(tiny_model_dir, train=train)
        callback = evolution(TopShareRule(0.4), folds=folds, max_rounds=0, seed_epochs=2)
        trainer(f"run{folds}", callback).fit(model, data(pairs_file))
        found.append(weights(model))
    assert equal(*found)


USUAL = {"max_rounds": 2, "rule": TopShareRule(0.4, min_change_share=0.0)}


@pytest.fixture(scope="module")
def usual_run(tiny_model_dir, pairs_file, tmp_path_factory):
    """Folder of a run with `USUAL`, its callback, and what its epochs trained on."""
    run, log = tmp_path_factory.mktemp("usual"), Recorder()
    with contextlib.chdir(run):
        _, callback = fit(tiny_model_dir, pairs_file, str(run), log, **USUAL)
    return run, callback, log


def test_labels_that_train_a_fold_model_come_from_models_that_never_saw_the_fold(
    tiny_model_dir, pairs_file, tmp_path, usual_run
):
    """Turn the human labels of one fold: the chain that leaves it out must not change, whatever the others do."""
    names = _prompts(pairs_file, pairs_of(pairs_file, "seed", 0))
    other_file = tmp_path / "turned.jsonl"
    _turn(pairs_file, names, other_file)
    log = Recorder()
    fit(tiny_model_dir, other_file, "other", log, **USUAL)
    for one, other in zip(usual_run[2].epochs, log.epochs, strict=True):
        same = one["ids"] == other["ids"] and one["target"] == other["target"]
        assert same == (one["phase"].fold == 0), one["phase"]


def test_what_is_kept_is_what_is_trained_on_with_the_label_of_the_audit(pairs_file, recorded):
    run, log = recorded
    kept = {r["pair_id"]: r["label"] for r in audit(run, 0) if r["kept"]}
    seed = pairs_of(pairs_file, "seed")
    trained = {i: t for i, t in log.epochs[-1]["target"].items() if i not in seed}
    assert trained == {i: float(label) for i, label in kept.items()}
    assert len(audit(run, 0)) == len(pairs_of(pairs_file, "pool"))
    for r in audit(run, 0):
        assert r["label"] == int(r["reward_a"] > r["reward_b"])
        assert r["reason"] == ("kept" if r["kept"] else "not sure enough")
        assert r["probability"] == pytest.approx(1 / (1 + math.exp(r["reward_b"] - r["reward_a"])), abs=1e-5)


CALIBRATED = {"rule": CalibratedRule(), "max_rounds": 2}


@pytest.fixture(scope="module")
def calibrated(tiny_model_dir, pairs_file, tmp_path_factory):
    """Folder of a run with `CALIBRATED`, and its model."""
    run = tmp_path_factory.mktemp("calibrated")
    with contextlib.chdir(run):
        model, _ = fit(tiny_model_dir, pairs_file, str(run), **CALIBRATED)
    return run, model


def test_training_cannot_see_a_pool_label(tiny_model_dir, pairs_file, tmp_path, calibrated):
    """The same file with every pool label turned round gives the same labels, selections and weights, bit for bit."""
    pool, other_file = pairs_of(pairs_file, "pool"), tmp_path / "turned.jsonl"
    assert _turn(pairs_file, _prompts(pairs_file, pool), other_file) == len(pool) > 30
    one, model = calibrated
    other, _ = fit(tiny_model_dir, other_file, "other", **CALIBRATED)
    assert equal(weights(model), weights(other))
    assert [audit(one, r["round"]) for r in rows(one)] == [audit("other", r["round"]) for r in rows("other")]
    for a, b in zip(rows(one), rows("other"), strict=True):
        assert float(a["pool_accuracy"]) == pytest.approx(1 - float(b["pool_accuracy"]))  # only a metric reads them
        assert a["seed_oof_accuracy"] == b["seed_oof_accuracy"] and a["delivered"] == b["delivered"]


def test_ties_are_trained_on_in_every_phase_but_that_of_their_fold_and_no_round_scores_them(tiny_model_dir, tmp_path):
    """Every prompt has a decided pair, and every second one a tie as well."""
    file = tmp_path / "ties.jsonl"
    with file.open("w") as lines:
        for number in range(80):
            row = {"prompt": f"What is {number}?", "response_a": f"It is {number}.", "response_b": "No.", "label": 1}
            tie = {**row, "response_b": f"{number}, it is.", "label": "tie"}
            lines.writelines(json.dumps(one) + "\n" for one in [row, tie][: 1 + number % 2])
    log = Recorder()
    fit(tiny_model_dir, file, "run", log)
    seed, ties = pairs_of(file, "seed"), pairs_of(file, "ties")
    assert len(ties) > 4 and not ties & (seed | pairs_of(file, "pool"))
    left_out = [pairs_of(file, "seed", fold) for fold in range(2)]
    for epoch in log.epochs:
        fold, mine = epoch["phase"].fold, ties & set(epoch["ids"])
        hidden = set() if fold is None else _prompts(file, left_out[fold])
        assert mine == {i for i in ties if not _prompts(file, {i}) & hidden}
        assert {epoch["target"][i] for i in mine} == {0.5}
        assert {epoch["target"][i] for i in epoch["ids"] if i not in ties} <= {0.0, 1.0}
    assert not ties & {r["pair_id"] for number in range(len(rows("run"))) for r in audit("run", number)}
    assert 0 <= float(rows("run")[0]["seed_oof_accuracy"]) <= 1


def test_rounds_csv_counts_what_happened(usual_run):
    run, callback, _ = usual_run
    table = rows(run)
    assert [r["round"] for r in table] == ["0", "1", "2"] and sum(r["delivered"] == "1" for r in table) == 1
    for number, r in enumerate(table):
        lines = audit(run, number)
        assert int(r["scored"]) == len(lines) and int(r["kept"]) == sum(x["kept"] for x in lines)
        assert int(r["tokens"]) > 0 and 0 <= float(r["test_accuracy"]) <= 1
    flips = sum(a["label"] != b["label"] for a, b in zip(audit(run, 0), audit(run, 1), strict=True))
    assert int(table[1]["flipped"]) == flips and table[0]["flipped"] == "0"
    assert [len(s) for s in callback.state.history] == [int(r["kept"]) for r in table]


def cost(run, number):
    return json.loads(Path(run, "rounds", str(number), "cost.json").read_text())


@pytest.mark.parametrize("reading", ["last", "judge"])
def test_the_cost_of_a_round_is_counted_where_it_arises(tiny_model_dir, pairs_file, reading):
    """Oracle: tokens of the pairs that each epoch trained on, and of the splits as often as they are scored."""
    log, callback = Recorder(), evolution(seed_epochs=2)
    seed_everything(0, verbose=False)
    trainer("run", callback, log).fit(module(tiny_model_dir, reading=reading), data(pairs_file))
    pairs = data(pairs_file)
    pairs.tokenizer = module(tiny_model_dir).tokenizer
    pairs.prepare_data()
    pairs.setup("fit")

    def tokens(ids):
        return int(pairs.num_tokens(torch.tensor(sorted(ids))).sum()) if ids else 0

    seed, pool, test = (tokens(pairs.pair_ids(split).tolist()) for split in ("seed", "pool", "test"))
    for number, (row, labellings) in enumerate(zip(rows("run"), (3, 1), strict=True)):  # the last round has no heirs
        here = [epoch for epoch in log.epochs if epoch["phase"].round == number]
        trained = {is_fold: sum(tokens(e["ids"]) for e in here if (e["phase"].fold is not None) == is_fold)
                   for is_fold in (True, False)}  # fmt: skip
        found = cost("run", number)
        assert {part: spent["tokens"] for part, spent in found.items()} == {
            **{"train_folds": trained[True], "train_main": trained[False], "score_seed": seed},
            **{"score_pool": labellings * pool, "score_test": test, "other": 0},
        }
        assert sum(spent["tokens"] for spent in found.values()) == int(row["tokens"])
        assert sum(spent["seconds"] for spent in found.values()) == pytest.approx(float(row["seconds"]), abs=0.5)
    assert callback.state.cost == {}


def test_a_phase_has_enough_steps_however_few_its_pairs_are(tiny_model_dir, pairs_file):
    """Oracle: counted batches. A fold leaves out half of the 19 pairs of the seed, and steps have 8 pairs."""
    log = Recorder()
    fit(tiny_model_dir, pairs_file, "run", log, min_steps=7, max_rounds=0)
    by_phase = Counter(epoch["phase"].fold for epoch in log.epochs)
    sizes = {epoch["phase"].fold: len(epoch["ids"]) for epoch in log.epochs}
    assert by_phase == {fold: math.ceil(7 / math.ceil(size / 8)) for fold, size in sizes.items()}
    assert by_phase[None] == 3 and set(by_phase) == {0, 1, None}


def test_a_head_that_is_solved_needs_one_epoch():
    settings = evolution(min_steps=7, seed_epochs=2).settings
    assert settings.settled(False) == settings and settings.phase_epochs(0, steps=3) == 3
    assert settings.settled(True).phase_epochs(0, steps=1) == 1
    with pytest.raises(UserError, match=r"evolution\.min_steps: got -1; need 0 or more"):
        evolution(min_steps=-1)


def test_the_delivered_rounds_model_is_handed_over(calibrated):
    run, model = calibrated
    number = next(r["round"] for r in rows(run) if r["delivered"] == "1")
    saved = torch.load(Path(run, "rounds", number, "model.pt"), weights_only=True)
    assert equal(weights(model), saved["weights"]) and model.temperature == saved["temperature"] != 1.0
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=False)
    assert equal({k.removeprefix("_reward_model."): v for k, v in last["state_dict"].items()}, saved["weights"])


def test_a_rule_that_keeps_nothing_ends_evolution_and_says_so(tiny_model_dir, pairs_file, capsys, caplog):
    with caplog.at_level("INFO"):
        _, callback = fit(tiny_model_dir, pairs_file, "run", rule=CalibratedRule(target=0.9999), max_rounds=3)
    assert "keeps nothing: the highest that any pair reaches is" in caplog.text
    assert callback.state.finished and [r["kept"] for r in rows("run")] == ["0"]
    assert "Rounds of self-evolution" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"restart": "nothing"},
        {"seed_epochs": 2},
        {"epochs_per_round": 2},
        *slow({"max_rounds": 1}, {"folds": 3}),
    ],
)
def test_every_option_changes_the_result(tiny_model_dir, pairs_file, usual_run, change):
    fit(tiny_model_dir, pairs_file, "changed", **{**USUAL, **change})
    assert Path(usual_run[0], "rounds.csv").read_text() != Path("changed/rounds.csv").read_text()


def test_restarted_optimizer_and_weights(tiny_model_dir, pairs_file):
    class Start(Callback):
        def __init__(self):
            self.starts = {}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            phase = trainer.datamodule.phase
            key = (phase.round, phase.fold)
            if key not in self.starts:
                self.starts[key] = weights(pl_module), len(trainer.optimizers[0].state)

    starts = {}
    for restart in ("weights", "nothing"):
        log = Start()
        fit(tiny_model_dir, pairs_file, restart, log, restart=restart)
        starts[restart] = log.starts
        first, again = log.starts[(0, None)], log.starts[(1, None)]
        assert equal(first[0], again[0]) == (restart == "weights")
        assert bool(again[1]) == (restart == "nothing") and not first[1]
        if restart != "weights":
            assert equal(again[0], torch.load(f"{restart}/rounds/0/phase_main.pt", weights_only=True)["weights"])


class Crash(Callback):
    def __init__(self, epoch, batch=0):
        self.epoch, self.batch = epoch, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == self.batch:
            raise KeyboardInterrupt


CRASHED = {"max_rounds": 2, "epochs_per_round": 2, "restart": "nothing"}


@pytest.fixture(scope="module")
def unbroken_run(tiny_model_dir, pairs_file, tmp_path_factory):
    """Folder and weights of a run with `CRASHED` that did not."""
    run = tmp_path_factory.mktemp("unbroken")
    with contextlib.chdir(run):
        model, _ = fit(tiny_model_dir, pairs_file, str(run), rule=CalibratedRule(min_change_share=0.0), **CRASHED)
    return run, weights(model)


@pytest.mark.parametrize("epoch", [*slow(1, 3, 4), 7])
def test_a_crashed_run_goes_on_as_if_nothing_had_happened(tiny_model_dir, pairs_file, unbroken_run, epoch):
    unbroken, expected = unbroken_run
    settings = {"rule": CalibratedRule(min_change_share=0.0), **CRASHED}
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tiny_model_dir, pairs_file, "broken", Crash(epoch, 1), **settings)
    states = torch.load("broken/checkpoints/last.ckpt", weights_only=True)["callbacks"]
    before = next(state for name, state in states.items() if "Evolution" in name)
    seed_everything(0, verbose=False)
    model, callback = module(tiny_model_dir), evolution(**settings)
    trainer("broken", callback).fit(model, data(pairs_file), ckpt_path="broken/checkpoints/last.ckpt")
    assert equal(expected, weights(model))
    for number in range(len(rows(unbroken))):
        assert audit(unbroken, number) == audit("broken", number)
        spent = [{part: one["tokens"] for part, one in cost(run, number).items()} for run in (unbroken, "broken")]
        assert spent[0] == spent[1]
    for part, one in before["cost"].items():  # time before the break is not lost
        assert cost("broken", before["round"])[part]["seconds"] >= round(one["seconds"], 3) > 0
    for a, b in zip(rows(unbroken), rows("broken"), strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_a_finished_run_does_not_start_again(tiny_model_dir, pairs_file, recorded):
    shutil.copytree(recorded[0], "run")
    with pytest.raises(UserError, match="finished"):
        trainer("run", evolution()).fit(module(tiny_model_dir), data(pairs_file), ckpt_path="run/checkpoints/last.ckpt")


def test_a_limit_of_the_trainer_that_ends_evolution_is_said_and_can_be_lifted(tiny_model_dir, pairs_file, unbroken_run):
    """Two epochs are the first fold and the second one of round 0."""
    settings = {"rule": CalibratedRule(min_change_share=0.0), **CRASHED}
    seed_everything(0, verbose=False)
    with pytest.warns(UserWarning, match="evolution: ended in round 0, which is not finished, by trainer.max_epochs"):
        trainer("run", evolution(**settings), max_epochs=2).fit(module(tiny_model_dir), data(pairs_file))
    seed_everything(0, verbose=False)
    resumed = module(tiny_model_dir)
    trainer("run", evolution(**settings)).fit(resumed, data(pairs_file), ckpt_path="run/checkpoints/last.ckpt")
    assert equal(weights(resumed), unbroken_run[1])


def test_settings_that_would_fail_silently_are_refused(tiny_model_dir, pairs_file):
    with pytest.raises(UserError, match="reload_dataloaders_every_n_epochs: got 0"):
        trainer("run", evolution(), reload_dataloaders_every_n_epochs=0).fit(module(tiny_model_dir), data(pairs_file))
    with pytest.raises(UserError, match="pool of no pairs"):
        trainer("run", evolution()).fit(module(tiny_model_dir), data(pairs_file, seed_fraction=1.0))
    with pytest.raises(UserError) as error:
        evolution(CalibratedRule(), folds=0, seed_epochs=0, restart="optimizer")
    assert len(error.value.problems) == 3


def test_without_folds_the_last_round_is_delivered(tiny_model_dir, pairs_file):
    fit(tiny_model_dir, pairs_file, "run", rule=TopShareRule(0.5, 0.0), folds=0, max_rounds=2)
    assert [r["delivered"] for r in rows("run")] == ["0", "0", "1"]
    assert {r["seed_oof_accuracy"] for r in rows("run")} == {"nan"}
    shutil.rmtree("run")


def test_the_papers_rule_runs(tiny_model_dir, pairs_file):
    _, callback = fit(tiny_model_dir, pairs_file, "run", rule=PaperRule(tau_low=0.5, tau_high=0.5), folds=0)
    assert callback.state.finished


@pytest.mark.parametrize("train", ["head", "full"])
def test_rules_know_whether_training_gives_the_reward_a_zero(tiny_model_dir, pairs_file, train):
    """A head that is solved on differences has none, in the chains of the folds either."""

    class Asked(TopShareRule):
        seen: ClassVar[list[bool]] = []

        def select(self, scores, context):
            self.seen.append(context.has_zero)
            return super().select(scores, context)

    Asked.seen.clear()
    model, callback = module(tiny_model_dir, train=train), evolution(rule=Asked(0.5), folds=2, max_rounds=1)
    trainer("run", callback).fit(model, data(pairs_file))
    assert len(Asked.seen) >= 4 and set(Asked.seen) == {train != "head"}
