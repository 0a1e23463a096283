"""Write the tables of `docs/` from the results of all studies: `python -m benchmarks.tables`.

`tables.py` of a study names its page (`PAGE`) and gives its tables by name (`tables()`). Text between `<!-- NAME -->`
and `<!-- end NAME -->` is replaced; everything else in a page is written by hand.
"""

from collections import defaultdict
from functools import cache
from importlib import import_module
from pathlib import Path

from benchmarks.shared.markdown import fill

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


@cache
def tables() -> dict[str, dict[str, str]]:
    """Every table by its page and name."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for file in sorted(HERE.glob("*/tables.py")):
        study = import_module(f"benchmarks.{file.parent.name}.tables")
        for name, text in study.tables().items():
            if name in found[study.PAGE]:
                raise ValueError(f"{file}: {study.PAGE} has another table {name}")
            found[study.PAGE][name] = text
    return dict(found)


def filled(name: str) -> str:
    """A page of the docs with its tables made anew."""
    page = (DOCS / name).read_text(encoding="utf-8")
    for table, text in tables()[name].items():
        page = fill(page, table, text)
    return page


if __name__ == "__main__":
    for page_name in tables():
        (DOCS / page_name).write_text(filled(page_name), encoding="utf-8")
