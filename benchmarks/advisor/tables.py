"""Tables of the advisor: errors of the forecast of more labels, and intervals with the help of unlabelled pairs."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.shared.intervals import t_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run
from ser_lightning.evaluation.metrics import Z_95

RESULTS = Results(Path(__file__).parent / "results.jsonl", "setting", "seed")


def grouped(runs: Iterable[Run], part: str, *keys: str) -> dict[tuple[str | int, ...], list[Run]]:
    """Lines of a part of all random seeds by setting and these keys."""
    found: dict[tuple[str | int, ...], list[Run]] = defaultdict(list)
    for run in runs:
        for line in run[part]:
            found[(run["setting"], *(line[key] for key in keys))].append(line)
    return found


def covered(lines: Sequence[Run], with_test_noise: bool) -> float:
    """Share of results in the interval; the test half's own noise, added to the interval in quadrature, or not."""
    hits = 0
    for one in lines:
        noise = Z_95 * one["test_error"] * with_test_noise
        side = one["forecast"] - one["low"] if one["gain"] < one["forecast"] else one["high"] - one["forecast"]
        hits += abs(one["gain"] - one["forecast"]) <= float(np.hypot(side, noise))
    return hits / len(lines)


def label_table(runs: Iterable[Run]) -> str:
    """A line for each setting, size of the seed and number of labels added."""
    rows = []
    for (setting, size, more), lines in grouped(runs, "labels", "size", "more").items():
        gain, forecast, free = (np.array([one[name] for one in lines]) for name in ("gain", "forecast", "free"))
        errors = [float(np.abs(guess - gain).mean()) for guess in (forecast, free, 0.0)]
        rows.append(
            [
                *(str(setting), str(size), str(more), str(len(lines)), t_interval(gain.tolist())),
                *(t_interval((forecast - gain).tolist()), *(f"{error:.3f}" for error in errors)),
                *(f"{covered(lines, noise):.2f}" for noise in (False, True)),
            ]
        )
    header = (
        "data and body|labels|added|random seeds|gain|forecast minus gain|mean absolute error|with a free exponent|"
        "of the constant 0|gain in the 95 % interval|with the noise of the test half"
    )
    return table(header.split("|"), rows)


def powered_table(runs: Iterable[Run]) -> str:
    """A line for each setting, question and number of labelled pairs."""
    rows = []
    for (setting, asked, labelled), lines in grouped(runs, "powered", "asked", "labelled").items():
        means = {key: float(np.mean([one[key] for one in lines])) for key in lines[0] if key not in ("asked",)}
        rows.append(
            [
                *(str(setting), f"`{asked}`", str(labelled), str(len(lines)), f"{means['power']:.2f}"),
                *(f"{means['width_ratio']:.3f}", f"{means['width_ratio'] ** -2:.2f}"),
                *(f"{means[key]:.3f}" for key in ("covered", "labels_covered")),
            ]
        )
    header = (
        "data and body|asked|labelled pairs|random seeds|power|width, over labels alone|worth so many times the labels|"
        "coverage|of labels alone"
    )
    return table(header.split("|"), rows)


def tables() -> dict[str, dict[str, str]]:
    """All tables by page and name."""
    runs = RESULTS.read()
    return {
        "forecast.md": {"label_gains": label_table(runs)},
        "evaluation.md": {"powered": powered_table(runs)},
    }
