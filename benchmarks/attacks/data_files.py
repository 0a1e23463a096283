"""Data files as people have them, and as they break: each from a number, with the right reading where there is one.

What is right follows from `docs/data.md` and from how the file was made, not from what reads it.
"""

import csv
import gzip
import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.attacks.rows import HARMLESS, JSON_FAULTS, ROW_FAULTS, Reading, Repeated, Row, Table, fits, make_table

FORMATS = ("jsonl", "json", "data.json", "csv", "parquet", "jsonl.gz", "csv.gz", "folder")


@dataclass
class DataFile:
    """A file, and what is right."""

    path: Path
    kind: str
    """Format and what was done to it."""
    reading: Reading
    rows: list[Row] = field(default_factory=list)


def data_file(number: int, folder: Path) -> DataFile:
    """The data file of a number, written into a folder.

    Args:
        number: which; the same number makes the same file.
        folder: empty.
    """
    rng = random.Random(f"data file {number}")
    form = FORMATS[number % len(FORMATS)]
    table = make_table(rng, form)
    if number // len(FORMATS) % 3 == 0:
        name, change = rng.choice(list(HARMLESS.items()))
        change(table)
        return DataFile(write(table, folder), f"{form}, {table.layout}: {name}", "whole", table.rows)
    if number // len(FORMATS) % 3 == 1:
        choices = ROW_FAULTS | (JSON_FAULTS if "json" in form else {})
        choices = {name: fault for name, fault in choices.items() if fits(name, table)}
        name = rng.choice([*choices, *(FILE_FAULTS[form])])
        if name in choices:
            reading = choices[name](table)
            return DataFile(write(table, folder), f"{form}, {table.layout}: {name}", reading, table.rows)
        path = write(table, folder)
        FILE_FAULTS[form][name](rng, path)
        return DataFile(path, f"{form}: {name}", "refused")
    path = write(table, folder)
    kept = scatter(rng, path, table)
    return DataFile(path, f"{form}: bytes", "some", kept)


# Writing.


def write(table: Table, folder: Path) -> Path:
    """The table as a file, or a folder of `datasets`."""
    name = {"data.json": "json", "folder": ""}.get(table.form, table.form)
    path = folder / ("rows" + (f".{name}" if name else ""))
    if table.form == "folder":
        datasets.Dataset.from_list(_alike(table.written)).save_to_disk(path)
    elif table.form == "parquet":
        size = table.rng.choice((1, 3, 100))
        codec = table.rng.choice(("none", "snappy", "zstd"))
        pq.write_table(pa.Table.from_pylist(_alike(table.written)), path, row_group_size=size, compression=codec)
    else:
        text = _csv(table) if "csv" in table.form else _json(table)
        content = text.encode("utf-8-sig" if table.rng.random() < 0.3 else "utf-8")
        path.write_bytes(gzip.compress(content) if table.form.endswith("gz") else content)
    return path


