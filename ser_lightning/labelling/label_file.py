"""The labels of one annotator: a file that is only ever appended to, so that no kill loses or doubles a label.

    {"pair": "7123", "answer": "a", "left": "b", "seconds": 4.2, "time": "2026-11-27T12:00:00+00:00"}
    {"pair": "7123", "undo": true, "time": "2026-11-27T12:00:07+00:00"}

`pair` is the id of a canonical pair, `answer` says which of its responses is better, `left` which one stood on the
left. An undo takes back the last answer before it that still counts, which must be of its pair.
"""

import errno
import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from ser_lightning.errors import UserError, raise_problems
from ser_lightning.utils.atomic import flush_to_disk

Answer = Literal["a", "b", "tie", "skip"]
Side = Literal["a", "b"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
_SUFFIX = ".jsonl"
_NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class HumanLabel:
    """What an annotator said of a pair."""

    pair_id: int
    answer: Answer
    """The better response, a tie, or skip: no answer."""
    left: Side | None = None
    """The response that stood on the left; None where nobody knows (an import)."""
    seconds: float | None = None
    """From when the pair was shown to the answer; None where nobody knows."""
    time: str = ""
    """UTC, ISO 8601."""


def check_name(annotator: str) -> None:
    """`UserError` where an annotator's name would make no good file name."""
    if not _NAME.fullmatch(annotator):
        raise UserError(
            f"--annotator: got {annotator!r}; use letters, digits and . _ - @, at most 64, the first a letter or digit"
        )


def label_path(folder: Path, annotator: str) -> Path:
    """The file of an annotator in a folder of labels."""
    return folder / f"{annotator}{_SUFFIX}"


def labels_of_run(run: Path) -> Path:
    """The folder of labels of a run."""
    return run / "labels"


def misplaced(flag: str, file: Path, folder: Path) -> Iterator[str]:
    """Why a file must not be written there: in a folder of labels it would be an annotator's."""
    if label_path(folder, file.stem).resolve() == file.resolve():
        yield f"{flag}: got {file}, but every {_SUFFIX} in {folder} is an annotator's; give a file outside of it"


def read_labels(folder: Path) -> dict[str, list[HumanLabel]]:
    """The labels in a folder that count, by annotator, in the order in which they were given.

    Raises:
        UserError: a line is damaged.
    """
    files = sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []
    return {file.name.removesuffix(_SUFFIX): replay(file, _lines(file.read_bytes())[0]) for file in files}


def is_duration(seconds: Any) -> bool:
    """Whether a value of another file may stand as the seconds of a label."""
    return type(seconds) in (int, float) and math.isfinite(seconds) and seconds >= 0


def latest(labels: Iterable[HumanLabel]) -> dict[int, HumanLabel]:
    """The label of each pair: where there are several, the last one."""
    return {label.pair_id: label for label in labels}


class LabelFile:
    """The labels of one annotator, open for more; nobody else can open the file until this closes it.

    Raises:
        UserError: another process has it open, or a line is damaged. The beginning of a line that a power cut left at
            the end is cut off: its label was never acknowledged.
    """

    def __init__(self, folder: Path, annotator: str) -> None:
        check_name(annotator)
        self.path = label_path(folder, annotator)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115 (open until `close`)
        try:
            self._lock()
            self._file.seek(0)
            self.labels = replay(self.path, self._whole_lines(self._file.read()))
            flush_to_disk(folder)
        except BaseException:
            self._file.close()
            raise

    def add(self, label: HumanLabel) -> None:
        """Write a label; it is on the disk when this returns."""
        self._append(
            {
                "pair": str(label.pair_id),
                "answer": label.answer,
                "left": label.left,
                "seconds": label.seconds,
                "time": label.time or _now(),
            }
        )
        self.labels.append(label)

    def undo(self) -> HumanLabel | None:
        """Take back the last label that counts and return it; None where there is none."""
        if not self.labels:
            return None
        self._append({"pair": str(self.labels[-1].pair_id), "undo": True, "time": _now()})
        return self.labels.pop()

    def close(self) -> None:
        """Let others open the file; one without a line goes away."""
        if not os.fstat(self._file.fileno()).st_size:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> "LabelFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, row: dict[str, Any]) -> None:
        size = os.fstat(self._file.fileno()).st_size
        line = json.dumps(row).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):  # a full disk takes a part
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(size)  # nobody is told that it counts
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--annotator: {self.path} is open in another process; end that one, or give another name"
            ) from None
        except OSError:  # a file system without locks
            return

    def _whole_lines(self, content: bytes) -> list[bytes]:
        lines, rest = _lines(content)
        if rest:
            self._file.truncate(len(content) - len(rest))
        return lines


def _lines(content: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines, and the beginning of one that is being written, or never was."""
    *lines, rest = content.split(b"\n")
    return lines, rest


def replay(file: Path, lines: Iterable[bytes]) -> list[HumanLabel]:
    """The labels that count after all lines of a file; `UserError` with up to ten lines that are none."""
    labels: list[HumanLabel] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and len(problems) < 10:
            problems += _apply(line, labels, f"{file}, line {number}")
    raise_problems(problems)
    return labels


def _apply(line: bytes, labels: list[HumanLabel], where: str) -> Iterator[str]:
    """Add the label of a line, or take back the one that it undoes; the problem of a line that is neither."""
    try:
        row = json.loads(line)
        pair_id = int(row["pair"])
        if row.get("undo") is True:
            if not labels or labels[-1].pair_id != pair_id:
                yield f"{where}: got an undo of pair {pair_id}, which is not the last label before it; remove the line"
                return
            labels.pop()
            return
        seconds = row.get("seconds")
        is_time = seconds is None or is_duration(seconds)
        if row["answer"] not in ANSWERS or row.get("left") not in (None, "a", "b") or not is_time:
            raise ValueError
        labels.append(HumanLabel(pair_id, row["answer"], row.get("left"), seconds, str(row.get("time", ""))))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        shown = line[:60].decode(errors="replace")
        yield f"{where}: got {shown!r}, no label; mend the line or remove it"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
