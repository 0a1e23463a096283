"""The data module of supervised fine-tuning: the chosen responses of the seed, in steps of a fixed set of responses."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from ser_lightning.data.encode import encode_conversations, encode_prompts
from ser_lightning.data.formats import content_hash
from ser_lightning.data.layouts import collate_responses
from ser_lightning.data.packing import Tokens, cut_by_tokens, num_shared_tokens
from ser_lightning.data.reader import PairStore
from ser_lightning.datamodules.base import PairFiles
from ser_lightning.datamodules.batches import Phase, Shard, epoch_order, make_loader
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.planning.budgets import policy_budget
from ser_lightning.planning.memory import CPU_TOKENS, device_bytes
from ser_lightning.records import PreferencePair, ResponseBatch, Turn

_CHUNK = 1024
"""Conversations in one call of the tokenizer."""


@dataclass(frozen=True)
class ResponseSet:
    """Responses to imitate, as places in a store.

    Attributes:
        rows: (N,) int64 rows of the store.
        sides: (N,) int64, 0 = response a, 1 = response b.
        num_response_tokens: (N,) int64, how many of the last ids of the conversation are the response's.
    """

    store: PairStore
    rows: np.ndarray
    sides: np.ndarray
    num_response_tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, tokens of prompt and response."""
        return self.store.num_tokens[self.rows, self.sides]

    def batch(self, positions: np.ndarray, pad_token_id: int, num_step_tokens: int, is_filler: bool) -> ResponseBatch:
        """One padded batch of the responses at `positions`; of a filler the loss counts nothing."""
        places = zip(self.rows[positions].tolist(), self.sides[positions].tolist(), strict=True)
        sequences = [self.store.ids(row)[side] for row, side in places]
        counted = self.num_response_tokens[positions] * (not is_filler)
        return collate_responses(sequences, counted, pad_token_id, num_step_tokens)


class ResponseSteps(Dataset[list[ResponseBatch]]):
    """The optimiser steps of one epoch; an item is the micro-batches of one step for this rank.

    A step is the same set of responses for any number of ranks and any token budget.

    Args:
        order: (N,) order in which the epoch goes through them.
        responses_per_step: responses in a step, over all ranks.
    """

    def __init__(self, responses: ResponseSet, order: np.ndarray, responses_per_step: int, shard: Shard) -> None:
        self.responses, self.order, self.responses_per_step, self.shard = responses, order, responses_per_step, shard

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.responses_per_step)

    def __getitem__(self, step: int) -> list[ResponseBatch]:
        if not 0 <= step < len(self):
            raise IndexError(step)
        whole = self.order[step * self.responses_per_step : (step + 1) * self.responses_per_step]
        num_step_tokens = int(self.responses.num_response_tokens[whole].sum())
        mine = whole[self.shard.rank :: self.shard.world_size]
        is_filler = len(mine) == 0  # every rank must take part in the step's gradient reduction
        if is_filler:
            mine = whole[:1]
        return [
            self.responses.batch(mine[batch], self.shard.pad_token_id, num_step_tokens, is_filler)
            for batch in cut_by_tokens(self.responses.lengths[mine], self.shard.tokens_per_batch, rows_per_item=1)
        ]


class ResponseBatches(Dataset[ResponseBatch]):
    """Every response once, sorted by length; ranks get equally many batches, of the last of some nothing counts."""

    def __init__(self, responses: ResponseSet, shard: Shard) -> None:
        self.responses, self.shard = responses, shard
        self.num_tokens = int(responses.num_response_tokens.sum())
        self.batches = cut_by_tokens(responses.lengths, shard.tokens_per_batch, rows_per_item=1)

    def __len__(self) -> int:
        return self.shard.count(self.batches)

    def __getitem__(self, index: int) -> ResponseBatch:
        batch, is_filler = self.shard.pick(self.batches, index)
        return self.responses.batch(np.asarray(batch), self.shard.pad_token_id, self.num_tokens, is_filler)


