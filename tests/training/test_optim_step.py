"""How often a step makes the host wait for the device: on CUDA each such read would stop the flow of kernels."""

import pytest
import torch
from lightning.pytorch import seed_everything

from ser_lightning.datamodules.prompts import PromptDataModule
from ser_lightning.inference.scorer import Scorer
from ser_lightning.models import masks
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.policy import load_policy
from ser_lightning.modules.ppo import PPOModule
from ser_lightning.modules.sft import SFTModule
from ser_lightning.rl import rollout
from ser_lightning.rl.experience import PPOSettings
from ser_lightning.rl.policy_math import FixedKL
from ser_lightning.rl.rollout import Generator, Sampling, uniform_numbers
from tests.device_reads import DeviceReads
from tests.helpers import data, module, save_reward_model, slow, trainer
from tests.policy_runs import responses


def optimizer(p):
    """Fused, as `fuse` makes it on CUDA: the others read how many steps they took."""
    return torch.optim.AdamW(p, lr=1e-3, fused=True)


@pytest.fixture(autouse=True)
def _masks_of_cuda(monkeypatch):
    """Padded rows get the masks that they have on CUDA."""
    padded = masks._padded
    monkeypatch.setattr(masks, "_padded", lambda model, kind: padded(model, "cuda"))


def reads_of(owner, method, monkeypatch):
    """A list that gets, for each call of a method, what it read."""
    found, original = [], getattr(owner, method)

    def counted(*args, **kwargs):
        with DeviceReads() as reads:
            result = original(*args, **kwargs)
        found.append(reads.found)
        return result

    monkeypatch.setattr(owner, method, counted)
    return found


@pytest.mark.parametrize("layout", ["shared_prompt", "padded"])
def test_a_step_of_the_reward_model_reads_once(tiny_model_dir, pairs_file, layout, monkeypatch):
    seed_everything(0, verbose=False)
    model, sizes = module(tiny_model_dir, layout=layout), []
    model.optimizer = optimizer
    model.on_train_batch_start = lambda batch, batch_idx: sizes.append(len(batch))
    found = reads_of(model, "training_step", monkeypatch)
    trainer("run", max_epochs=1, limit_train_batches=2).fit(model, data(pairs_file, tokens_per_batch=128))
    assert min(sizes) > 1  # several micro-batches
    assert found == [["tolist"]] * 2


@pytest.mark.parametrize("layout", ["shared_prompt", "padded"])
def test_a_batch_is_scored_without_a_read(tiny_model_dir, pairs_file, layout, monkeypatch):
    model = module(tiny_model_dir, layout=layout)
    found = reads_of(model, "predict_step", monkeypatch)
    trainer("run").predict(model, data(pairs_file), return_predictions=False)
    assert found and not any(found)


def test_a_step_of_fine_tuning_reads_once(tiny_model_dir, pairs_file, monkeypatch):
    seed_everything(0, verbose=False)
    model, sizes = SFTModule(Backbone(str(tiny_model_dir), train="full"), optimizer=optimizer), []
    model.on_train_batch_start = lambda batch, batch_idx: sizes.append(len(batch))
    steps, validation = (reads_of(model, f"{name}_step", monkeypatch) for name in ("training", "validation"))
    settings = responses(pairs_file, tokens_per_batch=128, val_fraction=0.2)
    trainer("run", max_epochs=1, limit_train_batches=2, limit_val_batches=2).fit(model, settings)
    assert min(sizes) > 1
    assert steps == [["tolist"]] * 2
    assert validation and not any(validation)


@pytest.mark.parametrize("layout", ["shared_prompt", *slow("padded")])
@pytest.mark.parametrize("advantage", ["gae", *slow("rloo")])
def test_an_update_of_the_policy_reads_once(tiny_model_dir, pairs_file, advantage, layout, monkeypatch):
    seed_everything(0, verbose=False)
    settings = PPOSettings(epochs=2, minibatches=3)
    backbone = Backbone(str(tiny_model_dir), lora=LoraSettings(r=4, dropout=0.0))
    group = 1 if advantage == "gae" else 3
    model = PPOModule(
        *(backbone, "math.dist", FixedKL(0.1), Sampling(8), settings),
        **{"advantage": advantage, "responses_per_prompt": group, "layout": layout, "tokens_per_batch": 60},
        **{"optimizer": optimizer, "critic_optimizer": optimizer},
    )  # fmt: skip
    monkeypatch.setattr(PPOModule, "_load_judges", lambda *_: (_Judge(), None))
    found = {name: reads_of(model, name, monkeypatch) for name in ("training_step", "_respond", "_policy_backward")}
    prompts = PromptDataModule(
        str(pairs_file), seed_fraction=0.3, max_length=64, prompts_per_step=6, steps_per_epoch=2, cache_dir="cache"
    )
    trainer("run", max_epochs=1, limit_val_batches=0).fit(model, prompts)
    num_updates, steps = 2 * 3, found["training_step"]
    assert len(found["_policy_backward"]) > 2 * num_updates  # some updates have several micro-batches
    assert len(steps) == 2
    for step, sampling in zip(steps, found["_respond"], strict=True):
        assert step == [*sampling, *["tolist"] * (num_updates + 1)]  # a norm for each update, then all figures


def test_a_reward_model_reads_once_however_many_batches_it_takes(tmp_path, tiny_tokenizer):
    save_reward_model(tmp_path / "model", tiny_tokenizer, 64)
    scorer = Scorer.load(tmp_path / "model", tokens_per_batch=60)
    rows = scorer.encode_rows(["Hi", "What is it?", "Why?"] * 3, [*"abcdefghi"])
    with DeviceReads() as reads:
        batches = []
        scorer.reward.score_rows([row.ids for row in rows], [row.start for row in rows], [*range(9)], batches.append)
    assert len(batches) > 2
    assert reads.found == ["cpu"]


class _Judge:
    num_cut = 0

    def __call__(self, prompts, responses):
        return torch.linspace(-1, 1, len(responses))


@pytest.mark.parametrize("prompts", [[[5, 9, 17], [33, 8, 44, 12, 90, 7]], [[5, 9], [33, 8]], [[5, 9], [5, 9], [7]]])
def test_sampling_reads_now_and_then_who_has_ended(tiny_model_dir, prompts, monkeypatch):
    policy = load_policy(Backbone(str(tiny_model_dir))).eval()
    monkeypatch.setitem(rollout.COLUMNS_PER_CHECK, "cpu", 5)
    sampler = Generator(Sampling(12), [10_000], 0, tokens_per_batch=10_000)
    with DeviceReads() as reads:
        sampler.sample(policy, "policy", prompts, uniform_numbers((3,), len(prompts), 12))
    # After columns 0, 5 and 10, and all tokens at the end.
    assert reads.found == [*["_local_scalar_dense"] * 3, "tolist"]
