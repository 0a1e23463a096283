"""Rollouts and their scores -> advantages and losses: what one step of the RL stage learns from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ser_lightning.data.layouts import Layout
from ser_lightning.models.policy import Policy, Role
from ser_lightning.records import Rollout, RolloutBatch
from ser_lightning.rl import policy_math
from ser_lightning.rl.rollout import batch_of, response_logps, response_values, sequences_of

Estimator = Literal["gae", "rloo", "grpo"]
LANGUAGE_MODELS: tuple[Role, ...] = ("policy", "reference")
CRITIC: Role = "critic"


@dataclass
class PPOSettings:
    """How a step learns from its responses; the defaults are the paper's where it states them.

    Args:
        epochs: passes over the responses of a step.
        minibatches: optimiser steps in a pass.
        clip_range: how far a token's probability may move before its gradient stops, as a ratio around 1.
        value_clip_range: how far a value may move in a step, in units of the reward.
        gamma: weight of the reward one token later; only `gae` has one.
        gae_lambda: from 0, which trusts the critic, to 1, which trusts the returns; only `gae` has one.
        whiten_advantages: bring the advantages of a step to mean 0 and variance 1.
        missing_eos_penalty: taken off the reward of a response that does not end, in units of the reward.
    """

    epochs: int = 4
    minibatches: int = 1
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_advantages: bool = True
    missing_eos_penalty: float = 1.0

    def problems(self, estimator: Estimator, responses_per_prompt: int) -> list[str]:
        """What cannot work, a line each."""
        found = [
            f"ppo.{name}: got {value}; need at least 1"
            for name, value in (("epochs", self.epochs), ("minibatches", self.minibatches))
            if value < 1
        ]
        found += [
            f"ppo.{name}: got {value}; need a positive number"
            for name, value in (("clip_range", self.clip_range), ("value_clip_range", self.value_clip_range))
            if not value > 0
        ]
        found += [
            f"ppo.{name}: got {value}; need a share in [0, 1]"
            for name, value in (("gamma", self.gamma), ("gae_lambda", self.gae_lambda))
            if not 0 <= value <= 1
        ]
        if estimator == "gae" and responses_per_prompt < 1:
            found.append(f"model.responses_per_prompt: got {responses_per_prompt}; need at least 1")
        if estimator != "gae" and responses_per_prompt < 2:
            found.append(
                f"model.responses_per_prompt: got {responses_per_prompt} for {estimator}, whose baseline is the other "
                "responses to a prompt; use at least 2, 4 is usual"
            )
        return found


@dataclass(frozen=True)
class Experience:
    """The responses of a step with all that its updates need; R responses, A columns, tables on the device."""

    rollout: Rollout
    response_mask: Tensor
    """(R, A) bool, the rollout's."""
    logp: Tensor
    """(R, A) float32 log-probabilities under the policy that sampled, before any update."""
    kl: Tensor
    """(R, A) float32 log-ratio to the reference: the KL that enters the reward is the one that is reported."""
    advantage: Tensor
    """(R, A) float32."""
    value: Tensor | None
    """(R, A) float32 the critic's values before any update; None without a critic."""
    returns: Tensor | None
    """(R, A) float32 the target of the critic."""


def micro_batches(
    rollout: Rollout, rows: np.ndarray, tokens_per_batch: int, layout: Layout, device: torch.device | str
) -> Iterator[RolloutBatch]:
    """Responses in batches under a token budget, on a device.

    The host plans from what it has, and does not wait for the device: the next batch is laid out while that computes.

    Args:
        rollout: R responses.
        rows: (r,) int64 positions of those that are wanted; none gives no batch.
        tokens_per_batch: most tokens in a batch.
        layout: of the sequences.
        device: where the batches go.
    """
    if not len(rows):  # a rank without a share
        return
    for cut in layout.cut_sequences(*sequences_of(rollout, rows), tokens_per_batch):
        batch = batch_of(rollout, rows[cut], layout)
        yield (batch.pin_memory() if torch.device(device).type == "cuda" else batch).to(device)


def in_table(parts: Iterable[tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """Put what was computed for micro-batches back in place.

    Args:
        parts: `table_places` (N,) and values (N,) of each micro-batch.
        like: (R, A) the mask of the whole.

    Returns:
        (R, A) float32, 0 where nothing was computed.
    """
    whole = torch.zeros(like.shape, device=like.device)
    for places, values in parts:
        whole.view(-1)[places] = values
    return whole


@torch.no_grad()
def measure(
    policy: Policy, rollout: Rollout, temperature: float, tokens_per_batch: int, has_critic: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the models make of sampled tokens, without gradients.

    Returns:
        Three times (R, A) float32, 0 outside the response mask, on the policy's device: log-probabilities under policy
        and reference, and the critic's values, None without `has_critic`.
    """
    found: dict[Role, list[tuple[Tensor, Tensor]]] = {"policy": [], "reference": [], "critic": []}
    rows = np.arange(len(rollout))
    for batch in micro_batches(rollout, rows, tokens_per_batch, policy.layout, policy.device):
        for role in LANGUAGE_MODELS:
            found[role].append((batch.table_places, response_logps(policy, role, batch, temperature)[0]))
        if has_critic:
            found["critic"].append((batch.table_places, response_values(policy, batch)))
    mask = torch.empty(rollout.response_mask.shape, device=policy.device)
    logp, ref_logp, value = (in_table(found[role], mask) for role in (*LANGUAGE_MODELS, CRITIC))
    return logp, ref_logp, value if has_critic else None


def make_experience(
    rollout: Rollout,
    score: Tensor,
    logp: Tensor,
    ref_logp: Tensor,
    value: Tensor | None,
    kl_weight: float,
    estimator: Estimator,
    group_size: int,
    settings: PPOSettings,
) -> Experience:
    """Advantages of a step's responses.

    With a critic the reward of a token is its KL penalty, and the score too at the last (Ziegler et al., 2019). The
    critic-free estimators take the sum of it all as the return of the whole response, the same for each of its tokens.

    Args:
        rollout: R responses; those to one prompt stand together.
        score: (R,) reward of each response, penalties for the unfinished already off; on any device.
        logp: (R, A) under the policy.
        ref_logp: (R, A) under the reference.
        value: (R, A) of the critic; None for the critic-free estimators.
        kl_weight: of the KL penalty.
        estimator: of the advantages.
        group_size: responses to each prompt.
        settings: the rest.
    """
    mask = rollout.response_mask.to(logp.device, non_blocking=True)
    score = score.to(logp.device, non_blocking=True)
    kl = policy_math.kept(logp - ref_logp, mask)  # unbiased for the KL divergence, of either sign (Schulman, 2020, k1)
    returns = None
    if estimator == "gae":
        assert value is not None
        rewards = policy_math.token_rewards(score, kl, mask, kl_weight)
        advantage, returns = policy_math.gae(rewards, value, mask, settings.gamma, settings.gae_lambda)
    else:
        total = score - kl_weight * policy_math.sequence_kl(kl, mask)
        of_group = policy_math.rloo_advantages if estimator == "rloo" else policy_math.grpo_advantages
        advantage = policy_math.kept(of_group(total, group_size)[:, None].expand(mask.shape), mask)
    if settings.whiten_advantages:
        advantage = policy_math.whiten(advantage, mask)
    return Experience(rollout, mask, logp, kl, advantage, value, returns)
