"""What a pairwise judge reads of every pair, computed once and cached beside the pairs.

A pair is represented by the hidden state after the question "A or B?" with response a as A, minus the state with
response b as A: swapping the responses flips its sign, so that a preference for the first place cancels.
Shapes: N pairs, H the size of a state.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.layouts import pad_right
from ser_lightning.data.packing import cut_by_tokens
from ser_lightning.errors import UserError
from ser_lightning.evolution.comparisons import QUESTION, encode_comparisons
from ser_lightning.models.probe import num_positions
from ser_lightning.models.readings import Reading, read_states
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.records import PreferencePair
from ser_lightning.training.features import body_key, check_space, is_whole, read_file, write_features
from ser_lightning.training.scoring import evaluating, with_bar
from ser_lightning.utils.collectives import gather_over_ranks

DEPTH = 5 / 6
"""Share of the layers below the state that is read (docs/results.md)."""
_CHUNK = 256
_VERSION = 1


def comparison_length(reward_model: RewardModel, max_length: int) -> int:
    """Most tokens of a comparison: those of two conversations, or what the model has positions for."""
    return min(2 * max_length, num_positions(reward_model.model.config, reward_model.body) or 2 * max_length)


def comparison_states(
    reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase, pairs: list[PreferencePair], tokens: tuple[int, int]
) -> Tensor:
    """(N, H) float32 on the CPU, the states that the judge reads, one for each pair.

    Args:
        reward_model: a decoder with its pretrained body.
        pairs: N; their labels are not read.
        tokens: most tokens of a comparison, and of a batch with its padding.

    Raises:
        UserError: a state is not finite.
    """
    rows = encode_comparisons(tokenizer, pairs, tokens[0])
    reading = Reading("last", max(1, round(reward_model.num_layers * DEPTH)))
    states = torch.empty(len(rows), reward_model.hidden_size)
    device, pad = next(reward_model.parameters()).device, int(tokenizer.pad_token_id)
    for batch in cut_by_tokens([len(ids) for ids in rows], tokens[1], rows_per_item=1):
        inputs = pad_right([rows[i] for i in batch], pad).to(device)
        states[batch] = read_states(reward_model.body, inputs, [reading])[:, 0].float().cpu()
    if not torch.isfinite(states).all():
        raise UserError(
            "model.pairwise_judge: got NaN or infinity from the model; set backbone.dtype to bfloat16 or float32, or "
            "pairwise_judge to false"
        )
    a_first, b_first = states.split(len(pairs))
    return a_first - b_first


def cache_comparisons(
    trainer: Trainer, reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase, data: Any, max_length: int
) -> tuple[Tensor, Tensor]:
    """Compute the comparisons of a data module's pairs that the cache lacks, over all ranks.

    Args:
        reward_model: its body has its pretrained weights.
        data: a `PreferenceDataModule`.

    Returns:
        (N,) int64 pair ids, ascending, and their (N, H) float32 states.
    """
    body = body_key(reward_model, str(trainer.precision), ("comparisons", _VERSION, QUESTION, DEPTH, max_length))
    key = f"comparisons-{hashlib.sha256(body.encode()).hexdigest()[:24]}"
    shape, found = (reward_model.hidden_size,), []
    for part, file in enumerate(data.feature_files(key)):
        ids = data.part_ids(part)
        if not all(gather_over_ranks(is_whole(file, len(ids), shape, torch.float32))):
            check_space(file, len(ids) * shape[0] * 4)
            states = _computed(trainer, reward_model, tokenizer, data, part, max_length)
            write_features(file if trainer.local_rank == 0 else None, states, ids, shape, torch.float32)
            trainer.strategy.barrier("comparisons")
            rank_zero_info(f"Pairwise judge: comparisons written to {file}")
        found.append((ids, read_file(file, len(ids), shape, torch.float32)))
    every_id, every_state = (torch.cat(column) for column in zip(*found, strict=True))
    order = torch.from_numpy(np.unique(every_id.numpy(), return_index=True)[1])  # a file may hold a pair twice
    return every_id[order], every_state[order]


def _computed(
    trainer: Trainer,
    reward_model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Any,
    part: int,
    max_length: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair ids and what the judge reads of them, by chunks of pairs of like length, those of all ranks."""
    store = data.data.store
    rows = np.arange(*store.parts[part : part + 2])
    order = rows[np.argsort(-store.num_tokens[rows].sum(axis=1), kind="stable")]
    if not len(order):
        return
    num_chunks = max(trainer.world_size, math.ceil(len(order) / _CHUNK))
    chunks = np.array_split(order, min(num_chunks, len(order)))
    # Every rank takes as many: a gather waits for all of them, and pairs may come twice.
    turns = math.ceil(len(chunks) / trainer.world_size)
    mine = [chunks[(turn * trainer.world_size + trainer.global_rank) % len(chunks)] for turn in range(turns)]
    with evaluating(reward_model), trainer.precision_plugin.predict_step_context():
        for chunk in with_bar(trainer, mine, "Comparing responses"):
            pairs = store.read_texts(chunk)
            states = comparison_states(reward_model, tokenizer, pairs, (max_length, data.scoring_budget))
            yield from gather_over_ranks((torch.tensor([pair.pair_id for pair in pairs]), states))
