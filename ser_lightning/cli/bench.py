"""A reward model on RewardBench 1 or 2, or on any file of prompts with chosen and rejected responses."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor
from tqdm.auto import tqdm

from ser_lightning.cli.score import load_scorer
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.evaluation.reward_bench import (
    TIE_WEIGHTS,
    SubsetCredit,
    best_credit,
    is_ties,
    section_scores,
    tie_credit,
    tie_margins,
    tie_pairs,
    tie_terms,
    weight_problems,
)
from ser_lightning.inference.scorer import Scorer
from ser_lightning.inference.scoring_rows import CandidateRow, column_problems, open_source, read_candidates
from ser_lightning.utils.atomic import output_problems, write_text_atomically
from ser_lightning.utils.terminal import new_table, say

CHUNK = 256
"""Rows that are encoded and scored at a time."""


def main(args: Namespace) -> None:
    """Run the command with its flags."""
    if args.json:
        raise_problems(output_problems("--json", args.json, [args.data, args.model], args.overwrite))
    figures = bench_file(args)
    print_bench(figures, args.model)
    if args.json:
        write_text_atomically(Path(args.json), json.dumps(figures, indent=1) + "\n")


def bench_file(args: Namespace) -> dict[str, Any]:
    """All figures of a model on a file.

    Raises:
        UserError: a line for each thing that is wrong; the data are read through before the model is loaded.
    """
    columns, weights = args.columns or {}, args.weights or {}
    raise_problems(column_problems(columns))
    rows = read_candidates(open_source(args.data), columns, args.category)
    units = scoring_units(rows)
    raise_problems(weight_problems(weights, {row.subset for row in rows}))
    return figures_of(rows, units, score_rows(load_scorer(args), rows), weights)


def scoring_units(rows: Sequence[CandidateRow]) -> dict[str, list[tuple[int, ...]]]:
    """Subset -> what is scored in it as one: a row, or in the ties subset the two rows of a pair (one answer, several).

    Raises:
        UserError: ties rows that make no pairs.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        places[row.subset].append(i)
    units: dict[str, list[tuple[int, ...]]] = {name: [(i,) for i in of] for name, of in places.items()}
    for name in filter(is_ties, places):
        of = [rows[i] for i in places[name]]
        pairs = tie_pairs([r.source_id for r in of], [len(r.chosen) for r in of], [r.where for r in of])
        units[name] = [(places[name][ref], places[name][tied]) for ref, tied in pairs]
    return units


def score_rows(scorer: Scorer, rows: Sequence[CandidateRow]) -> list[Tensor | None]:
    """(2, C) rewards and tokens of each row's responses, the chosen ones first; None where one of them does not fit."""
    candidates = [[*row.chosen, *row.rejected] for row in rows]
    found: list[Tensor | None] = []
    total = sum(len(set(texts)) for texts in candidates)
    with tqdm(total=total, desc="Scoring", unit=" responses", disable=None) as bar:
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            found += scorer.score_candidates([row.prompt for row in rows[part]], candidates[part], bar.update)
    return found


def figures_of(
    rows: Sequence[CandidateRow],
    units: Mapping[str, Sequence[tuple[int, ...]]],
    scored: Sequence[Tensor | None],
    weights: Mapping[str, float],
) -> dict[str, Any]:
    """All figures, as `--json` writes them; `docs/evaluation.md` defines each.

    Args:
        scored: N, what `score_rows` gave.
        weights: subset -> weight, where it is not the default.

    Raises:
        UserError: nothing could be scored, or nothing with a weight in some section.
    """
    kept = {name: [u for u in of if all(scored[i] is not None for i in u)] for name, of in units.items()}
    kept = {name: of for name, of in kept.items() if of}
    if not kept:
        raise UserError(f"bench: got no row whose responses all fit, of {len(rows)}; raise --max_length")
    raise_problems(weight_problems({name: weight for name, weight in weights.items() if name in kept}, kept))
    figures, baseline = (
        section_scores({name: _credit(rows, of, scored, kind) for name, of in kept.items()}, weights) for kind in (0, 1)
    )
    figures["overall"]["longer"] = baseline["overall"]["score"]
    for key in ("sections", "subsets"):
        for name, figure in figures[key].items():
            figure["longer"] = baseline[key][name]["score"]
    for name in filter(is_ties, kept):
        terms = _terms(rows, kept[name], scored, 0)
        figures["subsets"][name]["terms"] = {term: float(value.mean()) for term, value in terms.items()}
    num_scored = sum(len(unit) for of in kept.values() for unit in of)
    return {**figures, "rows": len(rows), "not_scored": len(rows) - num_scored}


