"""Rows of a file in its own order, their responses as well, for commands that write a result beside each row.

Training wants the opposite, see `ser_lightning/data/formats.py`: there a and b follow from the content alone.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ser_lightning.data.columns import LIST_COLUMNS, absent_columns, check_mapping, is_own, with_paths
from ser_lightning.data.formats import (
    DROPS,
    canonical,
    parse_candidates,
    parse_in_order,
    parse_prompt,
    parse_response,
    prompt_hash,
)
from ser_lightning.data.labels import Labels, shown_names
from ser_lightning.data.sources import open_sources
from ser_lightning.data.turns import clean, is_blank
from ser_lightning.errors import Causes, UserError, raise_problems
from ser_lightning.records import PreferencePair, Turn

Kind = Literal["chosen", "sides", "single"]
"""A row has chosen and rejected, response_a and response_b, or a response alone."""
_PAIRS = (("chosen", "rejected"), ("response_a", "response_b"))
VERDICTS = ("label", "score_a", "score_b", "annotator")
"""Columns that say which response is better."""
REASONS: dict[str, str] = {
    **{str(reason): text for reason, text in DROPS.items()},
    "too_long": "a response does not fit",
}
"""Why a row is dropped -> how it is said."""


@dataclass(frozen=True)
class FileRow:
    """A row that can be scored."""

    number: int
    """Its place in the file, from 0."""
    where: str
    """File and line, for messages."""
    kind: Kind
    pair: PreferencePair
    """In the file's order: a is the first response, label 1 = it is the better one. A single response is both."""

    @property
    def content(self) -> str:
        """16 hex digits that change with the prompt or a response: what rewards are of."""
        texts = [self.pair.prompt, self.pair.response_a, self.pair.response_b]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    @property
    def is_turned(self) -> bool:
        """Whether training calls the first response b: there the sides follow from the texts, whatever the file."""
        return canonical(self.pair).response_a != self.pair.response_a


