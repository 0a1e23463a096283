"""Rows of preference pairs in every layout, what may be done to them without harm, and what makes them wrong."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Reading = Literal["whole", "refused", "some"]
"""All rows are to be read as they are; the file is to be refused; it may be refused, or read with these rows in it."""
WORDS = "tea rain why never blue 17 is the of a for each because stone please".split()
STRANGE = (
    *(
        "ä",
        "漢字",
        "\u2028",
        "\U0001f600",
        "=1+1",
        "[/b]",
        "[bold]",
        "\x1b[31m",
        '"',
        "''",
        "a,b",
        "a;b",
        "\t",
        "\n",
        "\n\n",
    ),
    *("<b>x</b>", "{{ 7 * 7 }}", "null", "NaN", "0", "../../x", "\u202egnirts", "e\u0301", "#", "\\n", "\x7f"),
)


@dataclass(frozen=True)
class Row:
    """What a row says: two responses to a conversation, and which of them is better (1 the first, 0 the second)."""

    prompt: list[dict[str, str]]
    first: str
    second: str
    label: int | None

    @property
    def content(self) -> str:
        """What a file of rewards calls this text."""
        texts = [self.prompt, self.first, self.second]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


@dataclass
class Table:
    """Rows as a file has them, before it is written and while it is damaged."""

    rng: random.Random
    layout: str
    rows: list[Row]
    written: list[Any]
    """Objects of JSON."""
    form: str


def make_table(rng: random.Random, form: str) -> Table:
    """Two to nine different rows in one of the layouts that `docs/data.md` names."""
    layout = rng.choice(("chosen", "sides", "turns", "transcript"))
    if form in ("csv", "csv.gz") and layout == "turns":
        layout = "sides"
    rows = [_row(rng, number, layout) for number in range(rng.randint(2, 9))]
    return Table(rng, layout, rows, [_written(row, layout) for row in rows], form)


def _text(rng: random.Random, number: int) -> str:
    """No transcript, no list of turns, nothing at its ends that a reader may strip."""
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 6))]
    if rng.random() < 0.5:
        words.insert(rng.randint(1, len(words)), rng.choice(STRANGE))
    return f"{number} {' '.join(words)}."


def _row(rng: random.Random, number: int, layout: str) -> Row:
    prompt = [{"role": "user", "content": _text(rng, number)}]
    if layout in ("turns", "transcript") and rng.random() < 0.5:
        prompt += [
            {"role": "assistant", "content": _text(rng, number)},
            {"role": "user", "content": _text(rng, number)},
        ]
    label = rng.choice((0, 1, None)) if layout == "sides" else 1
    return Row(prompt, _text(rng, number) + "!", _text(rng, number) + "?", label)


def _written(row: Row, layout: str) -> dict[str, Any]:
    answers = [{"role": "assistant", "content": text} for text in (row.first, row.second)]
    if layout == "sides":
        label = "" if row.label is None else str(row.label)
        return {"prompt": row.prompt[0]["content"], "response_a": row.first, "response_b": row.second, "label": label}
    if layout == "chosen":
        return {"prompt": row.prompt[0]["content"], "chosen": row.first, "rejected": row.second}
    if layout == "turns":
        return {"chosen": [*row.prompt, answers[0]], "rejected": [*row.prompt, answers[1]]}
    names = {"user": "Human", "assistant": "Assistant"}
    both = [
        "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in [*row.prompt, answer]) for answer in answers
    ]
    return {"chosen": both[0], "rejected": both[1]}


# What changes nothing.


def _nothing(table: Table) -> None:
    """As it was made."""


def _more_columns(table: Table) -> None:
    names = table.rng.sample(["score", "source", "Unnamed: 0", "notes", "ä", "winner_model"], 2)
    for row in table.written:
        row |= {name: table.rng.choice(WORDS) for name in names}


def _ids(table: Table) -> None:
    for number, row in enumerate(table.written):
        row["id"] = f"{number}-{table.rng.choice(WORDS)}"


def _other_order(table: Table) -> None:
    names = list(table.written[0])
    table.rng.shuffle(names)
    table.written = [{name: row[name] for name in names} for row in table.written]


def _both_layouts(table: Table) -> None:
    """A table of both kinds leaves the columns of the other kind empty."""
    other = ("response_a", "response_b", "label") if table.layout != "sides" else ("chosen", "rejected")
    for row in table.written:
        row |= dict.fromkeys(other, "" if "csv" in table.form else None)


def _a_row_to_drop(table: Table) -> None:
    """One that `docs/data.md` says is dropped: equal or empty responses."""
    spare = _row(table.rng, 99, table.layout)
    text = table.rng.choice((spare.first, " "))
    table.written.append(_written(Row(spare.prompt, text, text, spare.label), table.layout))


HARMLESS: dict[str, Callable[[Table], None]] = {
    "as it is": _nothing,
    "more columns": _more_columns,
    "ids": _ids,
    "columns in another order": _other_order,
    "columns of both layouts": _both_layouts,
    "a row to drop": _a_row_to_drop,
}


# Faults of rows.


def fits(name: str, table: Table) -> bool:
    """Whether a fault can be in this table."""
    if name == "a label that is none":
        return table.layout == "sides"
    if name in ("a label that contradicts", "a number as response"):
        return table.layout == "chosen" and (name != "a number as response" or "csv" not in table.form)
    return not name.startswith("turns") or table.layout == "turns"


def _some_row(table: Table) -> dict[str, Any]:
    found: dict[str, Any] = table.rng.choice(table.written)
    return found


def _no_column(table: Table) -> Reading:
    name = "chosen" if "chosen" in table.written[0] else "response_a"
    table.written = [{f"my_{key}" if key == name else key: v for key, v in row.items()} for row in table.written]
    return "refused"


def _strange_label(table: Table) -> Reading:
    _some_row(table)["label"] = table.rng.choice(("7", "maybe", "model_a", "-1", "[/b]"))
    return "refused"


def _contradicting_label(table: Table) -> Reading:
    for row in table.written:
        row["label"] = "1"
    _some_row(table)["label"] = "0"
    return "refused"


def _number(table: Table) -> Reading:
    for row in table.written:  # a column of Parquet has one type
        row["chosen"] = 5
    return "refused"


def _all_blank(table: Table) -> Reading:
    for row in table.written:
        row |= {name: " " for name in row if name not in ("label", "id")}
    table.rows = []
    return "refused"  # nothing to score


def _turn(table: Table, **change: Any) -> Reading:
    for row in table.written:
        row["chosen"] = [*row["chosen"][:-1], {**row["chosen"][-1], **change}]
    return "refused"


ROW_FAULTS: dict[str, Callable[[Table], Reading]] = {
    "no column of responses": _no_column,
    "a label that is none": _strange_label,
    "a label that contradicts": _contradicting_label,
    "a number as response": _number,
    "nothing but blanks": _all_blank,
    "turns with tool calls": lambda table: _turn(table, tool_calls=[{"name": "f"}]),
    "turns with a role that is none": lambda table: _turn(table, role="gpt"),
    "turns without content": lambda table: _turn(table, content=None),
}
# A turn without content leaves an empty response: the rows are dropped, and none is left.


def _row_is(value: Any) -> Callable[[Table], Reading]:
    def change(table: Table) -> Reading:
        table.written.insert(table.rng.randint(0, len(table.written)), value)
        return "refused"

    return change


def _twice(table: Table) -> Reading:
    name = table.rng.choice(list(table.written[0]))
    row = _some_row(table)
    table.written[table.written.index(row)] = Repeated(row, name)
    return "refused"


class Repeated(dict[str, Any]):
    """An object that is written with one of its keys a second time."""

    def __init__(self, content: dict[str, Any], name: str) -> None:
        super().__init__(content)
        self.name = name


JSON_FAULTS: dict[str, Callable[[Table], Reading]] = {
    "a row that is null": _row_is(None),
    "a row that is a number": _row_is(3),
    "a row that is true": _row_is(True),
    "a row that is a list": _row_is(["x"]),
    "a key twice": _twice,
}
