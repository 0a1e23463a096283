"""A row of a file -> a canonical pair. `docs/data.md` shows every format; `turns.py` reads the conversations."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ser_lightning.data.columns import given_columns, is_own, lists_in, pair_rows, with_paths
from ser_lightning.data.labels import (
    TIE,
    Labels,
    count_votes,
    majority,
    read_label,
    read_own_label,
    read_scores,
    shown,
    shown_names,
)
from ser_lightning.data.turns import (
    SYSTEM_ROLES,
    clean,
    has_next_turn,
    has_speakers,
    has_turn,
    is_blank,
    is_dialogue,
    join,
    read_dialogue,
    read_prompt,
    read_text,
    written_turns,
)
from ser_lightning.errors import UserError
from ser_lightning.records import PreferencePair, Turn

Drop = Literal["empty", "identical", "dialogues_part", "no_response", "answered", "short_list"]
"""Why a row is not a usable pair, see `DROPS`."""

DROPS: dict[str, str] = {
    "empty": "empty prompt or response",
    "identical": "identical responses",
    "dialogues_part": "dialogues part before the last turn",
    "no_response": "the last turn is not the assistant's",
    "answered": "the prompt ends with a turn of the assistant",
    "short_list": "lists of fewer than two responses",
}

_ASSISTANT = "assistant"


def content_hash(*parts: str) -> int:
    """63-bit hash of texts, equal on every machine."""
    return _as_int(hashlib.blake2b(json.dumps(parts).encode(), digest_size=8))


def _as_int(digest: Any) -> int:
    return int.from_bytes(digest.digest(), "big") >> 1


def prompt_hash(prompt: list[Turn]) -> int:
    """63-bit hash of a prompt that ignores case and white space, so that the splits do not share a retyped prompt."""
    return content_hash(*map(_plain, prompt))


def _plain(turn: Turn) -> str:
    return f"{turn['role']}:{' '.join(turn['content'].split()).casefold()}"


def earlier_prompts(prompt: list[Turn]) -> list[int]:
    """`prompt_hash` of the prompts that this one continues, where the user had spoken before; reads each turn once."""
    found, running = [], hashlib.blake2b(b"[", digest_size=8)
    for i, turn in enumerate(prompt[:-1]):
        running.update(f"{', ' if i else ''}{json.dumps(_plain(turn))}".encode())
        if turn["role"] == "user":
            ended = running.copy()
            ended.update(b"]")
            found.append(_as_int(ended))
    return found


def canonical_pair(
    prompt: list[Turn],
    first: str,
    second: str,
    label: float | None,
    source_id: str | None = None,
    votes: tuple[float, ...] = (),
    annotator: str | None = None,
) -> PreferencePair:
    """A pair whose a/b order and id come from the content alone.

    Args:
        prompt: the conversation before the response.
        label: 1 when `first` is the better one, 0 when `second` is, 0.5 for a tie, None when it is unlabelled.
        votes: labels of individual annotators, as `label`.
    """
    context = json.dumps(prompt)
    # The prompt goes into the order: else a text given to many prompts (a refusal, say) would always be a, or always b.
    if content_hash(context, first) > content_hash(context, second):
        first, second, label = second, first, None if label is None else 1 - label
        votes = tuple(1 - vote for vote in votes)
    pair_id = content_hash(context, first, second)
    return PreferencePair(pair_id, prompt, first, second, label, source_id, votes, annotator)


def canonical(pair: PreferencePair) -> PreferencePair:
    """`canonical_pair` of a pair in another order."""
    texts = pair.response_a, pair.response_b
    return canonical_pair(pair.prompt, *texts, pair.label, pair.source_id, pair.votes, pair.annotator)


def parse_rows(
    row: Mapping[str, Any], columns: Mapping[str, str], where: str, labels: Labels | None = None
) -> Iterator[PreferencePair | Drop]:
    """What `parse_row` makes of a row, or of each pair of a list of responses.

    Args:
        columns: as for `parse_row`; `responses` names a list, `scores` or `ranks` what its responses are worth.
    """
    is_empty = True
    for pair, mapping in pair_rows(row, columns, where):
        is_empty = False
        yield parse_row(pair, mapping, where, labels)
    if is_empty:
        yield "short_list"


def parse_row(
    row: Mapping[str, Any], columns: Mapping[str, str], where: str, labels: Labels | None = None
) -> PreferencePair | Drop:
    """A row in any known format.

    Args:
        labels: what the labels of the file mean, `LABELS` by default.

    Returns:
        The canonical pair, or why the row is not a pair.

    Raises:
        UserError: the row is in no known format.
    """
    pair = parse_in_order(row, columns, where, labels)
    return canonical(pair) if isinstance(pair, PreferencePair) else pair


def parse_in_order(
    row: Mapping[str, Any], columns: Mapping[str, str], where: str, labels: Labels | None = None
) -> PreferencePair | Drop:
    """`parse_row`, but a is the response that the file has first, or calls chosen, and the id is 0."""
    row = with_paths(row, columns)
    given = given_columns(row, columns)
    values = {name: row[column] for name, column in given.items() if column in row}
    names = _response_columns(values, row, where)
    if not is_own(row):
        label, votes = _label_and_votes(values, names, given, where, labels)
    else:
        label, votes = read_own_label(row, columns.get("label", "label"), where), ()
    first, second = _dialogues(values, names, given, row, where)
    if why := _why_none(first, second):
        return why
    prompt = _below_system(first[:-1], values.get("system"), where, given)
    texts = first[-1]["content"], second[-1]["content"]
    source_id, annotator = (_name_of(values.get(name)) for name in ("id", "annotator"))
    return PreferencePair(0, prompt, *texts, label, source_id, votes, annotator)


def parse_prompt(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> list[Turn] | None:
    """The prompt of a row that needs no other column: text, turns or a transcript.

    Args:
        columns: how the file calls the names of `COLUMNS`, where it calls them otherwise.

    Returns:
        None for a prompt of nothing but white space.

    Raises:
        UserError: there is no prompt column, or something else in it, or a conversation that is answered already.
    """
    row = with_paths(row, columns)
    given = given_columns(row, columns)
    column = given["prompt"]
    if column not in row:
        raise UserError(f"{where}: got the columns {shown_names(row)}; name the prompt with columns: {{prompt: ...}}")
    prompt = read_prompt(row[column], where, column)
    if prompt and prompt[-1]["role"] == _ASSISTANT:
        raise UserError(f"{where}: got {column} with a last turn of the assistant; end it with the turn to answer")
    if not any(turn["content"].strip() for turn in prompt):
        return None
    return _below_system(prompt, row.get(given.get("system", "")), where, given)


def parse_candidates(
    row: Mapping[str, Any], columns: Mapping[str, str], where: str
) -> tuple[list[Turn], list[str], list[str]]:
    """Prompt, chosen and rejected responses of a row that may have several of either.

    Args:
        row: the file's columns; chosen and rejected are a text or a list of texts each.
        columns: how the file calls the names of `COLUMNS`, where it calls them otherwise.

    Raises:
        UserError: something of it is missing or no text.
    """
    row = with_paths(row, columns)
    prompt = parse_prompt(row, columns, where)
    if prompt is None:
        raise UserError(f"{where}: got an empty prompt; fill it, or remove the row")
    sides, given = [], given_columns(row, columns)
    for name in ("chosen", "rejected"):
        column = given[name]
        value = row.get(column)
        texts = value if isinstance(value, list) else [value]
        if not texts or value is None:
            raise UserError(
                f"{where}: got no {column}, but the columns {shown_names(row)}; give a text, or a list of texts"
            )
        if strange := [text for text in texts if not isinstance(text, str)]:
            raise UserError(f"{where}: got a {type(strange[0]).__name__} in {column}; give a text, or a list of texts")
        sides.append([parse_response(text, prompt, where, column) for text in texts])
    return prompt, sides[0], sides[1]


def parse_response(text: Any, prompt: list[Turn], where: str, column: str) -> str:
    """A single response; of a transcript, what follows the prompt.

    Raises:
        UserError: it is no text, or the transcript of another conversation.
    """
    text = read_text(text, where, column)
    value = written_turns(text, where, column)
    if value is text and not is_dialogue(text):
        return text
    turns = join(prompt, read_dialogue(value, where, column), where, ("the prompt", column))
    if turns[:-1] != prompt or turns[-1]["role"] != _ASSISTANT:
        raise UserError(
            f"{where}: got a conversation in {column} that is not one response to the prompt; give that one"
        )
    return turns[-1]["content"]


def _response_columns(values: Mapping[str, Any], row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The pair of columns that holds the responses."""
    found = [names for names in (("chosen", "rejected"), ("response_a", "response_b")) if set(names) <= values.keys()]
    if not found:
        raise UserError(
            f"{where}: got the columns {shown_names(row)}; needs chosen and rejected, or response_a and response_b: "
            f"name them with columns: {{chosen: ..., rejected: ...}}{lists_in(row)}"
        )
    filled = [names for names in found if not all(is_blank(values[name]) for name in names)]
    if len(filled) > 1:
        raise UserError(f"{where}: got chosen, rejected, response_a and response_b all filled; fill only two of them")
    return (filled or found)[0]


