"""A row of a file -> a canonical pair, one function a format. `docs/data.md` shows every format."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from ser_lightning.errors import UserError
from ser_lightning.records import PreferencePair, Turn

COLUMNS = ("prompt", "chosen", "rejected", "response_a", "response_b", "label", "id")
"""The names that the project knows; a mapping gives the names in the file."""

Drop = Literal["empty", "identical", "dialogues_part"]
"""Why a row is no pair: empty prompt or response, equal responses, transcripts that part before the last turn."""

_LABELS: dict[str, int | None] = {"1": 1, "1.0": 1, "a": 1, "true": 1, "0": 0, "0.0": 0, "b": 0, "false": 0}
_LABELS |= {"": None, "none": None, "null": None, "nan": None}
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def content_hash(*parts: str) -> int:
    """63-bit hash of texts, equal on every machine."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def prompt_hash(prompt: list[Turn]) -> int:
    """63-bit hash of a prompt, deaf to case and white space, so that the splits do not share a retyped prompt."""
    return content_hash(*(f"{turn['role']}:{' '.join(turn['content'].split()).casefold()}" for turn in prompt))


def earlier_prompts(prompt: list[Turn]) -> list[int]:
    """Hashes of the prompts that this one continues, where the user had spoken before."""
    return [prompt_hash(prompt[:end]) for end in range(1, len(prompt)) if prompt[end - 1]["role"] == "user"]


def canonical_pair(
    prompt: list[Turn], first: str, second: str, label: int | None, source_id: str | None = None
) -> PreferencePair:
    """A pair whose a/b order and id come from the content alone.

    Args:
        prompt: the conversation before the response.
        first: a response.
        second: the other response.
        label: 1 when `first` is the better one, 0 when `second` is, None when it is unlabelled.
        source_id: the file's own id.
    """
    context = json.dumps(prompt)
    # The prompt goes into the order: else a text given to many prompts (a refusal, say) would always be a, or always b.
    if content_hash(context, first) > content_hash(context, second):
        first, second, label = second, first, None if label is None else 1 - label
    return PreferencePair(content_hash(context, first, second), prompt, first, second, label, source_id)


def check_mapping(columns: Mapping[str, str]) -> list[str]:
    """Problems of a column mapping, whatever the file."""
    return [
        f"columns: got the unknown name {name!r}; use {', '.join(COLUMNS)}" for name in columns if name not in COLUMNS
    ]


def parse_row(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> PreferencePair | Drop:
    """A row in any known format.

    Args:
        row: the file's columns.
        columns: how the file calls the names of `COLUMNS`, where it calls them otherwise.
        where: file and line, for messages.

    Returns:
        The canonical pair, or why the row is none.

    Raises:
        UserError: the row is in no known format.
    """
    # A file that is not mapped may stand beside one that is, so the project's own names always count.
    given = {name: columns[name] if columns.get(name) in row else name for name in COLUMNS}
    values = {name: row[column] for name, column in given.items() if column in row}
    names = _response_columns(values, row, where)
    label: int | None = 1 if names[0] == "chosen" else _label(values.get("label"), where)
    try:
        prompt, first, second = _conversation(values.get("prompt"), values[names[0]], values[names[1]])
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{where}: got {error} in {given['prompt']}, {given[names[0]]} or {given[names[1]]}; "
            "use text, or turns with role and content"
        ) from error
    except NoTranscript as error:
        raise UserError(
            f"{where}: got neither a prompt column nor a transcript with '\\n\\nAssistant:' in {given[names[0]]}, but "
            f"the columns {_names(row)}; name the prompt with columns: {{prompt: ...}}"
        ) from error
    except DialoguesPart:
        return "dialogues_part"
    if not any(turn["content"].strip() for turn in prompt) or not first.strip() or not second.strip():
        return "empty"
    if first.strip() == second.strip():
        return "identical"
    source_id = values.get("id")
    return canonical_pair(prompt, first, second, label, None if source_id is None else str(source_id))


