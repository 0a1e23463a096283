"""The pairs that `compare` judges by: those with a label, and those without one that may narrow an interval."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jsonargparse import Namespace

from ser_lightning.data.columns import unread_columns
from ser_lightning.data.formats import prompt_hash
from ser_lightning.data.labels import TIE
from ser_lightning.data.scoring_rows import VERDICTS, FileRow, RowCounts, open_source, read_rows, survey
from ser_lightning.errors import UserError
from ser_lightning.evaluation.prediction_powered import MIN_PROMPTS
from ser_lightning.inference.sides import is_student
from ser_lightning.runs.files import is_run
from ser_lightning.runs.pool import in_trained_dialogues


@dataclass(frozen=True)
class Pairs:
    """The pairs of a comparison."""

    rows: list[FileRow]
    """Labelled, in the order of their file."""
    categories: list[str]
    """Of each; empty without --category."""
    num_rows: int
    """Of the file of the labelled pairs."""
    num_ties: int
    """Of its rows that are labelled a tie."""
    unlabelled: list[FileRow] = field(default_factory=list)
    """Of --unlabelled."""
    notes: list[str] = field(default_factory=list)
    """What of it is not used, and why."""


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
    rows = [row for row in found if row.pair.is_decided]
    if not rows or "single" in counts.kinds:
        hint = unread_columns(next(iter(source.rows()))[1], columns)
        raise UserError(
            f"--data: got no labelled pair in {args.data} ({counts.rows} rows); give chosen and rejected or labels"
            f"{hint}"
        )
    categories = []
    if args.category is not None:
        values = [row.get(args.category) for _, row in source.rows()]
        if all(value is None for value in values):
            raise UserError(f"--category: got {args.category!r}, which no row of {args.data} has")
        categories = [str(values[row.number]) for row in rows]
    pairs = Pairs(rows, categories, counts.rows, sum(row.pair.label == TIE for row in found))
    return with_unlabelled(pairs, found, args) if args.unlabelled else pairs


def with_unlabelled(pairs: Pairs, data: Sequence[FileRow], args: Namespace) -> Pairs:
    """The pairs with those of --unlabelled that may be used.

    Raises:
        UserError: --unlabelled has no pair, or files of a run are gone.
    """
    rows = [row for row in data if row.pair.label is None]
    if not is_one_file(args):
        source = open_source(args.unlabelled, "--unlabelled")
        columns = {name: column for name, column in (args.columns or {}).items() if name not in VERDICTS}
        kinds = survey(source, columns, args.labels).kinds
        rows = [] if "single" in kinds else [*read_rows(source, columns, RowCounts(), labels=args.labels)]
    if not rows:
        raise UserError(f"--unlabelled: got no pair to use in {args.unlabelled}; give pairs like those of --data")
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
    if pairs.num_ties:
        return f"--data has {pairs.num_ties:,} ties, which are left out, and nobody knows which unlabelled pairs are"
    if students := [name for name in models if is_student(name)]:
        return f"{students[0]} is a student, which was trained on labels of its teacher's pool from its first round on"
    prompts = len({prompt_hash(row.pair.prompt) for row in pairs.rows})
    return f"--data has labels of {prompts} prompts, and {MIN_PROMPTS} are needed" if prompts < MIN_PROMPTS else None


def leaks(rows: Sequence[FileRow], models: Sequence[str]) -> list[str]:
    """A line for each run that was trained on dialogues of these labelled pairs, or whose files are gone."""
    found = []
    for name in (name for name in models if is_run(Path(name))):
        try:
            is_known = in_trained_dialogues(Path(name), [row.pair.prompt for row in rows])
        except UserError as error:
            found.append(f"note: --data: whether {name} was trained on these pairs is not known: {error.problems[0]}")
            continue
        if number := sum(is_known):
            found.append(
                f"warning: --data: {name} may know the dialogues of {number:,} of {len(rows):,} labelled pairs, so "
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
