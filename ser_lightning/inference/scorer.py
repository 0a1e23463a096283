"""A reward model for scripts and notebooks: `from ser_lightning import Scorer`.

A `Scorer` takes texts; the `RewardModel` below it takes ids. N responses or pairs.
"""

import json
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from ser_lightning.data.encode import EncodedPair, encode_candidates, encode_pairs
from ser_lightning.data.formats import parse_prompt
from ser_lightning.data.packing import Tokens, num_shared_tokens
from ser_lightning.data.turns import clean
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.evaluation.calibration import prob_a_wins
from ser_lightning.models.probe import errors, length_finding, num_positions
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.planning.budgets import scoring_budget
from ser_lightning.planning.memory import CPU_TOKENS
from ser_lightning.records import PreferencePair, Turn
from ser_lightning.rl.reward_functions import ModelReward, checked_scores, named
from ser_lightning.rl.reward_sources import load_reward

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]
Encoding = TypeVar("Encoding")
Prompts = Sequence[str] | Sequence[list[Turn]]
"""Texts, each the turn of a user or a transcript that begins with `Human:`, or conversations as lists of turns."""


@dataclass(frozen=True)
class Row:
    """One prompt and one response as the model reads them.

    Attributes:
        prompt: the conversation that the response answers.
        response: all of it, for messages.
        ids: of both, at most `max_length`.
        start: position in `ids` where the response begins.
        is_cut: whether the response was longer, so that `ids` hold its front alone.
    """

    prompt: list[Turn]
    response: str
    ids: list[int]
    start: int
    is_cut: bool


