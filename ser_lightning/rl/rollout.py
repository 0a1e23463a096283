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
from transformers.cache_utils import Cache

from ser_lightning.data.layouts import Layout
from ser_lightning.data.packing import cut_by_tokens, group_equal
from ser_lightning.errors import UserError
from ser_lightning.models.policy import Policy, Role
from ser_lightning.models.probe import num_positions
from ser_lightning.models.tokens import closing_token
from ser_lightning.records import Prompt, Rollout, RolloutBatch
from ser_lightning.rl.kv_cache import can_select, sampling_cache
from ser_lightning.rl.policy_math import token_logps
from ser_lightning.utils.seeds import hash_seed

COLUMNS_PER_CHECK = {"cpu": 1, "cuda": 8}
"""Tokens that a device draws before the host asks which rows have ended: to ask makes it wait for a GPU, which has run
out of work by the time it gets more."""
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
            R rows in the order of the prompts, on the CPU.
        """
        room = self.sampling.max_new_tokens
        lengths = [len(ids) + room for ids in prompts]
        parts: dict[int, _Response] = {}
        for rows in cut_by_tokens(lengths, self.tokens_per_batch, rows_per_item=1):
            batch = [prompts[row] for row in rows]
            with policy.sampling("none" if len(set(map(len, batch))) == 1 else "left"):
                found = _sample_batch(self, policy, role, batch, uniform[rows])
            parts |= dict(zip(rows, found, strict=True))
        return _assemble(prompts, [parts[row] for row in range(len(prompts))], self.pad_token_id)


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
    head = policy.head(role)
    cache = sampling_cache(policy.lm.config, ids.shape[1] + uniform.shape[1])
    alive = torch.arange(len(prompts), device=device)
    drawn = torch.full((len(prompts), uniform.shape[1]), -1, dtype=torch.int64, device=device)
    has_ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    last = _read_prompts(policy, role, prompts, ids, mask, positions, cache)
    for column in range(uniform.shape[1]):
        tokens = draw(head(last), uniform[alive, column], generator.sampling.temperature)
        # A row that has ended may still be in the batch, until enough of them have.
        drawn[alive, column] = torch.where(has_ended[alive], -1, tokens)
        has_ended[alive] |= torch.isin(tokens, stops)
        if column + 1 == uniform.shape[1]:
            break
        is_running, num_running = ~has_ended[alive], len(alive)
        if column % COLUMNS_PER_CHECK.get(device.type, 1) == 0:
            num_running = int(is_running.sum())
        if num_running == 0:
            break
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if num_running <= 0.875 * len(alive) and can_select(cache):
            kept = is_running.nonzero().squeeze(-1)
            cache.batch_select_indices(kept)
            alive, tokens, mask, positions = alive[kept], tokens[kept], mask[kept], positions[kept]
        last = policy.next_hidden(role, tokens[:, None], mask, positions, cache)
    responses = [[token for token in row if token >= 0] for row in drawn.tolist()]
    return [_Response(ids, ids[-1] in generator.stop_ids) for ids in responses]


def _read_prompts(
    policy: Policy,
    role: Role,
    prompts: Sequence[Sequence[int]],
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: Cache,
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
    if len(groups) == len(ids) or not can_select(cache):
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


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(R, P) ids and attention mask of sequences of different lengths."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_token_id] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _assemble(prompts: Sequence[Sequence[int]], responses: Sequence[_Response], pad_token_id: int) -> Rollout:
    ids, mask = pad_left(prompts, pad_token_id, "cpu")
    longest = max(len(response.ids) for response in responses)
    padded = [[*r.ids, *[pad_token_id] * (longest - len(r.ids))] for r in responses]
    kept = [[True] * len(r.ids) + [False] * (longest - len(r.ids)) for r in responses]
    response_mask = torch.tensor(kept)
    return Rollout(
        input_ids=torch.cat([ids, torch.tensor(padded)], dim=1),
        attention_mask=torch.cat([mask, response_mask.long()], dim=1),
        response_mask=response_mask,
        has_ended=torch.tensor([r.has_ended for r in responses]),
    )


def response_texts(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[str]:
    """R responses as text, without the token that ended them and without special tokens."""
    lengths = rollout.response_mask.numpy().sum(1) - rollout.has_ended.numpy()
    kept = [ids[:length] for ids, length in zip(rollout.response_ids.numpy(), lengths, strict=True)]
    return [text.strip() for text in tokenizer.batch_decode(kept, skip_special_tokens=True)]


def batch_of(rollout: Rollout, rows: np.ndarray, layout: Layout) -> RolloutBatch:
    """Some responses of a rollout, laid out for a model; on the CPU, without a look at any device.

    Args:
        rollout: R responses.
        rows: (r,) int64 positions.
        layout: of the sequences.
    """
    sequences, keys = sequences_of(rollout, rows)
    inputs = layout.lay_out(sequences, keys, pad_token_id=0)
    mask = rollout.response_mask.numpy()[rows]
    lengths = np.array([len(ids) for ids in sequences])
    before = lengths - mask.sum(1) - 1
    places = inputs.places(torch.from_numpy(before[:, None] + np.arange(mask.shape[1])))
    return RolloutBatch(
        inputs,
        response_ids=torch.from_numpy(rollout.response_ids.numpy()[rows][mask]),
        state_places=torch.from_numpy(places.numpy()[mask]),
        table_places=torch.from_numpy((rows[:, None] * mask.shape[1] + np.arange(mask.shape[1]))[mask]),
    )


def sequences_of(rollout: Rollout, rows: np.ndarray) -> tuple[list[np.ndarray], list[bytes]]:
    """r sequences without padding, and a key of each, which is equal for responses to the same prompt."""
    ids, mask = rollout.input_ids.numpy()[rows], rollout.attention_mask.numpy()[rows].astype(bool)
    end = rollout.num_prompt_columns
    keys = [row[:end][is_real[:end]].tobytes() for row, is_real in zip(ids, mask, strict=True)]
    return [row[is_real] for row, is_real in zip(ids, mask, strict=True)], keys


def response_states(policy: Policy, role: Role, batch: RolloutBatch) -> Tensor:
    """(N, H) states from which the N tokens of the responses were predicted."""
    return policy.hidden(role, batch.inputs).flatten(0, 1)[batch.state_places]


def response_logps(policy: Policy, role: Role, batch: RolloutBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the sampled tokens, and the entropy of the distributions that they came from.

    Args:
        policy: the models.
        role: whose log-probabilities.
        batch: N tokens, on the policy's device.
        temperature: what the logits are divided by.

    Returns:
        Twice (N,) float32 in nats.
    """
    states = response_states(policy, role, batch)
    return token_logps(states, policy.head(role), batch.response_ids, temperature, LOGP_CHUNK)


def response_values(policy: Policy, batch: RolloutBatch) -> Tensor:
    """(N,) float32 values that the critic gives the states before each response token."""
    return policy.values(response_states(policy, "critic", batch))
