"""What a plan says of a policy: weights to the byte as loaded, steps as a real trainer takes them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.policy import POLICY, load_policy, policy_state
from ser_lightning.modules.ppo import PPOModule
from ser_lightning.modules.sft import SFTModule
from ser_lightning.planning.budgets import cache_bytes
from ser_lightning.planning.memory import gradient_bytes, optimizer_bytes, shape_of, trained_weights
from ser_lightning.planning.policy import (
    count_steps,
    count_validations,
    held_out_answers,
    rl_memory,
    role_weights,
    sft_memory,
    sft_work,
)
from ser_lightning.records import Padded
from ser_lightning.rl.experience import PPOSettings
from ser_lightning.rl.kv_cache import sampling_cache
from ser_lightning.rl.policy_math import FixedKL
from ser_lightning.rl.rollout import Sampling
from tests.helpers import kept_for_backward, save_language_model

SETTINGS = [
    {"train": train, "dtype": dtype, "quantize": quantize}
    for train in ("full", "lora")
    for dtype in ("float32", "bfloat16")
    for quantize in ("none", "nf4")
    if (train, quantize) != ("full", "nf4")
]


def num_bytes(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def held(module):
    """Bytes of all weights, with what 4-bit ones need to be read."""
    found = list(module.parameters())
    for p in module.parameters():
        if (state := getattr(p, "quant_state", None)) is not None:
            found += [state.absmax, state.offset, state.code, state.state2.absmax, state.state2.code]
    return num_bytes(found)


@pytest.mark.parametrize("has_critic", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings.values()))
def test_weights_gradients_and_optimiser_state_are_those_of_the_loaded_policy(tiny_model_dir, settings, has_critic):
    backbone = Backbone(str(tiny_model_dir), **settings)
    meta, real = (load_policy(backbone, d, None, has_reference=True, has_critic=has_critic) for d in ("meta", "cpu"))
    assert all(p.is_meta for p in meta.parameters())
    assert [n for n, _ in meta.named_parameters()] == [n for n, _ in real.named_parameters()]
    weights = role_weights(meta)
    assert sum(w.num_bytes for w in weights.values()) == held(real)
    for role in ("policy", "critic") if has_critic else ("policy",):
        trained = real.parameters_of(role)
        assert weights[role].trained == sum(p.numel() for p in trained)
        for p in trained:
            p.grad = torch.zeros_like(p)
        assert gradient_bytes(meta.parameters_of(role)) == num_bytes(p.grad for p in trained)
        optimizer = torch.optim.AdamW(trained)
        optimizer.step()
        state = [value for values in optimizer.state.values() for value in values.values()]
        assert optimizer_bytes(torch.optim.AdamW(meta.parameters_of(role))) == num_bytes(state)
    assert ("critic" in weights) == has_critic
    # With adapters the base is there once, and it is the reference of a policy that starts from it.
    assert ("base" in weights) == (settings["train"] == "lora") != ("reference" in weights)


def test_a_policy_that_starts_from_another_run_has_its_reference_beside_it(tiny_model_dir):
    backbone = Backbone(str(tiny_model_dir), train="lora")
    start = policy_state(load_policy(backbone).trainable_state())
    meta, real = (load_policy(backbone, d, start, has_reference=True, has_critic=True) for d in ("meta", "cpu"))
    weights = role_weights(meta)
    assert weights["reference"].frozen == weights["policy"].trained
    assert sum(w.num_bytes for w in weights.values()) == held(real)


@pytest.fixture(scope="module")
def wide_dir(tiny_tokenizer, tmp_path_factory):
    """Wide enough for activations to count for more than what a plan leaves out."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    return save_language_model(folder, tiny_tokenizer, **sizes, **heads)


