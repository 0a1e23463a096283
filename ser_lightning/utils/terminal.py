"""What a terminal shows of texts that come from data: never as commands, to the terminal or to rich."""

import re
from typing import Any

from rich.console import Console
from rich.text import Text

_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Control characters, and those that turn the direction of a line, as their escapes."""
    return _COMMANDS.sub(lambda found: repr(found[0])[1:-1], text)


class PlainConsole(Console):
    """Shows every text as it is: no markup in it counts, and no control character reaches the terminal."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """Every string that is printed or stands in a table passes here."""
        return super().render_str(visible(text), **settings)
