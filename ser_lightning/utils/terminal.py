"""What a terminal shows of texts that come from data: never as commands, to the terminal or to rich."""

import io
import re
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Control characters, and those that turn the direction of a line, as their escapes."""
    return _COMMANDS.sub(lambda found: repr(found[0])[1:-1], text)


class PlainConsole(Console):
    """Shows every text as it is: no markup in it counts, and no control character reaches the terminal."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **settings})

    def on_broken_pipe(self) -> None:
        """Leave it to the command how it ends; rich would end it here, with a code of its own."""
        raise  # in the handler of the error

    def render_str(self, text: str, **settings: Any) -> Text:
        """Every string that is printed or stands in a table passes here."""
        return super().render_str(visible(text), **settings)


def say(*parts: Any) -> None:
    """Lines and tables to standard output; a long line is not broken, so that a path can be copied."""
    console = PlainConsole()
    with tqdm.external_write_mode():  # no bar stands where they go
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))
        console.file.flush()


def new_table(*heads: str, title: str = "") -> Table:
    """An empty table: names stand left in the first column, figures right in all others."""
    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0),
        show_header=any(heads),
    )  # fmt: skip
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    return table


def text_of(table: Table, width: int = 80) -> str:
    """A table as lines of text."""
    lines = io.StringIO()
    PlainConsole(file=lines, width=width).print(table)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines())