class Scorer:
    """A reward model that gives texts their rewards.

    Example:
        scorer = Scorer.load("runs/NAME/export")
        scorer.score(["What is 2 plus 2?"], ["It is 4."])
        scorer.probability(["What is 2 plus 2?"], ["It is 4."], ["It is 5."])

    Args:
        reward: the model with its tokenizer and scale; `load` makes one.
    """

    def __init__(self, reward: ModelReward) -> None:
        self.reward = reward

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: Device = "auto",
        dtype: Dtype = "auto",
        max_length: int | None = None,
        tokens_per_batch: Tokens = 16384,
        trust_remote_code: bool = False,
    ) -> Self:
        """A reward model from disk.

        Args:
            folder: what `export` wrote, the run folder of a fit (its adapters are not merged), or any transformers
                folder of a classifier with one label and a chat template.
            device: where it computes; `auto` is CUDA where there is one.
            dtype: number format of the body's weights, `auto` = as they were saved; the head stays in float32.
            max_length: most tokens in a conversation, None = what the folder says; longer prompts lose their oldest
                turns.
            tokens_per_batch: most tokens in a batch; changes memory and speed, not the result. `auto` fills the memory
                that is free on the GPU once the model is there, as far as can be told, and is 4,096 on a CPU.
            trust_remote_code: run the Python files of the folder's model; nothing in the folder can ask for that.

        Raises:
            UserError: a line for each thing that is wrong.
        """
        name = str(folder)
        numbers = (("max_length", max_length), ("tokens_per_batch", tokens_per_batch))
        problems = [f"{key}: got {n}; use at least 1" for key, n in numbers if isinstance(n, int) and n < 1]
        if not Path(folder).expanduser().is_dir():
            problems.append(f"model: got {name}, which is no folder; give a run, an export or a transformers folder")
        if device == "cuda" and not torch.cuda.is_available():
            problems.append("device: got cuda, but PyTorch finds no CUDA device; use cpu or auto")
        raise_problems(problems)
        place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        reward = load_reward(name, place, allow_uncalibrated=True, trust_remote_code=trust_remote_code)
        assert isinstance(reward, ModelReward)  # of a folder, never a function
        with named(name):
            _set_dtype(reward, dtype)
            _set_max_length(reward, max_length)
        reward.tokens_per_batch = _auto_tokens(reward, place) if tokens_per_batch == "auto" else tokens_per_batch
        return cls(reward)

    @property
    def zero(self) -> float:
        """The raw reward of a response that is as often the better as the worse one of its pair; 0 if never fitted."""
        return self.reward.zero

    @property
    def temperature(self) -> float:
        """What a difference of raw rewards is divided by before the sigmoid; 1 if never fitted."""
        return self.reward.temperature

    @property
    def is_calibrated(self) -> bool:
        """Whether anybody has fitted zero and temperature."""
        return (self.zero, self.temperature) != (0.0, 1.0)

    def score(self, prompts: Prompts, responses: Sequence[str], cut_long: bool = False) -> Tensor:
        """(N,) float32 raw rewards, in logits, on the CPU.

        Args:
            prompts: N.
            responses: N.
            cut_long: judge a response that does not fit into `max_length` by its front, as PPO does, with a warning
                the first time; otherwise it is an error.

        Raises:
            UserError: if a prompt or a response cannot be read, does not fit, or gets a reward that is not finite.
        """
        return self.score_rows(self.encode_rows(prompts, responses, cut_long))

    def encode_rows(self, prompts: Prompts, responses: Sequence[str], cut_long: bool = False) -> list[Row]:
        """The first half of `score`: texts to ids.

        Args:
            prompts: N.

        Raises:
            UserError: if a prompt or a response cannot be read or does not fit.
        """
        turns, (responses,) = _all_turns(prompts, responses)
        if not turns:
            return []
        with named(self.reward.name):
            self.reward.look_at(responses)
            found = self.reward.encode(turns, responses, cut_long)
            rows = self._fitting(found.rows)
        return list(map(Row, turns, responses, rows, found.starts, found.is_cut))

    def score_rows(self, rows: Sequence[Row]) -> Tensor:
        """The second half of `score`: (N,) float32 raw rewards of N rows, of one call of `encode_rows` or of several.

        Raises:
            UserError: if a reward is not finite.
        """
        if not rows:
            return torch.empty(0)
        ids = [row.ids for row in rows]
        keys = self._keys([row.prompt for row in rows], ids)
        raw = self.reward.score_rows(ids, [row.start for row in rows], keys)
        return checked_scores(self.reward.name, raw, [row.response for row in rows])

    def probability(self, prompts: Prompts, responses: Sequence[str], others: Sequence[str]) -> Tensor:
        """(N,) float32 probability that each response is better than the other one to the same prompt, calibrated.

        Args:
            prompts: N.
            responses: N.
            others: N.

        Raises:
            UserError: as `score` does.
        """
        turns, (responses, others) = _all_turns(prompts, responses, others)
        if not turns:
            return torch.empty(0)
        texts = enumerate(zip(turns, responses, others, strict=True))
        with named(self.reward.name):
            encoded = self.encode([PreferencePair(i, prompt, one, other, None) for i, (prompt, one, other) in texts])
            fitting = self._fitting(encoded)
        raw = self.score_encoded(fitting)
        first, second = (checked_scores(self.reward.name, *side) for side in zip(raw, (responses, others), strict=True))
        return prob_a_wins(first - second, self.temperature)

    def score_candidates(
        self,
        prompts: Sequence[list[Turn]],
        candidates: Sequence[Sequence[str]],
        show: Callable[[int], object] | None = None,
    ) -> list[Tensor | None]:
        """Several responses to each prompt, all of which see it cut alike; equal ones are scored once.

        Args:
            prompts: N conversations that wait for a response.
            candidates: C > 0 responses to each of them.
            show: is told after each batch how many responses it had.

        Returns:
            N tensors (2, C) float32: raw rewards, and tokens of prompt and response; None where one does not fit.

        Raises:
            UserError: if the template refuses a prompt, or a reward is not finite.
        """
        distinct = [list(dict.fromkeys(texts)) for texts in candidates]
        with named(self.reward.name):
            self.reward.look_at([text for texts in distinct for text in texts])
            encoded = encode_candidates(self.reward.tokenizer, prompts, distinct, self.reward.max_length)
        placed = [(i, one.start, ids) for i, one in enumerate(encoded) if one is not None for ids in one.rows]
        if not placed:
            return [None] * len(encoded)
        places, starts, rows = map(list, zip(*placed, strict=True))
        texts = [text for group, fits in zip(distinct, encoded, strict=True) if fits is not None for text in group]
        raw = self.reward.score_rows(rows, starts, self._keys([prompts[i] for i in places], rows), show)
        found: list[dict[str, tuple[float, int]]] = [{} for _ in encoded]
        for i, text, ids, reward in zip(
            places, texts, rows, checked_scores(self.reward.name, raw, texts).tolist(), strict=True
        ):
            found[i][text] = reward, len(ids)
        return [torch.tensor([one[t] for t in c]).T if one else None for one, c in zip(found, candidates, strict=True)]

    def encode(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair | None]:
        """N pairs as ids, their prompts cut alike; None where a response does not fit."""
        self.reward.look_at([text for pair in pairs for text in (pair.response_a, pair.response_b)])
        return encode_pairs(self.reward.tokenizer, pairs, self.reward.max_length)

    def score_encoded(
        self, pairs: Sequence[EncodedPair], num_sides: int = 2, show: Callable[[int], object] | None = None
    ) -> Tensor:
        """(num_sides, N) raw rewards of encoded pairs; not checked for NaN or infinity.

        Args:
            pairs: N pairs.
            num_sides: 1 leaves the second responses out.
            show: is told after each batch how many responses it had.
        """
        if not pairs:
            return torch.empty(num_sides, 0)
        rows = [ids for side in ("ids_a", "ids_b")[:num_sides] for ids in (getattr(pair, side) for pair in pairs)]
        starts, keys = [pair.start for pair in pairs] * num_sides, [*range(len(pairs))] * num_sides
        return self.reward.score_rows(rows, starts, keys, show).view(num_sides, -1)

    def _fitting(self, encoded: Sequence[Encoding | None]) -> list[Encoding]:
        """All of them; `UserError` for those that do not fit."""
        raise_problems(
            f"row {i}: got a response of more than max_length {self.reward.max_length} tokens even after the shortest "
            "cut of its prompt; allow shorter responses or a longer max_length"
            for i, one in enumerate(encoded)
            if one is None
        )
        return [one for one in encoded if one is not None]

    def _keys(self, prompts: Sequence[list[Turn]], rows: Sequence[list[int]]) -> list[Hashable]:
        """Equal for responses to one prompt, but not for more of them than fit into a batch."""
        budget = self.reward.tokens_per_batch
        most = min(budget, self.reward.layout.max_batch_tokens or budget)
        leaders: dict[str, tuple[int, int]] = {}
        keys: list[Hashable] = []
        for i, (prompt, ids) in enumerate(zip(prompts, rows, strict=True)):
            text = json.dumps(prompt)
            leader, tokens = leaders.get(text, (i, 0))
            size = len(ids) + len(self.reward.layout.question)
            own = size - num_shared_tokens([np.asarray(rows[leader]), np.asarray(ids)]) * (leader != i)
            if tokens + own > most:
                leader, tokens, own = i, 0, size
            leaders[text] = leader, tokens + own
            keys.append(leader)
        return keys


