"""Responses of the current policy: sampled with a KV cache in batches of like length that finished rows leave.

Which token is drawn depends on its row's own random numbers alone, so batches, ranks and a resumed run change nothing
but rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from ser_lightning.data.packing import cut_by_tokens, group_equal
from ser_lightning.errors import UserError
from ser_lightning.models.policy import Policy, Role
from ser_lightning.models.probe import num_positions
from ser_lightning.models.tokens import closing_token
from ser_lightning.records import Packed, Padded, Prompt, Rollout
from ser_lightning.rl.policy_math import token_logps
from ser_lightning.utils.seeds import hash_seed

COLUMNS_PER_CHECK = 8
"""Tokens that a GPU draws before the host asks which rows have ended."""
LOGP_CHUNK = 1024
"""Positions whose logits stand in memory at once."""


@dataclass
class Sampling:
    """How the policy answers.

    Args:
        max_new_tokens: a response that has not ended by then is cut off.
        temperature: what the logits are divided by, in sampling and in every log-probability. Other values than 1
            train another policy than the one that is used afterwards.
        stop: tokens that end a response besides the EOS of model and tokenizer and the end of a turn, by their text.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    stop: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """What cannot work, a line each."""
        found = []
        if self.max_new_tokens < 1:
            found.append(f"sampling.max_new_tokens: got {self.max_new_tokens}; need at least 1")
        if not self.temperature > 0:
            found.append(f"sampling.temperature: got {self.temperature}; need a positive number")
        return found


@dataclass(frozen=True)
class Generator:
    """All that sampling needs besides prompts and random numbers.

    Attributes:
        sampling: the settings.
        stop_ids: tokens that end a response.
        pad_token_id: what stands where the attention mask is 0.
        tokens_per_batch: most tokens in a batch, prompts and full-length responses.
    """

    sampling: Sampling
    stop_ids: Sequence[int]
    pad_token_id: int
    tokens_per_batch: int

    @torch.no_grad()
    def sample(self, policy: Policy, role: Role, prompts: Sequence[Sequence[int]], uniform: Tensor) -> Rollout:
        """One response to each prompt.

        Args:
            policy: in evaluation mode, so that dropout does not change who is sampled.
            role: `policy` or `reference`.
            prompts: R token sequences.
            uniform: (R, max_new_tokens) random numbers in [0, 1), which choose the tokens.

        Returns:
            R rows in the order of the prompts.
        """
        room = self.sampling.max_new_tokens
        lengths = [len(ids) + room for ids in prompts]
        parts: dict[int, _Response] = {}
        for rows in cut_by_tokens(lengths, self.tokens_per_batch, rows_per_item=1):
            with policy.sampling():
                found = _sample_batch(self, policy, role, [prompts[row] for row in rows], uniform[rows])
            parts |= dict(zip(rows, found, strict=True))
        return _assemble(prompts, [parts[row] for row in range(len(prompts))], self.pad_token_id, uniform.device)


@dataclass(frozen=True)
class _Response:
    ids: list[int]
    has_ended: bool


