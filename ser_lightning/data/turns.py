"""Conversations in files -> turns: the only reader; what it cannot represent is an error that names it.

A conversation is a list of turns, a transcript (`Human: ... Assistant: ...`) or a plain text.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ser_lightning.errors import UserError
from ser_lightning.records import Turn

SYSTEM_ROLES = ("system", "developer")
"""Of the one who sets up the model; newer templates call it developer."""
ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")
_KEYS = ("role", "content")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_MARKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_LINE_MARKER = re.compile(r"(?:^|\n)(Human|Assistant):")
_WRITTEN_TURNS = re.compile(r"""\s*\[?\s*\{.*?["'](?:role|from)["']\s*:""", re.DOTALL)
_BEGIN_OF_TURNS = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content|from["']\s*:\s*["'](?:human|gpt|system))["']""")
_SHAREGPT = ("human", "gpt", "system", "user", "assistant")
_USE = "use text, or turns with role and content"


def read_prompt(value: Any, where: str, column: str) -> list[Turn]:
    """A conversation that waits for a response; nothing for an empty value.

    Raises:
        UserError: it is none of these.
    """
    value = written_turns(value, where, column)
    if isinstance(value, list):
        return read_turns(value, where, column)
    text = read_text(value, where, column)
    if not text.strip():
        return []
    turns = read_transcript(text) if has_speakers(text) else [Turn(role="user", content=text)]
    return turns[:-1] if is_open(turns) else turns


def read_dialogue(value: Any, where: str, column: str) -> list[Turn]:
    """A conversation that ends with the response to judge: turns, or a transcript; nothing for an empty value.

    Args:
        value: what the file has, as `written_turns` gives it.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, list):
        return read_turns(value, where, column)
    return read_transcript(read_text(value, where, column))


def read_turns(turns: Sequence[Any], where: str, column: str) -> list[Turn]:
    """A list of turns, every key of which is read; a null or empty value counts as no key.

    Raises:
        UserError: a turn has another key or role, or a content that is no text.
    """
    if turns and isinstance(turns[0], str):
        raise UserError(
            f"{where}: got a list of texts, which are several responses and for the command `bench` alone, in {column}"
            f"; {_USE}"
        )
    found: list[Turn] = []
    for i, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            raise UserError(f"{where}: got a {type(turn).__name__} as turn {i} of {column}; {_USE}")
        if strange := [str(key) for key, value in turn.items() if key not in _KEYS and not _is_nothing(value)]:
            raise UserError(
                f"{where}: got {', '.join(strange)} in turn {i} of {column}, which nothing reads; {_fix(strange)}"
            )
        if missing := [key for key in _KEYS if key not in turn]:
            raise UserError(f"{where}: got no {missing[0]} in turn {i} of {column}; {_USE}")
        if turn["role"] not in ROLES:
            raise UserError(
                f"{where}: got the role {_short(turn['role'])} in turn {i} of {column}; use {', '.join(ROLES)}"
            )
        found.append(
            Turn(role=turn["role"], content=read_text(turn["content"], where, f"turn {i} of {column}", "use text"))
        )
    return found


def has_speakers(text: str) -> bool:
    """Whether a text is a transcript: it names a human who speaks, or stops where the assistant is to speak."""
    text = _unix(text)
    return bool(re.search(r"(?:^\s*|\n\n)Human:", text) or re.search(r"\n\nAssistant:\s*$", text))


def is_dialogue(text: str) -> bool:
    """Whether a text is a transcript in which the assistant speaks; a response may begin with `Human:` by mistake."""
    return bool(re.match(r"\s*(Human|Assistant):", text) and re.search(r"(?:^\s*|\n)Assistant:", _unix(text)))


def has_next_turn(text: str) -> bool:
    """Whether the human speaks after a response."""
    return "\n\nHuman:" in _unix(text)


def read_transcript(text: str) -> list[Turn]:
    """The turns of `Human: ... Assistant: ...`, with an empty line before each speaker.

    What comes before the first speaker is a system turn, or the user's where only the assistant has a name. Empty turns
    go and neighbours of one speaker are joined; an empty last turn of the assistant stays.
    """
    text = _unix(text).strip()
    marker = _MARKER if len(_MARKER.findall(text)) > 1 else _LINE_MARKER
    preamble, *parts = marker.split(text)
    turns: list[Turn] = []
    if preamble.strip():
        turns.append(Turn(role="system" if "Human" in parts[::2] else "user", content=preamble.strip()))
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        if content := content.strip():
            _append(turns, _SPEAKERS[speaker], content)
    if parts and parts[-2] == "Assistant" and not parts[-1].strip():
        turns.append(Turn(role="assistant", content=""))
    return turns


def is_open(turns: Sequence[Turn]) -> bool:
    """Whether a transcript stops where the assistant is to speak."""
    return bool(turns) and turns[-1]["role"] == "assistant" and not turns[-1]["content"]


def has_turn(dialogue: Sequence[Turn], text: str) -> bool:
    """Whether the user says this text, up to white space, before the response of a dialogue."""
    return ("user", " ".join(text.split())) in map(_bare, dialogue[:-1])


def join(prompt: list[Turn], dialogue: list[Turn], where: str, columns: tuple[str, str]) -> list[Turn]:
    """A dialogue after its prompt, each turn once: files repeat the prompt there, a part of it, or nothing of it.

    Args:
        prompt: may be empty.
        dialogue: ends with the response.

    Raises:
        UserError: the dialogue has a beginning of its own.
    """
    known, before = [_bare(turn) for turn in prompt], [_bare(turn) for turn in dialogue[:-1]]
    if any(before[start : start + len(known)] == known for start in range(len(before) - len(known) + 1)):
        return dialogue
    shared = next((n for n in range(min(len(known), len(before)), 0, -1) if known[-n:] == before[:n]), 0)
    rest = dialogue[shared:]
    begins = rest[0]["role"] if prompt and rest else "assistant"
    if begins in SYSTEM_ROLES or begins == prompt[-1]["role"] == "user":
        raise UserError(
            f"{where}: got a {columns[1]} that begins with another turn of the {begins} than {columns[0]} has; "
            f"leave the column {columns[0]} out, or make both begin alike"
        )
    return [*prompt, *rest]


def written_turns(value: Any, where: str, column: str) -> Any:
    """Turns that were written as text, as JSON or as Python shows a list; anything else as it is, other JSON too.

    Raises:
        UserError: it begins as turns do, but cannot be read.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")) or not _WRITTEN_TURNS.match(value):
        return value
    is_begun = _BEGIN_OF_TURNS.match(value)  # else what cannot be read is code, or JSON with a word on it
    for read in (read_json, _read_python):
        try:
            found = read(value.strip())
        except RepeatedName as error:
            if not is_begun:
                return value
            raise UserError(f"{where}: got the key {str(error)!r} twice in a turn of {column}; keep one") from error
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict):
            found = [found]
        is_list = isinstance(found, list) and all(isinstance(turn, dict) for turn in found)
        return found if is_list and any(_is_turn(turn) for turn in found) else value
    if not is_begun:
        return value
    raise UserError(f"{where}: got turns as text in {column} that are neither JSON nor Python; write them as JSON")


def _is_turn(row: Mapping[str, Any]) -> bool:
    """Whether an object is a message, also one of ShareGPT: a response may be JSON of any other kind."""
    return row.keys() >= {*_KEYS} or row.get("from") in _SHAREGPT


class RepeatedName(Exception):
    """A key that an object has twice: readers of JSON and Python keep the last value and say nothing."""


def read_json(text: str) -> Any:
    """What a text says in JSON; `RepeatedName` where an object has a key twice, `ValueError` where it is not JSON."""
    return json.loads(text, object_pairs_hook=_without_repeats)


def _read_python(text: str) -> Any:
    for node in ast.walk(ast.parse(text, mode="eval")):
        if isinstance(node, ast.Dict):
            _without_repeats([(key.value, None) for key in node.keys if isinstance(key, ast.Constant)])
    return ast.literal_eval(text)


def _without_repeats(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedName(repeated_names([name for name, _ in pairs])[0])
    return found


def repeated_names(names: Sequence[Any]) -> list[Any]:
    """Those that are there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def read_text(value: Any, where: str, column: str, use: str = _USE) -> str:
    """A text that Arrow and tokenizers accept; an empty value is an empty text.

    Args:
        use: what to give in its place, for the message.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: got {_short(value)} in {column}; {use}")
    return clean(value)


def clean(text: str) -> str:
    """The text with `?` for halves of surrogate pairs, which JSON may hold and neither Arrow nor a tokenizer takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def is_blank(value: Any) -> bool:
    """Whether a column holds nothing: null, an empty list, or white space, as an empty cell of a CSV."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _append(turns: list[Turn], role: str, content: str) -> None:
    if turns and turns[-1]["role"] == role:
        content = f"{turns.pop()['content']}\n\n{content}"
    turns.append(Turn(role=role, content=content))


def _bare(turn: Turn) -> tuple[str, str]:
    return turn["role"], " ".join(turn["content"].split())


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def _is_nothing(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (str, list, dict)) and not value)


def _fix(keys: list[str]) -> str:
    if {"from", "value"} <= set(keys):
        return "call them role and content, and the speakers user and assistant"
    return "write it into the content, or take it out"


def _short(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__}"
    return f"a {type(value).__name__} ({str(value)[:40]!r})" if not isinstance(value, str) else repr(clean(value)[:40])
