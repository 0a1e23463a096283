"""What a run of a policy will take: weights by role, memory by phase, and what its steps sample and train on.

The modules hold models on the meta device, so nothing here reads a weight. Counts of weights, bytes of weights,
gradients and optimiser state are exact, and so is the number of steps; activations are an estimate.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ser_lightning.data.layouts import Layout
from ser_lightning.models.backbone import Backbone
from ser_lightning.models.policy import POLICY, Policy
from ser_lightning.modules.ppo import PPOModule
from ser_lightning.modules.sft import SFTModule
from ser_lightning.planning.budgets import LOGIT_BYTES, TRAINED_LOGIT_BYTES, cache_bytes, vocabulary_size
from ser_lightning.planning.memory import (
    Shape,
    Weights,
    gradient_bytes,
    labelling_activations,
    optimizer_bytes,
    shape_of,
    trained_weights,
    training_activations,
    weight_bytes,
    workspace_bytes,
)
from ser_lightning.planning.workload import fullest_batch
from ser_lightning.rl.reward_functions import ModelReward, RewardFunction
from ser_lightning.rl.rollout import LOGP_CHUNK

# Weights


def role_weights(policy: Policy, rewards: Sequence[ModelReward] = ()) -> dict[str, Weights]:
    """The weights of each role, in bytes as they are held; what several roles read counts once, as `base`.

    Args:
        policy: on the meta device.
        rewards: reward models beside it; those on its base add an adapter and a head.

    Returns:
        Some of `base`, `policy`, `reference`, `critic` and `reward models`.
    """
    found: dict[str, list[int]] = {}
    seen: set[int] = set()
    for role, p in _parameters(policy, rewards):
        if id(p) not in seen:
            seen.add(id(p))
            counts = found.setdefault(role, [0, 0, 0])
            counts[0 if p.requires_grad else 1] += p.numel()
            counts[2] += weight_bytes(p)
    return {role: Weights(*counts) for role, counts in found.items()}


def _parameters(policy: Policy, rewards: Sequence[ModelReward]) -> Iterator[tuple[str, nn.Parameter]]:
    has_adapters = any(".lora_" in name for name, _ in policy.lm.named_parameters())
    for name, p in policy.named_parameters():
        parts = name.split(".")
        if parts[0] == "value_head":
            yield "critic", p
        elif parts[0] == "others":
            yield parts[1], p
        elif ".lora_" in name:
            adapter = next(parts[i + 1] for i, part in enumerate(parts) if part.startswith("lora_"))
            yield "reward models" if adapter.startswith("reward") else adapter, p
        else:
            yield "base" if has_adapters else POLICY, p
    for reward in rewards:
        yield from (("reward models", p) for p in reward.reward_model.parameters())


# Memory


def sft_memory(
    module: SFTModule,
    optimizer: Optimizer,
    lengths: np.ndarray,
    responses_per_step: int,
    tokens_per_batch: int,
    precision: str,
    device: str,
) -> dict[str, Any]:
    """Bytes by kind on one device, in training.

    Args:
        lengths: (N,) tokens of prompt and response.
        responses_per_step: of one device.
        tokens_per_batch: most padded tokens in a micro-batch.
    """
    policy = module.policy
    shape = shape_of(policy.lm, module.backbone, precision, device, POLICY)
    tokens = fullest_batch(int(lengths.max(initial=0)), responses_per_step, tokens_per_batch)
    chunk = min(tokens, LOGP_CHUNK)
    rows = {
        **{role: {"training": weights.num_bytes} for role, weights in role_weights(policy).items()},
        "optimiser": {"training": optimizer_bytes(optimizer)},
        "gradients": {"training": gradient_bytes(trained_weights(policy))},
        "activations, estimate": {"training": _update_activations(module, shape, tokens)},
        "logits, estimate": {"training": _logit_bytes(policy, chunk, TRAINED_LOGIT_BYTES)},
        "workspace, estimate": {"training": workspace_bytes(policy, precision)},
    }
    return summed(rows, ("training",), {"training": tokens}, {"training": "data.tokens_per_batch"}, [optimizer])


def rl_memory(
    module: PPOModule,
    optimizers: Sequence[Optimizer],
    prompt_lengths: np.ndarray,
    prompts_per_step: int,
    prompts_per_val_batch: int,
    layout: Layout,
    budgets: tuple[int, int],
    precision: str,
    device: str,
) -> dict[str, Any]:
    """Bytes by kind on one device, in the three phases of a step: sampling, scoring and training.

    Args:
        prompt_lengths: (N,) tokens of the prompts.
        prompts_per_step: of one device.
        prompts_per_val_batch: prompts that a device answers at once in validation.
        layout: of whole responses, see `masks.choose_layout`.
        budgets: most tokens in a micro-batch of training, and in a batch that is being sampled.
    """
    policy, rewards = module.policy, models_among(module.rewards.values())
    shape = shape_of(policy.lm, module.backbone, precision, device, POLICY)
    room, group = module.sampling.max_new_tokens, module.responses_per_prompt
    longest_prompt, shortest_prompt = int(prompt_lengths.max()), int(prompt_lengths.min())
    longest, num_responses = longest_prompt + room, prompts_per_step * group
    drawn_at_once = max(num_responses, prompts_per_val_batch)
    sampled = fullest_batch(longest, drawn_at_once, budgets[1])
    sampled_rows = max(1, min(drawn_at_once, budgets[1] // (shortest_prompt + room)))
    item = longest_prompt + group * room if layout.shares_prompts else longest
    scored, trained = _update_batches(module, item, prompts_per_step, layout, budgets[0])
    logits = [_logit_rows(tokens, item - longest_prompt, item) for tokens in (scored, trained)]
    scoring = [labelling_activations(shape, scored), *_judging(rewards, longest, num_responses, precision, device)]
    rows = {
        **{role: dict.fromkeys(RL_PHASES, w.num_bytes) for role, w in role_weights(policy, rewards).items()},
        "optimiser": dict.fromkeys(RL_PHASES, sum(map(optimizer_bytes, optimizers))),
        "gradients": {"training": gradient_bytes(trained_weights(policy))},
        "KV cache": {"sampling": cache_bytes(shape, sampled)},
        "activations, estimate": {
            "sampling": labelling_activations(shape, sampled * longest_prompt // longest),
            "scoring": max(scoring),
            "training": _update_activations(module, shape, trained),
        },
        "logits, estimate": {
            "sampling": _logit_bytes(policy, sampled_rows, LOGIT_BYTES),
            "scoring": _logit_bytes(policy, logits[0], LOGIT_BYTES),
            "training": _logit_bytes(policy, logits[1], TRAINED_LOGIT_BYTES),
        },
        "workspace, estimate": dict.fromkeys(RL_PHASES, workspace_bytes(policy, precision)),
    }
    tokens = {"sampling": sampled, "scoring": scored, "training": trained}
    names = dict.fromkeys(RL_PHASES, "model.tokens_per_batch") | {"sampling": "model.tokens_per_sampling_batch"}
    return summed(rows, RL_PHASES, tokens, names, optimizers)


def _update_batches(
    module: PPOModule, item: int, prompts_per_step: int, layout: Layout, budget: int
) -> tuple[int, int]:
    """Tokens in the fullest micro-batch of scoring, and of training.

    Responses to one prompt that share it come into one micro-batch, and may exceed its budget: `item` tokens.
    """
    items = prompts_per_step if layout.shares_prompts else prompts_per_step * module.responses_per_prompt
    scored = fullest_batch(item, items, budget, layout)
    at_once = math.ceil(items / module.ppo.minibatches)
    return scored, min(scored, fullest_batch(item, at_once, budget, layout))


RL_PHASES = ("sampling", "scoring", "training")


def models_among(rewards: Iterable[RewardFunction]) -> list[ModelReward]:
    """Those that are models."""
    return [reward for reward in rewards if isinstance(reward, ModelReward)]


def _judging(
    rewards: Sequence[ModelReward], longest: int, num_responses: int, precision: str, device: str
) -> Iterator[int]:
    """Activations of each reward model, as if its tokenizer made as many tokens as the policy's."""
    for reward in rewards:
        model: Any = reward.reward_model
        model = getattr(model, "reward_model", model)  # one on the policy's base
        is_half = any(p.dtype == torch.bfloat16 for p in model.parameters())
        settings = Backbone("", dtype="bfloat16" if is_half else "float32")
        tokens = fullest_batch(min(longest, reward.max_length), num_responses, reward.tokens_per_batch)
        yield labelling_activations(shape_of(model.model, settings, precision, device), tokens)