def _credit(
    rows: Sequence[CandidateRow], units: Sequence[tuple[int, ...]], scored: Sequence[Tensor | None], kind: int
) -> SubsetCredit:
    """What a subset's units are worth by their rewards (kind 0), or by their tokens as if these were rewards (1)."""
    prompt = np.asarray([rows[unit[0]].prompt_id for unit in units])
    if len(units[0]) == 2:
        return SubsetCredit(tie_credit(_terms(rows, units, scored, kind)), prompt)
    credit = []
    for (i,) in units:
        chosen, rejected = _sides(rows[i], scored[i], kind)
        credit.append(float(chosen > rejected) if rows[i].is_pair else best_credit(chosen, rejected))
    return SubsetCredit(torch.tensor(credit, dtype=torch.float64), prompt)


def _terms(
    rows: Sequence[CandidateRow], units: Sequence[tuple[int, ...]], scored: Sequence[Tensor | None], kind: int
) -> dict[str, Tensor]:
    margins = [[tie_margins(*_sides(rows[i], scored[i], kind)) for i in unit] for unit in units]
    (_, ref_gap), (spread, tied_gap) = torch.tensor(margins, dtype=torch.float64).permute(1, 2, 0)
    return tie_terms(ref_gap, tied_gap, spread)


def _sides(row: CandidateRow, values: Tensor | None, kind: int) -> tuple[Tensor, Tensor]:
    assert values is not None  # only scored rows are asked for
    return values[kind].double()[: len(row.chosen)], values[kind].double()[len(row.chosen) :]


def print_bench(figures: Mapping[str, Any], model: str) -> None:
    """A line for the whole, each section and its subsets, with the baseline beside it, and notes on them."""
    benchmark = figures["benchmark"]
    table = new_table("", "score", "low", "high", "items", "weight", "longer", title=benchmark or "Best of n")
    table.add_row("overall", *_cells(figures["overall"], "-"))
    for section, figure in figures["sections"].items():
        table.add_row(section, *_cells(figure, "1" if figure["is_counted"] else "0"))
        for name in figure["subsets"]:
            one = figures["subsets"][name]
            if len(figure["subsets"]) > 1:
                table.add_row(f"  {name[:28]}", *_cells(one, f"{one['weight']:g}"))
            for term, value in one.get("terms", {}).items():
                table.add_row(f"  {term}", f"{value:.3f}", "", "", "", f"{TIE_WEIGHTS[term]:g}", "")
    legend = "low, high: 95 % interval over prompts; longer: the score of taking the longest response, the baseline."
    say(f"Model: {model}", table, legend, *_notes(figures))


def _notes(figures: Mapping[str, Any]) -> list[str]:
    benchmark, notes = figures["benchmark"], []
    extra = [name for name, figure in figures["sections"].items() if not figure["is_counted"]]
    if extra:
        notes.append(f"Not in {benchmark}, each a section of its own outside of overall: {', '.join(extra)}.")
    if figures["missing"]:
        notes.append(f"No row of {', '.join(figures['missing'])}: overall is the mean of the other sections.")
    if figures["not_scored"]:
        notes.append(f"{figures['not_scored']} of {figures['rows']} rows are left out: a response does not fit.")
    return notes


def _cells(figure: Mapping[str, Any], weight: str) -> list[str]:
    shares = [f"{figure[key]:.3f}" for key in ("score", "low", "high")]
    return [*shares, f"{figure['items']:,}", weight, f"{figure['longer']:.3f}"]
