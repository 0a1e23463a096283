"""The RL stage on either device: sampling, the log-probabilities of what was sampled, and steps of PPO."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ser_lightning.datamodules.prompts import PromptDataModule
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.policy import load_policy
from ser_lightning.modules.ppo import PPOModule
from ser_lightning.rl.experience import PPOSettings, measure
from ser_lightning.rl.policy_math import FixedKL
from ser_lightning.rl.rollout import Generator, Sampling, uniform_numbers
from tests.helpers import trainer

PROMPTS = [[5, 9, 17], [33, 8, 44, 12, 90, 7], [61], [70, 71, 72, 73], [70, 71, 72, 73]]
STOP = list(range(40, 60))
ROOM = 10


@pytest.fixture(scope="module")
def small_model(tiny_tokenizer, tmp_path_factory) -> Path:
    """With a distribution sharp enough for responses to differ in their chances."""
    folder = tmp_path_factory.mktemp("small_policy")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), **sizes, pad_token_id=0, eos_token_id=2))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def backbone(folder, **kwargs):
    return Backbone(str(folder), lora=LoraSettings(r=4, dropout=0.0), **kwargs)


def sample(policy, device):
    numbers = uniform_numbers((3,), len(PROMPTS), ROOM)
    return Generator(Sampling(ROOM), STOP, 0, 10_000).sample(policy, "policy", PROMPTS, numbers.to(device)), numbers


def test_sampling_draws_what_plain_transformers_on_a_cpu_would(small_model, device):
    """Every token again, from the probabilities of a model in float64 and the same random numbers."""
    policy = load_policy(backbone(small_model), device).to(device).eval()
    sampled, numbers = sample(policy, device)
    plain = AutoModelForCausalLM.from_pretrained(small_model).double().eval()
    for row, prompt in enumerate(PROMPTS):
        response = sampled.response_ids[row][sampled.response_mask[row]].tolist()
        assert len(response) == ROOM or response[-1] in STOP
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        upper = logits.softmax(-1).cumsum(-1)
        for place, token in enumerate(response):
            low = float(upper[place, token - 1]) if token else 0.0
            assert low - 1e-5 <= float(numbers[row, place]) <= float(upper[place, token]) + 1e-5
    assert bool(sampled.has_ended.any()) and not bool(sampled.has_ended.all())


@pytest.mark.parametrize("layout", ["padded", "shared_prompt"])
def test_log_probabilities_of_a_sample_are_those_of_a_cpu(small_model, device, layout, record_property):
    policy = load_policy(backbone(small_model), device, layout=layout).to(device).eval()
    sampled, _ = sample(policy, device)
    logp, *_ = measure(policy, sampled, 1.0, 10_000)
    plain = AutoModelForCausalLM.from_pretrained(small_model).double().eval()
    largest = 0.0
    for row, prompt in enumerate(PROMPTS):
        mask = sampled.response_mask[row]
        response = sampled.response_ids[row][mask].cpu()
        ids = torch.cat([torch.tensor(prompt), response])[None]
        with torch.no_grad():
            logps = plain(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logps.gather(1, response[:, None]).squeeze(1)
        largest = max(largest, float((logp[row][mask].cpu() - expected).abs().max()))
    record_property("largest_difference_in_nats", largest)
    assert largest < 1e-4


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_ppo_steps_move_policy_and_critic(small_model, pairs_file, device, accelerator, quantize, monkeypatch):
    def digits(prompts, responses):
        return [sum(map(ord, response)) % 7 / 4 - 1.0 for response in responses]

    monkeypatch.setitem(sys.modules, "gpu_rewards", SimpleNamespace(digits=digits))
    is_packed = quantize == "nf4"
    module = PPOModule(
        backbone(small_model, quantize=quantize, dtype="bfloat16" if is_packed else "float32"),
        "gpu_rewards.digits",
        FixedKL(0.1),
        Sampling(8),
        PPOSettings(epochs=1, minibatches=2),
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.01),
        critic_optimizer=lambda p: torch.optim.AdamW(p, lr=0.01),
    )
    prompts = PromptDataModule(
        str(pairs_file), seed_fraction=0.3, max_length=64, prompts_per_step=6, steps_per_epoch=2, cache_dir="cache"
    )
    precision = "bf16-mixed" if is_packed else "32-true"
    trainer("run", max_epochs=1, accelerator=accelerator, precision=precision, limit_val_batches=0).fit(module, prompts)
    named = {name: p.detach() for name, p in module.policy.named_parameters()}
    for role in ("policy", "critic"):
        adapters = [p for name, p in named.items() if "lora_B" in name and f".{role}." in name]
        assert adapters and all(float(p.abs().max()) > 0 for p in adapters), role  # 0 until they are trained
    assert all(p.isfinite().all() for p in module.policy.trainable_state().values())
