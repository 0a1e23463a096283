"""What sampled responses are like, and how much of a difference between two policies is chance. N prompts."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from ser_lightning.evaluation.metrics import wilson_interval

_WORD = re.compile(r"\w+|[^\w\s]")


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval; the ends are NaN where too few numbers were given."""

    estimate: float
    low: float
    high: float


def repetition(text: str, n: int = 3) -> float:
    """Share of the n-grams of a text that occurred before in it; 0 for a text of fewer than n words.

    A word is a run of letters and digits, whatever its case, or one punctuation mark.

    Args:
        n: words of an n-gram.
    """
    grams = _ngrams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_n(texts: Iterable[str], n: int = 2) -> float:
    """Different n-grams over all n-grams of all texts (Li et al., 2016, section 5.3); NaN if there is none.

    It falls where a policy answers everything with the same phrases, and also with the amount of text: compare it at
    equal numbers of responses.

    Args:
        n: words of an n-gram, counted as in `repetition`.
    """
    counts = Counter(gram for text in texts for gram in _ngrams(text, n))
    return len(counts) / counts.total() if counts else math.nan


def win_rate(now: Tensor, start: Tensor) -> Interval:
    """Share of the prompts whose answer is judged better now than at the start; a tie counts half.

    95 % Wilson interval of wins plus half the ties, which is a little too wide where there are many ties.

    Args:
        now: (N,) judgement of the answers.
        start: (N,) the same of other answers to the same prompts.
    """
    num_won = float((now > start).sum() + 0.5 * (now == start).sum())
    return Interval(num_won / len(now) if len(now) else math.nan, *wilson_interval(num_won, len(now)))


def mean_interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """Mean and its t interval (Student, 1908): mean +- t(N - 1) * s / sqrt(N).

    Args:
        values: (N,), independent of each other.
        confidence: how often such an interval holds the mean.
    """
    from scipy.special import stdtrit  # here, since it takes a while and most commands need none of it

    num_values, values = len(values), values.double()
    mean = float(values.mean())
    if num_values < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stdtrit(num_values - 1, (1 + confidence) / 2) * values.std()) / math.sqrt(num_values)
    return Interval(mean, mean - half, mean + half)


def paired_change(now: Tensor, then: Tensor, confidence: float = 0.95) -> Interval:
    """Mean of now - then and its paired t interval: what all prompts have in common with themselves drops out.

    Args:
        now: (N,) judgement of the answers.
        then: (N,) the same of other answers to the same prompts.
    """
    return mean_interval(now.double() - then.double(), confidence)


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    return list(zip(*(words[i:] for i in range(n)), strict=False))
