"""Files that are whole or not there, whenever the process is killed: written beside their place, flushed, renamed."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ser_lightning.utils.patterns import matching


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    overwrite: bool = True,
    mode: int | None = None,
    before: Callable[[Path], object] | None = None,
) -> None:
    """Write a file: a reader finds the old one or the new one, never half of it.

    Args:
        path: the file; its folder is made.
        write: writes the content into an open binary file.
        overwrite: put the file in the place of one that is there.
        mode: permissions, such as 0o600 for a file with secrets; None = those of any new file.
        before: gets the file when it is whole and not yet in its place.

    Raises:
        FileExistsError: the file is there, also if another process has only just written it, and `overwrite` is off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb", opener=partial(os.open, mode=0o666 if mode is None else mode)) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before(temporary)
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):  # of which the user knows nothing
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text_atomically(path: Path, text: str, overwrite: bool = True, mode: int | None = None) -> None:
    """`write_atomically` of a text, as UTF-8 with the line ends it has."""
    write_atomically(path, lambda file: file.write(text.encode()), overwrite, mode)


def write_lines_atomically(path: Path, rows: Iterable[Any]) -> None:
    """`write_atomically` of JSON lines, one row after another as they come."""
    lines = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    write_atomically(path, lambda file: file.writelines(lines))


def json_lines_problems(flag: str, path: str | Path) -> Iterator[str]:
    """Why a file of JSON lines must not have this name: a spreadsheet would take it for a table."""
    if Path(path).suffix.lower() in (".csv", ".tsv", ".parquet", ".xlsx"):
        yield f"{flag}: got {path}, but the file holds JSON lines; give a name that ends in .jsonl"


def output_problems(flag: str, path: str | Path, inputs: Sequence[str | Path], overwrite: bool) -> Iterator[str]:
    """Why a command must not write its output there: it would destroy what it reads, or a file that nobody gave up.

    Args:
        flag: what the message begins with, such as `--out`.
        path: the file to write.
        inputs: files, patterns and folders that the command reads; a file in such a folder is one of them.
        overwrite: whether the user gives up the file that is there.
    """
    out = Path(path).expanduser()
    if out.is_dir():
        yield f"{flag}: got {out}, which is a folder; give a file"
    elif out.exists():
        given = [Path(file).expanduser() for one in inputs for file in matching(str(one))]
        if any(one.exists() and (one.samefile(out) or one.resolve() in out.resolve().parents) for one in given):
            yield f"{flag}: got {out}, which this command reads; give another file"
        elif not overwrite:
            yield f"{flag}: got {out}, which exists; give another file, or --overwrite"
