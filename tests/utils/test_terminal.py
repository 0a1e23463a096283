"""What comes from data reaches the terminal as text alone."""

import io

import pytest
from rich.table import Table

from ser_lightning.utils.terminal import PlainConsole, visible


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;owned\x07", "\x9b31m", "a\rb", "\u202egnp.exe", "\x00\x7f"])
def test_no_control_character_is_left(text):
    shown = visible(text)
    assert shown.isprintable() and "\\" in shown
    console = PlainConsole(file=io.StringIO(), force_terminal=True, width=200)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(table)
    console.print(text)
    raw = console.file.getvalue()
    assert text not in raw and raw.count(shown) == 4


@pytest.mark.parametrize("text", ["[/x]", "[/b]", "[bold]a[/bold]", "[link=http://a]b[/link]", ":smile:"])
def test_markup_in_data_is_text(text):
    console = PlainConsole(file=io.StringIO(), width=200)
    table = Table("name")
    table.add_row(text)
    console.print(table)
    console.print(text)
    assert console.file.getvalue().count(text) == 2


def test_what_is_text_stays():
    for text in ("Grüße, 你好 🎉", "two\nlines\tand a tab"):
        assert visible(text) == text
