"""The page of a run of a policy."""

import json
from pathlib import Path

import pytest
import yaml

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.report.page import write_report
from ser_lightning.report.policy import is_policy_run, read_policy_run
from tests.report_pages import Page, page_of
from tests.report_runs import notes, row, write_run

COLUMNS = ("reward", "judge_score", "kl", "length", "eos_rate", "win_rate", "win_rate_low", "win_rate_high")
COLUMNS += ("judge_score_low", "judge_score_high", "repetition")


def step(number, **values):
    usual = dict.fromkeys(COLUMNS, 0.5) | {"length": 20, "win_rate_low": 0.4, "win_rate_high": 0.6}
    return {"step": number, **usual, **values}


def policy_run(name="policy", module="PPOModule", steps=(), losses=(), samples=(), held_out=()):
    folder = Path(name)
    (folder / "samples").mkdir(parents=True)
    config = {"model": {"class_path": f"ser_lightning.{module}", "init_args": {"backbone": {"path": "tiny"}}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if steps:
        lines = [",".join(steps[0]), *(",".join("" if v is None else str(v) for v in s.values()) for s in steps)]
        (folder / "steps.csv").write_text("\n".join(lines) + "\n")
    if losses:
        lines = [*(f"{s},{x}," for s, x in losses), *(f"{s},,{x}" for s, x in held_out)]
        (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/loss", *lines]) + "\n")
    for number, one in enumerate(samples):
        (folder / "samples" / f"{9 + number}.jsonl").write_text(json.dumps(one) + "\n")
    return folder


@pytest.mark.usefixtures("real_pictures")
def test_whether_training_helped_follows_from_the_interval_of_the_win_rate():
    better = step(8, win_rate=0.75, win_rate_low=0.6, win_rate_high=0.9, judge_score=0.7)
    text = page_of(policy_run(steps=[step(0), better])).text
    assert (
        "Did training help? Yes. At step 8, 0.750 of the held-out prompts" in text and "by the second scorer." in text
    )
    start = page_of(policy_run("start", steps=[step(0)])).text
    assert "Only the starting policy has been asked: there is no step to compare with it." in start
    unclear = page_of(policy_run("unclear", steps=[step(0), step(8)])).text
    assert "Did training help? Not shown." in unclear
    worse = page_of(policy_run("worse", steps=[step(0), step(8, win_rate_high=0.45)])).text
    assert "Did training help? No, it did harm." in worse


@pytest.mark.usefixtures("real_pictures")
def test_a_second_scorer_that_fell_is_named_and_one_that_is_not_there_is_left_out():
    fell = [step(0), step(4, judge_score=0.9, judge_score_low=0.8), step(8, judge_score=0.6)]
    page = page_of(policy_run(steps=fell))
    assert "The second scorer likes step 4 best: the policy may game its reward since." in page.text
    header, _, second, _ = page.tables["Steps"]
    assert second[header.index("second scorer")].split() == ["0.900", "0.800", "to", "0.500"]
    none = [step(n, judge_score=None, judge_score_low=None, judge_score_high=None) for n in (0, 8)]
    page = page_of(policy_run("none", steps=none))
    assert "second scorer" not in page.tables["Steps"][0] and "by the reward that it is trained on." in page.text


def test_answers_of_the_last_validation_stand_side_by_side_as_text():
    sample = {"prompt": "Why?", "before": "<b>So.", "after": "Because.", "reward_before": -1.0, "reward_after": 2.5}
    sample |= {"judge_score_before": None, "judge_score_after": None}
    run = policy_run(steps=[step(0), step(8)], samples=[{**sample, "after": "Early."}, sample])
    page = page_of(run)
    assert "before: reward -1.000" in page.text and "after: reward 2.500" in page.text and "<b>So." in page.text
    assert "Early." not in page.text and read_policy_run(run).samples == [sample]
    (run / "samples" / "10.jsonl").write_text(json.dumps({**sample, "reward_after": "high"}))
    with pytest.raises(UserError, match=r"10\.jsonl .*reward_after is a str"):
        read_policy_run(run)


def test_the_answer_that_scores_higher_is_marked_and_no_other():
    scores = {"reward_before": -1.0, "reward_after": 2.5, "judge_score_before": None, "judge_score_after": None}
    texts = {"prompt": "Why?", "before": "So.", "after": "Because."}
    judged = {"judge_score_before": 0.5, "judge_score_after": 0.25}
    cases = {
        "reward": (scores, ["answer", "answer better"]),
        "judge": (scores | judged, ["answer better", "answer"]),
        "tie": (scores | {"reward_after": -1.0}, ["answer", "answer"]),
    }
    for name, (found, expected) in cases.items():
        page = page_of(policy_run(name, steps=[step(0), step(8)], samples=[texts | found]))
        classes = [attributes.get("class", "") for tag, attributes in page.tags if tag == "div"]
        assert [one for one in classes if one.startswith("answer")] == expected, name


def test_the_win_rate_has_a_curve_and_the_next_step_is_named_where_nothing_is_shown():
    page = page_of(policy_run(steps=[step(0), step(8)]))
    pictures = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert pictures[0] == "win rate by step: 0.500, 0.500" and "0.5 is no change." in page.text
    assert "Next: ask more held-out prompts (data.num_val_prompts)" in page.text
    better = page_of(policy_run("better", steps=[step(0), step(8, win_rate_low=0.55)]))
    assert "Next:" not in better.text


@pytest.mark.usefixtures("real_pictures")
def test_a_run_of_sft_has_its_loss(capsys):
    """Lightning counts steps from 0: the line of step 4 is that of the fifth."""
    run = policy_run("sft", "SFTModule", losses=[(4, 3.5), (9, 2.25)])
    assert main(["report", "sft"]) == 0 and capsys.readouterr().out == "Report: sft/report.html\n"
    page = Page(run / "report.html")
    assert "The training loss went from 3.500 nats a token at step 5 to 2.250 at step 10." in page.text
    assert "No response was held out (data.val_fraction)" in page.text
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
        "Training loss over 2 logged steps."
    ]


def test_a_run_of_sft_with_held_out_responses_says_when_they_were_fitted_best():
    losses = [(4, 3.5), (9, 2.25)]
    run = policy_run("sft", "SFTModule", losses=losses, held_out=[(4, 3.75), (9, 3.25), (14, 3.5)])
    page = page_of(run)
    assert "On held-out responses it went from 3.750 after the first epoch to 3.500." in page.text
    assert "There it was lowest, 3.250 after 10 steps: train for fewer epochs." in page.text
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"][1] == (
        "Loss on held-out responses: 3.750, 3.250, 3.500"
    )
    last = page_of(policy_run("last", "SFTModule", losses=losses, held_out=[(4, 3.75), (9, 3.25)]))
    assert "train for fewer epochs" not in last.text and "No response was held out" not in last.text


def test_what_has_no_page_says_so(capsys):
    empty = policy_run("empty")
    reward = write_run("reward", [row(0, True)], notes())
    assert is_policy_run(empty) and not is_policy_run(reward)
    with pytest.raises(UserError, match="has logged nothing; let its fit go on"):
        write_report([empty], Path("page.html"))
    with pytest.raises(UserError, match="a run of a policy, among several; give it alone"):
        write_report([reward, empty], Path("page.html"))
