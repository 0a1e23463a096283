"""Texts that a chat template wrote -> the turns in them.

Trainers send a conversation as the one text that their template made of it. A reward model reads it through its own
template, which may differ or put a question after it, so the text is taken apart first: the template is tried on
made-up turns, and what it writes around them is looked for in the text.
"""

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from ser_lightning.data.templates import FIXED_DATE, TemplateRefused, render_conversations
from ser_lightning.data.turns import read_prompt
from ser_lightning.errors import UserError
from ser_lightning.models.tokens import closing_token
from ser_lightning.records import Turn

Conversation = tuple[list[Turn], str]
"""A prompt, and the response to it."""
_PROBES = ("QprobeoneQ", "QprobetwoQ", "QprobethreeQ", "QprobefourQ")
_FOREIGN = re.compile(r"<\|[^|<>\s]+\|>|\[/?INST\]|<(?:start|end)_of_turn>|<｜[^｜]+｜>")
"""Marks of common templates: a text with one of them is no plain text."""
_DATE = r"[\w ,./:-]{4,40}?"


class TemplateReader:
    """Reads what one chat template writes.

    Raises:
        UserError: if nothing in what the template writes tells where a response begins or a turn ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._bos = str(tokenizer.bos_token or "")
        one, two, three, four = _PROBES
        turns = [_turn("user", one), _turn("assistant", two), _turn("user", three), _turn("assistant", four)]
        start, first, self._to_user, last, self._end = _around(tokenizer, turns)
        [waiting] = render_conversations(tokenizer, [turns[:1]], add_generation_prompt=True)
        shown = waiting.partition(one)[2]
        # Templates of thinking models begin the last answer, or a prompt for it, otherwise than earlier ones.
        self._header = _shared(_shared(first, last), shown)
        after = (text.removeprefix(self._header) for text in (shown, last, first))
        self._openings = sorted(filter(None, after), key=len, reverse=True)
        if not self._header.strip() or not self._to_user.strip() or self._header == self._to_user:
            raise UserError(
                "chat template: got one that writes nothing fixed between turns, so that no text can be taken apart; "
                "send prompts and responses to /score"
            )
        starts = [(self._pattern(start), "")]
        try:
            before, self._to_first, *_ = _around(tokenizer, [_turn("system", four), *turns[:2]])
            if self._to_first:
                starts.append((self._pattern(before), "system"))
        except TemplateRefused:  # it takes no system turn, so that no text begins with one
            pass
        self._starts = sorted(starts, key=lambda found: -len(found[0].pattern))
        closing = closing_token(tokenizer)
        ends = [self._end.rstrip(), tokenizer.eos_token, tokenizer.pad_token]
        ends.append(tokenizer.convert_ids_to_tokens(closing) if closing is not None else None)
        self._ends = [str(token) for token in ends if token]
        # Shorter ones, such as `</s>`, may be HTML.
        self._special = [token for token in map(str, tokenizer.all_special_tokens) if len(token) > 4]

    def read(self, text: str, where: str) -> Conversation:
        """The conversation that a text holds, up to a response.

        Args:
            text: what the template wrote, with or without its BOS and the end of the response.

        Raises:
            UserError: the template writes no such text, or it ends before a response.
        """
        turns = self._turns(self._without_end(text), where)
        if turns[-1]["role"] != "assistant":
            raise UserError(f"{where}: got a conversation that ends with a user's turn; put the response after it")
        return turns[:-1], turns[-1]["content"]

    def split(self, query: str, prompt: str, where: str) -> Conversation:
        """The conversation of a prompt, as the template or nobody wrote it, and of a text that goes on from there.

        Args:
            query: prompt and response as one text; the beginning of the prompt may be cut off.
            prompt: what the template wrote up to where the response begins, or a plain text.

        Raises:
            UserError: neither can be read, or the response cannot be told from the prompt.
        """
        if self._is_mine(prompt):
            turns = self._turns(prompt, where)
            if turns[-1]["role"] != "assistant":
                raise UserError(f"{where}: got a prompt that ends with a user's turn; add the generation prompt")
            turns = turns[:-1]
        elif mark := next((mark for mark in (*_FOREIGN.findall(prompt), *self._special) if mark in prompt), None):
            raise UserError(
                f"{where}: got a prompt with {mark}, which another chat template wrote; start the server with --policy "
                "and the folder of the policy, whose template it is"
            )
        else:
            turns = read_prompt(prompt, where, "prompts")
        bare_query, bare_prompt = query.removeprefix(self._bos), prompt.removeprefix(self._bos)
        if bare_query.startswith(bare_prompt):
            response = bare_query[len(bare_prompt) :]
        elif self._is_mine(prompt) and self._header in query:
            response = self._without_opening(query[self._end_of(prompt, query) :])
        else:
            raise UserError(f"{where}: got a query that does not begin with its prompt; send both as one text")
        return turns, self._without_end(response)

    def _end_of(self, prompt: str, query: str) -> int:
        """Where in a query its prompt ends, after one of the headers in it: that before which most is the prompt's."""
        common = _common_ends(prompt[: prompt.rindex(self._header) + len(self._header)], query)
        ends = (found.end() for found in re.finditer(re.escape(self._header), query))
        # Of a prompt that was cut, all that is left is its end; other texts may precede one that was not.
        return max(ends, key=lambda end: (common[end - 1] == end, common[end - 1], -end))

    def _is_mine(self, text: str) -> bool:
        return any(start.match(text.removeprefix(self._bos)) for start, _ in self._starts)

    def _turns(self, text: str, where: str) -> list[Turn]:
        """All turns, the last of which may be empty."""
        text = text.removeprefix(self._bos)
        for start, role in self._starts:
            if found := start.match(text):
                turns = list(self._cut(text[found.end() :], role))
                break
        else:
            raise UserError(
                f"{where}: got {text[:40]!r}, with which no text of the chat template begins; apply the template of "
                "the model that is served, or send prompts and responses to /score"
            )
        inside = [token for token in self._special for turn in turns[:-1] if token in turn["content"]]
        if inside:
            raise UserError(
                f"{where}: got {inside[0]} inside of a turn, where the template puts none; use the roles system, user "
                "and assistant"
            )
        return turns

    def _cut(self, text: str, first_role: str) -> Iterator[Turn]:
        marks = {"user": self._header, "assistant": self._to_user}
        start = 0
        if first_role:
            content, mark, _ = text.partition(self._to_first)
            yield _turn(first_role, content)
            start = len(content + mark)
        role = "user"
        while True:
            end = text.find(marks[role], start)  # not `partition`, which would copy the rest for each turn
            content = text[start:] if end < 0 else text[start:end]
            yield _turn(role, self._without_opening(content) if role == "assistant" else content)
            if end < 0:
                return
            start = end + len(marks[role])
            role = "assistant" if role == "user" else "user"

    def _without_end(self, text: str) -> str:
        """A text without what stands after a response: the end of its turn, a question, padding."""
        text = text.removesuffix(self._end)
        end = last = len(text)
        while True:
            while last and text[last - 1].isspace():
                last -= 1
            found = next((token for token in self._ends if text.endswith(token, 0, last)), None)
            if found is None:
                return text[:end]
            end = last = last - len(found)

    def _without_opening(self, response: str) -> str:
        """A response without what the template itself puts at its front, such as an empty thought."""
        return response.removeprefix(next(filter(response.startswith, self._openings), ""))

    def _pattern(self, text: str) -> re.Pattern[str]:
        """What a text begins with, on any day."""
        return re.compile(re.escape(text.removeprefix(self._bos)).replace(re.escape(FIXED_DATE), _DATE))


