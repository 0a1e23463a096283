"""Conversations -> ids, always through the tokenizer's chat template.

A dialogue that is too long loses its oldest turns, then the beginning of its last turn; a response is never cut, and
all responses that are compared see exactly the same prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from ser_lightning.data.templates import TemplateRefused, render_conversations
from ser_lightning.errors import UserError
from ser_lightning.records import PreferencePair, Turn

Encoding = TypeVar("Encoding")
_MAX_TRIES = 8
ENCODING_VERSION = 2
"""Part of the cache key: raise it when the same pair would be encoded as other ids."""


@dataclass(frozen=True)
class EncodedPair:
    """The ids of one pair.

    Attributes:
        ids_a: prompt and response a, T_a ids.
        ids_b: the same prompt and response b, T_b ids.
        is_cut: whether the prompt was truncated to fit.
    """

    ids_a: list[int]
    ids_b: list[int]
    is_cut: bool = False


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Turn]], add_generation_prompt: bool = False
) -> list[list[int]]:
    """Ids of whole conversations; the only place that turns text into ids.

    Args:
        tokenizer: has a `chat_template`.
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


def encode_pair(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, max_length: int) -> EncodedPair | None:
    """Ids of both conversations of a pair.

    Args:
        tokenizer: has a `chat_template`.
        pair: prompt and two responses; its label is not read.
        max_length: most ids in a conversation.

    Returns:
        None when a response does not fit even behind the shortest cut of the prompt: an empty last turn (and the system
        turn), or the end of the last turn where the template refuses an empty one.
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
        conversations = [turns for pair in pairs for turns in _with_each(pair.prompt, _both(pair))]
        rows = encode_conversations(tokenizer, conversations)
    except TemplateRefused as error:
        if len(pairs) > 1:  # one at a time, to name the pair
            return [encode_pair(tokenizer, pair, max_length) for pair in pairs]
        name = f"pair {pairs[0].source_id or pairs[0].pair_id}"
        raise TemplateRefused(error.reason, name, pairs[0].prompt) from error
    encoded: list[EncodedPair | None] = []
    for pair, ids_a, ids_b in zip(pairs, rows[::2], rows[1::2], strict=True):
        if max(len(ids_a), len(ids_b)) <= max_length:
            encoded.append(EncodedPair(ids_a, ids_b))
        else:
            cut = _encode_cut(tokenizer, pair.prompt, _both(pair), max_length)
            encoded.append(None if cut is None else EncodedPair(cut[0], cut[1], is_cut=True))
    return encoded


def encode_candidates(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Turn], responses: Sequence[str], max_length: int
) -> list[list[int]] | None:
    """Ids of a prompt with each of its responses, as `encode_pair` but for any number of them.

    Args:
        tokenizer: has a `chat_template`.
        prompt: a conversation that waits for a response.
        responses: N, N > 0.
        max_length: most ids in a conversation.

    Returns:
        N lists of ids; None where a response does not fit even without its prompt.

    Raises:
        UserError: if the template refuses the prompt.
    """
    try:
        rows = encode_conversations(tokenizer, _with_each(prompt, responses))
    except TemplateRefused as error:
        raise TemplateRefused(error.reason, "a prompt", prompt) from error
    return rows if max(map(len, rows)) <= max_length else _encode_cut(tokenizer, prompt, responses, max_length)


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Turn]], responses: Sequence[str], max_length: int
) -> list[list[int] | None]:
    """Ids of prompts with one response each; a prompt that is too long is cut as that of a pair is.

    Args:
        tokenizer: has a `chat_template`.
        prompts: N conversations that wait for a response.
        responses: N.
        max_length: most ids in a conversation.

    Returns:
        N lists of ids, None where a response does not fit even behind the shortest cut of its prompt.

    Raises:
        UserError: if the template refuses a prompt.
    """
    both = list(zip(prompts, responses, strict=True))
    try:
        rows = encode_conversations(tokenizer, [_with_each(prompt, [text])[0] for prompt, text in both])
    except TemplateRefused as error:
        if len(both) > 1:  # one at a time, to name the roles
            return [encode_responses(tokenizer, [prompt], [text], max_length)[0] for prompt, text in both]
        raise TemplateRefused(error.reason, "a prompt", prompts[0]) from error
    found: list[list[int] | None] = []
    for (prompt, text), ids in zip(both, rows, strict=True):
        cut = [ids] if len(ids) <= max_length else _encode_cut(tokenizer, prompt, [text], max_length)
        found.append(cut[0] if cut else None)
    return found


def encode_front(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Turn], response: str, max_length: int
) -> list[int] | None:
    """Ids of the longest beginning of a response that fits behind the shortest cut of its prompt.

    In training, a response that long leaves no more of its prompt.

    Args:
        tokenizer: has a `chat_template`.
        prompt: a conversation that waits for a response.
        response: does not fit as a whole.
        max_length: most ids in a conversation.

    Returns:
        The ids, None where not even an empty response fits.
    """

    def attempt(cut: list[Turn], num_characters: int) -> tuple[int, list[int]]:
        [ids] = encode_conversations(tokenizer, _with_each(cut, [response[:num_characters]]))
        return len(ids), ids

    for cut in _shortest_cuts(prompt):
        keep = _tolerant(partial(attempt, cut))
        # A template may refuse an empty response.
        for fewest in dict.fromkeys((0, 1, len(response) - len(response.lstrip()) + 1)):
            shortest = keep(fewest)
            if shortest is not None and shortest[0] <= max_length:
                too_long = keep(len(response))
                most = (len(response), too_long[0] if too_long else max_length + 1)
                return _longest(keep, (fewest, *shortest), most, max_length)
    return None


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Turn]], max_length: int
) -> list[list[int]]:
    """Ids of prompts up to where the response begins; one that is too long is cut as that of a pair is.

    A template that knows no generation prompt ends with the last turn.

    Args:
        tokenizer: has a `chat_template`.
        prompts: N conversations that wait for a response.
        max_length: most ids in a prompt.

    Returns:
        N lists of ids.

    Raises:
        UserError: if the template refuses a prompt, or one does not fit however it is cut.
    """
    try:
        rows = encode_conversations(tokenizer, prompts, add_generation_prompt=True)
    except TemplateRefused as error:
        if len(prompts) > 1:  # one at a time, to name the roles
            return [encode_prompts(tokenizer, [prompt], max_length)[0] for prompt in prompts]
        raise TemplateRefused(error.reason, "a prompt", prompts[0]) from error

    def attempt(prompt: list[Turn]) -> tuple[int, list[int]]:
        [ids] = encode_conversations(tokenizer, [prompt], add_generation_prompt=True)
        return len(ids), ids

    for i, prompt in enumerate(prompts):
        if len(rows[i]) > max_length:
            cut = _cut_prompt(prompt, attempt, max_length)
            if cut is None:
                raise UserError(
                    f'prompt ("{" ".join(prompt[0]["content"].split())[:40]}"): got more than {max_length} tokens even '
                    "in the shortest form that the chat template takes; raise data.max_prompt_length"
                )
            rows[i] = cut
    return rows


def _both(pair: PreferencePair) -> list[str]:
    return [pair.response_a, pair.response_b]


def _with_each(prompt: list[Turn], responses: Sequence[str]) -> list[list[Turn]]:
    return [[*prompt, {"role": "assistant", "content": text}] for text in responses]


def _encode_cut(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Turn], responses: Sequence[str], max_length: int
) -> list[list[int]] | None:
    """The responses behind the longest cut of their prompt with which all of them fit."""

    def attempt(cut: list[Turn]) -> tuple[int, list[list[int]]]:
        rows = encode_conversations(tokenizer, _with_each(cut, responses))
        return max(map(len, rows)), rows

    return _cut_prompt(prompt, attempt, max_length)


def _cut_prompt(
    prompt: list[Turn], attempt: Callable[[list[Turn]], tuple[int, Encoding]], max_length: int
) -> Encoding | None:
    """The encoding of the longest cut of a prompt that fits; None where nothing does that the template takes.

    Args:
        prompt: does not fit as a whole.
        attempt: from a prompt to its length in ids and its encoding.
        max_length: most ids.
    """
    system, turns = _system_and_turns(prompt)
    encode = _tolerant(attempt)
    found = ((cut, encode(cut)) for cut in _shortest_cuts(prompt))
    shortest = next(((cut, tried) for cut, tried in found if tried is not None and tried[0] <= max_length), None)
    if shortest is None:
        return None
    # Many templates insist on a dialogue that the user opens.
    starts = [i for i in range(1, len(turns)) if turns[i]["role"] == "user" or i == len(turns) - 1]
    whole_turns, last_length = _most_turns(lambda start: encode([*system, *turns[start:]]), starts, max_length)
    if whole_turns is not None:
        return whole_turns
    last = turns[-1]
    keep = lambda n: encode([*system, _tail(last, n)])  # noqa: E731
    if not starts and (whole := keep(len(last["content"]))) is not None:
        last_length = max(last_length, whole[0])
    least = (len(shortest[0][-1]["content"]), *shortest[1])
    return _longest(keep, least, (len(last["content"]), last_length), max_length)


def _system_and_turns(prompt: list[Turn]) -> tuple[list[Turn], list[Turn]]:
    num_system = sum(turn["role"] == "system" for turn in prompt[:1])
    return prompt[:num_system], prompt[num_system:]


def _tail(turn: Turn, num_characters: int) -> Turn:
    return {**turn, "content": turn["content"][len(turn["content"]) - num_characters :]}


def _shortest_cuts(prompt: list[Turn]) -> Iterator[list[Turn]]:
    """The last turn emptied; and for templates that refuse that, its last character, and its last that is no space."""
    system, turns = _system_and_turns(prompt)
    for last in turns[-1:]:
        text = last["content"]
        ends = [0, 1, len(text) - len(text.rstrip()) + 1] if text.strip() else [0]
        yield from ([*system, _tail(last, end)] for end in dict.fromkeys(ends))


def _tolerant(attempt: Callable[..., Encoding]) -> Callable[..., Encoding | None]:
    """`attempt` that gives None where the template refuses: many take only some of the cuts of a conversation."""

    def tried(*args: Any) -> Encoding | None:
        try:
            return attempt(*args)
        except TemplateRefused:
            return None

    return tried


def _most_turns(
    encode: Callable[[int], tuple[int, Encoding] | None], starts: Sequence[int], max_length: int
) -> tuple[Encoding | None, int]:
    """Search for the first start from which the turns fit: doubling from the end, then halving.

    Args:
        encode: from a start to the length in ids and the encoding, None where the template refuses.
        starts: where a cut may begin, ascending.
        max_length: most ids.

    Returns:
        The encoding, None if none fits; and the length of the shortest that does not fit.
    """
    best: Encoding | None = None
    fitting, too_many, too_long, step = 0, len(starts) + 1, max_length + 1, 1  # counted from the end
    while too_many - fitting > 1:
        count = min(fitting + step, too_many - 1) if too_many > len(starts) else (fitting + too_many) // 2
        tried = encode(starts[-count])
        if tried is not None and tried[0] <= max_length:
            fitting, best, step = count, tried[1], 2 * step
        else:
            too_many, too_long = count, max(max_length + 1, tried[0] if tried else 0)
    return best, too_long


def _longest(
    keep: Callable[[int], tuple[int, Encoding] | None],
    least: tuple[int, int, Encoding],
    most: tuple[int, int],
    max_length: int,
) -> Encoding:
    """Search for the most characters that fit; ids grow almost in step with characters.

    Args:
        keep: from a number of characters to the length in ids (of the longest conversation) and the encoding, None
            where the template refuses.
        least: characters that fit, the length with them, and the encoding.
        most: characters that do not fit, and the length with them.
        max_length: most ids in a conversation.
    """
    (fitting, fit_length, best), (too_many, too_long) = least, most
    for _ in range(_MAX_TRIES):
        if fit_length == max_length or too_many - fitting <= 1:
            break
        guess = fitting + (too_many - fitting) * (max_length - fit_length) // max(1, too_long - fit_length)
        guess = min(max(guess, fitting + 1), too_many - 1)
        tried = keep(guess)
        if tried is not None and tried[0] <= max_length:
            fitting, (fit_length, best) = guess, tried
        else:
            too_many, too_long = guess, max(max_length + 1, tried[0] if tried else 0)
    return best
