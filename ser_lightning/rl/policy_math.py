"""The algorithm of the RL stage in reading order: log-probabilities, KL, rewards, advantages, losses, KL control.

Shapes: R responses, A response columns, N real tokens, H hidden size, V vocabulary. A mask is (R, A) bool, True = a
token that counts; what stands elsewhere, NaN included, changes nothing. Log-probabilities, KL and entropy are in nats.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ser_lightning.errors import UserError, raise_problems
from ser_lightning.utils.collectives import sum_over_ranks

MAX_KL_ERROR = 0.2
"""Largest relative error that one update of the KL weight sees (Ziegler et al., 2019, section 2.2)."""


def kept(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where the mask is True and 0 elsewhere, any shape; a product with the mask would let NaN through."""
    return torch.where(mask, x, 0.0)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Bring the kept entries of all ranks to mean 0 and variance 1 (1 / count, not unbiased), as Ziegler's code does.

    Args:
        x: (R, A) of this rank.
        mask: (R, A).

    Returns:
        (R, A) in the dtype of `x`, 0 outside the mask.
    """
    values = kept(x, mask).double()  # a variance from sums of squares is a difference of large numbers
    sums = torch.stack([values.sum(), values.square().sum(), mask.sum().double()])
    total, total_of_squares, count = sum_over_ranks(sums)
    mean = total / count.clamp(min=1)
    variance = (total_of_squares / count.clamp(min=1) - mean.square()).clamp(min=0)
    return kept((values - mean) * torch.rsqrt(variance + 1e-8), mask).to(x.dtype)


def token_logps(
    hidden: Tensor, head: Callable[[Tensor], Tensor], ids: Tensor, temperature: float, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution, `softmax(head(hidden) / temperature)`.

    At no time does a tensor of (N, V) exist: logits are made chunk by chunk, and made again in the backward pass.

    Args:
        hidden: (N, H) states that predict the tokens.
        head: (n, H) -> (n, V) logits, in any float dtype.
        ids: (N,) int64 tokens.
        temperature: of the sampling; 1 is the model's own distribution.
        chunk_size: positions whose logits may exist at once.

    Returns:
        (N,) float32 log-probabilities and (N,) float32 entropies, in nats.
    """

    def of_chunk(hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(head(hidden).float() / temperature, dim=-1)
        probs = log_probs.exp()
        # A token that the head forbids has the log-probability -inf and adds 0 to the entropy, not NaN.
        entropy = -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1)
        return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1), entropy

    logps, entropies = [], []
    for chunk in zip(hidden.split(chunk_size), ids.split(chunk_size), strict=True):
        logp, entropy = (
            checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled()
            else of_chunk(*chunk)
        )
        logps.append(logp)
        entropies.append(entropy)
    return torch.cat(logps), torch.cat(entropies)


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """`q/p - 1 - log(q/p)` of tokens drawn from p: unbiased for KL(p || q) and never negative (Schulman, 2020, k3).

    Args:
        logp: log p of the policy, any shape.
        ref_logp: log q of the reference, same shape as the result.
    """
    log_ratio = ref_logp - logp
    return torch.expm1(log_ratio) - log_ratio


