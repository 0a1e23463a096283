"""The sentences on what to spend next on."""

import json

import numpy as np
import pytest

from ser_lightning.errors import UserError
from ser_lightning.report.advice import advice_sentences, read_advice
from ser_lightning.report.data import read_run
from ser_lightning.report.page import page_of
from tests.report_runs import row, write_run


def advice(gain=0.012, next_round=0.003, **values):
    labels = [{"labels": 100, "gain": gain, "low": gain - 0.03, "high": gain + 0.04}]
    usual = {"is_solved": True, "seed_pairs": 150, "min_gain": 0.005, "labels": labels, "next_round": next_round}
    return {**usual, **values}


def test_labels_and_a_round_with_their_points():
    assert advice_sentences(advice()) == [
        "The seed model is forecast to gain +1.2 points from 100 more labels (95 % interval -1.8 to +5.2).",
        "Another round is forecast to gain +0.3 points.",
    ]


def test_another_body_where_neither_pays():
    labels, _, body = advice_sentences(advice(gain=0.001))
    assert "+0.1 points" in labels and body.startswith("Neither reaches evolution.min_gain (+0.5 points): a larger")
    assert len(advice_sentences(advice(gain=0.001, next_round=0.006))) == 2


def test_without_a_forecast_of_rounds_only_labels_are_said():
    [labels] = advice_sentences(advice(next_round=None))
    assert labels.startswith("The seed model is forecast")
    _, body = advice_sentences(advice(gain=0.001, next_round=None))
    assert body.startswith("That is below evolution.min_gain")


def test_small_seeds_and_those_without_a_forecast_say_so():
    assert "seeds this small have mostly gained more." in advice_sentences(advice(seed_pairs=60))[0]
    assert "this one has 40 labels" in advice_sentences(advice(labels=[], seed_pairs=40))[0]
    [labels] = advice_sentences(advice(labels=[], is_solved=False, next_round=None))
    assert labels.startswith("What more labels gain is not forecast: the body is trained")


@pytest.mark.parametrize(
    ("key", "what", "baseline", "instead"),
    [
        ("frozen_accuracy", "fine-tuning", "a head on the frozen body", "frozen.yaml"),
        (
            *("answer_accuracy", "the labels"),
            "the pretrained model's own answer to whether a response is good, which needs no label,",
            "export --answer",
        ),
    ],
)
def test_what_was_gained_over_a_baseline_is_said_where_folds_tell(key, what, baseline, instead):
    usual = {"labels": [], "is_solved": False, "next_round": None, "seed_pairs": 400, key: 0.63}
    [_, gained] = advice_sentences(advice(**usual, delivered_accuracy=0.71))  # 2 standard errors are 0.066
    figures = f"out of fold on the 400 labels of the seed, {baseline} has 0.630, the delivered model 0.710"
    assert gained == f"Did {what} pay off? Apparently so: {figures}."
    for delivered in (0.69, float(np.float32(0.63)), 0.63, 0.57):
        [_, unknown] = advice_sentences(advice(**usual, delivered_accuracy=delivered))
        assert unknown.startswith(f"Did {what} pay off? Not shown:")
        assert f"{delivered:.3f}, which may be chance. " in unknown and instead in unknown
    [_, lost] = advice_sentences(advice(**usual, delivered_accuracy=0.55))
    assert lost.startswith(f"Did {what} pay off? No:") and "chance" not in lost and instead in lost
    [_, rough] = advice_sentences(advice(**{**usual, "seed_pairs": 14}, delivered_accuracy=0.71))
    assert "Not shown" in rough
    assert len(advice_sentences(advice(**usual, delivered_accuracy=None))) == 1


def test_the_page_has_the_sentences_and_a_damaged_file_is_named(tmp_path):
    run = write_run(tmp_path / "run", [row(0, delivered=True)])
    assert read_advice(run) == [] and "more labels" not in page_of(read_run(run))
    (run / "advice.json").write_text(json.dumps(advice()))
    assert "forecast to gain +1.2 points from 100 more labels" in page_of(read_run(run))
    (run / "advice.json").write_text(json.dumps(advice(seed_pairs="many")))
    with pytest.raises(UserError, match="advice.json.*seed_pairs"):
        page_of(read_run(run))
