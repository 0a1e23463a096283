"""Tables of the study on real preferences, and its headline: the share of the gap that is closed, with its interval.

Shapes: S random seeds, N test pairs that they share. A study tests on one or several such blocks of runs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rules import NAMES as RULE_NAMES

NUM_RESAMPLES = 2000
MIN_GAP = 0.06
"""Accuracy that all labels must add to the seed model's before a share of the gap means anything."""
NAMES = {
    **RULE_NAMES,
    "soft": "ours, `pseudo_label_mode: soft`",
    "weighted": "ours, `pseudo_label_mode: weighted`",
    "committee": "ours, `committee: true`",
    "seed_share": "ours, `seed_share: 0.5`",
    "quota": "ours, `length_quota: seed`",
    "add": "ours, `combine: add`",
}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Closed:
    """What evolution has closed of the gap between the seed model and all labels."""

    seed_model: Estimate
    delivered: Estimate
    all_labels: Estimate
    gain: Estimate
    gap: Estimate
    share: Estimate | None
    """Mean gain over mean gap; None where the gap's own interval holds 0."""


def credits(text: str) -> Floats:
    """(N,) 1, 0 and 0.5 of `1`, `0` and `h`."""
    return np.array([{"1": 1.0, "0": 0.0, "h": 0.5}[c] for c in text])


@dataclass(frozen=True)
class Block:
    """Runs that are tested on the same pairs.

    Args:
        models: (3, S, N) credit of each random seed's seed model, delivered model and model of all labels.
        prompt: (N,) which prompt each pair has.
    """

    models: Floats
    prompt: NDArray[np.int64]


def closed(blocks: Sequence[Block]) -> Closed:
    """Gains, gap and share of the gap, from a paired bootstrap over random seeds and prompts (percentiles).

    A resample draws, in every block, random seeds and, apart from them, prompts with all their pairs; all three models
    are judged on the same draw. Accuracies are means over the pairs of all blocks.
    """
    generator = np.random.default_rng(0)
    drawn, mean, num_pairs = np.zeros((NUM_RESAMPLES, 3)), np.zeros(3), np.zeros(NUM_RESAMPLES)
    for block in blocks:
        groups = np.unique(block.prompt, return_inverse=True)[1]
        pairs = np.bincount(groups).astype(np.float64)
        num_seeds = block.models.shape[1]
        right = np.zeros((3, num_seeds, len(pairs)))
        np.add.at(right, (slice(None), slice(None), groups), block.models)
        for i in range(NUM_RESAMPLES):
            seeds = generator.integers(num_seeds, size=num_seeds)
            times = np.bincount(generator.integers(len(pairs), size=len(pairs)), minlength=len(pairs))
            drawn[i] += right[:, seeds].mean(1) @ times
            num_pairs[i] += pairs @ times
        mean += block.models.mean(1).sum(1)
    drawn, mean = drawn / num_pairs[:, None], mean / sum(len(block.prompt) for block in blocks)
    parts = {
        "seed_model": (1, 0, 0),
        "delivered": (0, 1, 0),
        "all_labels": (0, 0, 1),
        "gain": (-1, 1, 0),
        "gap": (-1, 0, 1),
    }
    found = {name: _estimate(float(mean @ weights), drawn @ weights) for name, weights in parts.items()}
    share = None
    if found["gap"].low > 0:
        gain, gap = drawn[:, 1] - drawn[:, 0], drawn[:, 2] - drawn[:, 0]
        share = _estimate((mean[1] - mean[0]) / (mean[2] - mean[0]), gain / np.where(gap == 0, np.nan, gap))
    return Closed(**found, share=share)


def _estimate(mean: float, drawn: Floats) -> Estimate:
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Estimate(mean, float(low), float(high))


Runs = Mapping[int, dict[str, Any]]
"""By random seed."""
Results = Mapping[str, Mapping[str, Runs]]
"""By cell and condition."""