def parse_prompt(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> list[Turn] | None:
    """The prompt of a row that needs no other column: text, turns or a transcript.

    Args:
        row: the file's columns.
        columns: how the file calls the names of `COLUMNS`, where it calls them otherwise.
        where: file and line, for messages.

    Returns:
        None for a prompt of nothing but white space.

    Raises:
        UserError: there is no prompt column, or something else in it.
    """
    column = columns["prompt"] if columns.get("prompt") in row else "prompt"
    if column not in row:
        raise UserError(f"{where}: got the columns {_names(row)}; name the prompt with columns: {{prompt: ...}}")
    try:
        prompt = _prompt(row[column])
    except (TypeError, KeyError) as error:
        raise UserError(f"{where}: got {error} in {column}; use text, or turns with role and content") from error
    return prompt if any(turn["content"].strip() for turn in prompt) else None


def parse_candidates(
    row: Mapping[str, Any], columns: Mapping[str, str], where: str
) -> tuple[list[Turn], list[str], list[str]]:
    """Prompt, chosen and rejected responses of a row that may have several of either.

    Args:
        row: the file's columns; chosen and rejected are a text or a list of texts each.
        columns: how the file calls the names of `COLUMNS`, where it calls them otherwise.
        where: file and line, for messages.

    Raises:
        UserError: something of it is missing or no text.
    """
    prompt = parse_prompt(row, columns, where)
    if prompt is None:
        raise UserError(f"{where}: got an empty prompt; fill it, or remove the row")
    sides = []
    for name in ("chosen", "rejected"):
        column = columns[name] if columns.get(name) in row else name
        value = row.get(column)
        texts = value if isinstance(value, list) else [value]
        if not texts or value is None:
            raise UserError(f"{where}: got no {column}, but the columns {_names(row)}; give a text, or a list of texts")
        if strange := [text for text in texts if not isinstance(text, str)]:
            raise UserError(f"{where}: got a {type(strange[0]).__name__} in {column}; give a text, or a list of texts")
        sides.append([_text(text) for text in texts])
    return prompt, sides[0], sides[1]


class NoTranscript(Exception):
    """A response without a prompt."""


class DialoguesPart(Exception):
    """The two transcripts differ before the last turn."""


def _names(names: Collection[str]) -> str:
    return ", ".join(map(str, names)) or "none"


def _response_columns(values: Mapping[str, Any], row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The pair of columns that holds the responses."""
    found = [names for names in (("chosen", "rejected"), ("response_a", "response_b")) if set(names) <= values.keys()]
    if not found:
        raise UserError(
            f"{where}: got the columns {_names(row)}; needs chosen and rejected, or response_a and response_b: "
            "name them with columns: {chosen: ..., rejected: ...}"
        )
    filled = [names for names in found if any(values[name] is not None for name in names)]
    if len(filled) > 1:
        raise UserError(f"{where}: got chosen, rejected, response_a and response_b all filled; fill only two of them")
    return (filled or found)[0]


def _label(value: Any, where: str) -> int | None:
    text = str(value).strip().lower()
    if text not in _LABELS:
        raise UserError(
            f"{where}: got the label {value!r}; use 1 or 'a' (response_a is better), 0 or 'b', or nothing (unlabelled)"
        )
    return _LABELS[text]


def _conversation(prompt: Any, first: Any, second: Any) -> tuple[list[Turn], str, str]:
    """Prompt and responses out of texts, turns or transcripts."""
    if isinstance(first, list) or isinstance(second, list):
        turns, others = _turns(first), _turns(second)
        if turns[:-1] != others[:-1]:
            raise DialoguesPart
        # A list of one turn is the bare response, a longer one repeats the prompt.
        shared = turns[:-1] or _prompt(prompt)
        return shared, _last_content(turns), _last_content(others)
    first, second = _text(first), _text(second)
    if prompt is not None:
        return _prompt(prompt), first, second
    if not first.strip() or not second.strip():
        return [], first, second
    (before, _, first), (other, _, second) = (text.rpartition("\n\nAssistant:") for text in (first, second))
    if not before or not other:
        raise NoTranscript
    if before != other:
        raise DialoguesPart
    return _prompt(before), first.strip(), second.strip()


def _prompt(prompt: Any) -> list[Turn]:
    if isinstance(prompt, list):
        return _turns(prompt)
    text = _text(prompt)
    return _transcript(text) if text.lstrip().startswith("Human:") else [{"role": "user", "content": text}]


def _transcript(text: str) -> list[Turn]:
    """Turns of `Human: ... Assistant: ...`; empty turns go and neighbours with one speaker are joined."""
    turns: list[Turn] = []
    _, *parts = _SPEAKER.split(text.strip())
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        if not (content := content.strip()):
            continue
        if turns and turns[-1]["role"] == _ROLES[speaker]:
            turns[-1] = {"role": _ROLES[speaker], "content": f"{turns[-1]['content']}\n\n{content}"}
        else:
            turns.append({"role": _ROLES[speaker], "content": content})
    return turns


def _turns(turns: Any) -> list[Turn]:
    if turns is None:
        return []
    if not isinstance(turns, list):
        raise TypeError(f"a {type(turns).__name__} beside a list of turns")
    if turns and isinstance(turns[0], str):
        raise TypeError("a list of texts, which are several responses and for the command `bench` alone,")
    return [{"role": _text(turn["role"]), "content": _text(turn["content"])} for turn in turns]


def _last_content(turns: list[Turn]) -> str:
    return turns[-1]["content"] if turns else ""


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} ({str(value)[:40]!r})")
    # JSON may hold half a surrogate pair, which neither Arrow nor a tokenizer takes.
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