@dataclass
class RowCounts:
    """What a file holds."""

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that are not usable, by reason."""
    kinds: set[Kind] = field(default_factory=set)
    has_ids: bool = False
    columns: dict[str, None] = field(default_factory=dict)
    """That any row has, in the order of the file."""

    @property
    def usable(self) -> int:
        """Rows that can be scored."""
        return self.rows - self.dropped.total()

    @property
    def why_dropped(self) -> str:
        """How many rows were dropped for each reason, for a message; empty where none was."""
        return ", ".join(f"{REASONS[why]} in {count}" for why, count in sorted(self.dropped.items()))


@dataclass(frozen=True)
class CandidateRow:
    """A prompt with chosen and rejected responses, any number of either."""

    where: str
    """File and line, for messages."""
    prompt: list[Turn]
    prompt_id: int
    """Equal for prompts that differ in case and white space alone."""
    chosen: list[str]
    rejected: list[str]
    is_pair: bool
    """Whether the file has a text on both sides, and not lists."""
    subset: str
    source_id: str | None


def open_source(path: str, flag: str = "--data") -> Any:
    """The `Source` of a path, as `ser_lightning/data/sources.py` opens it; `UserError` if there is nothing to read."""
    if path == "synthetic":
        raise UserError(f"{flag}: got synthetic; give a file (`predict` scores pairs of the synthetic world)")
    sources = open_sources(path, num_synthetic=0, seed=0)
    if len(sources) > 1:
        raise UserError(f"{flag}: got {path}, which matches {len(sources)} files; give one")
    return sources[0]


def column_problems(columns: Mapping[str, str]) -> list[str]:
    """Problems of a column mapping, a line each; of a list of responses only `fit` makes pairs."""
    if lists := [name for name in LIST_COLUMNS if name in columns]:
        return [f"columns: got {lists[0]}, which data.columns of fit alone takes; write a row for each pair"]
    return check_mapping(_without_response(columns))


def survey(source: Any, columns: Mapping[str, str], labels: Labels | None = None) -> RowCounts:
    """Read a file once, so that its problems are reported before a model is loaded.

    Raises:
        UserError: up to ten causes at once, or rows of single responses among pairs, or columns that no row has.
    """
    counts, causes = RowCounts(), Causes()
    try:
        for _ in read_rows(source, columns, counts, causes, labels):
            pass
    except UserError as error:  # the file itself is broken here
        causes.add(error.problems)
    raise_problems(absent_columns(columns, counts.columns))
    if len(counts.kinds) > 1 and "single" in counts.kinds:
        causes.add([f"{source.name}: got single responses and pairs; give each a file of its own"])
    raise_problems(causes.lines())
    return counts


def read_rows(
    source: Any,
    columns: Mapping[str, str],
    counts: RowCounts,
    causes: Causes | None = None,
    labels: Labels | None = None,
) -> Iterator[FileRow]:
    """The rows of a file that can be scored.

    Args:
        counts: is kept up to date.
        causes: collects the problems of single rows until it is full; None raises the first.
    """
    for number, (where, row) in enumerate(source.rows()):
        counts.rows += 1
        row = with_paths(row, columns)
        counts.columns.update(dict.fromkeys(row))
        try:
            kind = _kind_of(row, columns)
            pair = (
                _single(row, columns, where)
                if kind == "single"
                else parse_in_order(row, _without_response(columns), where, labels)
            )
        except UserError as error:
            if causes is None:
                raise
            causes.add(error.problems)
            if causes.is_full:
                return
            continue
        if not isinstance(pair, PreferencePair):
            counts.dropped[pair] += 1
            continue
        counts.kinds.add(kind)
        counts.has_ids |= pair.source_id is not None
        yield FileRow(number, where, kind, replace(pair, pair_id=number))


def read_candidates(source: Any, columns: Mapping[str, str], category: str | None) -> list[CandidateRow]:
    """All rows of a file of chosen and rejected responses.

    Args:
        category: column that holds a row's subset; None: `subset`, and where no row has it all are of one, `all`.

    Raises:
        UserError: up to ten causes at once, or columns that no row has.
    """
    subset = category or "subset"
    rows, without, causes = [], [], Causes()
    present: dict[str, None] = {}
    for where, row in source.rows():
        row = with_paths(row, columns)
        present.update(dict.fromkeys(row))
        try:
            prompt, chosen, rejected = parse_candidates(row, columns, where)
        except UserError as error:
            causes.add(error.problems)
            if causes.is_full:
                break
            continue
        sides = [row[_name(name, row, columns)] for name in _PAIRS[0]]
        name, source_id = row.get(subset), row.get(_name("id", row, columns))
        without += [where] if name is None else []
        rows.append(
            CandidateRow(
                where=where,
                prompt=prompt,
                prompt_id=prompt_hash(prompt),
                chosen=chosen,
                rejected=rejected,
                is_pair=not any(isinstance(side, list) for side in sides),
                subset="all" if name is None else clean(str(name)),
                source_id=None if source_id is None else clean(str(source_id)),
            )
        )
    if category and without and len(without) == len(rows) and not causes.is_full:
        causes.add(
            [f"--category: got {category!r}, which no row of {source.name} has; give one of {shown_names(present)}"]
        )
    if 0 < len(without) < len(rows):
        causes.add([f"{without[0]}: got no {subset}, as in {len(without)} of {len(rows)} rows; fill it in all"])
    raise_problems(absent_columns(columns, present) or causes.lines())
    return rows


def _kind_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> Kind:
    present = [all(_name(name, row, columns) in row for name in names) for names in _PAIRS]
    if not any(present) and _name("response", row, columns) in row:
        return "single"
    # A table of both kinds leaves the other kind's columns empty.
    is_filled = not all(is_blank(row.get(_name(name, row, columns))) for name in _PAIRS[0])
    return "chosen" if present[0] and (is_filled or not present[1]) else "sides"


def _single(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> PreferencePair | str:
    prompt = parse_prompt(row, _without_response(columns), where)
    name = _name("response", row, columns)
    source_id = row.get(_name("id", row, columns))
    if prompt is None or is_blank(row[name]):
        return "empty"
    text = parse_response(row[name], prompt, where, name)
    return PreferencePair(0, prompt, text, text, None, None if source_id is None else clean(str(source_id)))


def _name(name: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """How a row calls a column: as it is mapped, or by the project's own name."""
    return columns[name] if columns.get(name) in row and not is_own(row) else name


def _without_response(columns: Mapping[str, str]) -> dict[str, str]:
    """The mapping that `formats` knows, which has no single responses."""
    return {name: column for name, column in columns.items() if name != "response"}
