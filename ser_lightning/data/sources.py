"""Files, Hub data sets and the synthetic world -> raw rows, each with the place it came from."""

import csv
import difflib
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow
import pyarrow.parquet

from ser_lightning.data.turns import RepeatedName, read_json, repeated_names
from ser_lightning.errors import UserError, describe
from ser_lightning.utils.hub import without_hub
from ser_lightning.utils.patterns import matching

Row = dict[str, Any]
MAX_ROW = 10_000_000
"""Most characters of a row: encoding takes some 100 bytes of memory for each, and no model reads a hundredth of it."""
_PARQUET_BUFFER = 1 << 20
"""Bytes of a column that are read at a time."""
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?(:(?P<config>[\w.-]+))?(@(?P<split>[\w.\[\]:%-]+))?$")


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again.

    Attributes:
        name: for messages.
        fingerprint: changes when the content does.
        rows: starts an iteration over (place for messages, row).
    """

    name: str
    fingerprint: str
    rows: Callable[[], Iterator[tuple[str, Row]]]


def open_sources(paths: str | Sequence[str], num_synthetic: int, seed: int) -> list[Source]:
    """A source for each path, and for each file that a pattern such as `data/*.jsonl` matches.

    Args:
        paths: local files, patterns of such, folders of `Dataset.save_to_disk`, Hub names (`owner/name:config@split`),
            or `synthetic`.

    Raises:
        UserError: a line for every path that cannot be opened.
    """
    sources: list[Source] = []
    problems = []
    for path in [paths] if isinstance(paths, str) else paths:
        try:
            sources += [_synthetic(num_synthetic, seed)] if path == "synthetic" else map(_open, _matching_files(path))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return sources


def _matching_files(path: str) -> list[str]:
    """What `matching` finds; `UserError` where that is nothing."""
    if not (found := matching(path)):
        raise UserError(f"{path}: got a pattern that no file matches; {_nearest(Path(path).expanduser())}")
    return found


def _open(path: str) -> Source:
    file = Path(path).expanduser()
    if file.is_dir():
        return _saved_dataset(file)
    suffix = file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix
    if file.is_file():
        if suffix not in _SUFFIXES or (suffix == ".parquet" and file.suffix == ".gz"):
            raise UserError(
                f"{path}: got the ending {file.suffix!r}; use {', '.join(_SUFFIXES)}, or a .gz of a text file"
            )
        readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
        return Source(path, _file_hash(file), lambda: _checked(readers[suffix](file), path))
    if suffix in _SUFFIXES or not (match := _HUB_NAME.match(path)):
        raise UserError(f"{path}: got no such file; {_nearest(file)}")
    return _hub(path, match)


def _nearest(file: Path) -> str:
    if not file.parent.is_dir():
        return f"there is no folder {file.parent} either"
    names = [p.name for p in file.parent.iterdir() if p.name.removesuffix(".gz").endswith(_SUFFIXES)]
    nearest = difflib.get_close_matches(file.name, names, n=3, cutoff=0.0)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"{file.parent} holds no data file"


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return f"{file.suffix}:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


_DAMAGED = (pyarrow.ArrowException, OSError, EOFError, zlib.error, RecursionError, OverflowError, ValueError)
"""What readers raise for bytes that they cannot make rows of."""


def _checked(rows: Iterator[tuple[str, Any]], path: str) -> Iterator[tuple[str, Row]]:
    """Rows that are rows, at least one of them, and text that is UTF-8.

    Raises:
        UserError: the file holds something else; it is named, and the last row that was read.
    """
    where = path
    empty = True
    try:
        for where, row in rows:
            empty = False
            if not isinstance(row, dict):
                raise UserError(f"{where}: got a {type(row).__name__}; needs an object with named columns")
            if (size := _size(row)) > MAX_ROW:
                raise _too_long(where, f"a row of {size:,}")
            yield where, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: got bytes that are not UTF-8 after {where}; convert the file to UTF-8") from error
    except UserError:
        raise
    except _DAMAGED as error:
        place = "" if where == path else f" after {where}"
        raise UserError(f"{path}: cannot be read{place} ({describe(error)}); is it damaged? Write it again") from error
    if empty:
        raise UserError(f"{path}: got no row; give a file with at least one pair")


def _size(value: Any) -> int:
    """Characters of a row, however deep they lie."""
    if isinstance(value, str):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_size, parts))


def _too_long(where: str, got: str) -> UserError:
    return UserError(f"{where}: got {got} characters, at most {MAX_ROW:,} are read; shorten or remove the row")


def _open_text(file: Path) -> IO[str]:
    stream: Any = gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # noqa: SIM115 (the caller closes)
    # Only \n ends a line: JSON may hold \u2028 and csv wants its own line ends.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n" if ".jsonl" in file.suffixes else "")


def _read_jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    with _open_text(file) as stream:
        lines = iter(lambda: stream.readline(MAX_ROW + 1), "")  # a file without line ends would fill the memory
        for number, line in enumerate(lines, start=1):
            if len(line) > MAX_ROW:
                raise _too_long(f"{file}, line {number}", f"more than {MAX_ROW:,}")
            if line.strip():
                yield f"{file}, line {number}", _parse_json(line, f"{file}, line {number}")


def _parse_json(text: str, where: str) -> Any:
    try:
        return read_json(text)
    except (ValueError, RecursionError) as error:
        reason = error if isinstance(error, json.JSONDecodeError) else describe(error)
        raise UserError(f"{where}: got broken JSON ({reason}); mend it or remove it") from error
    except RepeatedName as error:
        raise UserError(f"{where}: got the key {str(error)!r} twice in one object; keep one of them") from error


def _read_json(file: Path) -> Iterator[tuple[str, Any]]:
    """A list of rows, an object with one list of rows (`{"data": [...]}`), or JSON lines under the wrong name."""
    with _open_text(file) as stream:
        first = stream.readline()
        try:
            is_lines = isinstance(json.loads(first), dict) and bool(stream.readline().strip())
        except (ValueError, RecursionError):
            is_lines = False
    if is_lines:
        yield from _read_jsonl(file)
        return
    with _open_text(file) as stream:
        text = stream.read()
    content = _parse_json(text, str(file)) if text.strip() else []
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else [content]
    for number, row in enumerate(content, start=1):
        yield f"{file}, row {number}", row


def _read_csv(file: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(MAX_ROW)  # the default of 128 KiB is shorter than some dialogues
    with _open_text(file) as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            if repeated := repeated_names(reader.fieldnames or []):
                raise UserError(f"{file}, line 1: got the column {repeated[0]!r} twice; keep one of them")
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{where}: got another number of fields than the header; quote fields with commas")
                yield where, row
        except csv.Error as error:
            raise UserError(
                f"{file}, after line {reader.line_num}: got broken CSV ({error}); mend the quotes, or shorten the row"
            ) from error


def _read_parquet(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        # Without both arguments whole row groups, and one after another the whole file, would come into memory.
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file}: got no Parquet file ({error}); write it again") from error
    if repeated := repeated_names(table.schema_arrow.names):
        raise UserError(f"{file}: got the column {repeated[0]!r} twice; keep one of them")
    number = 0
    for batch in table.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield f"{file}, row {number}", row
    if number != table.metadata.num_rows:
        raise UserError(
            f"{file}: got {number} rows of the {table.metadata.num_rows} that its footer names; write it again"
        )


def _dataset_source(name: str, dataset: datasets.Dataset, fingerprint: str) -> Source:
    rows = lambda: ((f"{name}, row {number}", row) for number, row in enumerate(dataset, start=1))  # noqa: E731
    return Source(name, f"datasets:{fingerprint}", lambda: _checked(rows(), name))


def _saved_dataset(folder: Path) -> Source:
    """A folder of `Dataset.save_to_disk`, known by its bytes: what `datasets` wrote down of them may be out of date."""
    if (folder / "dataset_dict.json").is_file():
        raise UserError(f"{folder}: got a folder of several splits; name the folder of one, such as {folder / 'train'}")
    if not (folder / "state.json").is_file():
        raise UserError(f"{folder}: got a folder; name its files, or a folder written by Dataset.save_to_disk")
    try:
        dataset = datasets.Dataset.load_from_disk(str(folder))
    except Exception as error:  # a damaged state.json raises whatever its values lead to
        raise UserError(
            f"{folder}: got no data set of Dataset.save_to_disk ({describe(error)}); is it damaged? Save it again"
        ) from error
    content = "".join(f"{file.name} {_file_hash(file)}" for file in sorted(folder.iterdir()) if file.is_file())
    dataset = dataset.with_format(None)  # one saved for torch would give tensors, or some of its columns alone
    return _dataset_source(str(folder), dataset, hashlib.sha256(content.encode()).hexdigest())


def _hub(path: str, match: re.Match[str]) -> Source:
    name = path.partition("@")[0].partition(":")[0]
    split = match["split"] or "train"
    is_away = without_hub(name)
    try:
        dataset = datasets.load_dataset(name, match["config"], split=split)
    except Exception as error:  # the Hub client raises more than a dozen kinds
        why = "the Hub cannot be reached, and it was not downloaded before" if is_away else describe(error)
        raise UserError(
            f"{path}: got neither a local file nor a Hub data set ({why}); give a file, or owner/name:config@split"
        ) from error
    return _dataset_source(path, dataset, dataset._fingerprint)  # follows the content, and has no public name


def _synthetic(num_pairs: int, seed: int) -> Source:
    from ser_lightning.synthetic.world import generate_pairs

    def rows() -> Iterator[tuple[str, Row]]:
        for number, pair in enumerate(generate_pairs(num_pairs, seed), start=1):
            yield f"synthetic, row {number}", asdict(pair)

    content = hashlib.sha256()
    for _, row in rows():  # by content: a changed generator must not find the old cache
        content.update(json.dumps(row).encode())
    return Source("synthetic", content.hexdigest(), lambda: _checked(rows(), "synthetic"))
