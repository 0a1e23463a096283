"""Write the tables of `docs/` from the results of all studies: `python -m benchmarks.tables`.

`tables.py` of a study names its page (`PAGE`) and gives its tables by name (`tables()`), or by page and name if it has
no `PAGE`. Text between `<!-- NAME -->` and `<!-- end NAME -->` is replaced; the rest of a page is written by hand.
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
        pages = {study.PAGE: study.tables()} if hasattr(study, "PAGE") else study.tables()
        for page, name, text in ((page, *table) for page, named in pages.items() for table in named.items()):
            if name in found[page]:
                raise ValueError(f"{file}: {page} has another table {name}")
            found[page][name] = text
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
