"""How far annotators agree with one another, and whether one of them prefers a side."""

import itertools
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ser_lightning.evaluation.metrics import wilson_interval
from ser_lightning.labelling.label_file import HumanLabel, latest
from ser_lightning.utils.terminal import new_table, say

_CLASSES = ("a", "b", "tie")
_NUM_RESAMPLES = 999


@dataclass(frozen=True)
class Agreement:
    """Two annotators on the pairs that both have answered; skips do not count."""

    num_pairs: int
    share: float
    """Share of pairs with the same answer; NaN without pairs."""
    low: float
    """95 % Wilson interval of the share."""
    high: float
    kappa: float
    """Cohen's kappa over a, b and tie: 1 is full agreement, 0 what chance gives; NaN where chance alone gives 1."""
    kappa_low: float
    """95 % interval of kappa, from a bootstrap over pairs."""
    kappa_high: float


def agreement(one: Sequence[HumanLabel], other: Sequence[HumanLabel]) -> Agreement:
    """Compare two annotators.

    Args:
        one: labels of the first.
        other: labels of the second.
    """
    answers = [
        {i: label.answer for i, label in latest(labels).items() if label.answer != "skip"} for labels in (one, other)
    ]
    shared = sorted(answers[0].keys() & answers[1].keys())
    first, second = (np.array([_CLASSES.index(given[i]) for i in shared], dtype=int) for given in answers)
    num_same = int((first == second).sum())
    share = num_same / len(shared) if shared else math.nan
    return Agreement(len(shared), share, *wilson_interval(num_same, len(shared)), *_kappa(first, second))


def _kappa(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Cohen's kappa of two lists of classes with its interval."""
    from scipy.stats import bootstrap  # here, since they take half a second
    from sklearn.metrics import cohen_kappa_score

    def kappa(one: np.ndarray, other: np.ndarray) -> float:
        return float(cohen_kappa_score(one, other, labels=range(len(_CLASSES))))

    if len(first) < 2:
        return math.nan, math.nan, math.nan
    settings: dict[str, Any] = {"paired": True, "vectorized": False, "method": "percentile"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample of one class alone has no kappa
        drawn = bootstrap(
            (first, second), kappa, n_resamples=_NUM_RESAMPLES, rng=np.random.default_rng(0), **settings
        ).bootstrap_distribution
        found = kappa(first, second)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (math.nan, math.nan)
    return found, float(low), float(high)


def print_agreement(labels: Mapping[str, Sequence[HumanLabel]]) -> None:
    """A line for each annotator, and one for each two of them."""
    people = new_table("annotator", "a or b", "tie", "skip", "left is better", "95 %", "median s")
    for name, given in labels.items():
        counts = Counter(label.answer for label in latest(given).values())
        sides = [label.answer == label.left for label in latest(given).values() if label.left and label.answer in "ab"]
        times = [label.seconds for label in given if label.seconds is not None]
        people.add_row(
            name,
            f"{counts['a'] + counts['b']:,}",
            f"{counts['tie']:,}",
            f"{counts['skip']:,}",
            f"{sum(sides) / len(sides):.2f}" if sides else "-",
            _interval(*wilson_interval(sum(sides), len(sides))),
            f"{statistics.median(times):.0f}" if times else "-",
        )
    both = new_table("annotators", "pairs", "agreement", "95 %", "kappa", "95 %")
    for one, other in itertools.combinations(labels, 2):
        found = agreement(labels[one], labels[other])
        both.add_row(
            f"{one}, {other}",
            f"{found.num_pairs:,}",
            _figure(found.share),
            _interval(found.low, found.high),
            _figure(found.kappa),
            _interval(found.kappa_low, found.kappa_high),
        )
    for table in (people, both):
        table.columns[0].no_wrap = False  # names are as long as they are
    say(people, *([both] if len(labels) > 1 else ["One annotator: agreement needs a second one, --annotator NAME."]))


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
