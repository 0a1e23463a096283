"""`auto` for policies and scorers, with a GPU's memory made up."""

import types

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ser_lightning.inference.scorer import Scorer
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.policy import load_policy
from ser_lightning.models.reward_model import load_reward_model
from ser_lightning.planning.budgets import policy_budget, sampling_budget, scoring_budget
from ser_lightning.planning.memory import auto_budgets
from tests.helpers import save_reward_model

GIB = 2**30
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=len(tiny_tokenizer), num_key_value_heads=2)).save_pretrained(
        tmp_path / "model"
    )
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def budgets(policy, backbone, num_bytes, max_new_tokens=64, is_trained=True, beside=()):
    place = policy, backbone, "32-true", num_bytes
    return policy_budget(*place, beside), sampling_budget(*place, max_new_tokens, is_trained, beside)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_they_grow_with_the_memory_within_their_limits(folder, train):
    backbone = Backbone(folder, train=train)
    policy = load_policy(backbone, has_reference=True, has_critic=True)
    found = [budgets(policy, backbone, int(gib * GIB)) for gib in (0.5, 1.25, 1.5, 2, 3, 30)]
    assert found[0] == (1024, 1024) and found[-1] == (65536, 65536)
    for one, next_one in zip(found, found[1:], strict=False):
        assert all(a <= b and a % 1024 == 0 for a, b in zip(one, next_one, strict=True))
    for training, sampling in found[1:-1]:
        assert training < sampling  # nothing is kept for a backward pass


def test_a_policy_alone_trains_on_about_as_many_tokens_as_a_reward_model(folder):
    """The same body and adapters; the policy has a head with logits."""
    backbone = Backbone(folder, lora=LoraSettings(r=8))
    reward, _ = auto_budgets(load_reward_model(backbone), backbone, "32-true", "cuda", 4 * GIB)
    policy = policy_budget(load_policy(backbone), backbone, "32-true", 4 * GIB)
    assert reward * 0.9 < policy <= reward
    # Other roles are adapters, of which one computes at a time.
    roles = load_policy(backbone, has_reference=True, has_critic=True)
    assert policy * 0.9 < policy_budget(roles, backbone, "32-true", 4 * GIB) <= policy


def test_what_else_is_on_the_device_leaves_less(folder):
    backbone = Backbone(folder)
    policy = load_policy(backbone)
    beside = [torch.nn.Linear(2**13, 2**13, bias=False)]  # 256 MiB
    alone, crowded = budgets(policy, backbone, 2 * GIB), budgets(policy, backbone, 2 * GIB, beside=beside)
    assert all(b < a for a, b in zip(alone, crowded, strict=True))
    assert crowded == budgets(policy, backbone, 2 * GIB - 2**28)
    assert budgets(policy, backbone, 2 * GIB, beside=[policy.lm]) == alone  # shared weights count once


def test_sampling_has_room_for_an_optimiser_and_a_row_of_logits_a_response(folder):
    backbone = Backbone(folder, train="full")
    policy = load_policy(backbone)
    assert budgets(policy, backbone, int(1.3 * GIB))[1] < budgets(policy, backbone, int(1.3 * GIB), is_trained=False)[1]
    policy.lm.config.vocab_size = 100_000
    assert budgets(policy, backbone, 2 * GIB, 4)[1] < budgets(policy, backbone, 2 * GIB, 512)[1]


def test_a_scorer_fills_what_is_free(tmp_path, tiny_tokenizer, monkeypatch, caplog):
    save_reward_model(tmp_path / "model", tiny_tokenizer, 64)
    with caplog.at_level("INFO"):
        assert Scorer.load(tmp_path / "model", tokens_per_batch="auto").reward.tokens_per_batch == 4096
    assert caplog.messages[-1] == "Batches: auto is 4,096 tokens in scoring."
    model = Scorer.load(tmp_path / "model").reward.reward_model
    found = [scoring_budget(model, n) for n in (2**20, 2**23, 2**24, 2**40)]
    assert found[0] == 1024 and 1024 < found[1] < found[2] < found[3] == 65536
    # A token of 16 numbers in float32 four times over, and three times 32 inside the MLP.
    assert found[1] == int(0.8 * 2**23) // (4 * 4 * 16 + 4 * 3 * 32) // 1024 * 1024
    free = types.SimpleNamespace(
        memory_reserved=lambda: 2**22, memory_allocated=lambda: 2**20, mem_get_info=lambda: (2**23 - 3 * 2**20, 2**40)
    )
    for name, value in vars(free).items():
        monkeypatch.setattr(torch.cuda, name, value)
    from ser_lightning.inference.scorer import _auto_tokens

    assert _auto_tokens(Scorer.load(tmp_path / "model").reward, "cuda") == found[1]
