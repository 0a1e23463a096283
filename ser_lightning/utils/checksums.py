"""Files of a cache that are used only if they still are what was written: SHA-256 of each in a record beside them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from ser_lightning.utils.atomic import flush_to_disk, write_text_atomically


def record_checksums(record: Path, files: Iterable[Path]) -> None:
    """Flush files to disk and write down their checksums.

    Args:
        record: JSON file to write, in the folder of the files.
        files: what the record vouches for.
    """
    found = list(files)
    for file in found:
        flush_to_disk(file)
    write_text_atomically(record, json.dumps({file.name: _sha256(file) for file in found}))


def checksums_fit(record: Path) -> bool:
    """Whether every file of a record is there with the content that it had."""
    try:
        expected = json.loads(record.read_text(encoding="utf-8"))
        return bool(expected) and all(_sha256(record.with_name(name)) == known for name, known in expected.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