def _turn(role: str, content: str) -> Turn:
    return cast(Turn, {"role": role, "content": content})


def _around(tokenizer: PreTrainedTokenizerBase, turns: list[Turn]) -> list[str]:
    """What a template writes before, between and after turns."""
    [text] = render_conversations(tokenizer, [turns])
    parts = []
    for turn in turns:
        before, _, text = text.partition(turn["content"])
        parts.append(before)
    return [*parts, text]


def _common_ends(one: str, other: str) -> Sequence[int]:
    """For each character of `other`, how many up to it are those at the end of `one`: the Z algorithm, in linear time.

    Example:
        >>> list(_common_ends("xab", "abab"))
        [0, 2, 0, 2]
    """
    text = one[::-1] + other[::-1]
    lengths = array("I", bytes(4 * len(text)))
    start = end = 0  # of the stretch furthest to the right that equals the front
    for i in range(1, len(text)):
        length = min(lengths[i - start], end - i) if i < end else 0
        while i + length < len(text) and text[length] == text[i + length]:
            length += 1
        lengths[i] = length
        if i + length > end:
            start, end = i, i + length
    return [min(length, len(one)) for length in lengths[: len(one) - 1 : -1]]


def _shared(one: str, other: str) -> str:
    """What two texts both begin with."""
    return os.path.commonprefix([one, other])
