"""A folder that appears under its name when all of it is written and tested."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ser_lightning.errors import UserError


def check_is_new(to: Path) -> None:
    """`UserError` where something is in the place of an export."""
    if to.exists():
        raise UserError(f"--to: {to} exists already; name another folder or remove it")


@contextmanager
def drafted(to: Path) -> Iterator[Path]:
    """A folder beside `to` that takes its name at the end, and is removed if anything fails."""
    draft = to.with_name(f".{to.name}.{os.getpid()}.draft")
    try:
        yield draft
        os.rename(draft, to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
