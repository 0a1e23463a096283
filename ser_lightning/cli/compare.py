"""A/B: two reward models on the same labelled pairs, and a gate that a build can fail at.

A and B are run folders, exports, or files that `score` wrote for the same data.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from jsonargparse import Namespace
from torch import Tensor
from tqdm.auto import tqdm

from ser_lightning.data.columns import unread_columns
from ser_lightning.data.formats import prompt_hash
from ser_lightning.data.labels import Labels, check_labels
from ser_lightning.data.scoring_rows import FileRow, RowCounts, column_problems, open_source, read_rows, survey
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evaluation.paired_tests import first_decision, paired, same_order
from ser_lightning.evaluation.sets import Scored, set_figures
from ser_lightning.evaluation.thresholds import failures, make_gate, read_gate
from ser_lightning.inference.scorer import Scorer
from ser_lightning.records import PairScores
from ser_lightning.utils.atomic import output_problems, write_text_atomically
from ser_lightning.utils.terminal import new_table, say

ALPHA = 0.05
CHUNK = 256
_OF_BOTH = ("difference", "low", "high", "agreement", "only_a", "only_b", "p_value")
_OF_EACH = ("accuracy", "accuracy_low", "accuracy_high", "calibration_error", "tie_share", "length_correlation")
FIGURES = (*_OF_BOTH, *(f"{name}_{side}" for side in "ab" for name in _OF_EACH), "longer_accuracy", "pairs")
"""What a gate may name."""
_NOTHING_SCORED = "compare: got no pair that both have a reward for; give files of the same --data, or mend NaNs"


class Side(Protocol):
    """Something that gives rows rewards."""

    @property
    def temperature(self) -> float:
        """Divides differences of rewards before the sigmoid."""

    def score(self, rows: Sequence[FileRow]) -> Tensor:
        """(4, N) reward and tokens of the first response, reward and tokens of the second; NaN where it cannot."""


@dataclass
class ModelSide:
    """A model that scores as it is asked."""

    scorer: Scorer

    @property
    def temperature(self) -> float:
        """The model's."""
        return self.scorer.temperature

    def score(self, rows: Sequence[FileRow]) -> Tensor:
        """Rows that do not fit have no reward."""
        found = torch.full((4, len(rows)), torch.nan)
        encoded = self.scorer.encode([row.pair for row in rows])
        places = [i for i, pair in enumerate(encoded) if pair]
        pairs = [pair for pair in encoded if pair]
        if places:
            rewards = self.scorer.score_encoded(pairs, 2, lambda number: None)
            lengths = torch.tensor([[len(p.ids_a) for p in pairs], [len(p.ids_b) for p in pairs]]).float()
            found[:, places] = torch.stack([rewards[0], lengths[0], rewards[1], lengths[1]])
        return found


class FileSide:
    """Rewards that `score` wrote down.

    Args:
        file: .parquet, .csv or .jsonl.
        rows: labelled pairs of the data.
        num_rows: that the data has, labelled or not.

    Raises:
        UserError: it holds no rewards of pairs, or rewards of other pairs.
    """

    temperature = 1.0

    def __init__(self, file: Path, rows: Sequence[FileRow], num_rows: int) -> None:
        table = _read_table(file)
        names = next((pair for pair in (("_chosen", "_rejected"), ("_a", "_b")) if f"reward{pair[0]}" in table), None)
        if names is None or "row" not in table:
            raise UserError(f"{file}: got no rewards of pairs in it; give a file that `score` wrote")
        wanted = [f"{kind}{side}" for side in names for kind in ("reward", "tokens")]
        if missing := [name for name in (*wanted, "probability", "content") if name not in table]:
            raise UserError(f"{file}: got no column {missing[0]}; run `score` again")
        self._place = {row: i for i, row in enumerate(table["row"])}
        strangers = [row for row in self._place if not isinstance(row, int) or not 0 <= row < num_rows]
        known = [row for row in rows if row.number in self._place]
        strangers += [row.number for row in known if row.content != table["content"][self._place[row.number]]]
        if strangers or not self._place:
            example = f", such as row {strangers[0]}" if strangers else ""
            raise UserError(f"{file}: got rewards of other texts than those of --data{example}; give the same data")
        try:
            self._values = torch.tensor([table[name] for name in wanted], dtype=torch.float32)
            odds = torch.tensor(table["probability"], dtype=torch.float64).clamp(1e-6, 1 - 1e-6).logit()
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}: got rewards that are no numbers ({error}); run `score` again") from error
        margin = self._values[0] - self._values[2]
        usable = (margin != 0) & (odds.abs() > 1e-3)
        self.temperature = float((margin[usable].double() / odds[usable]).median()) if usable.any() else 1.0

    def score(self, rows: Sequence[FileRow]) -> Tensor:
        """Look the rows up by their number."""
        found = torch.full((4, len(rows)), torch.nan)
        for i, row in enumerate(rows):
            if (place := self._place.get(row.number)) is not None:
                found[:, i] = self._values[:, place]
        return found


