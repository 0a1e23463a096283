"""Markdown tables, and the places for them in a page of `docs/`."""

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; `ValueError` where a row has more or fewer entries than the header."""
    lines = [_line(header), "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"the row {row} has {len(row)} entries; need {len(header)}, as in {header}")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(entries: Sequence[str]) -> str:
    return "|" + "|".join(f" {entry} " if entry else " " for entry in entries) + "|"


def fill(page: str, name: str, text: str) -> str:
    """The page with the text between `<!-- NAME -->` and `<!-- end NAME -->` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no place for the table {name}")
    return pattern.sub(lambda m: m[1] + text + "\n" + m[2], page)
