"""The pairs that `compare` judges by: those with a label, and those without one that may narrow an interval."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor

from ser_lightning.data.columns import unread_columns
from ser_lightning.data.formats import prompt_hash
from ser_lightning.data.labels import TIE, shown_names
from ser_lightning.errors import UserError
from ser_lightning.evaluation.prediction_powered import MIN_PROMPTS
from ser_lightning.inference.scoring_rows import REASONS, VERDICTS, FileRow, RowCounts, open_source, read_rows, survey
from ser_lightning.inference.sides import is_student
from ser_lightning.records import Turn
from ser_lightning.runs.files import is_run
from ser_lightning.runs.pool import in_trained_dialogues

NOTHING_SCORED = "compare: got no pair that both have a reward for; give files of the same --data, or mend NaNs"


@dataclass(frozen=True)
class Read:
    """What became of the rows of a file."""

    rows: int
    dropped: dict[str, int]
    """Rows that are no pair, by reason."""
    unlabelled: int | None = None
    """Pairs without a label; None where labels are not read."""
    ties: int | None = None
    """Pairs that are labelled a tie."""

    def lines(self, flag: str, uses_unlabelled: bool) -> list[str]:
        """A line for each reason why rows are not among the pairs."""
        found = [f"{flag}: dropped {n:,} of {self.rows:,} rows: {REASONS[why]}" for why, n in self.dropped.items()]
        others = {"no label": None if uses_unlabelled else self.unlabelled, "labelled a tie": self.ties}
        return found + [f"{flag}: left out {n:,} of {self.rows:,} rows: {why}" for why, n in others.items() if n]


@dataclass(frozen=True)
class Pairs:
    """The pairs of a comparison."""

    rows: list[FileRow]
    """Labelled, in the order of their file."""
    categories: list[str]
    """Of each; empty without --category."""
    read: Read
    """What became of the rows of their file."""
    unlabelled: list[FileRow] = field(default_factory=list)
    """Of --unlabelled."""
    unlabelled_read: Read | None = None
    """What became of the rows of --unlabelled, where it is a file of its own."""
    notes: list[str] = field(default_factory=list)
    """What of --unlabelled is not used, and why."""

    @property
    def rows_read(self) -> dict[str, dict[str, Any]]:
        """What became of the rows of each file, for `--json`."""
        both = {"data": self.read, "unlabelled": self.unlabelled_read}
        found = {name: asdict(one) for name, one in both.items() if one}
        return {name: {key: value for key, value in one.items() if value is not None} for name, one in found.items()}


def is_one_file(args: Namespace) -> bool:
    """Whether --unlabelled is --data, whose pairs without a label are meant then."""
    return args.unlabelled is not None and Path(args.unlabelled).resolve() == Path(args.data).resolve()


def read_pairs(args: Namespace) -> Pairs:
    """The pairs that the flags name.

    Raises:
        UserError: there is none, or no such column, or the files of a run that say what it knows are gone.
    """
    source, columns = open_source(args.data), args.columns or {}
    counts = survey(source, columns, args.labels)
    found = list(read_rows(source, columns, RowCounts(), labels=args.labels))
    given = [row.pair.label for row in found]
    rows = [row for row in found if row.pair.is_decided]
    if not rows or "single" in counts.kinds:
        hint = unread_columns(next(iter(source.rows()))[1], columns)
        why = f"; {counts.why_dropped}" if counts.dropped else ""
        raise UserError(
            f"--data: got no labelled pair in {args.data} ({counts.rows} rows{why}); give chosen and rejected or labels"
            f"{hint}"
        )
    categories = []
    if args.category is not None:
        values = [row.get(args.category) for _, row in source.rows()]
        if all(value is None for value in values):
            raise UserError(
                f"--category: got {args.category!r}, which no row of {args.data} has; give one of "
                f"{shown_names(counts.columns)}"
            )
        categories = [str(values[row.number]) for row in rows]
    pairs = Pairs(rows, categories, Read(counts.rows, _dropped(counts), given.count(None), given.count(TIE)))
    return with_unlabelled(pairs, found, args) if args.unlabelled else pairs


def with_unlabelled(pairs: Pairs, data: Sequence[FileRow], args: Namespace) -> Pairs:
    """The pairs with those of --unlabelled that may be used.

    Raises:
        UserError: --unlabelled has no pair, or files of a run are gone.
    """
    rows, counts = [row for row in data if row.pair.label is None], RowCounts()
    if not is_one_file(args):
        source = open_source(args.unlabelled, "--unlabelled")
        columns = {name: column for name, column in (args.columns or {}).items() if name not in VERDICTS}
        counts = survey(source, columns, args.labels)
        rows = [] if "single" in counts.kinds else [*read_rows(source, columns, RowCounts(), labels=args.labels)]
        pairs = replace(pairs, unlabelled_read=Read(counts.rows, _dropped(counts)))
    if not rows:
        lost = f" ({counts.why_dropped})" if counts.dropped else ""
        raise UserError(f"--unlabelled: got no pair to use in {args.unlabelled}{lost}; give pairs like those of --data")
    if why := _why_unusable(pairs, args.models):
        return replace(pairs, notes=[f"Unlabelled pairs are not used: {why}."])
    notes = []
    for name in (name for name in args.models if is_run(Path(name))):
        fresh = _fresh(rows, Path(name))
        if left_out := len(rows) - len(fresh):
            notes.append(f"{left_out:,} unlabelled pairs are of dialogues that {name} was trained on, and left out.")
        rows = fresh
    return replace(pairs, unlabelled=rows, notes=notes)


def _why_unusable(pairs: Pairs, models: Sequence[str]) -> str | None:
    """Why pairs without labels would mislead, or say nothing; None where they may be used."""
    if pairs.read.ties:
        return f"--data has {pairs.read.ties:,} ties, which are left out, and nobody knows which unlabelled pairs are"
    if students := [name for name in models if is_student(name)]:
        return f"{students[0]} is a student, which was trained on labels of its teacher's pool from its first round on"
    prompts = len({prompt_hash(row.pair.prompt) for row in pairs.rows})
    return f"--data has labels of {prompts} prompts, and {MIN_PROMPTS} are needed" if prompts < MIN_PROMPTS else None


def left_out(pairs: Pairs, args: Namespace) -> list[str]:
    """A line for each reason why rows of a file are not among its pairs."""
    found = pairs.read.lines("--data", is_one_file(args))
    return found + (pairs.unlabelled_read.lines("--unlabelled", True) if pairs.unlabelled_read else [])


def _dropped(counts: RowCounts) -> dict[str, int]:
    return dict(sorted(counts.dropped.items()))


def leaks(prompts: Iterable[list[Turn]], models: Sequence[str]) -> list[str]:
    """A line for each run that was trained on dialogues of labelled pairs, or whose files are gone.

    Args:
        prompts: of the labelled pairs; read once for each run.
    """
    found = []
    for name in (name for name in models if is_run(Path(name))):
        try:
            is_known = in_trained_dialogues(Path(name), prompts)
        except UserError as error:
            found.append(f"note: --data: whether {name} was trained on these pairs is not known: {error.problems[0]}")
            continue
        if number := sum(is_known):
            found.append(
                f"warning: --data: {name} may know the dialogues of {number:,} of {len(is_known):,} labelled pairs, so "
                "its accuracy here says little; give pairs that it has not seen"
            )
    return found


def _fresh(rows: Sequence[FileRow], run: Path) -> list[FileRow]:
    """The rows of dialogues that the seed model of a run does not know."""
    try:
        is_known = in_trained_dialogues(run, [row.pair.prompt for row in rows])
    except UserError as error:
        raise UserError(
            f"--unlabelled: got {run}, whose files do not tell which pairs it knows ({'; '.join(error.problems)}); "
            "give its export, and pairs that it was not trained on"
        ) from error
    return [row for row, known in zip(rows, is_known, strict=True) if not known]


def targets(rows: Sequence[FileRow]) -> Tensor:
    """(N,) float32, 1 where a is the better response."""
    return torch.tensor([float(row.pair.label or 0) for row in rows])


def prompts_of(rows: Sequence[FileRow]) -> np.ndarray:
    """(N,) a number for each prompt, the same where the prompt is."""
    return np.asarray([prompt_hash(row.pair.prompt) for row in rows])
