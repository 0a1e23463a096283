"""Forecasts in a run: what `rounds.csv` says of them, and evolution that ends by them."""

import contextlib
import json
import math
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

from ser_lightning.callbacks.rounds import forecast_figures, forecast_text
from ser_lightning.errors import UserError
from ser_lightning.evolution.selection import TopShareRule
from tests.helpers import data, equal, evolution, fit, module, read_csv, trainer, weights
from tests.report_runs import row

STEADY = {"rule": TopShareRule(0.4, min_change_share=0.0), "max_rounds": 3}


@pytest.fixture(scope="module")
def unsure_file(tmp_path_factory):
    """80 pairs whose answers differ in a number alone: what is made of them changes from round to round."""
    generator = random.Random(2)
    lines = []
    for number in range(80):
        answers = generator.sample(range(1000), 2)
        texts = dict(zip(("chosen", "rejected"), (f"It is {answer}." for answer in answers), strict=True))
        lines.append({"prompt": f"What is {number} plus {number}?", **texts})
    file = tmp_path_factory.mktemp("unsure") / "unsure.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


FORECASTS = ("forecast_accuracy", "forecast_low", "forecast_high", "forecast_error")


def rows(run):
    return [{name: float(cell) for name, cell in line.items()} for line in read_csv(f"{run}/rounds.csv")]


def audit_labels(run, number):
    return pq.read_table(Path(run, "rounds", str(number), "audit.parquet"))["label"].to_pylist()


def changed(one, other):
    return sum(a != b for a, b in zip(one, other, strict=True)) / len(one)


@pytest.fixture(scope="module")
def steady(tiny_model_dir, unsure_file, tmp_path_factory):
    """Folder of a run with `STEADY`, and its callback."""
    run = tmp_path_factory.mktemp("steady")
    with contextlib.chdir(run):
        return run, fit(tiny_model_dir, unsure_file, str(run), **STEADY)[1]


def test_a_round_holds_its_forecast_against_what_came(steady):
    run, callback = steady
    first, *later = rows(run)
    assert len(later) == 3 and all(math.isnan(line[name]) for line in (first, later[0]) for name in FORECASTS)
    assert math.isnan(first["predicted_gain"]) and math.isnan(first["predicted_last_round"])
    for before, now in zip(later, later[1:], strict=False):
        expected = before["seed_oof_accuracy"] + before["predicted_gain"]
        assert now["forecast_accuracy"] == pytest.approx(expected, abs=1e-5)
        assert now["forecast_error"] == pytest.approx(now["seed_oof_accuracy"] - expected, abs=1e-5)
        assert now["forecast_low"] <= now["forecast_accuracy"] <= now["forecast_high"]
    labels = [audit_labels(run, number) for number in range(4)]
    assert later[0]["net_label_change"] == pytest.approx(changed(labels[1], labels[0]) / 2)
    for number in (2, 3):
        way = changed(labels[number], labels[number - 2]) - changed(labels[number - 1], labels[number - 2])
        assert later[number - 1]["net_label_change"] == pytest.approx(way, abs=1e-5)
    assert later[0]["flipped"] > 0 and len({line["net_label_change"] for line in later}) > 1
    assert callback.state.rows[-1].figures()["select/predicted_gain"] == pytest.approx(
        later[-1]["predicted_gain"], abs=1e-5
    )


def test_the_forecast_ends_evolution_where_it_is_asked_to(tiny_model_dir, unsure_file):
    fit(tiny_model_dir, unsure_file, "asked", **STEADY, min_gain=0.9, stop_by="forecast")
    fit(tiny_model_dir, unsure_file, "not_asked", **STEADY, min_gain=0.9)
    _, last = rows("asked")
    assert last["predicted_last_round"] == 1
    first, *later = rows("not_asked")
    assert len(later) == 3 and math.isnan(first["predicted_last_round"]) and later[0]["predicted_last_round"] == 1


class Crash(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise KeyboardInterrupt


@pytest.mark.slow  # test_evolution.py has the fast one
@pytest.mark.parametrize("epoch", [2, 4])
def test_a_crashed_run_ends_by_the_same_forecast(tiny_model_dir, unsure_file, steady, epoch):
    gains = [line["predicted_gain"] for line in rows(steady[0])]
    assert gains[1] > gains[2] > 0
    settings = {**STEADY, "stop_by": "forecast", "min_gain": (gains[1] + gains[2]) / 2}
    unbroken, _ = fit(tiny_model_dir, unsure_file, "unbroken", **settings)
    assert len(rows("unbroken")) == 3
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tiny_model_dir, unsure_file, "broken", Crash(epoch), **settings)
    seed_everything(0, verbose=False)
    model = module(tiny_model_dir)
    trainer("broken", evolution(**settings)).fit(model, data(unsure_file), ckpt_path="broken/checkpoints/last.ckpt")
    assert equal(weights(unbroken), weights(model))
    for one, other in zip(rows("unbroken"), rows("broken"), strict=True):
        for name in one.keys() - {"seconds"}:
            assert one[name] == pytest.approx(other[name], abs=0, nan_ok=True), name


def test_without_folds_convergence_is_forecast_and_accuracy_is_not(tiny_model_dir, unsure_file):
    fit(tiny_model_dir, unsure_file, "run", **STEADY, folds=0)
    _, second, *_ = rows("run")
    assert math.isnan(second["forecast_accuracy"]) and math.isnan(second["forecast_error"])
    assert second["predicted_gain"] == pytest.approx(0.5 * second["net_label_change"] * 0.3, abs=1e-5)
    assert second["predicted_last_round"] >= 1


def test_settings_of_the_forecast_are_refused_together():
    with pytest.raises(UserError) as error:
        evolution(min_gain=0, stop_by="hope")
    assert error.value.problems == [
        "evolution.min_gain: got 0; need a share in (0, 1)",
        "evolution.stop_by: got 'hope'; use rule or forecast",
    ]


def test_a_run_that_goes_on_with_new_pairs_forecasts_anew():
    """The rounds handed over are those after the new pairs; the first of them had no forecast."""
    credit = torch.tensor([1.0, 0.0])
    figures = forecast_figures([row(3, net_label_change=0.4)], [credit], 0.005)
    assert figures == {}
    figures = forecast_figures([row(3), row(4, net_label_change=0.4)], [credit, credit], 0.005)
    assert figures.keys() == {"predicted_gain", "predicted_last_round"} and figures["predicted_last_round"] > 4


def test_the_log_line_says_what_was_forecast_and_what_is():
    now = row(
        1, forecast_accuracy=0.6, forecast_low=0.5, forecast_high=0.7, predicted_gain=0.0125, predicted_last_round=4.0
    )
    ahead = "the next round is forecast to gain +0.0125, and evolution to converge at round 4"
    assert forecast_text(now) == f"out of fold 0.550, forecast 0.600 (0.500 to 0.700); {ahead}"
    assert forecast_text(row(1, predicted_gain=0.0125, predicted_last_round=4.0)) == ahead
    assert forecast_text(row(0)) == "no forecast yet: a second round is needed for one"
    without_folds = row(1, seed_oof_accuracy=math.nan, predicted_gain=0.0125, predicted_last_round=4.0)
    assert forecast_text(without_folds) == ahead  # gain and last round are forecast from the labels alone
