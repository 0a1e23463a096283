"""Names of columns: `data.columns` maps the project's names to the columns of a file.

A column may be nested in another one: `info.post` is the key `post` of `info`, `summaries.0.text` the `text` of the
first of `summaries`, and `summaries.*.text` the list of the `text` of each.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from typing import Any

from ser_lightning.data.labels import OWN_LABEL, shown_names
from ser_lightning.data.turns import is_blank
from ser_lightning.errors import UserError

COLUMNS = ("prompt", "chosen", "rejected", "response_a", "response_b", "label", "id")
"""Names that are read wherever a file has them; a mapping gives the names in the file."""
LIST_COLUMNS = ("responses", "scores", "ranks")
"""A list of responses to one prompt, and beside it their scores (higher is better) or ranks (lower is better)."""
MAPPED_COLUMNS = ("system", "score_a", "score_b", "annotator", *LIST_COLUMNS)
"""Names that are read only where a mapping names their column: many files have such columns for something else."""
_OF_PAIRS = ("chosen", "rejected", "response_a", "response_b", "label", "score_a", "score_b")
_MAX_RESPONSES = 200
"""In a list: its pairs grow with the square."""


def check_mapping(columns: Mapping[str, str]) -> list[str]:
    """Problems of a column mapping, whatever the file."""
    known = (*COLUMNS, *MAPPED_COLUMNS)
    found = [f"columns: got the unknown name {name!r}; use {', '.join(known)}" for name in columns if name not in known]
    if len(scores := [name for name in ("score_a", "score_b") if name in columns]) == 1:
        found.append(f"columns: got {scores[0]} alone; name the columns of score_a and score_b")
    return found + _list_problems(columns)


def _list_problems(columns: Mapping[str, str]) -> list[str]:
    given = [name for name in LIST_COLUMNS if name in columns]
    others = [name for name in _OF_PAIRS if name in columns]
    found = []
    if given and "responses" not in given:
        found.append(f"columns: got {given[0]} without responses; name the column that lists the responses")
    if given and others:
        found.append(f"columns: got {given[0]} beside {others[0]}; map a list of responses or two of them")
    if given[-2:] == ["scores", "ranks"]:
        found.append("columns: got scores and ranks; map one of them")
    return found


def pair_rows(
    row: Mapping[str, Any], columns: Mapping[str, str], where: str
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, str]]]:
    """The rows of all pairs of a list of responses, each with its mapping; a row without a list as it is.

    Example:
        >>> row, columns = {"q": "Tea?", "a": ["x", "y"], "s": [1, 2]}, {"prompt": "q", "responses": "a", "scores": "s"}
        >>> [(pair, mapping)] = pair_rows(row, columns, "line 1")
        >>> [pair[mapping[name]] for name in ("prompt", "response_a", "response_b", "score_a", "score_b")]
        ['Tea?', 'x', 'y', 1, 2]

    Raises:
        UserError: the columns hold no lists of equal length.
    """
    row = with_paths(row, columns)
    if columns.get("responses") not in row or is_own(row):  # a file of pairs may stand beside it
        yield row, {name: column for name, column in columns.items() if name not in LIST_COLUMNS}
        return
    kind = next((name for name in ("scores", "ranks") if name in columns), None)
    texts = _list_in(row, columns["responses"], where)
    values = _list_in(row, columns[kind], where) if kind else []
    if kind and len(values) != len(texts):
        raise UserError(
            f"{where}: got {len(values)} {kind} in {columns[kind]} for {len(texts)} responses in "
            f"{columns['responses']}; give one each"
        )
    rest = {name: value for name, value in row.items() if name not in _OF_PAIRS}
    kept = {name: column for name, column in columns.items() if name not in LIST_COLUMNS}
    for i, j in combinations(range(len(texts)), 2):
        found = {"response_a": (columns["responses"], i, texts[i]), "response_b": (columns["responses"], j, texts[j])}
        if kind:
            # A low rank is good: the rank of the other one is as good as a score.
            first, second = (i, j) if kind == "scores" else (j, i)
            found["score_a"], found["score_b"] = ((columns[kind], n, values[n]) for n in (first, second))
        names = {name: f"{column} {n + 1}" for name, (column, n, _) in found.items()}
        yield {**rest, **{names[name]: value for name, (_, _, value) in found.items()}}, {**kept, **names}


def _list_in(row: Mapping[str, Any], column: str, where: str) -> list[Any]:
    value = row.get(column)
    if not isinstance(value, list):
        got = "no column" if column not in row else f"a {type(value).__name__} in"
        raise UserError(f"{where}: got {got} {column}; give a list, one entry for each response to the prompt")
    if len(value) > _MAX_RESPONSES:
        raise UserError(
            f"{where}: got {len(value):,} entries in {column}; at most {_MAX_RESPONSES} are read as all their pairs, "
            "write the pairs that matter as rows"
        )
    return value


def is_own(row: Mapping[str, Any]) -> bool:
    """Whether `query` or `label` has written the row: no mapping and no label map of other files is for it.

    A table that such rows were added to has the column in its other rows too, but not the texts.
    """
    return OWN_LABEL in row and not any(is_blank(row.get(name)) for name in ("prompt", "response_a", "response_b"))


def given_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """The project's names -> columns of the row, for all that may be read.

    A file that is not mapped may stand beside one that is, so the project's own names always count.
    """
    if is_own(row):
        return {**{name: name for name in COLUMNS}, "label": OWN_LABEL}
    own = {name: columns[name] if columns.get(name) in row else name for name in COLUMNS}
    return own | {name: columns[name] for name in MAPPED_COLUMNS if name in columns}


def with_paths(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row, with the nested values that a mapping names as columns of their own.

    Example:
        >>> with_paths({"info": {"post": "Tea?"}}, {"prompt": "info.post"})["info.post"]
        'Tea?'
    """
    paths = {column for column in columns.values() if "." in column and column not in row}
    found = {path: _inside(row, path.split(".")) for path in paths}
    inside = {path: values[0] for path, values in found.items() if values}
    return {**row, **inside} if inside else row


