"""Metrics of a reward model on one named set of labelled pairs: overall, by group, and as a table. N pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser_lightning.evaluation.metrics import (
    accuracy_interval,
    confidence_and_right,
    half_credit,
    pair_figures,
    reliability,
)
from ser_lightning.records import PairScores
from ser_lightning.utils.terminal import new_table, say

NUM_RESAMPLES = 2000
MIN_PROMPTS = 30
"""Of fewer prompts an interval over them is little more than a guess."""
LENGTH_GROUPS = ("much shorter", "shorter", "longer", "much longer")
"""Quarters of a set by the length of the better response against the other one's."""


@dataclass(frozen=True)
class Scored:
    """A named set with its scores."""

    name: str
    scores: PairScores
    """(N,)."""
    target: Tensor
    """(N,) 1 where a is the better response."""
    prompt: np.ndarray
    """(N,) id of the dialogue: pairs of one are not independent."""
    category: Sequence[str]
    """N categories; empty where the set has none."""


def prompt_interval(credit: Tensor, prompt: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean, from a bootstrap over prompts (percentiles of `NUM_RESAMPLES` resamples).

    Args:
        credit: (N,) 1 for a right pair, 0 for a wrong one, 0.5 for a tie; or differences of such.
        prompt: (N,) id of the prompt of each; all pairs of a prompt are drawn together.
    """
    return percentiles(resampled_means(credit, prompt, seed)) if len(credit) else (math.nan, math.nan)


def share_interval(credit: Tensor, prompt: np.ndarray) -> tuple[float, float]:
    """`prompt_interval` of an accuracy; where all resamples have one mean, as if that were sure, `accuracy_interval`.

    That is so where all pairs are right, or all wrong, or of one prompt.
    """
    low, high = prompt_interval(credit, prompt)
    return accuracy_interval(credit, torch.from_numpy(prompt)) if low == high else (low, high)


def percentiles(means: np.ndarray) -> tuple[float, float]:
    """95 % interval of a figure from its resamples."""
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def resampled_means(credit: Tensor, prompt: np.ndarray, seed: int = 0) -> np.ndarray:
    """(NUM_RESAMPLES,) means of resamples of the prompts; arguments as of `prompt_interval`, N > 0."""
    from scipy.stats import bootstrap  # here, since it takes half a second

    _, group = np.unique(prompt, return_inverse=True)
    sums = (np.bincount(group, weights=credit.double().numpy()), np.bincount(group).astype(np.float64))
    if len(sums[0]) == 1:  # SciPy wants two prompts
        return np.full(NUM_RESAMPLES, float(credit.double().mean()))
    return bootstrap(
        sums,
        lambda right, number, axis: right.sum(axis) / number.sum(axis),
        paired=True,
        n_resamples=NUM_RESAMPLES,
        batch=100,  # resamples in memory at a time
        method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution


def set_figures(found: Scored, temperature: float) -> dict[str, Any]:
    """All metrics of a set; `docs/metrics.md` defines each of them.

    Returns:
        The figures of `metrics.pair_figures` with `accuracy_low` and `accuracy_high` over prompts, and below them
        `prompts`, `by_length` and `by_category` (accuracy, interval and pairs of each group) and `reliability` (pairs,
        stated confidence and right pairs of each bin).
    """
    scores, target = found.scores, found.target
    credit = half_credit(scores.margin, target)
    dialogue = torch.from_numpy(found.prompt)
    figures: dict[str, Any] = pair_figures(scores.margin, target, scores.length_difference, dialogue, temperature)
    low, high = share_interval(credit, found.prompt)
    figures |= {"accuracy_low": low, "accuracy_high": high, "prompts": len(np.unique(found.prompt))}
    longer_by = scores.length_difference * (2 * target - 1)
    figures["by_length"] = _groups(credit, found.prompt, _quarters(longer_by))
    figures["by_category"] = _groups(credit, found.prompt, list(found.category)) if len(found.category) else {}
    figures["reliability"] = reliability(*confidence_and_right(scores.margin, target, temperature))
    return figures


def _quarters(longer_by: Tensor) -> list[str]:
    """The quarter of each pair by how much longer the better response is."""
    order = longer_by.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return [LENGTH_GROUPS[int(4 * p // len(order))] for p in place.tolist()]


def _groups(credit: Tensor, prompt: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Accuracy, interval and pairs of every group, in the order of `LENGTH_GROUPS` or of the alphabet."""
    of_pair = np.asarray(names)
    order = [g for g in LENGTH_GROUPS if g in names] or sorted(set(names))
    found = {}
    for name in order:
        mine = of_pair == name
        low, high = share_interval(credit[torch.from_numpy(mine)], prompt[mine])
        accuracy = float(credit[torch.from_numpy(mine)].mean())
        found[str(name)] = {"accuracy": accuracy, "low": low, "high": high, "pairs": int(mine.sum())}
    return found


def print_sets(figures: dict[str, dict[str, Any]]) -> None:
    """One line a set and one for each of its groups, with both baselines beside it."""
    table = new_table(
        "set", "pairs", "right", "low", "high", "ties", "cal.", "longer", "words", title="Evaluation sets"
    )
    for name, found in figures.items():
        words = found.get("bag_of_words_accuracy")
        cells = [f"{found['tie_share']:.3f}", f"{found['calibration_error']:.3f}", f"{found['longer_accuracy']:.3f}"]
        table.add_row(name, *_accuracy_cells(found, "accuracy_"), *cells, "-" if words is None else f"{words:.3f}")
        for key in ("by_length", "by_category", "by_section"):
            for group, figure in found.get(key, {}).items():
                table.add_row(f"  {group[:24]}", *_accuracy_cells(figure, ""))
    say(
        table,
        "right: accuracy with its 95 % interval over prompts; cal.: calibration error; baselines: take the longer, "
        "bag of words.",
        "much shorter to much longer: quarters by length, the better response's minus the other's.",
    )


def _accuracy_cells(found: dict[str, Any], prefix: str) -> list[str]:
    shares = (found["accuracy"], found[f"{prefix}low"], found[f"{prefix}high"])
    return [f"{found['pairs']:.0f}", *(f"{share:.3f}" for share in shares)]
