"""Files that are used only if they still are what was written: SHA-256 of each in a record in their folder."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from ser_lightning.utils.atomic import flush_to_disk, write_atomically, write_text_atomically

CHECKSUMS = "checksums.json"
"""Name of a record: the checksums that each file may have, the newest first."""


def write_recorded(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`write_atomically`, with the checksum in the record of the folder.

    The record has it before the file is in its place, and keeps the one before: no kill in between makes them differ.
    """
    write_atomically(path, write, before=lambda draft: _note(path, _sha256(draft)))


def record_checksums(record: Path, files: Iterable[Path]) -> None:
    """Flush files to disk and write down their checksums."""
    found = list(files)
    for file in found:
        flush_to_disk(file)
    write_text_atomically(record, json.dumps({file.name: [_sha256(file)] for file in found}))


def checksums_fit(record: Path) -> bool:
    """Whether a record is there, and every file of it with a content that it had."""
    try:
        return bool(known := _read(record)) and all(_fits(record.with_name(name), known) for name in known)
    except (OSError, ValueError):
        return False


def fits_record(file: Path) -> bool:
    """Whether a file is what the record of its folder says; also where there is no record, or it has no such file."""
    try:
        return _fits(file, _read(file.with_name(CHECKSUMS)))
    except FileNotFoundError:
        return True
    except ValueError:
        return False


def _fits(file: Path, known: dict[str, list[str]]) -> bool:
    return file.name not in known or _sha256(file) in known[file.name]


def _note(path: Path, checksum: str) -> None:
    record = path.with_name(CHECKSUMS)
    try:
        known = _read(record)
    except (FileNotFoundError, ValueError):
        known = {}
    known[path.name] = [checksum, *(one for one in known.get(path.name, [])[:1] if one != checksum)]
    write_text_atomically(record, json.dumps(known))


def _read(record: Path) -> dict[str, list[str]]:
    """A record; `ValueError` for what is none."""
    known = json.loads(record.read_text(encoding="utf-8"))
    if not isinstance(known, dict) or not all(isinstance(sums, (str, list)) for sums in known.values()):
        raise ValueError(f"{record} is no record of checksums")
    return {name: [sums] if isinstance(sums, str) else sums for name, sums in known.items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
