"""What `auto` is for a policy and for a scorer: tokens in a batch that fill a GPU, by the estimates of `memory`."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from ser_lightning.models.backbone import Backbone
from ser_lightning.models.policy import POLICY, Policy
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.planning.memory import (
    CONTEXT_BYTES,
    CPU_TOKENS,
    Shape,
    gradient_bytes,
    held_bytes,
    labelling_activations,
    shape_of,
    tokens_that_fit,
    trained_weights,
    training_activations,
    workspace_bytes,
)
from ser_lightning.rl.rollout import LOGP_CHUNK

CPU_SAMPLING_TOKENS = 16384
"""In a batch of responses: on a CPU too a token of many rows costs little more than one of a few."""
LOGIT_BYTES = 4 * 4
"""Of each word for a token that is drawn: logits, probabilities, sums of these and a copy, in float32."""
TRAINED_LOGIT_BYTES = 6 * 4
"""The same for a token of a chunk in the backward pass."""


def policy_budget(
    policy: Policy, backbone: Backbone, precision: str, num_bytes: int, beside: Iterable[nn.Module] = ()
) -> int:
    """Tokens in a micro-batch of training that fill a GPU, as `memory.auto_budgets` has it for a reward model.

    Args:
        policy: with reference and critic, where there are such.
        beside: other models on it; what they share with the policy counts once.
    """
    shape, trained = shape_of(policy.lm, backbone, precision, "cuda", POLICY), trained_weights(policy)
    taken = _held(policy, precision, beside) + gradient_bytes(trained) + 8 * sum(p.numel() for p in trained)
    taken += LOGP_CHUNK * TRAINED_LOGIT_BYTES * vocabulary_size(policy)
    a_token = training_activations(shape, backbone.train, backbone.gradient_checkpointing, 1)
    return tokens_that_fit(num_bytes - taken, max(a_token, labelling_activations(shape, 1)))


def sampling_budget(
    policy: Policy,
    backbone: Backbone,
    precision: str,
    num_bytes: int,
    max_new_tokens: int,
    is_trained: bool,
    beside: Iterable[nn.Module] = (),
) -> int:
    """Tokens in a batch of responses that are being sampled, prompts and full-length responses, that fill a GPU.

    A token takes keys and values in all layers, and in one layer again while rows leave; as if all of it were prompt,
    the states that reading takes; and its share of the logits, of which each response has a row.

    Args:
        is_trained: whether an optimiser keeps its states beside it.
    """
    shape = shape_of(policy.lm, backbone, precision, "cuda", POLICY)
    taken = _held(policy, precision, beside) + 8 * is_trained * sum(p.numel() for p in trained_weights(policy))
    cached = cache_bytes(shape, 1)
    drawn = LOGIT_BYTES * vocabulary_size(policy) // (max_new_tokens + 1)
    return tokens_that_fit(num_bytes - taken, cached + labelling_activations(shape, 1) + drawn)


def rl_budgets(
    policy: Policy,
    backbone: Backbone,
    precision: str,
    device: str,
    num_bytes: int,
    max_new_tokens: int,
    is_trained: bool,
    beside: Iterable[nn.Module] = (),
) -> tuple[int, int]:
    """What `auto` is in the RL stage: tokens in a micro-batch of training, and in a batch that is being sampled.

    Args:
        device: `cpu`, where both are constants, or `cuda`.
        is_trained: whether an optimiser keeps its states beside it.
    """
    if device != "cuda":
        return CPU_TOKENS[0], CPU_SAMPLING_TOKENS
    place, beside = (policy, backbone, precision, num_bytes), list(beside)
    return policy_budget(*place, beside), sampling_budget(*place, max_new_tokens, is_trained, beside)


def cache_bytes(shape: Shape, num_tokens: int) -> int:
    """Keys and values of all layers, and those of one layer again while rows leave."""
    return 2 * (shape.layers + 1) * shape.key_value * shape.num_bytes * num_tokens


def scoring_budget(reward_model: RewardModel, free_bytes: int) -> int:
    """Tokens in a batch of a reward model that only scores, from the memory that is free once it is there."""
    dtype = next(reward_model.body.parameters()).dtype
    backbone = Backbone("", dtype="float32" if dtype.itemsize == 4 else "bfloat16")
    shape = shape_of(reward_model.model, backbone, "32-true", "cuda")
    return tokens_that_fit(free_bytes, labelling_activations(shape, 1))


def _held(policy: Policy, precision: str, beside: Iterable[nn.Module]) -> int:
    """Bytes that are taken whatever is computed."""
    parameters = {id(p): p for model in (policy, *beside) for p in model.parameters()}
    return CONTEXT_BYTES + held_bytes(parameters.values()) + workspace_bytes(policy, precision)  # type: ignore[arg-type]


def vocabulary_size(policy: Policy) -> int:
    """Logits of a token."""
    config: Any = policy.lm.config
    return int(config.get_text_config().vocab_size)