class ResponseDataModule(PairFiles):
    """The chosen responses of the seed, to imitate; splits as `PreferenceDataModule` makes them of the same arguments.

    Args:
        responses_per_step: responses in an optimiser step, over all devices.
        tokens_per_batch: most padded tokens in a micro-batch; changes memory and speed, never the result. `auto` fills
            the GPU's memory, as far as `plan` can tell, and is 1,536 on a CPU.
    """

    def __init__(
        self, *args: Any, responses_per_step: int = 16, tokens_per_batch: Tokens = 4096, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._auto_budget: int | None = None
        self.responses_per_step = responses_per_step
        self.tokens_per_batch = tokens_per_batch
        raise_problems(self._problems("responses_per_step", "tokens_per_batch"))

    def setup(self, stage: str | None = None) -> None:
        """Open the cache and split; done once, whatever the stages."""
        if stage == "fit":
            self.check_reload()
        super().setup(stage)
        if stage == "fit":
            if not len(self.responses):
                raise UserError(
                    "seed: got no labelled pair, so no response to imitate; raise data.seed_fraction or give pairs "
                    f"with a label{self._no_label_hint()}"
                )
            rank_zero_info(f"Responses to imitate: {len(self.responses):,}")

    @cached_property
    def responses(self) -> ResponseSet:
        """What training imitates."""
        rows = self.data.rows("seed")
        return self._chosen(rows, self.data.seed_labels(rows))

    def _chosen(self, rows: np.ndarray, labels: np.ndarray) -> ResponseSet:
        """The distinct chosen responses of pairs.

        Args:
            rows: (N,) rows of the store.
            labels: (N,) labels, 1 = response a was chosen.
        """
        sides = (1 - labels).astype(np.int64)
        first: dict[int, int] = {}
        num_tokens: list[int] = []
        for start in range(0, len(rows), _CHUNK):
            fresh: list[tuple[PreferencePair, str]] = []
            chunk = self.data.store.read_texts(rows[start : start + _CHUNK])
            for position, pair in enumerate(chunk, start):
                text = (pair.response_a, pair.response_b)[sides[position]]
                key = content_hash(json.dumps(pair.prompt), text)
                if key not in first:
                    first[key] = position
                    fresh.append((pair, text))
            num_tokens += self._num_response_tokens(fresh)
        kept = np.asarray(list(first.values()), dtype=np.int64)
        return ResponseSet(self.data.store, rows[kept], sides[kept], np.asarray(num_tokens, dtype=np.int64))

    def _num_response_tokens(self, chosen: Sequence[tuple[PreferencePair, str]]) -> list[int]:
        """Ids after the longest common prefix of each prompt, up to where the response begins, and the conversation.

        Both are taken uncut: what a cut takes away stands before the response, and changes no id after it.
        """
        if not chosen:
            return []
        tokenizer = self.tokenizer
        starts = encode_prompts(tokenizer, [pair.prompt for pair, _ in chosen], sys.maxsize)
        turns = [[*pair.prompt, Turn(role="assistant", content=text)] for pair, text in chosen]
        wholes = encode_conversations(tokenizer, turns)
        both = [(np.asarray(start), np.asarray(whole)) for start, whole in zip(starts, wholes, strict=True)]
        return [len(whole) - num_shared_tokens((start, whole)) for start, whole in both]

    def _budget(self) -> int:
        """Tokens in a micro-batch."""
        if self.tokens_per_batch != "auto":
            return self.tokens_per_batch
        if self._auto_budget is None:
            self._auto_budget = CPU_TOKENS[0]
            if self.trainer is not None and self.trainer.strategy.root_device.type == "cuda":
                module, memory = self.consumer, device_bytes("cuda")[1]
                precision = str(self.trainer.precision)
                self._auto_budget = policy_budget(module.policy, module.start.backbone, precision, memory)
            rank_zero_info(f"Batches: auto is {self._auto_budget:,} tokens.")
        return self._auto_budget

    def train_dataloader(self) -> DataLoader[list[ResponseBatch]]:
        """Items: the micro-batches of one optimiser step, for this rank."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        order = epoch_order(len(self.responses), self.policy.split_seed, Phase(), epoch)
        shard = self._shard(self._budget())
        return make_loader(ResponseSteps(self.responses, order, self.responses_per_step, shard), self.num_workers)

    def val_dataloader(self) -> Any:
        """Chosen responses of pairs held out of the seed; no loader when `val_fraction` takes none."""
        if len(self.data.rows("val")):
            pairs = self.data.measured("val")
            chosen = self._chosen(pairs.rows, pairs.target)
            return make_loader(ResponseBatches(chosen, self._shard(self._budget())), self.num_workers)
        if self.trainer is not None and self.trainer.state.fn == "validate":
            raise UserError("validate: got no validation pairs; set data.val_fraction above 0")
        return []
