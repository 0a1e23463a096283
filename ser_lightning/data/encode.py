"""Conversations -> ids, always through the tokenizer's chat template.

A dialogue that is too long loses its oldest turns, then the front of its last turn; a response is never cut, and all
responses that are compared see exactly the same prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ser_lightning.errors import UserError, describe
from ser_lightning.records import PreferencePair, Turn

Encoding = TypeVar("Encoding")
_MAX_TRIES = 8
# Templates such as Llama 3's write today's date into the system turn: ids and rewards would change overnight. This is
# the date that they take where there is no clock.
_FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
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
    """
    template = tokenizer.get_chat_template()
    if not isinstance(template, str):
        raise UserError(f"chat template: got a {type(template).__name__} in the tokenizer; give a text")
    if "strftime_now" in template:
        template = _FIXED_DATE + template
    try:
        rows: list[list[int]] = tokenizer.apply_chat_template(
            list(conversations),
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=False,
        )
    except TemplateError:
        raise
    except Exception as error:  # a template may divide by zero, or add a number to a text
        raise UserError(f"chat template: cannot be rendered ({describe(error)}); mend it, or give another") from error
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
        conversations = [turns for pair in pairs for turns in _with_each(pair.prompt, _both(pair))]
        rows = encode_conversations(tokenizer, conversations)
    except TemplateError as error:
        if len(pairs) > 1:  # one at a time, to name the pair
            return [encode_pair(tokenizer, pair, max_length) for pair in pairs]
        raise _refused(f"pair {pairs[0].source_id or pairs[0].pair_id}", pairs[0].prompt, error) from error
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
    except TemplateError as error:
        raise _refused("a prompt", prompt, error) from error
    return rows if max(map(len, rows)) <= max_length else _encode_cut(tokenizer, prompt, responses, max_length)


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Turn]], responses: Sequence[str], max_length: int
) -> list[list[int]]:
    """Ids of prompts with one response each; a prompt that is too long is cut as that of a pair is.

    Args:
        tokenizer: has a `chat_template`.
        prompts: N conversations that wait for a response.
        responses: N.
        max_length: most ids in a conversation.

    Returns:
        N lists of ids.

    Raises:
        UserError: if the template refuses a prompt, or a response does not fit even without its prompt.
    """
    try:
        both = zip(prompts, responses, strict=True)
        rows = encode_conversations(tokenizer, [_with_each(prompt, [text])[0] for prompt, text in both])
    except TemplateError as error:
        if len(prompts) > 1:  # one at a time, to name the roles
            return [
                encode_responses(tokenizer, [p], [r], max_length)[0] for p, r in zip(prompts, responses, strict=True)
            ]
        raise _refused("a prompt", prompts[0], error) from error
    for i, (prompt, text) in enumerate(zip(prompts, responses, strict=True)):
        if len(rows[i]) > max_length:
            cut = _encode_cut(tokenizer, prompt, [text], max_length)
            if cut is None:
                raise UserError(
                    f'got a response ("{" ".join(text.split())[:40]}") of more than max_length {max_length} '
                    "tokens even without its prompt; allow shorter responses or a longer max_length"
                )
            [rows[i]] = cut
    return rows


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
        UserError: if the template refuses a prompt, or one does not fit even with an empty last turn.
    """
    try:
        rows = encode_conversations(tokenizer, prompts, add_generation_prompt=True)
    except TemplateError as error:
        if len(prompts) > 1:  # one at a time, to name the roles
            return [encode_prompts(tokenizer, [prompt], max_length)[0] for prompt in prompts]
        raise _refused("a prompt", prompts[0], error) from error

    def attempt(prompt: list[Turn]) -> tuple[int, list[int]]:
        [ids] = encode_conversations(tokenizer, [prompt], add_generation_prompt=True)
        return len(ids), ids

    for i, prompt in enumerate(prompts):
        if len(rows[i]) > max_length:
            cut = _cut_prompt(prompt, attempt, max_length)
            if cut is None:
                raise UserError(
                    f'prompt ("{" ".join(prompt[0]["content"].split())[:40]}"): got more than {max_length} tokens even '
                    "with an empty last turn; raise data.max_prompt_length"
                )
            rows[i] = cut
    return rows


def _refused(what: str, prompt: list[Turn], error: TemplateError) -> UserError:
    roles = ", ".join(turn["role"] for turn in prompt)
    return UserError(
        f"chat template refuses {what}: got {error} for the roles {roles}; "
        "use turns that the template takes, or another template"
    )


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
    """The encoding of the longest cut of a prompt that fits; None where nothing does.

    Args:
        prompt: does not fit as a whole.
        attempt: from a prompt to its length in ids and its encoding.
        max_length: most ids.
    """
    num_system = sum(turn["role"] == "system" for turn in prompt[:1])
    system, turns = prompt[:num_system], prompt[num_system:]
    if not turns:
        return None
    last = turns[-1]

    def keep(num_characters: int) -> tuple[int, Encoding]:
        tail = last["content"][len(last["content"]) - num_characters :]
        return attempt([*system, {"role": last["role"], "content": tail}])

    shortest, without_prompt = keep(0)
    if shortest > max_length:
        return None
    # Many templates insist on a dialogue that the user opens.
    for start in (i for i in range(1, len(turns)) if turns[i]["role"] == "user" or i == len(turns) - 1):
        length, encoded = attempt([*system, *turns[start:]])
        if length <= max_length:
            return encoded
    full = length if len(turns) > 1 else keep(len(last["content"]))[0]
    return _longest_tail(keep, len(last["content"]), full, shortest, without_prompt, max_length)


def _longest_tail(
    keep: Callable[[int], tuple[int, Encoding]],
    too_many: int,
    too_long: int,
    fit_length: int,
    best: Encoding,
    max_length: int,
) -> Encoding:
    """Search for the most characters of the last turn that fit; ids grow almost in step with characters.

    Args:
        keep: from a number of characters to the length in ids (of the longer conversation) and the encoding.
        too_many: characters that do not fit.
        too_long: length with them.
        fit_length: length with no character.
        best: the encoding with no character.
        max_length: most ids in a conversation.
    """
    fitting = 0
    for _ in range(_MAX_TRIES):
        if fit_length == max_length or too_many - fitting <= 1:
            break
        guess = fitting + (too_many - fitting) * (max_length - fit_length) // (too_long - fit_length)
        guess = min(max(guess, fitting + 1), too_many - 1)
        length, encoded = keep(guess)
        if length <= max_length:
            fitting, fit_length, best = guess, length, encoded
        else:
            too_many, too_long = guess, length
    return best
