"""A reward model on the policy's base: one frozen body in memory, and an adapter and a head more."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from ser_lightning.data.layouts import Layout
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.fingerprint import check_identity, identity_of
from ser_lightning.models.loading import lora_config
from ser_lightning.models.policy import Policy, use_adapter
from ser_lightning.models.readings import only_layers
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.models.trainable import load_exactly
from ser_lightning.records import Inputs

_SAVED_ADAPTER = "default"
"""The name under which a reward run saves its adapter."""


class AdapterRewardModel(nn.Module):
    """A `RewardModel` whose body is another model's base with an adapter of its own on it."""

    def __init__(self, reward_model: RewardModel, adapter: str | None) -> None:
        super().__init__()
        self.reward_model, self.adapter = reward_model, adapter

    @property
    def layout(self) -> Layout:
        """The reward model's."""
        return self.reward_model.layout

    def forward(self, inputs: Inputs) -> Tensor:
        """(R,) float32 rewards of R sequences, see `RewardModel.forward`."""
        body = self.reward_model.body
        with use_adapter(body, self.adapter), only_layers(body, self.reward_model.highest_layer):
            return self.reward_model(inputs)


def can_share(policy: Backbone, reward: Backbone) -> bool:
    """Whether a reward model's frozen body is the policy's: same weights, same precision, nothing of it trained."""
    same = ("quantize", "dtype", "attn_implementation", "gguf_file")
    return (
        policy.train == "lora"
        and reward.train in ("lora", "head")
        and policy.resolved_path() == reward.resolved_path()
        and all(getattr(policy, name) == getattr(reward, name) for name in same)
    )


def adapter_reward_model(
    policy: Policy,
    reward: Backbone,
    weights: dict[str, Tensor],
    adapter: str,
    reading: dict[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> AdapterRewardModel:
    """Put a reward model's adapter and head beside the policy's.

    Args:
        policy: with adapters on its base.
        reward: the reward model's settings, of which `can_share` is true.
        weights: what its run saved of it.
        adapter: a name that no other adapter has.
        reading: where the head reads, as its run saved it; None = the last token after the last layer.
        identity: the base and the template that the weights belong to, as its run saved them.

    Raises:
        UserError: if the weights belong to another base or template, or to another shape.
    """
    body = policy.body
    config = copy.deepcopy(policy.lm.config)
    config.num_labels = 1
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    hidden_size = policy.lm.config.get_text_config().hidden_size
    setattr(model, str(model.base_model_prefix), body)
    model.score = nn.Linear(hidden_size, 1, bias=False, device=next(policy.lm.parameters()).device)
    reward_model, tokenizer = RewardModel(model, policy.layout), load_tokenizer(reward)
    check_identity("run", identity, identity_of(model, tokenizer))
    if reading:
        reward_model.read_as(tokenizer, reading["readings"], reading["question"])
    if reward.train == "lora":
        with only_layers(body, reward_model.highest_layer):  # a run saves no adapter of a layer that it does not read
            body.add_adapter(adapter, lora_config(reward.lora))
    named = {name.replace(f".{adapter}.", f".{_SAVED_ADAPTER}."): p for name, p in reward_model.named_parameters()}
    own = {name: named[name] for name in named if ".score." in name or f".{_SAVED_ADAPTER}." in name}
    load_exactly({name: p.data for name, p in own.items()}, weights)
    for p in own.values():
        p.requires_grad_(False)
    return AdapterRewardModel(reward_model, adapter if reward.train == "lora" else None)