def _label_and_votes(
    values: Mapping[str, Any], names: tuple[str, str], given: Mapping[str, str], where: str, labels: Labels | None
) -> tuple[float | None, tuple[float, ...]]:
    """Which response is better by all that the row says of it, and the votes of its annotators, if it has any."""
    is_ordered, value = names[0] == "chosen", values.get("label")
    votes: tuple[float, ...] = ()
    if isinstance(value, list):
        found = [read_label(vote, where, labels, is_extra=is_ordered) for vote in value]
        votes = tuple(vote for vote in found if vote is not None)
        label = majority(*count_votes(votes))
    else:
        label = read_label(value, where, labels, is_extra=is_ordered)
    if is_ordered:
        if label in (0, TIE):
            raise UserError(
                f"{where}: got {given['label']} {value!r} beside {given['chosen']} and {given['rejected']}, "
                f"which say that the first is better; correct one of them, or take {given['label']} out"
            )
        label = 1
    if "score_a" in values or "score_b" in values:
        label = _by_scores(values, label, is_ordered, given, where)
    if not votes and label is not None and not is_blank(values.get("annotator")):
        votes = (label,)
    return label, votes


def _by_scores(
    values: Mapping[str, Any], label: float | None, is_ordered: bool, given: Mapping[str, str], where: str
) -> float | None:
    """The label by two scores, which agree with the one that the row has beside them."""
    scores = [values.get(name) for name in ("score_a", "score_b")]
    columns = [given[name] for name in ("score_a", "score_b")]
    scored = read_scores(scores[0], scores[1], where, columns)
    if scored is None:
        return label
    is_even = is_ordered and scored == TIE  # a file of chosen and rejected has to put one of equal ones first
    if label not in (None, scored) and not is_even:
        raise UserError(
            f"{where}: got {columns[0]} {shown(scores[0])} and {columns[1]} {shown(scores[1])}, which contradict "
            f"{'chosen and rejected' if is_ordered else given['label']}; correct one of them, or leave score_a and "
            "score_b out of columns"
        )
    return scored


