"""Patterns such as `data/*.jsonl` -> the files that they match."""

import glob
from pathlib import Path


def matching(path: str) -> list[str]:
    """The files that a pattern with `*` or `?` matches, in the order of their names; any other path as it is."""
    if not set("*?") & set(path) or Path(path).expanduser().exists():
        return [path]
    return sorted(glob.glob(str(Path(path).expanduser()), recursive=True))