def sequence_kl(kl: Tensor, mask: Tensor) -> Tensor:
    """(R,) sum of each response's (R, A) KL per token: by the chain rule a sample of the KL of whole responses."""
    return kept(kl, mask).sum(-1)


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, kl_weight: float) -> Tensor:
    """The KL penalty on every token and the score on the last: `r(x, y) - w log(p / q)` (Ziegler, section 2).

    Args:
        score: (R,) what the reward function gives the response.
        kl: (R, A) nats per token.
        mask: (R, A); the last kept token bears the score, whether it ends the response or ran into the limit.
        kl_weight: w.

    Returns:
        (R, A), 0 outside the mask; a row without a kept token has no reward.
    """
    is_last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return kept(-kl_weight * kl, mask) + kept(score.unsqueeze(-1), is_last)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lambda_: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, eq. 16): a sum over the TD errors of the tokens to come.

    `A_t = delta_t + gamma lambda A_(t+1)` with `delta_t = r_t + gamma V_(t+1) - V_t`, where t + 1 is the next
    kept token; after the last one both V and A are 0.

    Args:
        rewards: (R, A).
        values: (R, A) V_t, expected at the token before it is chosen.
        mask: (R, A).
        gamma: gamma of the paper, in [0, 1].
        lambda_: from 0, one step and all trust in the values, to 1, the whole return and none.

    Returns:
        (R, A) advantages and (R, A) returns `A_t + V_t`, the target of the values; both 0 outside the mask.
    """
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lambda_ * next_advantage
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = next_advantage
    advantages = kept(advantages, mask)
    return advantages, advantages + kept(values, mask)


def rloo_advantages(returns: Tensor, group_size: int) -> Tensor:
    """Return less the mean return of the prompt's other responses (REINFORCE leave-one-out, Ahmadian et al., 2024).

    Args:
        returns: (R,) of whole responses; those to one prompt stand together.
        group_size: responses to each prompt, 2 or more.

    Returns:
        (R,), which sums to 0 over each group.
    """
    groups = _groups(returns, group_size)
    of_others = (groups.sum(-1, keepdim=True) - groups) / (group_size - 1)
    return (groups - of_others).flatten()


def grpo_advantages(returns: Tensor, group_size: int) -> Tensor:
    """Return standardised inside its group: `(r - mean) / (std + 1e-4)` (Shao et al., 2024, section 4.1.2).

    Args:
        returns: (R,) of whole responses; those to one prompt stand together.
        group_size: responses to each prompt, 2 or more.

    Returns:
        (R,); `std` is the unbiased one, as `torch.std` has it.
    """
    groups = _groups(returns, group_size)
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred / (groups.std(-1, keepdim=True) + 1e-4)).flatten()


def _groups(returns: Tensor, group_size: int) -> Tensor:
    """(R / G, G) returns less the first of their group: advantages stay, and equal returns give 0 without rounding."""
    if group_size < 2:
        raise UserError(f"group_size: got {group_size}; a baseline needs 2 or more responses to each prompt")
    if len(returns) % group_size:
        raise UserError(f"group_size: got {group_size} for {len(returns)} responses; need whole groups")
    groups = returns.reshape(-1, group_size)
    return groups - groups[:, :1]


def clipped_policy_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate, `-min(ratio A, clip(ratio, 1 - c, 1 + c) A)` (Schulman et al., 2017, eq. 7).

    Args:
        logp: (N,) of the policy in training, with gradient.
        old_logp: (N,) of the policy that sampled.
        advantages: (N,), without gradient.
        clip_range: c.

    Returns:
        Scalar SUM over the tokens, to be divided by the tokens of the whole step, and the scalar number of tokens whose
        gradient the clipping stopped.
    """
    ratio = (logp - old_logp).exp()
    loss = -advantages * ratio
    clipped_loss = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(loss, clipped_loss).sum(), (clipped_loss > loss).sum()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Half the squared error, or that of the value held within `old +- c` where it is larger (Ziegler's PPO code).

    Args:
        values: (N,), with gradient.
        old_values: (N,) when the responses were sampled.
        returns: (N,) the target.
        clip_range: c, in units of the return.

    Returns:
        Scalar SUM over the tokens, to be divided by the tokens of the whole step.
    """
    loss = (values - returns).square()
    clipped_loss = (values.clamp(old_values - clip_range, old_values + clip_range) - returns).square()
    return 0.5 * torch.maximum(loss, clipped_loss).sum()


class FixedKL:
    """The same weight of the KL penalty from first to last; a resumed run takes that of its config.

    Args:
        weight: of the KL penalty, in reward per nat.
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < math.inf:
            raise UserError(f"kl.weight: got {weight}; need a number of 0 or more")
        self.weight = weight

    def problems(self, num_responses: int) -> list[str]:
        """What cannot work with so many responses in a step, over all ranks, a line each."""
        return []

    def update(self, mean_sequence_kl: float, num_responses: int) -> None:
        """Take in a step; here nothing that happens changes the weight.

        Args:
            mean_sequence_kl: mean KL of its responses, nats per response.
            num_responses: over all ranks.
        """

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from there; here the config has the last word."""


class AdaptiveKL(FixedKL):
    """Steers the KL towards a target: `weight *= 1 + error responses / horizon` (Ziegler et al., 2019, section 2.2).

    The error is `KL / target - 1` within +-0.2. The paper's gain of 0.1 is `responses / horizon` of one step.

    Args:
        weight: of the KL penalty at the start, in reward per nat.
        target: nats per response.
        horizon: responses over which an error of 0.2 changes the weight by about a fifth.
    """

    def __init__(self, weight: float, target: float, horizon: float) -> None:
        settings = {"weight": weight, "target": target, "horizon": horizon}
        raise_problems(
            f"kl.{name}: got {value}; need a number above 0"
            for name, value in settings.items()
            if not 0 < value < math.inf
        )
        self.weight, self.target, self.horizon = weight, target, horizon

    def problems(self, num_responses: int) -> list[str]:
        """A weight that one step could bring to 0."""
        least = MAX_KL_ERROR * num_responses
        if least < self.horizon:
            return []
        return [f"kl.horizon: got {self.horizon}; need more than {least:g} for {num_responses} responses"]

    def update(self, mean_sequence_kl: float, num_responses: int) -> None:
        """Raise the weight where the KL is above the target, lower it where it is below."""
        error = max(-MAX_KL_ERROR, min(MAX_KL_ERROR, mean_sequence_kl / self.target - 1))
        self.weight *= 1 + error * num_responses / self.horizon

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with that weight; target and horizon are the config's."""
        self.weight = state["weight"]