def _all_turns(prompts: Prompts, *responses: Sequence[str]) -> tuple[list[list[Turn]], list[list[str]]]:
    """Prompts as conversations, and responses, read as those of a file are."""
    for texts in (prompts, *responses):
        if isinstance(texts, str):
            raise UserError(f'score: got the text "{texts[:40]}" for a list of texts; put it into a list')
    if len({len(prompts), *map(len, responses)}) > 1:
        counts = " and ".join(str(len(texts)) for texts in responses)
        raise UserError(f"score: got {len(prompts)} prompts and {counts} responses; give one response to each prompt")
    turns: list[list[Turn]] = []
    problems = [
        f"response {i}: got a {type(text).__name__}; use text"
        for texts in responses
        for i, text in enumerate(texts)
        if not isinstance(text, str)
    ]
    for i, prompt in enumerate(prompts):
        try:
            found = parse_prompt({"prompt": prompt}, {}, f"prompt {i}")
        except UserError as error:
            problems += error.problems
            continue
        if found is None:
            problems.append(f"prompt {i}: got nothing but white space; give a text, or turns with role and content")
        turns.append(found or [])
    raise_problems(problems)
    return turns, [[clean(text) for text in texts] for texts in responses]


def _set_dtype(reward: ModelReward, dtype: Dtype) -> None:
    if dtype == "auto":
        return
    model = cast(PreTrainedModel, reward.reward_model.model)
    if getattr(model, "is_quantized", False):
        raise UserError(f"dtype: got {dtype} for a body in 4 bits; use auto")
    for weight in getattr(model, model.base_model_prefix).parameters():
        # Not `body.to`: buffers, such as the frequencies of rotary embeddings, need float32.
        if weight.is_floating_point():
            weight.data = weight.data.to(getattr(torch, dtype))


def _auto_tokens(reward: ModelReward, place: str) -> int:
    """What `auto` is; said in one line."""
    tokens = CPU_TOKENS[1]
    if place == "cuda":
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        tokens = scoring_budget(cast(RewardModel, reward.reward_model), torch.cuda.mem_get_info()[0] + cached)
    rank_zero_info(f"Batches: auto is {tokens:,} tokens in scoring.")
    return tokens


def _set_max_length(reward: ModelReward, max_length: int | None) -> None:
    reward.tokenizer.model_max_length = sys.maxsize  # it would warn of prompts that are cut only after it has seen them
    if max_length is None:
        return
    positions = num_positions(cast(PreTrainedModel, reward.reward_model.model).config)
    raise_problems(errors([length_finding(max_length, positions, setting="max_length")]))
    reward.max_length = max_length
