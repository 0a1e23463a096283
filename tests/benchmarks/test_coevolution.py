import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from benchmarks.coevolution import run as coevolve
from ser_lightning.__main__ import main
from ser_lightning.errors import UserError

TINY = [
    *(f"{kind}=data.synthetic_pairs=160" for kind in ("rm", "sft", "ppo", "pool", "heldout")),
    *(f"rm=evolution.{name}=1" for name in ("seed_epochs", "epochs_per_round", "max_rounds")),
    *("sft=trainer.max_epochs=1", "ppo=trainer.max_epochs=1"),
    *("ppo=data.prompts_per_step=4", "ppo=data.steps_per_epoch=1", "ppo=data.num_val_prompts=4"),
    *("pool=trainer.limit_predict_batches=1", "pool=data.val_prompts_per_batch=16", "heldout=data.num_val_prompts=12"),
    *(f"{kind}=trainer.enable_progress_bar=false" for kind in ("rm", "sft", "ppo", "pool", "heldout")),
]


@pytest.fixture
def calls(monkeypatch):
    """Run the steps in this process, which has imported everything already, and list them."""
    found = []

    def call(*words):
        found.append(words)
        assert main(list(words)) == 0

    monkeypatch.setattr(coevolve, "call", call)
    return found


# Measuring


def test_pairs_are_counted_as_by_hand():
    # Pairs by gold: (0,1) a wins, (0,2) a wins, (1,2) equal and left out, (0,3), (1,3), (2,3) b wins.
    gold, rewards = [2.0, 1.0, 1.0, 3.0], [5.0, 4.0, 5.0, 4.5]
    # (0,1) right, (0,2) a tie, (0,3) wrong: 5.0 > 4.5, (1,3) right, (2,3) wrong.
    assert coevolve.count_right(rewards, gold) == (2.5, 5)
    assert coevolve.count_right(gold, gold) == (5.0, 5)
    assert coevolve.count_right([-score for score in gold], gold) == (0.0, 5)
    assert coevolve.count_right([1.0, 2.0], [0.5, 0.5]) == (0.0, 0)


def test_the_bootstrap_is_over_prompts_and_paired():
    counts = [coevolve.PromptCount(2, 2, 2), coevolve.PromptCount(1, 0, 1), coevolve.PromptCount(0, 0, 0)]
    found = coevolve.figures(counts)
    assert found["before"]["estimate"] == pytest.approx(2 / 3)
    assert found["after"] == pytest.approx({"estimate": 1, "low": 1, "high": 1})
    assert found["change"]["estimate"] == pytest.approx(1 / 3)
    # The second prompt twice happens in a quarter of the resamples, the first twice in another.
    assert (found["before"]["low"], found["before"]["high"]) == (0, 1)
    assert (found["change"]["low"], found["change"]["high"]) == (0, 1)


def test_the_interval_is_that_of_all_resamples():
    rows = [(3, 1, 2), (1, 1, 0), (2, 0, 2), (3, 3, 3), (1, 0, 1)]
    changes = []
    for drawn in product(rows, repeat=len(rows)):
        num_pairs, before, after = (sum(column) for column in zip(*drawn, strict=True))
        changes.append((after - before) / num_pairs)
    changes.sort()
    found = coevolve.figures([coevolve.PromptCount(*row) for row in rows])["change"]
    assert found["low"] == pytest.approx(changes[int(0.025 * len(changes))], abs=0.02)
    assert found["high"] == pytest.approx(changes[int(0.975 * len(changes))], abs=0.02)


def test_models_that_judge_alike_have_changed_nothing():
    found = coevolve.figures([coevolve.PromptCount(4, n % 5, n % 5) for n in range(20)])
    assert found["before"] == found["after"]
    assert found["change"] == {"estimate": 0, "low": 0, "high": 0}


def test_answers_without_a_difference_are_an_error():
    with pytest.raises(UserError, match="got 0 prompts with answers of different gold scores"):
        coevolve.figures([coevolve.PromptCount(0, 0, 0)])


def test_the_responses_of_a_prompt_are_found_in_its_pairs():
    prompts = [[{"role": "user", "content": text}] for text in ("one?", "two?")]
    lines = [(prompts[0], "a", "b"), (prompts[1], "x", "y"), (prompts[0], "c", "a")]
    rows = [dict(zip(("prompt", "response_a", "response_b"), line, strict=True)) for line in lines]
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = coevolve.read_answers(Path("pool.jsonl"))
    assert found == [(prompts[0], ["a", "b", "c"]), (prompts[1], ["x", "y"])]


