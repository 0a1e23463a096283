"""Prompts and responses -> rewards: what can score responses in the RL stage.

A reward function takes text and not ids, so a reward model may have another tokenizer than the policy.
Shapes: N responses.
"""

import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.encode import EncodedCandidates, encode_candidates, encode_front
from ser_lightning.data.layouts import Layout
from ser_lightning.errors import UserError, describe
from ser_lightning.models.tokens import warn_of_unknown
from ser_lightning.records import Turn
from ser_lightning.training.scoring import evaluating

_MOST_CHARACTERS = 32
"""Of a response for each token that it may have, tried first."""


class RewardFunction(Protocol):
    """Gives each response a number; higher is better."""

    @property
    def num_cut(self) -> int:
        """Responses of the last call of which it read the front alone, because they were too long."""

    def __call__(self, prompts: Sequence[list[Turn]], responses: Sequence[str]) -> Tensor:
        """Rewards of responses.

        Args:
            prompts: N conversations that wait for a response.

        Returns:
            (N,) float32 on the CPU, all finite.

        Raises:
            UserError: if it fails; the error names the reward function.
        """


class EncodedResponses(NamedTuple):
    """Ids of N responses after their prompts.

    Attributes:
        rows: None where one does not fit.
        starts: positions where the responses begin, 0 where one does not fit.
        is_cut: where the front of a response stands for all of it.
    """

    rows: list[list[int] | None]
    starts: list[int]
    is_cut: list[bool]


