"""95 % intervals, for the tables of the docs."""

import math
from collections.abc import Sequence

from scipy import stats


def t_interval(values: Sequence[float]) -> str:
    """Mean and half the width of its interval (Student's t over random seeds)."""
    mean = sum(values) / len(values)
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {half_width(stats.sem(values), len(values)):.3f}"


def half_width(standard_error: float, number: int) -> float:
    """Of a t interval around the mean of so many values."""
    return float(stats.t.interval(0.95, number - 1, scale=standard_error)[1]) if standard_error else 0.0


def wilson_interval(right: int, number: int) -> tuple[float, float]:
    """Wilson's interval of a share."""
    low, high = stats.binomtest(right, number).proportion_ci(method="wilson")
    return float(low), float(high)


def share_of_gap(seed: Sequence[float], evolved: Sequence[float], full: Sequence[float]) -> str:
    """Ratio of mean gaps, with a paired jackknife interval over random seeds; undefined where there is no gap."""
    gaps = [f - s for s, f in zip(seed, full, strict=True)]
    gains = [e - s for s, e in zip(seed, evolved, strict=True)]
    n = len(gaps)
    if n < 3 or sum(gaps) / n <= half_width(stats.sem(gaps), n):
        return "undefined"
    left_out = [(sum(gains) - gains[i]) / (sum(gaps) - gaps[i]) for i in range(n)]
    mean = sum(left_out) / n
    error = math.sqrt((n - 1) / n * sum((r - mean) ** 2 for r in left_out))
    return f"{sum(gains) / sum(gaps):.2f} ± {half_width(error, n):.2f}"