def test_both_models_judge_the_same_answers(monkeypatch):
    judges = {"long": len, "short": lambda text: -len(text)}

    def load_reward(source, allow_uncalibrated):
        return lambda prompts, texts: SimpleNamespace(tolist=lambda: [judges[source](text) for text in texts])

    monkeypatch.setattr(coevolve, "load_reward", load_reward)
    monkeypatch.setattr(coevolve, "gold_scores", lambda prompts, texts: [len(text) for text in texts])
    answers = [([], ["aaa", "b"]), ([], ["cc", "d", "eee"])]
    found = coevolve.count_prompts(answers, Path("short"), Path("long"))
    assert found == [coevolve.PromptCount(1, 0, 1), coevolve.PromptCount(3, 0, 3)]


# Steps


@pytest.mark.slow  # six fits and four rounds of responses: the longest of all tests
def test_two_turns_run_and_the_same_command_again_trains_nothing(calls, capsys):
    flags = [word for setting in TINY for word in ("--set", setting)]
    command = ["--folder", "study", "--turns", "2", "--seed", "3", *flags, "--out", "results.jsonl"]
    assert coevolve.main(command) == 0
    assert "Co-evolution" in capsys.readouterr().out
    result = json.loads(Path("study/coevolve.json").read_text())
    assert [json.loads(line) for line in Path("results.jsonl").read_text().splitlines()] == [result]
    assert [turn["turn"] for turn in result["turns"]] == [1, 2]
    for turn in result["turns"]:
        share = turn["accuracy"]
        assert turn["num_pairs"] > 0
        assert share["change"]["estimate"] == pytest.approx(share["after"]["estimate"] - share["before"]["estimate"])
        assert all(0 <= share[when]["low"] <= share[when]["high"] <= 1 for when in ("before", "after"))
    # A policy starts where the one before it ended, against the reward model that has learnt from that.
    assert [words[words.index("--model.backbone.path") + 1] for words in calls if "ppo.yaml" in words] == [
        "study/sft",
        "study/ppo-1",
    ]
    assert [words[words.index("--model.reward_model") + 1] for words in calls if "ppo.yaml" in words] == [
        "study/rm-0",
        "study/rm-1",
    ]
    assert coevolve.files_that_arrived(Path("study/rm-2")) == ["study/pool-1/pool.jsonl", "study/pool-2/pool.jsonl"]
    held_out, trained_on = (prompts_of(f"study/{name}-1/pool.jsonl") for name in ("heldout", "pool"))
    assert held_out and trained_on and not held_out & trained_on

    checkpoints = {path: path.stat().st_mtime_ns for path in Path("study").glob("*/checkpoints/last.ckpt")}
    assert len(checkpoints) == 6
    calls.clear()
    assert coevolve.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == checkpoints
    assert [words[0] for words in calls] == ["fit"] * 6
    assert json.loads(Path("study/coevolve.json").read_text()) == result


def prompts_of(path):
    return {json.dumps(json.loads(line)["prompt"]) for line in Path(path).read_text().splitlines()}


def test_a_reward_model_of_other_splits_is_refused(calls, capsys):
    run = Path("rm")
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("data: {init_args: {path: synthetic, split_seed: 0}}")
    assert coevolve.main(["--rm", "rm"]) == 2
    assert "rm, which has no checkpoints/last.ckpt" in capsys.readouterr().err
    (run / "checkpoints" / "last.ckpt").touch()
    assert coevolve.main(["--rm", "rm", "--seed", "1"]) == 2
    assert "data.split_seed 0; need synthetic and 1" in capsys.readouterr().err
    assert calls == []


def test_flags_reach_their_step_alone():
    found = coevolve.read_flags(["ppo=trainer.max_epochs=1", "rm=data.path=a=b", "ppo=model.advantage=rloo"])
    assert found == {"ppo": ["--trainer.max_epochs=1", "--model.advantage=rloo"], "rm": ["--data.path=a=b"]}
    for wrong in ("ppo", "dpo=x=1"):
        with pytest.raises(UserError, match="need STEP=KEY=VALUE"):
            coevolve.read_flags([wrong])


def test_a_step_that_fails_ends_the_study(monkeypatch):
    monkeypatch.setattr(coevolve.subprocess, "run", lambda words, check: SimpleNamespace(returncode=2))
    with pytest.raises(UserError, match="exit code 2"):
        coevolve.call("fit")


def test_a_model_that_was_delivered_again_is_marked(capsys):
    interval = {"estimate": 0.5, "low": 0.25, "high": 0.75}
    turn = {"accuracy": dict.fromkeys(("before", "after", "change"), interval), "policy_gold": interval}
    turns = [{"turn": n, **turn, "num_pairs": 9, "num_prompts": 3, "is_old_round": n == 2} for n in (1, 2)]
    coevolve.show({"start_gold": interval, "turns": turns}, Console(width=200))
    shown = capsys.readouterr().out
    assert "2 *" in shown and "1 *" not in shown
    assert shown.count("(0.250 to 0.750)") == 6  # three shares in each of two turns
    assert shown.count("(0.25 to 0.75)") == 3  # the gold score of the start and of each policy
