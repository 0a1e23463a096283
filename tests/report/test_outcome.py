"""The sentences at the top: what they say follows from the intervals, and from which round is delivered."""

import math
import shlex

import pytest

from ser_lightning.evaluation.sets import MIN_PROMPTS
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.report.outcome import answers, asked_rounds, next_steps, points, same_flags
from tests.report_runs import row

NAN = math.nan


def rows(*lines):
    """Lines of `rounds.csv`: (accuracy out of fold, test accuracy), the last one of them with a star delivered."""
    found = []
    for number, (oof, test, *star) in enumerate(lines):
        found.append(vars(row(number, bool(star), seed_oof_accuracy=oof, test_accuracy=test)))
    return found


def against(difference, low, high, **others):
    figures = {"difference": difference, "low": low, "high": high}
    return {"prompts": 300, "against": {"seed": figures, **{k: dict(zip(figures, v)) for k, v in others.items()}}}  # noqa: B905


BEATEN = {"longer": (0.2, 0.1, 0.3), "bag_of_words": (0.1, 0.05, 0.15)}


@pytest.mark.parametrize(
    ("interval", "verdict", "end"),
    [
        ((0.01, 0.07), "Yes.", "+0.010 to +0.070."),
        ((-0.02, 0.03), "Not shown.", "-0.020 to +0.030, which includes 0."),
        ((-0.07, -0.01), "No, it did harm.", "-0.070 to -0.010."),
    ],
)
def test_the_interval_of_the_paired_difference_decides_whether_it_helped(interval, verdict, end):
    said, *_ = answers(rows((0.7, 0.782), (0.72, 0.79, "*")), {1: against(0.008, *interval)})
    assert said == (
        f"Did self-evolution help? {verdict} Round 1 is delivered; its accuracy on the test pairs is 0.790, that of "
        f"the seed model 0.782: paired difference +0.008, 95 % interval {end}"
    )


def test_models_that_are_equally_right_have_no_interval():
    """All resamples are 0 there: an interval from 0 to 0 would say that the difference is known."""
    said, *_ = answers(rows((0.7, 0.79), (0.72, 0.79, "*")), {1: against(0.0, 0.0, 0.0)})
    assert said == (
        "Did self-evolution help? Not shown. Round 1 is delivered; it and the seed model have as many test pairs of "
        "each prompt right, 0.790 of all."
    )

    same = {"longer": (0.0, 0.0, 0.0), "bag_of_words": (0.1, 0.05, 0.15)}
    said, enough, _ = answers(rows((0.7, 0.8, "*"), (0.7, 0.8)), {0: against(0, 0, 0, **same), 1: against(0, 0, 0)})
    assert said.endswith(" On the test pairs round 1 differs from it by +0.000.")
    assert "Baselines: take the longer response 0.800 (difference +0.000), bag of words" in enough


def test_a_seed_model_is_delivered_because_evolution_lost():
    measured = {2: against(-0.03, -0.06, 0.0)}
    said, *_ = answers(rows((0.7, 0.8, "*"), (0.6, 0.75), (0.66, 0.77)), measured)
    assert said == (
        "Did self-evolution help? No: evolution lost 4 points out of fold on the seed, 0.660 in its best round, round "
        "2, after 0.700, so the seed model is delivered. On the test pairs round 2 differs from it by -0.030, 95 % "
        "interval -0.060 to +0.000."
    )
    assert "evolution gained nothing out of fold" in answers(rows((0.7, 0.8, "*"), (0.7, 0.8)), {})[0]
    assert "guards took the later rounds back, so" in answers(rows((0.7, 0.8, "*"), (0.8, 0.8)), {})[0]
    alone = rows((0.7, 0.8, "*"))
    none = "Did self-evolution help? There was none: only round 0, the seed model, has been trained"
    assert answers([{**alone[0], "kept": 3}], {})[0] == f"{none}."
    assert answers([{**alone[0], "kept": 0}], {})[0] == f"{none}; it has kept no pseudo-label."
    other = answers(rows((0.7, 0.8, "*"), (0.8, 0.8)), {}, same_seed=False)[0]
    assert "no later round is better out of fold, on the seed pairs that all rounds have scored" in other


def test_without_test_pairs_only_the_flattering_figure_is_there_and_is_called_so():
    helped, good, *_ = answers(rows((0.7, NAN), (0.72, NAN, "*")), {})
    assert "has 0.720 and the seed model 0.700. It was chosen by this figure, which flatters it." in helped
    assert good.startswith("Is it good enough? Unknown: there are no test pairs")
    assert "of other seed pairs" in answers(rows((0.7, NAN), (0.72, NAN, "*")), {}, same_seed=False)[0]
    assert "Unknown: round 1 is delivered" in answers(rows((NAN, NAN), (NAN, NAN, "*")), {})[0]