def _update_activations(module: SFTModule | PPOModule, shape: Shape, tokens: int) -> int:
    return training_activations(shape, module.backbone.train, module.backbone.gradient_checkpointing, tokens)


def _logit_rows(tokens: int, num_response_tokens: int, num_item_tokens: int) -> int:
    """Response tokens in a batch, as far as their logits stand in memory at once."""
    return min(LOGP_CHUNK, tokens * num_response_tokens // num_item_tokens)


def _logit_bytes(policy: Policy, num_rows: int, bytes_each: int) -> int:
    return bytes_each * num_rows * vocabulary_size(policy)


def summed(
    rows: dict[str, dict[str, int]],
    uses: Sequence[str],
    tokens: dict[str, int],
    budgets: dict[str, str],
    optimizers: Sequence[Optimizer],
) -> dict[str, Any]:
    """Bytes by kind and use with their sums, and what else a plan says of memory."""
    kinds = {kind: {use: row.get(use, 0) for use in uses} for kind, row in rows.items() if any(row.values())}
    return {
        "optimizer": " and ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers)),
        "batch_tokens": tokens,
        "budgets": budgets,
        "kinds": kinds,
        "all": {use: sum(kind[use] for kind in kinds.values()) for use in uses},
    }


# Steps


@dataclass(frozen=True)
class Steps:
    """How far a fit goes.

    Attributes:
        per_epoch: steps in an epoch; one of the RL stage has several optimizer steps.
        total: steps in all; None where nothing ends the fit.
    """

    per_epoch: int
    total: int | None


def count_steps(trainer: Any, num_batches: int, optimizer_steps: int = 1) -> Steps:
    """The steps of a fit, as Lightning counts them.

    Args:
        optimizer_steps: that a batch takes, those of all optimizers together.
    """
    if trainer.fast_dev_run:
        per_epoch = min(num_batches, int(trainer.fast_dev_run))
        return Steps(per_epoch, min(per_epoch, math.ceil(int(trainer.fast_dev_run) / optimizer_steps)))
    per_epoch = limited(num_batches, trainer.limit_train_batches)
    has_last_step = trainer.max_steps >= 0
    epochs = trainer.max_epochs if trainer.max_epochs is not None else -1 if has_last_step else 1000
    ends = [epochs * per_epoch] if epochs >= 0 else []
    ends += [math.ceil(trainer.max_steps / optimizer_steps)] if has_last_step else []
    return Steps(per_epoch, min(ends, default=None))


def limited(number: int, limit: float | None) -> int:
    """How many of some batches a limit of the trainer leaves: a number of them, or a share."""
    return min(number, limit) if isinstance(limit, int) else int(number * (1.0 if limit is None else limit))


def count_validations(trainer: Any, steps: Steps) -> int | None:
    """How often a fit validates; None without an end."""
    if steps.total is None:
        return None
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if every is None:
        return steps.total // int(interval)
    between = interval if isinstance(interval, int) else int(steps.per_epoch * (1.0 if interval is None else interval))
    whole, rest = divmod(steps.total, max(1, steps.per_epoch))
    in_last = rest // between if (whole + 1) % every == 0 else 0
    return whole // every * (steps.per_epoch // max(1, between)) + in_last


def sft_work(steps: Steps, num_tokens: np.ndarray, num_response_tokens: np.ndarray, per_step: int) -> dict[str, Any]:
    """What a run of SFT reads, by step, epoch and in all; tokens of a part of an epoch are those of an average one.

    Args:
        num_tokens: (N,) tokens of prompt and response.
        num_response_tokens: (N,) those of the response, which the loss is of.
        per_step: responses in a step.
    """
    number = len(num_tokens)
    an_epoch = min(number, steps.per_epoch * per_step)
    whole, rest = divmod(steps.total or 0, max(1, steps.per_epoch))
    counts = {"step": min(number, per_step), "epoch": an_epoch}
    if steps.total is not None:
        counts["all"] = whole * an_epoch + min(an_epoch, rest * per_step)
    columns = {"responses": None, "tokens": num_tokens, "response tokens": num_response_tokens}
    return {
        name: {
            part: count if column is None else round(int(column.sum()) * count / number)
            for part, count in counts.items()
        }
        for name, column in columns.items()
    }


def rl_work(steps: Steps, prompts_per_step: int, module: PPOModule) -> dict[str, Any]:
    """What a run of the RL stage does, by step, epoch and in all."""
    counts = {"step": 1, "epoch": steps.per_epoch} | ({} if steps.total is None else {"all": steps.total})
    responses = prompts_per_step * module.responses_per_prompt
    each = {
        "prompts": prompts_per_step,
        "responses": responses,
        "sampled tokens, at most": responses * module.sampling.max_new_tokens,
        "optimizer steps": module.ppo.epochs * module.ppo.minibatches,
    }
    return {name: {part: count * number for part, count in counts.items()} for name, number in each.items()}


def held_out_answers(trainer: Any, num_prompts: int, prompts_per_batch: int, validations: int | None) -> int | None:
    """Answers to held-out prompts in a fit: of the policy at every validation, and of the starting policy once.

    Args:
        num_prompts: that are held out.
        prompts_per_batch: over all devices.
        validations: of the fit, None without an end.
    """
    if validations is None:
        return None
    num_batches = math.ceil(num_prompts / prompts_per_batch)
    answered = min(num_prompts, limited(num_batches, trainer.limit_val_batches) * prompts_per_batch)
    glances = 0 if trainer.fast_dev_run or not answered else trainer.num_sanity_val_steps
    glances = 2 if glances is None else glances
    if glances == -1:  # the starting policy's answers are kept
        return answered * (2 + validations)
    return 2 * min(answered, glances * prompts_per_batch) + answered * (validations + (validations > 0))