def _sample_batch(
    generator: Generator, policy: Policy, role: Role, prompts: Sequence[Sequence[int]], uniform: Tensor
) -> list[_Response]:
    """Token by token: draw, append, and let finished rows leave."""
    device = uniform.device
    ids, mask = pad_left(prompts, generator.pad_token_id, device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    stops = torch.tensor(list(generator.stop_ids), device=device)
    head, cache = policy.head(role), DynamicCache(config=policy.lm.config)
    alive = torch.arange(len(prompts), device=device)
    drawn = torch.full((len(prompts), uniform.shape[1]), -1, dtype=torch.int64, device=device)
    has_ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    # To ask who has ended makes the host wait for a GPU, which has run out of work by the time it gets more.
    columns_per_check = 1 if device.type == "cpu" else COLUMNS_PER_CHECK
    last = _read_prompts(policy, role, prompts, ids, mask, positions, cache)
    for column in range(uniform.shape[1]):
        tokens = draw(head(last), uniform[alive, column], generator.sampling.temperature)
        # A row that has ended may still be in the batch, until enough of them have.
        drawn[alive, column] = torch.where(has_ended[alive], -1, tokens)
        has_ended[alive] |= torch.isin(tokens, stops)
        if column + 1 == uniform.shape[1]:
            break
        is_running, num_running = ~has_ended[alive], len(alive)
        if column % columns_per_check == 0:
            num_running = int(is_running.sum())
        if num_running == 0:
            break
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if num_running <= 0.875 * len(alive) and _can_leave(cache):
            kept = is_running.nonzero().squeeze(-1)
            cache.batch_select_indices(kept)
            alive, tokens, mask, positions = alive[kept], tokens[kept], mask[kept], positions[kept]
        last = policy.next_hidden(role, tokens[:, None], mask, positions, cache)
    rows = drawn.tolist()
    return [
        _Response([token for token in row if token >= 0], ended)
        for row, ended in zip(rows, has_ended.tolist(), strict=True)
    ]


def _read_prompts(
    policy: Policy,
    role: Role,
    prompts: Sequence[Sequence[int]],
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: DynamicCache,
) -> Tensor:
    """(R, H) states that the first tokens are drawn from; a prompt that several rows begin with is read once.

    Args:
        policy: the models.
        role: who reads.
        prompts: R token sequences.
        ids: (R, P) the same, padded on the left.
        mask: (R, P) attention mask.
        positions: (R, P).
        cache: empty; keys and values of all rows come into it.
    """
    groups = group_equal([tuple(prompt) for prompt in prompts])
    if len(groups) == len(ids) or not _can_leave(cache):
        return policy.next_hidden(role, ids, mask, positions, cache)
    first = torch.tensor([group[0] for group in groups], device=ids.device)
    owner = torch.empty(len(ids), dtype=torch.int64)
    for number, group in enumerate(groups):
        owner[group] = number
    owner = owner.to(ids.device)
    states = policy.next_hidden(role, ids[first], mask[first], positions[first], cache)
    cache.batch_select_indices(owner)
    return states[owner]


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """(B,) tokens by inversion: the first whose cumulated probability exceeds the row's random number.

    Args:
        logits: (B, V).
        uniform: (B,) random numbers in [0, 1).
        temperature: what the logits are divided by.
    """
    cumulated = (logits.float() / temperature).softmax(-1).cumsum(-1)
    # Rounding leaves the last sum a little beside 1.
    threshold = uniform.to(cumulated.dtype)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, threshold, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def uniform_numbers(seed: Sequence[int | str], num_rows: int, num_columns: int) -> Tensor:
    """(num_rows, num_columns) random numbers in [0, 1) that depend on `seed` alone."""
    generator = torch.Generator().manual_seed(hash_seed(*seed))
    return torch.rand(num_rows, num_columns, generator=generator)


def check_room(prompts: Sequence[Prompt], max_new_tokens: int, config: PretrainedConfig) -> None:
    """`UserError` where a prompt and a full-length response are more than the policy has positions for.

    Rotary embeddings go on beyond the positions that a model was trained on, and give nonsense.

    Args:
        prompts: all that will be answered.
        max_new_tokens: of a response.
        config: the language model's.
    """
    longest = max((len(prompt.ids) for prompt in prompts), default=0)
    positions = num_positions(config)
    if positions is not None and longest + max_new_tokens > positions:
        raise UserError(
            f"sampling.max_new_tokens: got {max_new_tokens} after prompts of up to {longest} tokens for a policy with "
            f"{positions} positions; lower it or data.max_prompt_length"
        )


def stop_ids(lm_eos: Any, tokenizer: PreTrainedTokenizerBase, stop: list[str]) -> list[int]:
    """The tokens that end a response.

    Args:
        lm_eos: what the model's generation config calls EOS, a token, several or None.
        tokenizer: its EOS ends a response too, and so does the token with which its template ends a turn.
        stop: further tokens, by their text.

    Raises:
        UserError: if there is none, or a text is no single token.
    """
    given = [lm_eos] if isinstance(lm_eos, int) else lm_eos or []
    own = (tokenizer.eos_token_id, closing_token(tokenizer))
    found = {*given, *(token for token in own if token is not None)}
    for text in stop:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise UserError(f"sampling.stop: got {text!r}, which is {len(ids)} tokens; name single tokens")
        found.add(ids[0])
    if not found:
        raise UserError(
            f"backbone.path: got a policy without EOS ({tokenizer.name_or_path}), whose answers never end; "
            "name the token that ends one in sampling.stop"
        )
    return sorted(found)


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(R, P) ids and attention mask of sequences of different lengths."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_token_id] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _can_leave(cache: DynamicCache) -> bool:
    return all(hasattr(layer, "batch_select_indices") for layer in cache.layers)


def _assemble(
    prompts: Sequence[Sequence[int]], responses: Sequence[_Response], pad_token_id: int, device: torch.device
) -> Rollout:
    ids, mask = pad_left(prompts, pad_token_id, device)
    longest = max(len(response.ids) for response in responses)
    padded = [[*r.ids, *[pad_token_id] * (longest - len(r.ids))] for r in responses]
    kept = [[True] * len(r.ids) + [False] * (longest - len(r.ids)) for r in responses]
    response_mask = torch.tensor(kept, device=device)
    return Rollout(
        input_ids=torch.cat([ids, torch.tensor(padded, device=device)], dim=1),
        attention_mask=torch.cat([mask, response_mask.long()], dim=1),
        response_mask=response_mask,
        has_ended=torch.tensor([r.has_ended for r in responses], device=device),
    )


def response_texts(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[str]:
    """R responses as text, without the token that ended them and without special tokens."""
    lengths = (rollout.num_response_tokens - rollout.has_ended.long()).tolist()
    kept = [ids[:length] for ids, length in zip(rollout.response_ids.tolist(), lengths, strict=True)]
    return [text.strip() for text in tokenizer.batch_decode(kept, skip_special_tokens=True)]


def rows_of(rollout: Rollout, rows: Tensor) -> Rollout:
    """Some rows of a rollout, without the columns that are padding in all of them.

    Args:
        rollout: R rows.
        rows: (r,) positions.
    """
    mask, response_mask = rollout.attention_mask[rows], rollout.response_mask[rows]
    num_prompt = rollout.num_prompt_columns
    first = int(mask[:, :num_prompt].any(0).int().argmax())
    end = int(response_mask.any(0).sum())
    return Rollout(
        input_ids=rollout.input_ids[rows, first : num_prompt + end],
        attention_mask=mask[:, first : num_prompt + end],
        response_mask=response_mask[:, :end],
        has_ended=rollout.has_ended[rows],
    )


def response_states(policy: Policy, role: Role, rollout: Rollout) -> Tensor:
    """(N, H) states from which the N real response tokens were predicted, row by row."""
    mask = rollout.response_mask
    if not policy.layout.shares_prompts:
        hidden = policy.hidden(role, Padded(rollout.input_ids, rollout.attention_mask))
        first = rollout.num_prompt_columns - 1
        return hidden[:, first : first + mask.shape[1]][mask]
    inputs = policy.layout.lay_out(*sequences_of(rollout), pad_token_id=0).to(mask.device)
    assert isinstance(inputs, Packed)
    before = inputs.num_tokens - rollout.num_response_tokens - 1
    positions = before[:, None] + torch.arange(mask.shape[1], device=mask.device)
    return policy.hidden(role, inputs).flatten(0, 1)[inputs.places(positions)[mask]]


def sequences_of(rollout: Rollout) -> tuple[list[np.ndarray], list[bytes]]:
    """R sequences without padding, and a key of each, which is equal for responses to the same prompt."""
    ids, mask = rollout.input_ids.cpu().numpy(), rollout.attention_mask.cpu().numpy().astype(bool)
    end = rollout.num_prompt_columns
    keys = [row[:end][is_real[:end]].tobytes() for row, is_real in zip(ids, mask, strict=True)]
    return [row[is_real] for row, is_real in zip(ids, mask, strict=True)], keys


def response_logps(policy: Policy, role: Role, rollout: Rollout, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the sampled tokens, and the entropy of the distributions that they came from.

    Args:
        policy: the models.
        role: whose log-probabilities.
        rollout: R rows.
        temperature: what the logits are divided by.

    Returns:
        Twice (R, A) float32 in nats, 0 outside the response mask.
    """
    states = response_states(policy, role, rollout)
    ids = rollout.response_ids[rollout.response_mask]
    logp, entropy = token_logps(states, policy.head(role), ids, temperature, LOGP_CHUNK)
    return in_place(logp, rollout.response_mask), in_place(entropy, rollout.response_mask)


def response_values(policy: Policy, rollout: Rollout) -> Tensor:
    """(R, A) float32 values that the critic gives the states before each response token, 0 outside the mask."""
    return in_place(policy.values(response_states(policy, "critic", rollout)), rollout.response_mask)


def in_place(values: Tensor, mask: Tensor) -> Tensor:
    """(R, A) with the (N,) values where the mask is True, row by row, and 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