def _below_system(prompt: list[Turn], system: Any, where: str, given: Mapping[str, str]) -> list[Turn]:
    """The prompt after the text of the column `system`, where a mapping names one and the row fills it."""
    if is_blank(system):
        return prompt
    if prompt[0]["role"] in SYSTEM_ROLES:
        raise UserError(
            f"{where}: got {given['system']} beside a prompt that begins with a turn of the {prompt[0]['role']}; "
            "keep one of them"
        )
    return [Turn(role="system", content=read_text(system, where, given["system"])), *prompt]


def _name_of(value: Any) -> str | None:
    return None if value is None else clean(str(value))


def _dialogues(
    values: Mapping[str, Any],
    names: tuple[str, str],
    given: Mapping[str, str],
    row: Mapping[str, Any],
    where: str,
) -> tuple[list[Turn], list[Turn]]:
    """Both conversations, the response as the last turn of each; nothing where a response is blank."""
    columns = [given[name] for name in names]
    first, second = (written_turns(values[n], where, c) for n, c in zip(names, columns, strict=True))
    prompt = read_prompt(values.get("prompt"), where, given["prompt"])
    if is_blank(first) or is_blank(second):
        return [], []
    if isinstance(first, list) != isinstance(second, list):
        text = columns[isinstance(first, list)]
        raise UserError(f"{where}: got a text in {text} beside a list of turns; give text or turns on both sides")
    if isinstance(first, str) and isinstance(second, str):
        if not prompt and "prompt" in values and not (is_dialogue(first) and is_dialogue(second)):
            return [], []
        first, second = _from_texts(values.get("prompt"), first, second)
    both = [read_dialogue(v, where, c) for v, c in zip((first, second), columns, strict=True)]
    if isinstance(turn := values.get("prompt"), str) and all(has_turn(turns, clean(turn)) for turns in both):
        prompt = [Turn(role="user", content=clean(turn))]  # and no transcript, whatever stands in it
    dialogues = [join(prompt, turns, where, (given["prompt"], c)) for turns, c in zip(both, columns, strict=True)]
    if isinstance(first, str) and not all(len(turns) > 1 for turns in dialogues):
        raise UserError(
            f"{where}: got neither a prompt column nor a transcript with '\\n\\nAssistant:' in {columns[0]}, but "
            f"the columns {shown_names(row)}; name the prompt with columns: {{prompt: ...}}"
        )
    return dialogues[0], dialogues[1]


def _from_texts(prompt: Any, first: str, second: str) -> tuple[Any, Any]:
    """Two responses as transcripts where they are such, else as one turn each."""
    if is_blank(prompt) or (is_dialogue(first) and is_dialogue(second)):
        return first, second
    if isinstance(prompt, str) and has_speakers(prompt) and (has_next_turn(first) or has_next_turn(second)):
        return f"Assistant:{first}", f"Assistant:{second}"  # the transcript goes on after the prompt
    return [{"role": _ASSISTANT, "content": first}], [{"role": _ASSISTANT, "content": second}]


def _why_none(first: list[Turn], second: list[Turn]) -> Drop | None:
    if not first or not second:
        return "empty"
    if first[-1]["role"] != _ASSISTANT or second[-1]["role"] != _ASSISTANT:
        return "no_response"
    if first[:-1] != second[:-1]:
        return "dialogues_part"
    prompt, texts = first[:-1], (first[-1]["content"].strip(), second[-1]["content"].strip())
    if not any(turn["content"].strip() for turn in prompt) or not all(texts):
        return "empty"
    if prompt[-1]["role"] == _ASSISTANT:
        return "answered"
    return "identical" if texts[0] == texts[1] else None