class ModelReward:
    """A reward model that reads text through its own tokenizer and chat template: `(reward - zero) / temperature`.

    On this scale 0 is a response as often better as worse, and a difference of d wins with probability sigmoid(d).

    Args:
        reward_model: gives the (R,) rewards of `Inputs`, in the layout that it names; not copied, may share its body.
        tokenizer: the reward model's, with a chat template.
        max_length: most tokens in a conversation; longer prompts lose their oldest turns, as in training. A response
            that is longer by itself is judged by its front, see `encode_front`.
        zero: reward that counts as 0.
        temperature: rewards are divided by this.
        name: what errors call it.
        tokens_per_batch: most padded tokens in a batch; changes memory and speed, never the result.

    Attributes:
        unread_token: a decoder of other people is not read at this token where conversations end with it, because
            plain transformers, with which it was trained, takes it for padding; None where there is no such token.
    """

    unread_token: int | None = None

    def __init__(
        self,
        reward_model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        zero: float,
        temperature: float,
        name: str,
        tokens_per_batch: int = 16384,
    ) -> None:
        self.reward_model, self.tokenizer, self.max_length = reward_model, tokenizer, max_length
        self.zero, self.temperature = zero, temperature
        self.name, self.tokens_per_batch = name, tokens_per_batch
        self.num_cut, self._has_cut, self._has_looked = 0, False, False

    def __call__(self, prompts: Sequence[list[Turn]], responses: Sequence[str]) -> Tensor:
        """(N,) rewards on the calibrated scale."""
        if not responses:
            return torch.empty(0)
        with named(self.name):
            self.look_at(responses)
            found = self.encode(prompts, responses, cut_long=True)
        self.num_cut = sum(found.is_cut)
        rows = [ids for ids in found.rows if ids is not None]
        raw = self.score_rows(rows, found.starts, [json.dumps(prompt) for prompt in prompts])
        return checked_scores(self.name, (raw - self.zero) / self.temperature, responses)

    def encode(self, prompts: Sequence[list[Turn]], responses: Sequence[str], cut_long: bool) -> EncodedResponses:
        """Ids of every response.

        Args:
            prompts: N conversations that wait for a response.
            cut_long: keep the front of those that are too long, and say so the first time.

        Raises:
            UserError: if the template refuses a prompt, or `max_length` takes not even an empty response.
        """
        # Of megabytes that are cut anyway, no more is made ids than shows that they do not fit.
        most = self.max_length * _MOST_CHARACTERS if cut_long else None
        fronts = [text[:most] for text in responses]
        given = encode_candidates(self.tokenizer, prompts, [[text] for text in fronts], self.max_length)
        for i, text in enumerate(responses):
            if given[i] is not None and len(text) > len(fronts[i]):
                [given[i]] = encode_candidates(self.tokenizer, [prompts[i]], [[text]], self.max_length)
                fronts[i] = text
        if not cut_long or None not in given:
            return _encoded_responses(given, [False] * len(given))
        found = [
            one or encode_front(self.tokenizer, prompt, text, self.max_length)
            for one, prompt, text in zip(given, prompts, fronts, strict=True)
        ]
        if None in found:
            raise UserError(
                f"got a max_length of {self.max_length}, in which not even an empty response fits; give a reward model "
                "that was trained with a larger data.max_length"
            )
        if not self._has_cut:
            self._has_cut = True
            rank_zero_warn(
                f"reward {self.name}: {given.count(None)} of {len(found)} responses are longer than its max_length of "
                f"{self.max_length} tokens; it judges them by what comes first. Let the policy write less (here "
                "model.sampling.max_new_tokens), or train the reward model with a larger data.max_length."
            )
        return _encoded_responses(found, [one is None for one in given])

    def score_rows(
        self,
        rows: Sequence[list[int]],
        starts: Sequence[int],
        keys: Sequence[Hashable],
        show: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Raw rewards of encoded conversations.

        Args:
            rows: N lists of ids, N > 0.
            starts: N positions where their responses begin.
            keys: N, equal for conversations that are to share what they begin with.
            show: is told after each batch how many conversations it had.

        Returns:
            (N,) float32 on the CPU, in logits; not checked for NaN or infinity.
        """
        rows = [self._read_part(ids) for ids in rows]
        batches = self.layout.cut_sequences(rows, keys, self.tokens_per_batch)
        parts = []
        with evaluating(self.reward_model):
            for batch in batches:
                parts.append(self._score(batch, rows, starts, keys))
                if show is not None:
                    show(len(batch))
        rewards = torch.empty(len(rows))
        rewards[torch.tensor([i for batch in batches for i in batch])] = torch.cat(parts).float().cpu()
        return rewards

    def look_at(self, texts: Sequence[str]) -> None:
        """Warn of texts that the tokenizer hardly knows; looks at the first that it is given alone."""
        if not self._has_looked and texts:
            self._has_looked = True
            warn_of_unknown(self.tokenizer, texts, f"reward {self.name}")

    def _read_part(self, ids: list[int]) -> list[int]:
        """A conversation up to where the reward is read: what stands after it changes nothing in a decoder."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self.unread_token:
            end -= 1
        return ids[:end]

    @property
    def layout(self) -> Layout:
        """How the reward model reads sequences best."""
        return cast(Layout, self.reward_model.layout)

    def _score(
        self, batch: list[int], rows: Sequence[list[int]], starts: Sequence[int], keys: Sequence[Hashable]
    ) -> Tensor:
        """(R,) raw rewards of one batch: R positions."""
        rows, starts, keys = [rows[i] for i in batch], [starts[i] for i in batch], [keys[i] for i in batch]
        inputs = self.layout.lay_out(rows, keys, self.tokenizer.pad_token_id or 0, starts)
        return self.reward_model(inputs.to(next(self.reward_model.parameters()).device))


def _encoded_responses(found: Sequence[EncodedCandidates | None], is_cut: list[bool]) -> EncodedResponses:
    """What was encoded with one response to each prompt."""
    rows = [None if one is None else one.rows[0] for one in found]
    return EncodedResponses(rows, [0 if one is None else one.start for one in found], is_cut)


class FunctionReward:
    """Any function `(prompts, responses) -> scores`.

    Args:
        function: takes N conversations (lists of turns) and N strings, gives N numbers in a sequence or tensor.
        name: what errors call it.
    """

    num_cut = 0  # it gets all of every response

    def __init__(self, function: Callable[[list[list[Turn]], list[str]], Any], name: str) -> None:
        self.function, self.name = function, name

    def __call__(self, prompts: Sequence[list[Turn]], responses: Sequence[str]) -> Tensor:
        """(N,) scores of the function."""
        if not responses:
            return torch.empty(0)
        # Copies: a function that appends to a prompt must not change what the policy sees next time.
        turns = [[turn.copy() for turn in prompt] for prompt in prompts]
        try:
            scores = self.function(turns, list(responses))
        except Exception as error:
            what = f"got {describe(error)} for {len(responses)} responses"
            raise UserError(f"reward {self.name}: {what}; mend the function") from error
        return checked_scores(self.name, scores, responses)


class RewardSum:
    """Several reward functions as one: the weighted sum of their scores."""

    def __init__(self, functions: dict[str, RewardFunction], weights: dict[str, float]) -> None:
        self.functions, self._weights = functions, weights

    @property
    def num_cut(self) -> int:
        """Responses of the last call that any of the functions cut, as the one that cut most has counted them."""
        return max(function.num_cut for function in self.functions.values())

    @property
    def models(self) -> list[nn.Module]:
        """The reward models among the functions."""
        return [one.reward_model for one in self.functions.values() if isinstance(one, ModelReward)]

    def __call__(self, prompts: Sequence[list[Turn]], responses: Sequence[str]) -> Tensor:
        """(N,) weighted sum."""
        scores = [self._weights[source] * score(prompts, responses) for source, score in self.functions.items()]
        return torch.stack(scores).sum(0)


def checked_scores(name: str, scores: Any, responses: Sequence[str]) -> Tensor:
    """What a reward function returned, as (N,) float32 on the CPU.

    Args:
        scores: N numbers in a sequence, array or tensor.

    Raises:
        UserError: if they are not N finite numbers.
    """
    try:
        found = torch.as_tensor(scores).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(scores).__name__} ({describe(error)})"
        raise UserError(f"reward {name}: got {got} for {len(responses)} responses; return one number each") from error
    if found.ndim != 1:
        shape = tuple(found.shape)
        raise UserError(f"reward {name}: got scores of shape {shape}; return shape ({len(responses)},)")
    if len(found) != len(responses):
        raise UserError(f"reward {name}: got {len(found)} scores for {len(responses)} responses; return one each")
    bad = (~torch.isfinite(found)).nonzero().flatten().tolist()
    if bad:
        what = "NaN" if found[bad].isnan().all() else "infinity" if found[bad].isinf().all() else "NaN and infinity"
        text = " ".join(responses[bad[0]].split())[:40]
        raise UserError(
            f"reward {name}: got {what} for {len(bad)} of {len(found)} responses, such as response {bad[0]} "
            f'("{text}"); every response needs a finite number'
        )
    return found


@contextmanager
def named(name: str) -> Iterator[None]:
    """Problems from below say which reward they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"reward {name}: {problem}" for problem in error.problems) from error
