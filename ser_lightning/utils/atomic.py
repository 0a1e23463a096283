"""Files that are whole or not there, whenever the process is killed: written beside their place, flushed, renamed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object], overwrite: bool = True) -> None:
    """Write a file: a reader finds the old one or the new one, never half of it.

    Args:
        path: the file; its folder is made.
        write: writes the content into an open binary file.
        overwrite: put the file in the place of one that is there.

    Raises:
        FileExistsError: the file is there, also if another process has only just written it, and `overwrite` is off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically` of a text, as UTF-8 with the line ends it has."""
    write_atomically(path, lambda file: file.write(text.encode()))
