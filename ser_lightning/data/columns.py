"""How files call what the project reads: `data.columns` gives a name of the project the column of the file.

A column may lie inside another one: `info.post` is the key `post` of `info`, `summaries.0.text` the `text` of the first
of `summaries`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ser_lightning.data.labels import shown_names
from ser_lightning.data.turns import is_blank

COLUMNS = ("prompt", "chosen", "rejected", "response_a", "response_b", "label", "id")
"""Names that are read wherever a file has them; a mapping gives the names in the file."""
MAPPED_COLUMNS = ("system", "score_a", "score_b", "annotator")
"""Names that are read only where a mapping names their column: many files have such columns for something else."""


def check_mapping(columns: Mapping[str, str]) -> list[str]:
    """Problems of a column mapping, whatever the file."""
    known = (*COLUMNS, *MAPPED_COLUMNS)
    found = [f"columns: got the unknown name {name!r}; use {', '.join(known)}" for name in columns if name not in known]
    if len(scores := [name for name in ("score_a", "score_b") if name in columns]) == 1:
        found.append(f"columns: got {scores[0]} alone; name the columns of score_a and score_b")
    return found


def given_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Name of the project -> column of the row, for all that may be read.

    A file that is not mapped may stand beside one that is, so the project's own names always count.
    """
    own = {name: columns[name] if columns.get(name) in row else name for name in COLUMNS}
    return own | {name: columns[name] for name in MAPPED_COLUMNS if name in columns}


def with_paths(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row, and in it what lies inside its columns where a mapping names that.

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
    for part in parts:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return []
    return [value]


def absent_columns(columns: Mapping[str, str], present: Collection[str]) -> list[str]:
    """A line for names that are mapped to columns that no row has.

    Args:
        columns: how the file calls its columns.
        present: the columns of all rows.
    """
    absent = [f"{name}: {column}" for name, column in columns.items() if column not in present]
    return [f"columns: got {{{', '.join(absent)}}}; the file has {shown_names(present)}"] if absent and present else []


def columns_left(present: Collection[str], columns: Mapping[str, str]) -> list[str]:
    """Those of the columns of a file that nothing reads."""
    read = {*COLUMNS, *columns.values(), *(column.split(".")[0] for column in columns.values())}
    return [str(name) for name in present if name not in read]


def unread_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """`; no column label ...`, for a message about missing labels: the columns of a row that nothing reads.

    Empty where the row has labels, or says by `chosen` and `rejected` who is better.
    """
    row = with_paths(row, columns)
    unread = [name for name in columns_left(row, columns) if name != "response"]
    if columns.get("label", "label") in row or "label" in row or not unread:
        return ""
    return f"; no column {columns.get('label', 'label')}; columns not read: {shown_names(unread)}"


def lists_in(row: Mapping[str, Any]) -> str:
    """For a message about missing responses: how to name two of a list of answers; empty where there is none."""
    for name, value in row.items():
        if not isinstance(value, list) or len(value) < 2 or not isinstance(value[0], Mapping) or "role" in value[0]:
            continue
        texts = [key for key, text in value[0].items() if isinstance(text, str) and not is_blank(text)]
        if texts:
            places = [f"{name}.{i}.{max(texts, key=lambda key: len(value[0][key]))}" for i in (0, 1)]
            return (
                f"; {name} is a list of {len(value)}: write a row for each pair of them, or name two, "
                f"columns: {{response_a: {places[0]}, response_b: {places[1]}}}"
            )
    return ""
