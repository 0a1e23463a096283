"""Conversations -> ids, always through the tokenizer's chat template.

A dialogue that is too long loses its oldest turns, then the front of its last turn; a response is never cut, and both
responses of a pair see exactly the same prompt.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ser_lightning.errors import UserError
from ser_lightning.records import PreferencePair, Turn

ENCODING_VERSION = 1
"""Part of the cache key: raise it when the same pair would come out as other ids."""


@dataclass(frozen=True)
class EncodedPair:
    """The ids of one pair.

    Attributes:
        ids_a: prompt and response a, T_a ids.
        ids_b: the same prompt and response b, T_b ids.
        is_cut: whether the prompt lost something to fit.
    """

    ids_a: list[int]
    ids_b: list[int]
    is_cut: bool = False


def _fixed_date(date_format: str) -> str:
    return datetime.date(2024, 7, 26).strftime(date_format)


def encode_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Turn]]) -> list[list[int]]:
    """Ids of whole conversations; the only place that turns text into ids.

    Args:
        tokenizer: has a `chat_template`.
        conversations: N conversations, the scored response as the last turn.

    Returns:
        N lists of ids.
    """
    # Templates such as Llama 3.1's write today's date into the system turn: rewards and cache would change overnight.
    kwargs: dict[str, Any] = {"tokenize": True, "return_dict": False, "strftime_now": _fixed_date}
    rows = tokenizer.apply_chat_template(list(conversations), **kwargs)
    bos = tokenizer.bos_token_id
    if bos is not None and any(row[:2] == [bos, bos] for row in rows):
        raise UserError(
            f"chat template: got two {tokenizer.bos_token!r} at the start; "
            "take the BOS out of the template or set add_bos_token to false"
        )
    return rows


def encode_pair(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, max_length: int) -> EncodedPair | None:
    """Ids of both conversations of a pair.

    Args:
        tokenizer: has a `chat_template`.
        pair: prompt and two responses; its label is not read.
        max_length: most ids in a conversation.

    Returns:
        None when a response does not fit even with nothing but an empty last turn (and the system turn) before it.
    """
    return encode_pairs(tokenizer, [pair], max_length)[0]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], max_length: int
) -> list[EncodedPair | None]:
    """`encode_pair` for many pairs in one call of the tokenizer, which is several times faster.

    Args:
        tokenizer: has a `chat_template`.
        pairs: N pairs.
        max_length: most ids in a conversation.

    Returns:
        N encodings, None where a response does not fit.
    """
    try:
        conversations = [turns for pair in pairs for turns in _both(pair, pair.prompt)]
        rows = encode_conversations(tokenizer, conversations)
    except TemplateError as error:
        if len(pairs) > 1:  # one at a time, to name the pair
            return [encode_pair(tokenizer, pair, max_length) for pair in pairs]
        roles = ", ".join(turn["role"] for turn in pairs[0].prompt)
        raise UserError(
            f"chat template refuses pair {pairs[0].source_id or pairs[0].pair_id}: got {error} for the roles {roles}; "
            "use turns that the template takes, or another template"
        ) from error
    encoded: list[EncodedPair | None] = []
    for pair, ids_a, ids_b in zip(pairs, rows[::2], rows[1::2], strict=True):
        fits = max(len(ids_a), len(ids_b)) <= max_length
        encoded.append(EncodedPair(ids_a, ids_b) if fits else _encode_cut(tokenizer, pair, max_length))
    return encoded


def _both(pair: PreferencePair, prompt: list[Turn]) -> list[list[Turn]]:
    return [[*prompt, {"role": "assistant", "content": text}] for text in (pair.response_a, pair.response_b)]


def _encode_cut(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, max_length: int) -> EncodedPair | None:
    """The longest cut of the prompt with which both responses fit."""

    def attempt(prompt: list[Turn]) -> EncodedPair | None:
        ids_a, ids_b = encode_conversations(tokenizer, _both(pair, prompt))
        return EncodedPair(ids_a, ids_b, is_cut=True) if max(len(ids_a), len(ids_b)) <= max_length else None

    num_system = sum(turn["role"] == "system" for turn in pair.prompt[:1])
    system, turns = pair.prompt[:num_system], pair.prompt[num_system:]
    if not turns:
        return None
    # Many templates insist on a dialogue that the user opens.
    starts = [i for i in range(1, len(turns)) if turns[i]["role"] == "user" or i == len(turns) - 1]
    for start in starts:
        if encoded := attempt([*system, *turns[start:]]):
            return encoded
    last = turns[-1]

    def keep(num_characters: int) -> EncodedPair | None:
        tail = last["content"][len(last["content"]) - num_characters :]
        return attempt([*system, {"role": last["role"], "content": tail}])

    best = keep(0)
    fitting, too_many = 0, len(last["content"])
    while best and too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if encoded := keep(middle):
            best, fitting = encoded, middle
        else:
            too_many = middle
    return best
