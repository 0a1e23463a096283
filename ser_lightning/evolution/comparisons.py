"""Both responses of a pair in one prompt, with the question which is the better one: what a pairwise judge reads."""

import json
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from ser_lightning.data.encode import encode_conversations
from ser_lightning.records import PreferencePair, Turn

QUESTION = "Which response to the user is better, more helpful and correct: A or B? Answer with one letter."
MIN_PART = 8
"""Minimum number of tokens that are kept of a conversation or a response."""
_SEAMS = 12
"""Extra tokens that a cut may cause: text that is split between two characters may be tokenized differently."""


def encode_comparisons(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], max_length: int
) -> list[list[int]]:
    """Ids of a user turn that shows the conversation and both responses, up to where the answer begins.

    A comparison that is too long keeps the end of the conversation and the start of both responses, each at
    most a third of the available tokens.

    Args:
        pairs: N pairs; no label is read.

    Returns:
        2N lists of ids: N with response a as A, then N with response b as A.

    Raises:
        UserError: the template refuses the question.
    """
    texts = [("\n\n".join(map(_turn_text, pair.prompt)), pair.response_a, pair.response_b) for pair in pairs]
    rows = _encode(tokenizer, texts)
    n = len(pairs)
    too_long = [i for i in range(n) if max(len(rows[i]), len(rows[n + i])) > max_length]
    if too_long:
        empty = len(_encode(tokenizer, [("", "", "")])[0])
        shorter = [_shortened(tokenizer, texts[i], max_length - empty) for i in too_long]
        cut = _encode(tokenizer, shorter)
        for place, i in enumerate(too_long):
            rows[i], rows[n + i] = cut[place], cut[len(too_long) + place]
    return rows


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str, str]]) -> list[list[int]]:
    """Ids in the one order of the responses for all texts, then in the other."""
    both = [*texts, *((conversation, b, a) for conversation, a, b in texts)]
    asked = [
        [Turn(role="user", content=f"{conversation}\n\nResponse A:\n{a}\n\nResponse B:\n{b}\n\n{QUESTION}")]
        for conversation, a, b in both
    ]
    return encode_conversations(tokenizer, asked, add_generation_prompt=True)


def _turn_text(turn: Turn) -> str:
    """`User: Hello`; what a turn holds beside its text, such as a tool call, follows as JSON."""
    more = {key: value for key, value in turn.items() if key not in ("role", "content")}
    text = f"{turn['role'].capitalize()}: {turn.get('content') or ''}"
    return f"{text} {json.dumps(more, ensure_ascii=False)}" if more else text


def _shortened(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, str, str], num_tokens: int
) -> tuple[str, str, str]:
    conversation, a, b = texts
    part = max(MIN_PART, (num_tokens - _SEAMS) // 3)
    return (
        _cut(tokenizer, conversation, lambda ids: ids[-part:]),
        _cut(tokenizer, a, lambda ids: ids[:part]),
        _cut(tokenizer, b, lambda ids: ids[:part]),
    )


def _cut(tokenizer: PreTrainedTokenizerBase, text: str, kept: Callable[[list[int]], list[int]]) -> str:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return str(tokenizer.decode(kept(ids), skip_special_tokens=False))