def test_the_cache_has_the_bytes_of_a_real_one(wide_dir):
    backbone = Backbone(wide_dir, train="lora")
    policy = load_policy(backbone)
    cache = sampling_cache(policy.lm.config, 20)
    ids = torch.randint(3, 100, (2, 20))
    with torch.no_grad():
        policy.next_hidden(POLICY, ids, torch.ones_like(ids), torch.arange(20).expand(2, 20), cache)
    kept = num_bytes(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
    shape = shape_of(policy.lm, backbone, "32-true", "cpu", POLICY)
    assert cache_bytes(shape, 40) == kept + num_bytes([cache.layers[0].keys, cache.layers[0].values])


@pytest.mark.parametrize("train", ["full", "lora"])
def test_activations_of_sft_are_about_those_that_autograd_keeps(wide_dir, train):
    backbone = Backbone(wide_dir, train=train, lora=LoraSettings(dropout=0.0))
    meta = SFTModule(backbone).to("meta")
    meta.configure_model()
    memory = sft_memory(meta, meta.configure_optimizers(), np.full(8, 64), 8, 10_000, "32-true", "cpu")
    assert memory["batch_tokens"] == {"training": 512}
    real = load_policy(backbone)
    ids = torch.randint(3, 100, (8, 64))
    found = kept_for_backward(real, lambda: real.hidden(POLICY, Padded(ids, torch.ones_like(ids))))
    assert memory["kinds"]["activations, estimate"]["training"] == pytest.approx(found, rel=0.25)
    assert memory["all"]["training"] == sum(kind["training"] for kind in memory["kinds"].values())


def ppo(path, train="lora", advantage="gae", group=1, **kwargs):
    settings = {"sampling": Sampling(8), "kl_control": FixedKL(0.1), "ppo": PPOSettings(epochs=1), **kwargs}
    module = PPOModule(
        Backbone(str(path), train=train), "builtins.len", advantage=advantage, responses_per_prompt=group, **settings
    )
    module.to("meta").configure_model()
    return module


def planned(module, layout=PADDED, prompts=4, lengths=(5, 20)):
    made = module.configure_optimizers()
    budgets = module.token_settings
    return rl_memory(module, made, np.array(lengths), prompts, 2, layout, budgets, "32-true", "cpu")


def test_the_phases_of_a_step_hold_what_they_need_and_no_more(tiny_model_dir):
    kinds = planned(ppo(tiny_model_dir))["kinds"]
    trained = trained_weights(load_policy(Backbone(str(tiny_model_dir)), has_reference=True, has_critic=True))
    assert kinds["gradients"] == {"sampling": 0, "scoring": 0, "training": num_bytes(trained)}
    assert kinds["KV cache"]["sampling"] > 0 == kinds["KV cache"]["scoring"]
    assert set(kinds["base"].values()) == {kinds["base"]["training"]}
    without = planned(ppo(tiny_model_dir, advantage="rloo", group=2))["kinds"]
    assert "critic" not in without and without["optimiser"]["training"] < kinds["optimiser"]["training"]


def test_batches_are_as_large_as_prompts_responses_and_budgets_make_them(tiny_model_dir):
    module = ppo(tiny_model_dir, "full", "rloo", 3, tokens_per_batch=60, tokens_per_sampling_batch=1000)
    # 4 prompts of at most 20 tokens with 3 responses of 8 tokens each: rows of 28.
    assert planned(module)["batch_tokens"] == {"sampling": 12 * 28, "scoring": 60, "training": 60}
    # What shares a prompt lies together: 20 + 3 * 8 tokens.
    assert planned(module, Layout(shares_prompts=True))["batch_tokens"]["training"] == 60
    assert planned(module, Layout(shares_prompts=True), prompts=1)["batch_tokens"]["training"] == 44
    less = ppo(tiny_model_dir, "full", "rloo", 3, tokens_per_batch=10, tokens_per_sampling_batch=100)
    assert planned(less)["batch_tokens"] == {"sampling": 100, "scoring": 28, "training": 28}


class Steps(LightningModule):
    """Takes several optimizer steps a batch, by hand, and counts batches and validations."""

    def __init__(self, optimizer_steps):
        super().__init__()
        self.layer, self.optimizer_steps = torch.nn.Linear(1, 1), optimizer_steps
        self.automatic_optimization = False
        self.batches = self.validations = 0

    def training_step(self, batch, batch_idx):
        self.batches += 1
        for _ in range(self.optimizer_steps):
            self.manual_backward(self.layer(batch).sum())
            self.optimizers().step()

    def validation_step(self, batch, batch_idx):
        self.validations += batch_idx == 0 and not self.trainer.sanity_checking

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


DEFAULTS = {"max_epochs": None, "max_steps": -1, "limit_train_batches": None, "fast_dev_run": False}
DEFAULTS |= {"val_check_interval": None, "check_val_every_n_epoch": 1}


@pytest.mark.parametrize("optimizer_steps", [1, 3])
@pytest.mark.parametrize(
    "flags",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "limit_train_batches": 0.5},
        {"max_epochs": 3, "limit_train_batches": 2},
        {"max_epochs": 3, "max_steps": 8},
        {"max_steps": 13},
        {"max_epochs": 3, "val_check_interval": 2},
        {"max_epochs": 3, "val_check_interval": 0.5},
        {"max_epochs": 4, "check_val_every_n_epoch": 2},
        {"max_epochs": 3, "check_val_every_n_epoch": None, "val_check_interval": 4},
        {"max_epochs": 3, "check_val_every_n_epoch": 2, "val_check_interval": 2, "max_steps": 30},
        {"fast_dev_run": 2},
    ],
    ids=str,
)
def test_steps_and_validations_are_those_that_lightning_takes(flags, optimizer_steps, tmp_path):
    module = Steps(optimizer_steps)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", default_root_dir=str(tmp_path), **{**DEFAULTS, **flags}, **quiet)
    batches = DataLoader(torch.ones(5, 1))
    trainer.fit(module, batches, DataLoader(torch.ones(1, 1)))
    settings = SimpleNamespace(**{**DEFAULTS, **flags})
    steps = count_steps(settings, 5, optimizer_steps)
    assert steps.total == module.batches
    assert count_validations(settings, steps) == module.validations


