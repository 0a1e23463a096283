"""Conversations -> ids, always through the tokenizer's chat template.

A dialogue that is too long loses its oldest turns, then the beginning of its last turn; a response is never cut, and
all responses that are compared see exactly the same prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.packing import num_shared_tokens
from ser_lightning.data.templates import (
    PROBES,
    Header,
    TemplateRefused,
    header_ends,
    known_start,
    render_conversations,
)
from ser_lightning.data.truncation import longest_cut, longest_fit, shortest_cuts, tolerant
from ser_lightning.errors import UserError
from ser_lightning.records import PreferencePair, Turn

ENCODING_VERSION = 4
"""Part of the cache key: raise it when the same pair would be encoded as other ids, or get another start."""


@dataclass(frozen=True)
class EncodedPair:
    """The ids of one pair.

    Attributes:
        ids_a: prompt and response a, T_a ids.
        ids_b: the same prompt and response b, T_b ids.
        is_cut: whether the prompt was truncated to fit.
        start: position where both responses begin; 0 if the template writes nothing fixed before a response.
    """

    ids_a: list[int]
    ids_b: list[int]
    is_cut: bool = False
    start: int = 0


@dataclass(frozen=True)
class EncodedCandidates:
    """The ids of one prompt with each of several responses.

    Attributes:
        rows: C lists of ids, prompt and response.
        is_cut: whether the prompt was truncated to fit.
        start: position where every response begins; 0 if the template writes nothing fixed before a response.
    """

    rows: list[list[int]]
    is_cut: bool = False
    start: int = 0


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Turn]], add_generation_prompt: bool = False
) -> list[list[int]]:
    """Ids of whole conversations; the only place that turns text into ids.

    Args:
        conversations: N conversations, the scored response as the last turn.
        add_generation_prompt: go on to where a response begins.

    Returns:
        N lists of ids.

    Raises:
        UserError: the template refuses one, or begins with two BOS.
    """
    texts = render_conversations(tokenizer, conversations, add_generation_prompt)
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids  # as `apply_chat_template` does
    bos = tokenizer.bos_token_id
    if bos is not None and any(row[:2] == [bos, bos] for row in rows):
        raise UserError(
            f"chat template: got two {tokenizer.bos_token!r} at the start; "
            "take the BOS out of the template or set add_bos_token to false"
        )
    return rows


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], max_length: int
) -> list[EncodedPair | None]:
    """Ids of both conversations of N pairs, in one call of the tokenizer; no label is read.

    Args:
        pairs: N pairs.

    Returns:
        N encodings. None where a response does not fit even after the shortest cut of the prompt: an empty last turn
        (and a system turn), or the end of the last turn where the template refuses an empty one.

    Raises:
        UserError: the template refuses a pair, which is named.
    """
    groups = [(pair.prompt, [pair.response_a, pair.response_b]) for pair in pairs]
    names = [f"pair {pair.source_id or pair.pair_id}" for pair in pairs]
    found = _with_starts(tokenizer, groups, _encode_groups(tokenizer, groups, max_length, names))
    return [None if one is None else EncodedPair(one.rows[0], one.rows[1], one.is_cut, one.start) for one in found]


def encode_candidates(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[Turn]],
    candidates: Sequence[Sequence[str]],
    max_length: int,
) -> list[EncodedCandidates | None]:
    """Ids of N prompts with each of their responses, which see it cut alike, as those of a pair do.

    Args:
        prompts: N conversations that wait for a response.
        candidates: C > 0 responses to each of them.

    Returns:
        N encodings; None where a response does not fit even after the shortest cut of its prompt.

    Raises:
        UserError: the template refuses a prompt.
    """
    groups = list(zip(prompts, candidates, strict=True))
    return _with_starts(tokenizer, groups, _encode_groups(tokenizer, groups, max_length))


def encode_front(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Turn], response: str, max_length: int
) -> EncodedCandidates | None:
    """Ids of the longest beginning of a response that fits after the shortest cut of its prompt.

    In training, a response that long leaves no more of its prompt.

    Args:
        prompt: a conversation that waits for a response.
        response: does not fit as a whole.

    Returns:
        The encoding, None where not even an empty response fits.
    """

    def attempt(cut: list[Turn], num_characters: int) -> tuple[int, list[int]]:
        [ids] = encode_conversations(tokenizer, _with_each(cut, [response[:num_characters]]))
        return len(ids), ids

    for cut in shortest_cuts(prompt):
        keep = tolerant(partial(attempt, cut))
        # A template may refuse an empty response.
        for fewest in dict.fromkeys((0, 1, len(response) - len(response.lstrip()) + 1)):
            shortest = keep(fewest)
            if shortest is not None and shortest[0] <= max_length:
                too_long = keep(len(response))
                most = (len(response), too_long[0] if too_long else max_length + 1)
                ids = longest_fit(keep, (fewest, *shortest), most, max_length)
                return _with_starts(tokenizer, [(prompt, [response])], [_Fitted(cut, [ids], True)])[0]
    return None


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Turn]], max_length: int
) -> list[list[int]]:
    """Ids of prompts up to where the response begins; one that is too long is cut as that of a pair is.

    A template that knows no generation prompt ends with the last turn.

    Args:
        prompts: N conversations that wait for a response.

    Returns:
        N lists of ids.

    Raises:
        UserError: if the template refuses a prompt, or one does not fit however it is cut.
    """
    found = _encode_groups(tokenizer, [(prompt, None) for prompt in prompts], max_length)
    for prompt, one in zip(prompts, found, strict=True):
        if one is None:
            raise UserError(
                f'prompt ("{" ".join(prompt[0]["content"].split())[:40]}"): got more than {max_length} tokens even in '
                "the shortest form that the chat template takes; raise data.max_prompt_length"
            )
    return [one.rows[0] for one in found if one is not None]


def response_header(tokenizer: PreTrainedTokenizerBase) -> Header | None:
    """What the chat template writes between the user's text and any response; None if that is nothing fixed.

    Some templates end the user's turn with it, such as `[/INST]`. Others write it only once a response follows.

    Raises:
        TemplateRefused: the template refuses one question with one answer.
    """
    question, another = [Turn(role="user", content="Hello")], [Turn(role="user", content="Why 7?")]
    answered = _with_each(question, PROBES)
    bare, other, *rows = encode_conversations(tokenizer, [question, *_with_each(another, PROBES[:1]), *answered])
    end = _num_shared(rows)
    ids = tuple(rows[0][_num_shared([bare, rows[0]]) : end])
    if not tokenizer.decode(list(ids)).strip():
        num_after = len(rows[0]) - end  # ids of the first probe, with which the other conversation ends as well
        ids = tuple(rows[0][end - _num_shared([rows[0][:end][::-1], other[: len(other) - num_after][::-1]]) : end])
    if not ids or any(header_ends(row, ids)[-1:] != [end] for row in rows):
        return None
    text = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    try:
        [longer] = encode_conversations(tokenizer, [answered[0] + answered[1]])
    except TemplateRefused:
        longer = rows[0]
    return Header(ids, text.strip() or text, len(header_ends(longer, ids)) > 1)


_HEADERS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, Header | None]] = WeakKeyDictionary()


def _known_header(tokenizer: PreTrainedTokenizerBase) -> Header | None:
    """`response_header`, looked for once for each template of a tokenizer; None also where the template refuses."""
    template = tokenizer.get_chat_template()
    if tokenizer not in _HEADERS or _HEADERS[tokenizer][0] != template:
        try:
            _HEADERS[tokenizer] = template, response_header(tokenizer)
        except TemplateRefused:
            _HEADERS[tokenizer] = template, None
    return _HEADERS[tokenizer][1]


Group = tuple[list[Turn], Sequence[str] | None]
"""A prompt and the responses to it; None for the prompt alone, up to where a response begins."""


class _Fitted(NamedTuple):
    """A prompt as it fits, and the ids of each of its conversations."""

    prompt: list[Turn]
    rows: list[list[int]]
    is_cut: bool


def _with_starts(
    tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group], found: Sequence[_Fitted | None]
) -> list[EncodedCandidates | None]:
    """Find where the responses of each group begin, by the header or, where it does not tell, by made-up responses."""
    header = _known_header(tokenizer)
    starts: dict[int, int | None] = {}
    for i, (one, (_, responses)) in enumerate(zip(found, groups, strict=True)):
        if one is not None and header is not None:
            num_turns = 1 + sum(turn["role"] == "assistant" for turn in one.prompt)
            starts[i] = known_start(header, one.rows, responses or (), num_turns)
    if unknown := [i for i, start in starts.items() if start is None]:
        probes = [turns for i in unknown for turns in _with_each(found[i].prompt, PROBES)]  # type: ignore[union-attr]
        rows = iter(encode_conversations(tokenizer, probes))
        starts |= {i: _num_shared(list(islice(rows, len(PROBES)))) for i in unknown}
    return [
        None if one is None else EncodedCandidates(one.rows, one.is_cut, starts.get(i) or 0)
        for i, one in enumerate(found)
    ]


def _num_shared(rows: Sequence[list[int]]) -> int:
    return num_shared_tokens([np.asarray(row) for row in rows])


def _with_each(prompt: list[Turn], responses: Sequence[str] | None) -> list[list[Turn]]:
    if responses is None:
        return [prompt]
    return [[*prompt, {"role": "assistant", "content": text}] for text in responses]


def _encode_groups(
    tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group], max_length: int, names: Sequence[str] = ()
) -> list[_Fitted | None]:
    """The ids of all conversations of each group, its prompt cut if need be; None where it cannot be made to fit.

    Args:
        groups: N prompts; either all have responses or none has.
    """
    conversations = [_with_each(*group) for group in groups]
    waits = any(responses is None for _, responses in groups)
    try:
        rows = iter(encode_conversations(tokenizer, [turns for many in conversations for turns in many], waits))
    except TemplateRefused as error:
        if len(groups) > 1:  # one at a time, to name the one
            return [_encode_groups(tokenizer, [g], max_length, names[i : i + 1])[0] for i, g in enumerate(groups)]
        raise TemplateRefused(error.reason, names[0] if names else "a prompt", groups[0][0]) from error
    found: list[_Fitted | None] = []
    for (prompt, responses), many in zip(groups, conversations, strict=True):
        encoded = list(islice(rows, len(many)))
        fits = max(map(len, encoded)) <= max_length
        found.append(_Fitted(prompt, encoded, False) if fits else _encode_cut(tokenizer, prompt, responses, max_length))
    return found


def _encode_cut(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Turn], responses: Sequence[str] | None, max_length: int
) -> _Fitted | None:
    """The responses after the longest cut of their prompt with which all of them fit."""

    def attempt(cut: list[Turn]) -> tuple[int, _Fitted]:
        rows = encode_conversations(tokenizer, _with_each(cut, responses), responses is None)
        return max(map(len, rows)), _Fitted(cut, rows, True)

    return longest_cut(prompt, attempt, max_length)
