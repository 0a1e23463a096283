"""Rollouts and their scores -> advantages and losses: what one step of the RL stage learns from."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ser_lightning.data.layouts import Layout
from ser_lightning.models.policy import Policy
from ser_lightning.records import Rollout
from ser_lightning.rl import policy_math
from ser_lightning.rl.rollout import response_logps, response_values, rows_of, sequences_of

Estimator = Literal["gae", "rloo", "grpo"]


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
    """The responses of a step with all that its updates need; R responses, A columns."""

    rollout: Rollout
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

    @property
    def response_mask(self) -> Tensor:
        """(R, A) bool."""
        return self.rollout.response_mask


def micro_batches(rollout: Rollout, rows: Tensor, tokens_per_batch: int, layout: Layout) -> list[Tensor]:
    """Rows in batches under a token budget, as positions in the rollout."""
    if not len(rows):  # a rank without a share
        return []
    cuts = layout.cut_sequences(*sequences_of(rows_of(rollout, rows)), tokens_per_batch)
    return [rows[torch.tensor(cut)] for cut in cuts]


def spread(parts: list[tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """Put what was computed for micro-batches back in place.

    Args:
        parts: rows (r,) and values (r, a) of each micro-batch, a being its own number of columns.
        like: (R, A) the mask of the whole.

    Returns:
        (R, A) float32.
    """
    whole = torch.zeros(like.shape, device=like.device)
    for rows, values in parts:
        whole[rows, : values.shape[1]] = values
    return whole


def measure(policy: Policy, rollout: Rollout, temperature: float, tokens_per_batch: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of sampled tokens under policy and reference, without gradients.

    Returns:
        Twice (R, A) float32, 0 outside the response mask.
    """
    logps: dict[str, list[tuple[Tensor, Tensor]]] = {"policy": [], "reference": []}
    with torch.no_grad():
        for rows in micro_batches(rollout, _all_rows(rollout), tokens_per_batch, policy.layout):
            part = rows_of(rollout, rows)
            for role in ("policy", "reference"):
                logps[role].append((rows, response_logps(policy, role, part, temperature)[0]))  # type: ignore[arg-type]
    policy_logp, ref_logp = (spread(logps[role], rollout.response_mask) for role in ("policy", "reference"))
    return policy_logp, ref_logp


def measure_values(policy: Policy, rollout: Rollout, tokens_per_batch: int) -> Tensor:
    """(R, A) float32 values of the critic, without gradients."""
    with torch.no_grad():
        parts = [
            (rows, response_values(policy, rows_of(rollout, rows)))
            for rows in micro_batches(rollout, _all_rows(rollout), tokens_per_batch, policy.layout)
        ]
    return spread(parts, rollout.response_mask)


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
        score: (R,) reward of each response, penalties for the unfinished already off.
        logp: (R, A) under the policy.
        ref_logp: (R, A) under the reference.
        value: (R, A) of the critic; None for the critic-free estimators.
        kl_weight: of the KL penalty.
        estimator: of the advantages.
        group_size: responses to each prompt.
        settings: the rest.
    """
    mask = rollout.response_mask
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
    return Experience(rollout, logp, kl, advantage, value, returns)


def _all_rows(rollout: Rollout) -> Tensor:
    return torch.arange(len(rollout), device=rollout.input_ids.device)
