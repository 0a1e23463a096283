"""Lightning calls `configure_model` where new tensors are made on the GPU, which must change nothing."""

import pytest
import torch
from lightning.pytorch.strategies import Strategy

from ser_lightning.__main__ import main
from tests.helpers import read_csv, slow
from tests.policy_runs import generate_flags, sft_flags


@pytest.fixture
def elsewhere(monkeypatch):
    """Where a GPU would be, new tensors have no storage: a device that every machine has."""
    monkeypatch.setattr(Strategy, "tensor_init_context", lambda self, empty_init=None: torch.device("meta"))


@pytest.fixture(scope="module")
def runs(tiny_model_dir, pairs_file, tmp_path_factory):
    """Flags of a short fit of each module; PPO starts from the SFT run and asks the reward run."""
    flags = ["--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"]
    reward = ["--config", "rm.yaml", f"--model.backbone.path={tiny_model_dir}", f"--data.path={pairs_file}"]
    reward += ["--data.max_length=64", "--data.pairs_per_step=8", "--data.seed_fraction=0.3", *flags]
    reward += ["--evolution.max_rounds=0", "--evolution.seed_epochs=1", "--evolution.folds=2"]
    ppo = ["--config", "ppo.yaml", f"--data.path={pairs_file}", "--data.max_length=64", "--data.steps_per_epoch=1"]
    ppo += ["--data.prompts_per_step=4", "--data.num_val_prompts=4", "--trainer.max_epochs=1", *flags]
    ppo += [
        "--model.sampling.max_new_tokens=4",
        "--model.allow_uncalibrated=true",
        "--model.judge=null",
        "--model.backbone.train=lora",
    ]
    return {
        "lora": [*reward, "--model.backbone.train=lora"],
        "head": [*reward, "--model.backbone.train=head", "--model.reading=auto"],
        "sft": sft_flags(tiny_model_dir, pairs_file, "lora"),
        "ppo": ppo,
    }


@pytest.mark.parametrize("train", ["lora", *slow("head")])
def test_a_reward_run_is_the_same(runs, train, request):
    assert main(["fit", *runs[train], "--run_dir=usual"]) == 0
    request.getfixturevalue("elsewhere")
    assert main(["fit", *runs[train], "--run_dir=there"]) == 0
    figures = [
        {k: v for k, v in row.items() if "seconds" not in k and k != "tokens"}  # the second run finds its features
        for run in ("usual", "there")
        for row in read_csv(f"{run}/rounds.csv")
    ]
    assert figures[0] == figures[1]


def test_policies_are_trained_and_asked(runs, tiny_model_dir, pairs_file, elsewhere):
    assert main(["fit", *runs["lora"], "--run_dir=reward"]) == 0
    assert main(["fit", *runs["sft"], "--run_dir=sft"]) == 0
    start = ["--model.backbone.path=sft", "--model.reward_model=reward", "--run_dir=ppo"]
    assert main(["fit", *runs["ppo"], *start]) == 0
    assert main(["predict", *generate_flags("ppo", pairs_file, "lora"), "--run_dir=answers"]) == 0