def _read_table(file: Path) -> dict[str, list[Any]]:
    """The columns of a file that `score` wrote."""
    try:
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            return {name: [row[name] for row in rows] for name in (rows or [{}])[0]}
        read = pyarrow.parquet.read_table if file.suffix == ".parquet" else pyarrow.csv.read_csv
        return dict(read(file).to_pydict())
    except (pa.ArrowException, ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file}: got no table of rewards ({reason}); give a file that `score` wrote") from error


def main(args: Namespace) -> int:
    """Run the command with its flags; 1 where a gate is not kept."""
    raise_problems(_problems(args))
    rows, categories, num_rows = labelled_rows(args.data, args.columns or {}, args.category, args.labels)
    sides = [open_side(name, rows, num_rows, args.trust_remote_code) for name in args.models]
    if args.make_gate:
        return _write_gate(args, rows, sides)
    if args.sequential:
        return _decide(rows, sides)
    scored = [score_all(side, rows, name) for side, name in zip(sides, args.models, strict=True)]
    figures, detail = compare(rows, scored, [side.temperature for side in sides], categories)
    _print(args.models, figures, detail, _examples(rows, scored, args.examples))
    if args.json:
        write_text_atomically(Path(args.json), json.dumps({**figures, **detail}, indent=1) + "\n")
    failed = failures(read_gate(Path(args.gate), FIGURES), figures) if args.gate else []
    say(*failed)
    return 1 if failed else 0


def _problems(args: Namespace) -> list[str]:
    found = [*column_problems(args.columns or {}), *check_labels(args.labels or {})]
    if not args.make_gate and len(args.models) != 2:
        found.append(f"compare: got {len(args.models)} models; give two, or baseline runs with --make_gate")
    if args.make_gate and (args.gate or args.sequential):
        found.append("--make_gate: got it with --gate or --sequential, which need two models; give one of them")
    if args.sequential and (args.gate or args.json):
        found.append("--sequential: got it with --gate or --json, which need all pairs scored; leave one out")
    inputs = [*args.models, args.data, *([args.gate] if args.gate else [])]
    for flag in ("json", "make_gate"):
        if args[flag]:
            found += output_problems(f"--{flag}", args[flag], inputs, args.overwrite)
    if args.gate:
        read_gate(Path(args.gate), FIGURES)  # before anything is scored
    return found


def labelled_rows(
    path: str, columns: dict[str, str], category: str | None, labels: Labels | None = None
) -> tuple[list[FileRow], list[str], int]:
    """The labelled pairs of a file in its order, their categories, and how many rows it has in all.

    Raises:
        UserError: there is none, or no such column.
    """
    source = open_source(path)
    counts = survey(source, columns, labels)
    rows = [row for row in read_rows(source, columns, RowCounts(), labels=labels) if row.pair.is_decided]
    if not rows or "single" in counts.kinds:
        hint = unread_columns(next(iter(source.rows()))[1], columns)
        raise UserError(
            f"--data: got no labelled pair in {path} ({counts.rows} rows); give chosen and rejected or labels{hint}"
        )
    if category is None:
        return rows, [], counts.rows
    values = [row.get(category) for _, row in source.rows()]
    if all(value is None for value in values):
        raise UserError(f"--category: got {category!r}, which no row of {path} has")
    return rows, [str(values[row.number]) for row in rows], counts.rows


