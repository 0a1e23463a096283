"""Rewards of the pairs or single responses in a file, by any reward model, into a file of numbers.

Rows keep the order and the sides that they have in the file. Texts pass through in chunks: memory holds one of them.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
import torch
from jsonargparse import Namespace
from torch import Tensor
from tqdm.auto import tqdm

from ser_lightning.data.encode import EncodedPair
from ser_lightning.data.formats import prompt_hash
from ser_lightning.data.labels import TIE, check_labels
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.evaluation.calibration import prob_a_wins
from ser_lightning.evaluation.metrics import accuracy_interval, half_credit
from ser_lightning.inference.compared_pairs import leaks
from ser_lightning.inference.scorer import Scorer
from ser_lightning.inference.scoring_rows import (
    REASONS,
    FileRow,
    Kind,
    RowCounts,
    column_problems,
    open_source,
    read_rows,
    survey,
)
from ser_lightning.utils.atomic import output_problems, write_atomically
from ser_lightning.utils.terminal import new_table, say

CHUNK = 1024
"""Rows in memory at a time."""
_SUFFIXES = (".parquet", ".csv", ".jsonl")
_SIDES: dict[Kind, tuple[str, ...]] = {"chosen": ("_chosen", "_rejected"), "sides": ("_a", "_b"), "single": ("",)}
"""What the columns of each response are called after `reward` and `tokens`."""


@dataclass
class Tally:
    """What became of the rows of a file."""

    read: RowCounts = field(default_factory=RowCounts)
    scored: int = 0
    cut: int = 0
    """Scored rows whose prompt lost its oldest turns."""
    ties: int = 0
    """Scored pairs whose label is a tie."""
    credits: list[Tensor] = field(default_factory=list)
    """By chunk, of each labelled pair: 1 if the better response has the higher reward, 0.5 for equal ones."""
    prompts: list[Tensor] = field(default_factory=list)
    """By chunk, of each labelled pair: `prompt_hash`."""
    longer_right: float = 0.0
    """Labelled pairs in which the better response is the longer one, in tokens; ties count half."""

    def add(self, rewards: Tensor, tokens: Tensor, rows: list[FileRow], encoded: list[EncodedPair]) -> None:
        """Count scored rows.

        Args:
            rewards: (S, N) of each side.
            tokens: (S, N) of each side.
        """
        self.scored += len(rows)
        self.cut += sum(pair.is_cut for pair in encoded)
        self.ties += sum(row.pair.label == TIE for row in rows)
        places = [i for i, row in enumerate(rows) if row.pair.is_decided]
        if places:
            target = torch.tensor([float(rows[i].pair.label or 0) for i in places])
            self.credits.append(half_credit((rewards[0] - rewards[1])[places], target))
            self.prompts.append(torch.tensor([prompt_hash(rows[i].pair.prompt) for i in places]))
            self.longer_right += float(half_credit((tokens[0] - tokens[1])[places].float(), target).sum())


def main(args: Namespace) -> None:
    """Run the command with its flags."""
    tally, scorer = score_file(args)
    print_tally(tally, scorer, args.out)
    if tally.credits:
        rows = read_rows(open_source(args.data), args.columns or {}, RowCounts(), labels=args.labels)
        say(*leaks((row.pair.prompt for row in rows if row.pair.is_decided), [args.model]))


def score_file(args: Namespace) -> tuple[Tally, Scorer]:
    """Write the rewards of every row that can be scored; the file is whole or not there.

    Raises:
        UserError: a line for each thing that is wrong; the data are read through before the model is loaded.
    """
    out, columns = Path(args.out).expanduser(), args.columns or {}
    problems = [*_out_problems(out, [args.data, args.model], args.overwrite), *column_problems(columns)]
    raise_problems([*problems, *check_labels(args.labels or {})])
    source = open_source(args.data)
    found = survey(source, columns, args.labels)
    if not found.usable:
        raise UserError(_nothing(args.data, found))
    kind: Kind = next(iter(found.kinds)) if len(found.kinds) == 1 else "sides"
    tally, schema = Tally(), _schema(kind, found.has_ids)
    scorer = load_scorer(args)

    def write(file: BinaryIO) -> None:
        rows, total = read_rows(source, columns, tally.read, labels=args.labels), found.usable * len(_SIDES[kind])
        with (
            _table_writer(file, out.suffix, schema) as write_table,
            tqdm(total=total, desc="Scoring", unit=" responses", disable=None) as bar,
        ):
            while chunk := list(itertools.islice(rows, CHUNK)):
                write_table(_score_chunk(scorer, chunk, schema, kind, tally, bar.update))
        if not tally.scored:
            raise UserError(_nothing(args.data, tally.read))

    try:
        write_atomically(out, write, overwrite=args.overwrite)
    except FileExistsError as error:
        raise UserError(f"--out: got {out}, which appeared in the meantime; give another file") from error
    return tally, scorer


def load_scorer(args: Namespace) -> Scorer:
    """The model that the flags of a command name."""
    names = ("device", "dtype", "max_length", "tokens_per_batch", "trust_remote_code")
    return Scorer.load(args.model, **{name: args[name] for name in names})


def print_tally(tally: Tally, scorer: Scorer, out: str) -> None:
    """What was scored, what was dropped, and how often the rewards agree with the labels."""
    table = new_table("", "", "")
    table.columns[2].justify = "left"
    table.add_row("scored", f"{tally.scored:,}", f"of {tally.read.rows:,} rows")
    table.add_row("prompt cut", f"{tally.cut:,}", f"to fit into {scorer.reward.max_length:,} tokens")
    for why, count in sorted(tally.read.dropped.items()):
        table.add_row("dropped", f"{count:,}", REASONS[why])
    if tally.ties:
        table.add_row("ties", f"{tally.ties:,}", "labelled a tie: scored, not in the accuracy")
    if tally.credits:
        credit, prompt = torch.cat(tally.credits).double(), torch.cat(tally.prompts)
        low, high = accuracy_interval(credit, prompt)
        if (num_prompts := len(prompt.unique())) < len(prompt):
            table.add_row("prompts", f"{num_prompts:,}", "of the labelled pairs")
        counted = f"on {len(credit):,} labelled pairs"
        table.add_row("accuracy", f"{credit.mean():.3f}", f"95 % {low:.3f} to {high:.3f}, {counted}")
        table.add_row("take the longer", f"{tally.longer_right / len(credit):.3f}", "the baseline")
    bare = "The model has no fitted scale: probability is sigmoid of the bare rewards."
    say(table, *([] if scorer.is_calibrated else [bare]), f"Rewards: {out}")


def _score_chunk(
    scorer: Scorer, chunk: list[FileRow], schema: pa.Schema, kind: Kind, tally: Tally, show: Callable[[int], object]
) -> pa.Table:
    """The output rows of a chunk; those that do not fit are counted and left out."""
    sides = len(_SIDES[kind])
    fits = [(row, pair) for row, pair in zip(chunk, scorer.encode([r.pair for r in chunk]), strict=True) if pair]
    rows, encoded = [row for row, _ in fits], [pair for _, pair in fits]
    if len(rows) < len(chunk):
        tally.read.dropped["too_long"] += len(chunk) - len(rows)
        show((len(chunk) - len(rows)) * sides)
    rewards = scorer.score_encoded(encoded, sides, show)
    _check_finite(rewards, rows)
    tokens = torch.tensor([[len(p.ids_a) for p in encoded], [len(p.ids_b) for p in encoded]])[:sides]
    tally.add(rewards, tokens, rows, encoded)
    margin = rewards[0] - (rewards[1] if sides == 2 else scorer.zero)
    columns = [
        [row.number for row in rows],
        *([[row.pair.source_id for row in rows]] if "source_id" in schema.names else []),
        *(reward.numpy() for reward in rewards),
        prob_a_wins(margin, scorer.temperature).numpy(),
        *(count.numpy() for count in tokens),
        [pair.is_cut for pair in encoded],
        *(_labels_and_right(margin, rows) if sides == 2 else []),
        [row.content for row in rows],
    ]
    return pa.table([pa.array(column, name.type) for column, name in zip(columns, schema, strict=True)], schema=schema)


def _labels_and_right(margin: Tensor, rows: list[FileRow]) -> tuple[list[float | None], list[bool | None]]:
    """The label of each pair, 1 where the first response is the better one, and whether the rewards agree.

    Without a label both are None; a tie, of rewards or of people, is neither right nor wrong.
    """
    labels = [row.pair.label for row in rows]
    right = [
        None if label in (None, TIE) or one == 0 else (one > 0) == (label == 1)
        for one, label in zip(margin.tolist(), labels, strict=True)
    ]
    return labels, right


def _check_finite(rewards: Tensor, rows: list[FileRow]) -> None:
    """`UserError` that names a row whose reward is no number."""
    bad = (~torch.isfinite(rewards).all(0)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"rewards: got NaN or infinity for {len(bad)} of {len(rows)} rows, such as {rows[bad[0]].where}; "
            "try --dtype float32, or look whether the model's weights are finite"
        )


def _schema(kind: Kind, has_ids: bool) -> pa.Schema:
    """The columns of the output."""
    sides = _SIDES[kind]
    return pa.schema(
        [
            ("row", pa.int64()),
            *([("source_id", pa.string())] if has_ids else []),
            *((f"reward{side}", pa.float32()) for side in sides),
            ("probability", pa.float32()),
            *((f"tokens{side}", pa.int64()) for side in sides),
            ("is_cut", pa.bool_()),
            *([("label", pa.float32()), ("right", pa.bool_())] if kind != "single" else []),
            ("content", pa.string()),
        ]
    )


def _out_problems(out: Path, inputs: list[str], overwrite: bool) -> Iterator[str]:
    if out.suffix not in _SUFFIXES:
        yield f"--out: got {out}; use a name that ends in {', '.join(_SUFFIXES)}"
    yield from output_problems("--out", out, inputs, overwrite)


def _nothing(path: str, counts: RowCounts) -> str:
    return (
        f"{path}: got {counts.rows} rows and none to score ({counts.why_dropped}); mend the file, or raise --max_length"
    )


def _without_formulas(table: pa.Table) -> pa.Table:
    """Texts that a spreadsheet would compute get a quote in front, which it does not show."""
    for i, name in enumerate(table.schema.names):
        if pa.types.is_string(table.schema.types[i]):
            texts = pyarrow.compute.replace_substring_regex(table[name], r"^([=+\-@\t\r])", r"'\1")
            table = table.set_column(i, table.schema.field(i), texts)
    return table


@contextmanager
def _table_writer(file: BinaryIO, suffix: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], object]]:
    """What appends tables to an open file."""
    if suffix == ".parquet":
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
            yield writer.write_table
    elif suffix == ".csv":
        with pyarrow.csv.CSVWriter(file, schema) as writer:
            yield lambda table: writer.write(_without_formulas(table))
    else:
        lines = lambda table: (json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())  # noqa: E731
        yield lambda table: file.writelines(line.encode() for line in lines(table))