def test_good_enough_is_clearly_better_than_both_baselines():
    beats = answers(rows((0.7, 0.78), (0.7, 0.8, "*")), {1: against(0.02, 0.01, 0.03, **BEATEN)})[1]
    assert beats == (
        "Is it good enough? It beats both baselines. Baselines: take the longer response 0.600 (difference +0.200, "
        "95 % interval +0.100 to +0.300), bag of words on the seed 0.700 (difference +0.100, 95 % interval +0.050 to "
        "+0.150)."
    )
    close = {**BEATEN, "longer": (0.02, -0.01, 0.05)}
    measured = {1: against(0.02, 0.01, 0.03, **close)}
    _, doubt, more = answers(rows((0.7, 0.78), (0.7, 0.8, "*")), measured)
    assert "Not shown: it does not clearly beat “take the longer response”, and may have learned no more" in doubt
    assert "bag of words”" not in doubt
    assert more == "Next: more human labels (the command query), or a larger model (model.backbone.path)."
    lines = [{**line, "scored": 0} for line in rows((0.7, 0.78), (0.7, 0.8, "*"))]
    assert answers(lines, measured)[2] == "Next: more human labels, or a larger model (model.backbone.path)."


def test_a_model_below_one_half_is_said_to_be_worse_than_a_coin_and_its_labels_to_be_looked_at():
    _, coin, check = answers(rows((0.4, 0.4), (0.4, 0.322, "*")), {1: against(0, -0.1, 0.1)})
    assert "No, it is worse than a coin: its accuracy on the test pairs is 0.322." in coin
    assert "the right way round" in check
    measured = {1: {**against(0, -0.1, 0.1, **BEATEN), "accuracy_high": 0.53}}
    _, coin, more = answers(rows((0.4, 0.4), (0.4, 0.478, "*")), measured)
    assert "No, it is no better than a coin: its accuracy on the test pairs is 0.478." in coin
    assert more.startswith("Next: more human labels")


def test_where_both_baselines_are_beaten_what_is_next_is_left_to_the_advice():
    """`report/advice.py` says what labels and another round are forecast to gain; twice would be once too often."""
    lines, measured = rows((0.7, 0.78), (0.7, 0.8, "*")), {1: against(0.02, 0.01, 0.03, **BEATEN)}
    lines[-1] |= {"predicted_last_round": 3.0, "predicted_gain": 0.0123}
    helped, enough = answers(lines, measured)
    assert helped.startswith("Did self-evolution help?") and enough.startswith("Is it good enough? It beats both")


def test_few_prompts_are_said():
    measured = {1: {**against(0.0, -0.1, 0.1), "prompts": MIN_PROMPTS - 1}}
    assert any("of only 29 prompts" in said for said in answers(rows((0.7, 0.78), (0.7, 0.8, "*")), measured))
    measured[1]["prompts"] = MIN_PROMPTS
    assert not any("prompts" in said for said in answers(rows((0.7, 0.78), (0.7, 0.8, "*")), measured))


def test_only_the_delivered_round_and_where_it_is_the_seed_model_the_best_other_have_to_be_measured():
    assert asked_rounds(rows((0.7, 0.8), (0.8, 0.8, "*"), (0.9, 0.8))) == [1]
    assert asked_rounds(rows((0.7, 0.8, "*"), (0.5, 0.8), (0.6, 0.8))) == [0, 2]
    assert asked_rounds(rows((0.7, 0.8, "*"))) == [0]


def test_differences_are_in_points():
    assert [points(share) for share in (0.04, 0.01, 0.0123, 0.0)] == ["4 points", "1 point", "1.2 points", "0 points"]


def test_next_steps_are_commands_that_there_are():
    steps = next_steps("prog", "runs/x", ["export", "score", "plan"])
    assert [line.split("#")[0].strip() for line in steps[1:]] == [
        "prog export runs/x",
        "prog score --model runs/x --data pairs.jsonl --out scores.csv",
    ]
    assert len({line.index("#") for line in steps[1:]}) == 1


def test_flags_of_the_same_policy_are_those_that_are_not_usual():
    assert same_flags(Backbone("x", train="full"), "synthetic") == ""
    lora = LoraSettings(r=4, target_modules=["q_proj", "v_proj"])
    flags = same_flags(Backbone("x", dtype="bfloat16", lora=lora), ["one file.jsonl", "two.jsonl"])
    assert shlex.split(flags) == [
        *("--model.backbone.train", "lora", "--model.backbone.dtype", "bfloat16", "--model.backbone.lora.r", "4"),
        *("--model.backbone.lora.target_modules", '["q_proj", "v_proj"]'),
        *("--data.path", '["one file.jsonl", "two.jsonl"]'),
    ]
    spaced = next_steps("prog", shlex.quote("my runs/x"), ["export"])
    assert shlex.split(spaced[1], comments=True) == ["prog", "export", "my runs/x"]
    long = next_steps("prog", "runs/x", ["fit", "predict"], "sft", flags)
    assert long[1].strip().startswith("# ") and long[2].startswith(
        "  prog fit --config ppo.yaml --model.backbone.train"
    )