def _inside(value: Any, parts: list[str]) -> list[Any]:
    """What a path leads to, as a list of one; nothing where it leads nowhere."""
    for i, part in enumerate(parts):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, list) and part == "*":
            found = [_inside(one, parts[i + 1 :]) for one in value]
            return [[one[0] if one else None for one in found]] if any(found) else []
        else:
            return []
    return [value]


def absent_columns(columns: Mapping[str, str], present: Collection[str]) -> list[str]:
    """A line for names that are mapped to columns that no row has."""
    absent = [f"{name}: {column}" for name, column in columns.items() if column not in present]
    return [f"columns: got {{{', '.join(absent)}}}; the file has {shown_names(present)}"] if absent and present else []


def columns_left(present: Collection[str], columns: Mapping[str, str]) -> list[str]:
    """Those of the columns of a file that nothing reads."""
    read = {*COLUMNS, OWN_LABEL, *columns.values(), *(column.split(".")[0] for column in columns.values())}
    return [str(name) for name in present if name not in read]


def unread_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """`; no column label ...`, for a message about missing labels: the columns of a row that nothing reads.

    Empty where the row has labels, or says by `chosen` and `rejected` which response is better.
    """
    row = with_paths(row, columns)
    unread = [name for name in columns_left(row, columns) if name != "response"]
    names = [{columns.get(name, name) for name in pair} for pair in (("label",), ("chosen", "rejected"))]
    if not unread or {"label", OWN_LABEL} & row.keys() or any(pair <= row.keys() for pair in names):
        return ""
    return f"; no column {columns.get('label', 'label')}; columns not read: {shown_names(unread)}"


def lists_in(row: Mapping[str, Any]) -> str:
    """For a message about missing responses: how to read a list of answers, all its pairs or two of them."""
    for name, value in row.items():
        if not isinstance(value, list) or len(value) < 2:
            continue
        if all(isinstance(text, str) and not is_blank(text) for text in value):
            worth = _worth_of([key for key, other in row.items() if _are_numbers(other, len(value))])
            return _list_advice(name, len(value), name, worth, (f"{name}.0", f"{name}.1"))
        if not isinstance(value[0], Mapping) or "role" in value[0]:
            continue
        texts = [key for key, text in value[0].items() if isinstance(text, str) and not is_blank(text)]
        if texts:
            best = max(texts, key=lambda key: len(value[0][key]))
            worth = _worth_of([f"{name}.*.{key}" for key, number in value[0].items() if _are_numbers([number], 1)])
            two = (f"{name}.0.{best}", f"{name}.1.{best}")
            return _list_advice(name, len(value), f"{name}.*.{best}", worth, two)
    return ""


def _list_advice(name: str, number: int, responses: str, worth: str, two: tuple[str, str]) -> str:
    return (
        f"; {name} is a list of {number}: for all its pairs, columns: {{responses: {responses}{worth}}}, where equal "
        f"scores or ranks are ties; for two, columns: {{response_a: {two[0]}, response_b: {two[1]}}}"
    )


def _worth_of(columns: list[str]) -> str:
    """`, scores: COLUMN` or `, ranks: COLUMN`, by the first name that says so."""
    for column in columns:
        last = column.rsplit(".", 1)[-1].lower()
        if "rank" in last:
            return f", ranks: {column}"
        if "score" in last or "rating" in last:
            return f", scores: {column}"
    return ""


def _are_numbers(value: Any, number: int) -> bool:
    is_list = isinstance(value, list) and len(value) == number
    return is_list and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