def _alike(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arrow takes the columns of the first row."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _csv(table: Table) -> str:
    out = io.StringIO()
    ends, quoting = table.rng.choice(("\n", "\r\n")), table.rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    writer = csv.DictWriter(out, list(table.written[0]), lineterminator=ends, quoting=quoting)
    writer.writeheader()
    writer.writerows(table.written)
    return out.getvalue()


def _json(table: Table) -> str:
    is_ascii = table.rng.random() < 0.5
    rows = [_dumps(row, is_ascii) for row in table.written]
    if "jsonl" in table.form:
        return table.rng.choice(("\n", "\r\n", "\n\n")).join(rows) + "\n"
    text = "[" + ",\n".join(rows) + "]"
    return '{"version": 1, "data": ' + text + "}" if table.form == "data.json" else text


def _dumps(row: Any, is_ascii: bool) -> str:
    text = json.dumps(row, ensure_ascii=is_ascii)
    if isinstance(row, Repeated):
        text = text[:-1] + f", {json.dumps(row.name)}: {json.dumps('other')}" + "}"
    return text


# Faults of files.

FileFault = Callable[[random.Random, Path], None]


def _cut(rng: random.Random, path: Path) -> None:
    """Within the last tenth, where every format has what closes it."""
    content = path.read_bytes().rstrip()
    path.write_bytes(content[: len(content) - 1 - rng.randint(0, len(content) // 10)])


def _empty(rng: random.Random, path: Path) -> None:
    path.write_bytes(rng.choice((b"", b"\n", b" \n\n")))


def _utf16(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes().decode("utf-8-sig").encode("utf-16"))


def _latin1(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    place = content.rindex(b".")
    path.write_bytes(content[:place] + b"\xe4\xff" + content[place:])


def _zip_instead(rng: random.Random, path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + rng.randbytes(60))


def _binary(rng: random.Random, path: Path) -> None:
    path.write_bytes(b"\x00\xff" + rng.randbytes(rng.randint(1, 400)))


def _plain_under_gz(rng: random.Random, path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


def _cut_gz(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randint(11, len(content) - 1)])


def _huge_number(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes().rstrip().rstrip(b"]}") + b', "n": 1' + b"0" * rng.randint(4301, 6000) + b"}\n")


def _deep(rng: random.Random, path: Path) -> None:
    path.write_text('{"prompt": ' + "[" * 50_000 + "]" * 50_000 + "}\n")


def _header_twice(rng: random.Random, path: Path) -> None:
    head, _, rest = path.read_bytes().partition(b"\n")
    names = head.strip(b"\r")
    lines = rest.strip().split(b"\n")
    path.write_bytes(
        b"\n".join([names + b",prompt,prompt", *(line.strip(b"\r") + b",x,y" for line in lines[:1])]) + b"\n"
    )


def _more_fields(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes().rstrip() + b",more,and more\n")


def _open_quote(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes().rstrip() + b'\n"open,x\n')


def _end_of_parquet(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8:-4] = rng.randbytes(4)  # the length of the footer
    path.write_bytes(content)


def _far_date(rng: random.Random, path: Path) -> None:
    table = pq.read_table(path)
    far = pa.array([rng.choice((10**15, -(10**15)))] * len(table), pa.timestamp("ms"))
    pq.write_table(table.append_column("when", far), path)


def _column_twice(rng: random.Random, path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(
        pa.Table.from_arrays([*table.columns, table.columns[0]], [*table.column_names, table.column_names[0]]), path
    )


def _is_folder(rng: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def _other_ending(rng: random.Random, path: Path) -> None:
    """The file is not under its name any more."""
    path.rename(path.with_suffix(".txt"))


def _in_folder(name: str, change: Callable[[random.Random, bytes], bytes | None]) -> FileFault:
    def damage(rng: random.Random, path: Path) -> None:
        file = next(path.glob(name))
        content = change(rng, file.read_bytes())
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)

    return damage


_COMMON: dict[str, FileFault] = {"cut": _cut, "empty": _empty, "binary": _binary, "a zip file": _zip_instead}
_COMMON |= {"a folder": _is_folder, "another name": _other_ending}
_OF_TEXT = {**_COMMON, "UTF-16": _utf16, "bytes that are not UTF-8": _latin1}
_OF_JSON = {**_OF_TEXT, "a huge number": _huge_number, "a deep nesting": _deep}
_OF_CSV = {**_OF_TEXT, "a header twice": _header_twice, "more fields": _more_fields, "an open quote": _open_quote}
del _OF_CSV["cut"]  # a table that is cut at a line is a table
_OF_GZ = {**_COMMON, "cut": _cut_gz, "not compressed": _plain_under_gz}
FILE_FAULTS: dict[str, dict[str, FileFault]] = {
    **{
        "jsonl": _OF_JSON,
        "json": _OF_JSON,
        "data.json": _OF_JSON,
        "csv": _OF_CSV,
        "jsonl.gz": _OF_GZ,
        "csv.gz": _OF_GZ,
    },
    "parquet": {**_COMMON, "end": _end_of_parquet, "a far date": _far_date, "a column twice": _column_twice},
    "folder": {
        "no state": _in_folder("state.json", lambda rng, _: None),
        "a state that is a list": _in_folder("state.json", lambda rng, _: b"[]"),
        "an empty state": _in_folder("state.json", lambda rng, _: b"{}"),
        "a cut state": _in_folder("state.json", lambda rng, content: content[: rng.randint(0, len(content) - 2)]),
        "files that are numbers": _in_folder("state.json", lambda rng, _: b'{"_data_files": [1], "_split": null}'),
        "no rows": _in_folder("*.arrow", lambda rng, _: None),
        "cut rows": _in_folder("*.arrow", lambda rng, content: content[: rng.randint(0, len(content) // 2)]),
        "binary rows": _in_folder("*.arrow", lambda rng, _: rng.randbytes(300)),
        "features that are a number": _in_folder("dataset_info.json", lambda rng, _: b'{"features": 5}'),
        "info that is a list": _in_folder("dataset_info.json", lambda rng, _: b"[1, 2]"),
    },
}


def scatter(rng: random.Random, path: Path, table: Table) -> list[Row]:
    """Overwrite, cut out or double bytes anywhere.

    Returns:
        Rows that have to be among those that are read, if the file is read: in JSON lines those of untouched lines.
    """
    file = path if path.is_file() else rng.choice(sorted(path.iterdir()))
    content = bytearray(file.read_bytes())
    if not content:
        return []
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randint(1, 40))
    if table.form != "jsonl":
        patch = rng.choice(
            (rng.randbytes(rng.randint(0, 9)), b"\x00", b'"', b",", b"{", b"\xff\xfe", bytes(content[start:end]) * 2)
        )
        content[start:end] = patch
        file.write_bytes(content)
        return []
    lines = bytes(content).split(b"\n")
    place = rng.choice([i for i, line in enumerate(lines) if line.strip()])
    line = bytearray(lines[place])
    start = rng.randrange(len(line))
    line[start : start + rng.randint(0, 9)] = rng.choice(
        (b'"', b",", b"{", b"\\", b"\x00", b"}", b":", rng.randbytes(3))
    ).replace(b"\n", b"x")
    number = sum(bool(one.strip()) for one in lines[:place])
    lines[place] = bytes(line)
    file.write_bytes(b"\n".join(lines))
    return [row for i, row in enumerate(table.rows) if i != number]


def clear(folder: Path) -> Path:
    """An empty folder in the place of another one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