def by_cell(found: list[dict[str, Any]]) -> Results:
    """Results in the order of a table; what `DATA-all` has belongs to every cell of the data set."""
    results: dict[str, dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for one in found:
        results[one["cell"]][one["condition"]][one["seed"]] = one
    whole = {name: results.pop(name) for name in [*results] if name.endswith("-all")}
    for name, conditions in results.items():
        conditions.update(whole.get(f"{name.rpartition('-')[0]}-all", {}))
    return dict(sorted(results.items(), key=_place))


def _place(cell: tuple[str, Any]) -> tuple[str, int]:
    data, _, percent = cell[0].rpartition("-")
    return data, int(percent)


def closed_in(conditions: Mapping[str, Runs], condition: str, against: str | None = None) -> tuple[int, Closed] | None:
    """Random seeds that a condition and all labels both have, and what was closed on them.

    Args:
        conditions: of a cell.
        condition: what to look at.
        against: another condition, whose delivered models take the place of the seed models.
    """
    own, full = conditions.get(condition, {}), conditions.get("all_labels", {})
    other = own if against is None else conditions.get(against, {})
    seeds_of: dict[int, list[int]] = defaultdict(list)
    for seed in sorted(own.keys() & full.keys() & other.keys()):
        seeds_of[own[seed]["fifth"]].append(seed)
    if not seeds_of:
        return None
    blocks = []
    for seeds in seeds_of.values():
        first = _round_zero(own, seeds) if against is None else _delivered(other, seeds)
        models = np.stack([first, _delivered(own, seeds), _round_zero(full, seeds)])
        blocks.append(Block(models, np.array(own[seeds[0]]["test"]["prompt"])))
    return sum(map(len, seeds_of.values())), closed(blocks)


def _round_zero(runs: Runs, seeds: Sequence[int]) -> Floats:
    """(S, N) credits of the seed models, which are the models of all labels where the seed is everything."""
    return np.stack([credits(runs[seed]["test"]["credit"]["0"]) for seed in seeds])


def _delivered(runs: Runs, seeds: Sequence[int]) -> Floats:
    """(S, N) credits of the delivered models."""
    return np.stack([credits(runs[seed]["test"]["credit"][str(runs[seed]["delivered"])]) for seed in seeds])


def floors_of(conditions: Mapping[str, Runs]) -> dict[str, float] | None:
    """Mean accuracy of each floor of a cell; None where they were not measured."""
    floors = [run["figures"] for run in conditions.get("floors", {}).values()]
    return {name: float(np.mean([f[name] for f in floors])) for name in floors[0]} if floors else None


def has_gap(figures: Closed, floors: Mapping[str, float] | None) -> bool:
    """Whether a cell can carry the headline: a sure gap of at least `MIN_GAP` to all labels, which clear the floors."""
    clears = floors is not None and all(
        figures.all_labels.mean > floors[name] for name in ("longer", "bag_of_words_all_labels")
    )
    return clears and figures.gap.low > 0 and figures.gap.mean >= MIN_GAP


def headline(results: Results, world: str) -> str:
    """A line for each cell of real preferences that has a gap; the embedded world's where none has.

    Args:
        results: of the study.
        world: share of the gap closed on the embedded synthetic world.
    """
    lines = []
    for cell, conditions in results.items():
        found = closed_in(conditions, "ours")
        if found and found[1].share and has_gap(found[1], floors_of(conditions)):
            share = found[1].share
            figures = f"{share.mean:.2f} [{share.low:.2f}, {share.high:.2f}]"
            lines.append(f"`gap closed: {figures} on {cell}` ({found[0]} random seeds)")
    if not lines:
        lines = [f"`gap closed: {world} on the embedded synthetic world`; no cell of real preferences has such a gap"]
    return "\n\n".join(lines)


def gap_table(results: Results) -> str:
    """One line a cell: is there a gap to close, and does the model of all labels clear the floors?"""
    lines = [
        "| cell | random seeds | test pairs | prompts | seed model | all labels | gap | longer | bag of words, seed "
        "| all labels | carries the headline |",
        "|" + "---|" * 11,
    ]
    for cell, conditions in results.items():
        if (found := closed_in(conditions, "ours")) is None:
            continue
        number, figures = found
        tests = {run["fifth"]: run["test"]["prompt"] for run in conditions["ours"].values()}
        num_pairs, num_prompts = sum(map(len, tests.values())), sum(len(set(test)) for test in tests.values())
        cells = [
            cell,
            str(number),
            str(num_pairs),
            str(num_prompts),
            str(figures.seed_model),
            str(figures.all_labels),
            str(figures.gap),
        ]
        floors = floors_of(conditions)
        for name in ("longer", "bag_of_words_seed", "bag_of_words_all_labels"):
            cells.append(f"{floors[name]:.3f}" if floors else "-")
        cells.append("yes" if has_gap(figures, floors) else "no")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def study_table(results: Results) -> str:
    """One line for each cell and way to evolve."""
    lines = [
        "| cell | rule | random seeds | delivered | gain | against ours | share of the gap closed | kept, first round "
        "| kept labels right |",
        "|" + "---|" * 9,
    ]
    for cell, conditions in results.items():
        for condition, name in NAMES.items():
            if (found := closed_in(conditions, condition)) is None:
                continue
            number, figures = found
            first = [run["rounds"][0] for run in conditions[condition].values()]
            right = [row["kept_accuracy"] for row in first if row["kept"]]
            cells = [cell, name, str(number), str(figures.delivered), str(figures.gain)]
            versus = None if condition == "ours" else closed_in(conditions, condition, "ours")
            cells.append(str(versus[1].gain) if versus else "-")
            cells.append("undefined" if figures.share is None else str(figures.share))
            cells.append(f"{np.mean([row['kept'] / row['scored'] for row in first]):.0%}")
            cells.append(f"{np.mean(right):.3f}" if right else "-")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rounds_table(results: Results, condition: str = "ours") -> str:
    """One line for each cell and round: means over the random seeds that reached the round."""
    names = ("test_accuracy", "pool_accuracy", "kept_accuracy", "calibration_error", "length_correlation")
    lines = [f"| cell | round | runs | kept | {' | '.join(names)} |", "|" + "---|" * (4 + len(names))]
    for cell, conditions in results.items():
        runs = [run["rounds"] for run in conditions.get(condition, {}).values()]
        for number in range(max(map(len, runs), default=0)):
            rows = [rounds[number] for rounds in runs if len(rounds) > number]
            kept = f"{np.mean([row['kept'] / row['scored'] for row in rows]):.0%}"
            figures = [_mean([row[name] for row in rows]) for name in names]
            lines.append("| " + " | ".join([cell, str(number), str(len(rows)), kept, *figures]) + " |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    """Of the runs that have one: nothing kept, no accuracy."""
    known = [v for v in values if not np.isnan(v)]
    return f"{np.mean(known):.3f}" if known else "-"


def cost_table(results: Results) -> str:
    """One line a cell and condition: tokens of the pairs that were trained on and scored, means over random seeds."""
    lines = ["| cell | rule | tokens read |", "|---|---|---|"]
    names = {**NAMES, "all_labels": "all labels"}
    for cell, conditions in results.items():
        for condition, name in names.items():
            if runs := list(conditions.get(condition, {}).values()):
                tokens = np.mean([sum(row["tokens"] for row in run["rounds"]) for run in runs])
                lines.append(f"| {cell} | {name} | {tokens:,.0f} |")
    return "\n".join(lines)


def study_tables(found: list[dict[str, Any]], world: str) -> dict[str, str]:
    """Every table of the study by its name.

    Args:
        found: results of `study.py`.
        world: see `headline`.
    """
    results = by_cell(found)
    return {
        "headline": headline(results, world),
        "gap_check": gap_table(results),
        "study": study_table(results),
        "study_rounds": rounds_table(results),
        "study_cost": cost_table(results),
    }