def test_a_fit_without_an_end_has_no_total():
    settings = SimpleNamespace(**{**DEFAULTS, "max_epochs": -1})
    steps = count_steps(settings, 5)
    assert (steps.per_epoch, steps.total) == (5, None)
    assert count_validations(settings, steps) is None is held_out_answers(settings, 10, 5, None)
    assert count_steps(SimpleNamespace(**DEFAULTS), 5).total == 5000
    assert "all" not in sft_work(steps, np.full(9, 4), np.full(9, 2), 2)["responses"]


@pytest.mark.parametrize(
    ("flags", "answers"),
    [
        ({}, 2 * 4 + 10 * 4),  # of both policies at a glance at two batches; then of the policy, first of both
        ({"num_sanity_val_steps": 9}, 2 * 10 + 10 * 4),
        ({"num_sanity_val_steps": 0}, 10 * 4),
        ({"num_sanity_val_steps": -1}, 10 * 5),
        ({"fast_dev_run": 1}, 10 * 4),
        ({"limit_val_batches": 3}, 2 * 4 + 6 * 4),
        ({"limit_val_batches": 0}, 0),
    ],
    ids=str,
)
def test_held_out_prompts_are_answered_by_hand_count(flags, answers):
    usual = {"limit_val_batches": None, "fast_dev_run": False, "num_sanity_val_steps": None}
    assert held_out_answers(SimpleNamespace(**{**usual, **flags}), 10, 2, 3) == answers


def test_a_part_of_an_epoch_reads_its_share_of_the_tokens():
    steps = count_steps(SimpleNamespace(**{**DEFAULTS, "max_steps": 8}), 5)
    work = sft_work(steps, np.array([10] * 9), np.array([4] * 9), 2)  # steps of 2, 2, 2, 2, 1 and then 2, 2, 2
    assert work["responses"] == {"step": 2, "epoch": 9, "all": 15}
    assert work["tokens"]["all"] == 150 and work["response tokens"]["all"] == 60
    assert math.isclose(work["tokens"]["step"], 20)