def open_side(name: str, rows: Sequence[FileRow], num_rows: int, trust_remote_code: bool = False) -> Side:
    """A model, or a file of its rewards of these rows, of `num_rows` in their file."""
    if Path(name).is_file():
        return FileSide(Path(name), rows, num_rows)
    return ModelSide(Scorer.load(name, trust_remote_code=trust_remote_code))


def score_all(side: Side, rows: Sequence[FileRow], name: str) -> Tensor:
    """(4, N) what `Side.score` gives for all rows, with a progress bar."""
    if isinstance(side, FileSide):
        return side.score(rows)
    with tqdm(total=len(rows), desc=f"Scoring with {Path(name).name}", unit=" pairs", disable=None) as bar:
        parts = []
        for start in range(0, len(rows), CHUNK):
            parts.append(side.score(rows[start : start + CHUNK]))
            bar.update(parts[-1].shape[1])
    return torch.cat(parts, 1)


def compare(
    rows: Sequence[FileRow], scored: Sequence[Tensor], temperatures: Sequence[float], categories: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """All figures by name, as a gate may ask for them, and groups and bins of each side.

    Args:
        rows: N labelled pairs.
        scored: (4, N) of A and of B.
        temperatures: of A and of B.
        categories: N, or empty.

    Raises:
        UserError: no pair has rewards of both.
    """
    both = torch.isfinite(scored[0]).all(0) & torch.isfinite(scored[1]).all(0)
    if not both.any():
        raise UserError(_NOTHING_SCORED)
    places = both.nonzero().flatten().tolist()
    target = torch.tensor([float(rows[i].pair.label or 0) for i in places])
    prompt = np.asarray([prompt_hash(rows[i].pair.prompt) for i in places])
    kind = [categories[i] for i in places] if categories else []
    sides = []
    for values, temperature in zip(scored, temperatures, strict=True):
        reward_a, tokens_a, reward_b, tokens_b = values[:, both]
        scores = PairScores(torch.arange(len(places)), reward_a, reward_b, tokens_a.long(), tokens_b.long())
        sides.append((scores, set_figures(Scored("", scores, target, prompt, kind), temperature)))
    credits = [half_credit(scores.margin, target) for scores, _ in sides]
    order = same_order(sides[0][0].margin, sides[1][0].margin)
    result = paired(credits[0], credits[1], order, prompt)
    figures: dict[str, float] = {name: value for name, value in asdict(result).items() if name in _OF_BOTH}
    for side, (_, found) in zip("ab", sides, strict=True):
        figures |= {f"{name}_{side}": found[name] for name in _OF_EACH}
    figures |= {"longer_accuracy": sides[0][1]["longer_accuracy"], "pairs": len(places)}
    groups = ("by_length", "by_category", "reliability")
    detail: dict[str, Any] = {f"{g}_{s}": found[g] for s, (_, found) in zip("ab", sides, strict=True) for g in groups}
    return figures, {**detail, "not_scored": len(rows) - len(places)}


def _examples(rows: Sequence[FileRow], scored: Sequence[Tensor], number: int) -> list[str]:
    """Pairs that one side orders right and the other wrong, the surest mistakes first."""
    target = torch.tensor([float(row.pair.label or 0) for row in rows]) * 2 - 1
    margins = [(values[0] - values[2]) * target for values in scored]
    gap = torch.where(torch.sign(margins[0]) != torch.sign(margins[1]), (margins[0] - margins[1]).abs(), torch.nan)
    order = torch.nan_to_num(gap, nan=-1.0).argsort(descending=True).tolist()
    lines = []
    for i in [i for i in order if gap[i] > 0][:number]:
        pair = rows[i].pair
        better, worse = (pair.response_a, pair.response_b)[:: 1 if pair.label == 1 else -1]
        right = "A" if margins[0][i] > margins[1][i] else "B"
        lines.append(f"{right} right: {_short(pair.prompt[-1]['content'])} | {_short(better)} | not: {_short(worse)}")
    return lines


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 40 else f"{words[:39]}…"


def _print(models: Sequence[str], figures: dict[str, float], detail: dict[str, Any], examples: list[str]) -> None:
    table = new_table("", "A", "B", title="A/B")
    table.add_row("right", *(f"{figures[f'accuracy_{s}']:.3f}" for s in "ab"))
    interval = [f"{figures[f'accuracy_low_{s}']:.3f} to {figures[f'accuracy_high_{s}']:.3f}" for s in "ab"]
    table.add_row("  95 %, over prompts", *interval)
    for title, name in (("calibration error", "calibration_error"), ("ties", "tie_share")):
        table.add_row(title, *(f"{figures[f'{name}_{s}']:.3f}" for s in "ab"))
    table.add_row("correlation with length", *(f"{figures[f'length_correlation_{s}']:+.2f}" for s in "ab"))
    for key in ("by_length", "by_category"):
        for group, found in detail[f"{key}_a"].items():
            other = detail[f"{key}_b"][group]
            table.add_row(f"  {group[:24]} ({found['pairs']})", f"{found['accuracy']:.3f}", f"{other['accuracy']:.3f}")
    left_out = f"{detail['not_scored']} pairs have no reward from one of both and are left out."
    say(
        *(f"{side}: {model}" for side, model in zip("AB", models, strict=True)),
        table,
        f"B less A: {figures['difference']:+.3f} ({figures['low']:+.3f} to {figures['high']:+.3f}); only A right "
        f"{figures['only_a']:.0f}, only B {figures['only_b']:.0f}, p {figures['p_value']:.2g} (McNemar); they order "
        f"{figures['agreement']:.1%} of {figures['pairs']:.0f} pairs alike; take the longer: "
        f"{figures['longer_accuracy']:.3f}.",
        *([left_out] if detail["not_scored"] else []),
        *examples,
    )


def _write_gate(args: Namespace, rows: Sequence[FileRow], sides: Sequence[Side]) -> int:
    runs = []
    for side, name in zip(sides, args.models, strict=True):
        values = score_all(side, rows, name)
        figures, _ = compare(rows, [values, values], [side.temperature] * 2, [])
        names = {"accuracy": "accuracy_a", "low": "accuracy_low_a", "high": "accuracy_high_a"}
        runs.append({k: figures[v] for k, v in {**names, "calibration_error": "calibration_error_a"}.items()})
    gate = make_gate(Path(args.make_gate), runs)
    say(f"{args.make_gate}: from {len(runs)} runs, " + ", ".join(f"{k} {v}" for k, v in gate.items()))
    return 0


def _decide(rows: Sequence[FileRow], sides: Sequence[Side]) -> int:
    """Score in a random order until one is better for sure, and say so."""
    seen: list[float] = []
    found = first_decision(_changes(rows, sides, seen), len(rows), ALPHA)
    if not any(change == change for change in seen):
        raise UserError(_NOTHING_SCORED)
    if unscored := sum(change != change for change in seen):
        print(f"{unscored} pairs have no reward from one of both and count for neither.")
    if found is None:
        only_a, only_b = sum(change < 0 for change in seen), sum(change > 0 for change in seen)
        say(f"No decision after all {len(rows)} pairs: {only_a} only A right, {only_b} only B.")
    else:
        looked, lead = found
        say(f"{'B' if lead > 0 else 'A'} is better, sure after {looked} of {len(rows)} pairs (5 % error).")
    return 0


def _changes(rows: Sequence[FileRow], sides: Sequence[Side], seen: list[float]) -> Iterator[float]:
    """Credit of B less that of A, pair by pair in a random order; 0 where one has no reward.

    All are added to `seen`, where it is NaN.
    """
    order = np.random.default_rng(0).permutation(len(rows))
    for start in range(0, len(order), CHUNK // 8):
        chunk = [rows[i] for i in order[start : start + CHUNK // 8]]
        target = torch.tensor([float(row.pair.label or 0) for row in chunk])
        margins = [values[0] - values[2] for values in (side.score(chunk) for side in sides)]
        usable = torch.isfinite(margins[0]) & torch.isfinite(margins[1])
        change = half_credit(margins[1], target) - half_credit(margins[0], target)
        for one in torch.where(usable, change, torch.nan).tolist():
            seen.append(one)
            yield 0.0 if one != one else one
