"""Intervals over random seeds, for the tables of the docs."""

from scipy import stats


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval (Student's t over random seeds)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:.3f} ± {half:.3f}"
