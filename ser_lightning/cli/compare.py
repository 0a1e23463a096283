"""A/B: one reward model on labelled pairs, or two on the same ones, and a gate that a build can fail at.

A and B are run folders, exports, or files that `score` wrote for the same data.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from ser_lightning.data.labels import check_labels
from ser_lightning.errors import UserError, problems_of, raise_problems
from ser_lightning.evaluation.calibration import prob_a_wins
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evaluation.paired_tests import paired, same_order
from ser_lightning.evaluation.prediction_powered import Estimate, estimates
from ser_lightning.evaluation.sets import Scored, set_figures
from ser_lightning.evaluation.thresholds import failures, make_gate, read_gate
from ser_lightning.inference.compared_pairs import (
    NOTHING_SCORED,
    Pairs,
    is_one_file,
    leaks,
    left_out,
    prompts_of,
    read_pairs,
    targets,
)
from ser_lightning.inference.scoring_rows import FileRow, column_problems
from ser_lightning.inference.sequential_comparison import decide
from ser_lightning.inference.sides import Side, open_side, predicting_side, score_all
from ser_lightning.records import PairScores
from ser_lightning.runs.pool import files_of_run
from ser_lightning.utils.atomic import output_problems, write_text_atomically
from ser_lightning.utils.terminal import new_table, say

_OF_BOTH = ("difference", "low", "high", "agreement", "only_a", "only_b", "p_value")
_OF_EACH = ("accuracy", "accuracy_low", "accuracy_high", "calibration_error", "tie_share", "length_correlation")
_OF_SET = ("longer_accuracy", "pairs")
FIGURES = (*_OF_BOTH, *(f"{name}_{side}" for side in "ab" for name in _OF_EACH), *_OF_SET)
"""What a gate may name; of one model those of A and of the set."""
_ESTIMATED = {
    "accuracy_a": ("accuracy_low_a", "accuracy_high_a", "A"),
    "accuracy_b": ("accuracy_low_b", "accuracy_high_b", "B"),
    "difference": ("low", "high", "B less A"),
}
"""Figures that unlabelled pairs help with -> the ends of their intervals, and what they are called."""
_UNREAD = {
    "make_gate": ("gate", "sequential", "json", "category", "examples"),
    "sequential": ("gate", "json", "unlabelled", "category", "examples"),
}
"""Flag -> those that it would leave unread."""
_EXAMPLES = 3


def main(args: Namespace) -> int:
    """Run the command with its flags; 1 where a gate is not kept."""
    raise_problems(_problems(args))
    pairs = read_pairs(args)
    say(*left_out(pairs, args), *leaks([row.pair.prompt for row in pairs.rows], args.models))
    known = [*pairs.rows, *(pairs.unlabelled if is_one_file(args) else [])]
    sides = [open_side(name, known, pairs.read.rows, args.trust_remote_code) for name in args.models]
    if args.make_gate:
        return _write_gate(args, pairs, sides)
    if args.sequential:
        say(*decide(pairs.rows, sides))
        return 0
    scored = [score_all(side, pairs.rows, name) for side, name in zip(sides, args.models, strict=True)]
    figures, detail, lines = compare(pairs, args.models, sides, scored, args.trust_remote_code)
    number = _EXAMPLES if args.examples is None else args.examples
    _print(args.models, figures, detail, [*lines, *_examples(pairs.rows, scored, number)])
    if args.json:
        write_text_atomically(Path(args.json), json.dumps({**figures, **detail}, indent=1) + "\n")
    failed = failures(read_gate(Path(args.gate), _known_figures(args)), figures) if args.gate else []
    say(*failed)
    return 1 if failed else 0


def _problems(args: Namespace) -> list[str]:
    found = [*column_problems(args.columns or {}), *check_labels(args.labels or {})]
    if not args.make_gate and len(args.models) > 2:
        found.append(f"compare: got {len(args.models)} models; give one or two, or baseline runs with --make_gate")
    for flag in (flag for flag in _UNREAD if args[flag]):
        if unread := [f"--{name}" for name in _UNREAD[flag] if args[name] not in (None, False)]:
            found.append(f"--{flag}: got it with {' and '.join(unread)}, which it does not use; leave one side out")
    if args.sequential and len(args.models) == 1:
        found.append("--sequential: got one model; give two")
    if args.examples is not None and args.examples < 0:
        found.append(f"--examples: got {args.examples}; use at least 0")
    if args.examples and len(args.models) == 1 and not args.make_gate and not args.sequential:
        found.append("--examples: got it with one model, but shows pairs that one of two orders right; leave it out")
    if args.unlabelled and not is_one_file(args) and (files := [m for m in args.models if Path(m).is_file()]):
        found.append(
            f"--unlabelled: got another file than --data beside {files[0]}, which has rewards of --data; score one "
            "file that holds the pairs with and without labels, and give it as both"
        )
    inputs = [file for model in args.models for file in files_of_run(Path(model))]
    inputs += [args.data, *filter(None, (args.gate, args.unlabelled))]
    for flag in ("json", "make_gate"):
        if args[flag]:
            found += output_problems(f"--{flag}", args[flag], inputs, args.overwrite)
    if args.gate:
        found += problems_of(lambda: read_gate(Path(args.gate), _known_figures(args)))  # before anything is scored
    return found


def _known_figures(args: Namespace) -> tuple[str, ...]:
    return FIGURES if len(args.models) > 1 else (*(f"{name}_a" for name in _OF_EACH), *_OF_SET)


def compare(
    pairs: Pairs, models: Sequence[str], sides: Sequence[Side], scored: Sequence[Tensor], trust_remote_code: bool
) -> tuple[dict[str, float], dict[str, Any], list[str]]:
    """All figures by name, as a gate may ask for them; groups and bins of each side; and lines on unlabelled pairs.

    Args:
        pairs: N labelled pairs, and unlabelled ones.
        scored: (4, N) of the same.

    Raises:
        UserError: no pair has rewards of both.
    """
    places = torch.stack([torch.isfinite(one).all(0) for one in scored]).all(0).nonzero().flatten()
    if not len(places):
        raise UserError(NOTHING_SCORED)
    rows, scored = [pairs.rows[i] for i in places], [one[:, places] for one in scored]
    kind = [pairs.categories[i] for i in places] if pairs.categories else []
    figures, detail = _by_labels(rows, scored, [side.temperature for side in sides], kind)
    detail |= {"rows": pairs.rows_read, "not_scored": len(pairs.rows) - len(rows)}
    if not pairs.unlabelled:
        return figures, detail, pairs.notes
    predicted = [
        _predict(name, side, rows, pairs.unlabelled, values, trust_remote_code)
        for name, side, values in zip(models, sides, scored, strict=True)
    ]
    found, num_unlabelled = _with_pool(rows, scored, pairs.unlabelled, predicted)
    for name, estimate in found.items():
        low, high, _ = _ESTIMATED[name]
        figures |= {name: estimate.value, low: estimate.low, high: estimate.high}
    not_scored = len(pairs.unlabelled) - num_unlabelled
    counts = {"pairs": num_unlabelled, "not_scored": not_scored}
    detail["unlabelled"] = {**counts, **{name: asdict(estimate) for name, estimate in found.items()}}
    lost = [f"{not_scored} unlabelled pairs have no reward from every model and are left out."] if not_scored else []
    return figures, detail, [_pool_line(len(rows), num_unlabelled, found), *lost, *pairs.notes]


def _by_labels(
    rows: Sequence[FileRow], scored: Sequence[Tensor], temperatures: Sequence[float], categories: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """What the labelled pairs say, all of which have rewards; arguments as of `compare`.

    The pairs are turned to the sides that training gives them: a correlation depends on which response is called a.
    """
    turned, prompt = torch.tensor([row.is_turned for row in rows]), prompts_of(rows)
    target = torch.where(turned, 1 - targets(rows), targets(rows))
    scores, found = [], []
    for values, temperature in zip(scored, temperatures, strict=True):
        reward_a, tokens_a, reward_b, tokens_b = torch.where(turned, values[[2, 3, 0, 1]], values)
        one = PairScores(torch.arange(len(rows)), reward_a, reward_b, tokens_a.long(), tokens_b.long())
        scores.append(one)
        found.append(set_figures(Scored("", one, target, prompt, categories), temperature))
    figures: dict[str, float] = {}
    if len(scores) == 2:
        credit_a, credit_b = (half_credit(one.margin, target) for one in scores)
        result = paired(credit_a, credit_b, same_order(scores[0].margin, scores[1].margin), prompt)
        figures |= {name: value for name, value in asdict(result).items() if name in _OF_BOTH}
    by_side = dict(zip("ab", found, strict=False))
    figures |= {f"{name}_{side}": one[name] for side, one in by_side.items() for name in _OF_EACH}
    figures |= {"longer_accuracy": found[0]["longer_accuracy"], "pairs": len(rows)}
    groups = ("by_length", "by_category", "reliability")
    return figures, {f"{group}_{side}": one[group] for side, one in by_side.items() for group in groups}


def _predict(
    name: str, side: Side, rows: Sequence[FileRow], pool: Sequence[FileRow], scored: Tensor, trust_remote_code: bool
) -> tuple[Tensor, Tensor]:
    """(N,) and (M,) probability that a wins in labelled and unlabelled pairs; NaN where there is no reward."""
    by = predicting_side(name, side, trust_remote_code)
    labelled = scored if by is side else score_all(by, rows, f"{name} (round 0)")
    both = (labelled, score_all(by, pool, name))
    first, second = (prob_a_wins(values[0] - values[2], by.temperature) for values in both)
    return first, second


def _with_pool(
    rows: Sequence[FileRow],
    scored: Sequence[Tensor],
    pool: Sequence[FileRow],
    predicted: Sequence[tuple[Tensor, Tensor]],
) -> tuple[dict[str, Estimate], int]:
    """The figures of `_ESTIMATED`, and how many unlabelled pairs have a reward of every model."""
    usable = torch.stack([torch.isfinite(prob) for _, prob in predicted]).all(0)
    credit = [half_credit(values[0] - values[2], targets(rows)) for values in scored]
    probs, pool_probs = [prob for prob, _ in predicted], [prob[usable] for _, prob in predicted]
    found = estimates(credit, probs, pool_probs, prompts_of(rows), prompts_of(pool)[usable.numpy()])
    return found, int(usable.sum())


def _pool_line(num_labels: int, num_unlabelled: int, powered: dict[str, Estimate]) -> str:
    """What was used, and both widths of each interval."""
    widths = ", ".join(
        f"{_ESTIMATED[name][2]} {one.width:.3f} (labels alone {one.labels_width:.3f})"
        if one.uses_unlabelled
        else f"{_ESTIMATED[name][2]} {one.labels_width:.3f} (labels alone: the unlabelled pairs do not narrow it)"
        for name, one in powered.items()
    )
    return f"Width of the 95 % intervals with {num_labels:,} labels and {num_unlabelled:,} unlabelled pairs: {widths}."


def _examples(rows: Sequence[FileRow], scored: Sequence[Tensor], number: int) -> list[str]:
    """Pairs that one side orders right and the other wrong, the surest mistakes first."""
    target = targets(rows) * 2 - 1
    margins = [(values[0] - values[2]) * target for values in scored]
    if len(margins) == 1:
        return []
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


def _print(models: Sequence[str], figures: dict[str, float], detail: dict[str, Any], lines: list[str]) -> None:
    sides = "ab"[: len(models)]
    table = new_table("", *sides.upper(), title="A/B" if len(models) > 1 else "Labelled pairs")
    table.add_row("right", *(f"{figures[f'accuracy_{s}']:.3f}" for s in sides))
    interval = [f"{figures[f'accuracy_low_{s}']:.3f} to {figures[f'accuracy_high_{s}']:.3f}" for s in sides]
    table.add_row("  95 %, over prompts", *interval)
    for title, name in (("calibration error", "calibration_error"), ("ties", "tie_share")):
        table.add_row(title, *(f"{figures[f'{name}_{s}']:.3f}" for s in sides))
    table.add_row("correlation with length", *(f"{figures[f'length_correlation_{s}']:+.2f}" for s in sides))
    for key in ("by_length", "by_category"):
        for group, found in detail[f"{key}_a"].items():
            shares = [f"{detail[f'{key}_{s}'][group]['accuracy']:.3f}" for s in sides]
            table.add_row(f"  {group[:24]} ({found['pairs']})", *shares)
    left_out = f"{detail['not_scored']} pairs have no reward from every model and are left out."
    say(
        *(f"{side}: {model}" for side, model in zip("AB", models, strict=False)),
        table,
        _difference_line(figures) if len(models) > 1 else _set_line(figures),
        *([left_out] if detail["not_scored"] else []),
        *lines,
    )


def _difference_line(figures: dict[str, float]) -> str:
    return (
        f"B less A: {figures['difference']:+.3f} ({figures['low']:+.3f} to {figures['high']:+.3f}); only A right "
        f"{figures['only_a']:.0f}, only B {figures['only_b']:.0f}, p {figures['p_value']:.2g} (sign test over "
        f"prompts); they order {figures['agreement']:.1%} of {figures['pairs']:.0f} pairs alike; take the longer: "
        f"{figures['longer_accuracy']:.3f}."
    )


def _set_line(figures: dict[str, float]) -> str:
    return f"{figures['pairs']:,.0f} pairs; take the longer: {figures['longer_accuracy']:.3f}."


def _write_gate(args: Namespace, pairs: Pairs, sides: Sequence[Side]) -> int:
    names = {"accuracy": "accuracy_a", "low": "accuracy_low_a", "high": "accuracy_high_a"}
    runs, shown = [], []
    for side, name in zip(sides, args.models, strict=True):
        scored = score_all(side, pairs.rows, name)
        figures, _, lines = compare(pairs, [name], [side], [scored], args.trust_remote_code)
        runs.append({k: figures[v] for k, v in {**names, "calibration_error": "calibration_error_a"}.items()})
        shown += [f"{name}: {line}" for line in lines]
    gate = make_gate(Path(args.make_gate), runs)
    say(*shown, f"{args.make_gate}: from {len(runs)} runs, " + ", ".join(f"{k} {v}" for k, v in gate.items()))
    return 0
