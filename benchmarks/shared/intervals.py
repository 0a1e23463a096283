"""95 % intervals, for the tables of the docs."""

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
