"""Thresholds that a comparison has to keep, so that it serves as a regression test."""

import difflib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ser_lightning.errors import UserError, raise_problems
from ser_lightning.utils.atomic import write_text_atomically

_BOUNDS = ("min", "max")
_SIGNED = ("difference", "low", "high", "length_correlation")
"""Figures from -1 to 1; all others begin at 0."""
_COUNTS = ("pairs", "only_")
"""Figures without an upper end; all others end at 1."""


def read_gate(file: Path, known: Sequence[str]) -> dict[str, dict[str, float]]:
    """The thresholds in a file such as `accuracy_b: {min: 0.6}`.

    Raises:
        UserError: a line for each thing that is wrong.
    """
    if not file.is_file():
        raise UserError(f"--gate: got {file}, which does not exist; write one, or let --make_gate write it")
    gate = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(gate, dict) or not gate:
        raise UserError(f"--gate: {file} holds no thresholds; write lines such as `accuracy_b: {{min: 0.6}}`")
    problems = []
    for name, bounds in gate.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
            problems.append(f"--gate: {file} has the unknown figure {name}; {hint}")
        elif not isinstance(bounds, dict) or not bounds or not set(bounds) <= set(_BOUNDS):
            problems.append(f"--gate: {file} gives {name} {bounds!r}; use min, max or both")
        else:
            bad = [v for v in bounds.values() if isinstance(v, bool) or not isinstance(v, int | float) or math.isnan(v)]
            problems += [f"--gate: {file} gives {name} the threshold {value!r}; use a number" for value in bad]
    raise_problems(problems)
    raise_problems(_idle(gate, file))
    return gate


def failures(gate: Mapping[str, Mapping[str, float]], figures: Mapping[str, float]) -> list[str]:
    """A line for every threshold that is not kept; a figure that is not defined (NaN) keeps none."""
    found = []
    for name, bounds in gate.items():
        value = figures[name]
        if "min" in bounds and not value >= bounds["min"]:
            found.append(f"gate: {name} is {value:.4g}, below the {bounds['min']:.4g} that it needs")
        if "max" in bounds and not value <= bounds["max"]:
            found.append(f"gate: {name} is {value:.4g}, above the {bounds['max']:.4g} that it may be")
    return found


def make_gate(file: Path, runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Thresholds from baseline runs: as bad as chance may make a run that is no worse than they are.

    The allowance is twice the standard deviation of one more run, sqrt(s^2 (1 + 1/n) + e^2): s is the spread of n runs
    (0 for one), e the standard error of the set, a quarter of the width of its 95 % interval.

    Args:
        runs: of each run `accuracy`, `low`, `high` and `calibration_error`.

    Raises:
        UserError: the runs or the pairs are so few that a threshold could not fail.
    """
    allowed = 2 * math.sqrt(
        _variance([run["accuracy"] for run in runs]) * (1 + 1 / len(runs))
        + (sum((run["high"] - run["low"]) / 4 for run in runs) / len(runs)) ** 2
    )
    mean = sum(run["accuracy"] for run in runs) / len(runs)
    errors = [run["calibration_error"] for run in runs]
    spread = 2 * math.sqrt(_variance(errors) * (1 + 1 / len(runs)))
    gate = {
        "accuracy_b": {"min": round(mean - allowed, 4)},
        "calibration_error_b": {"max": round(max(sum(errors) / len(errors) + spread, max(errors) * 1.25), 4)},
        "difference": {"min": round(-allowed, 4)},
    }
    raise_problems(f"{problem}; give more pairs, or baselines that agree" for problem in _idle(gate, file))
    write_text_atomically(file, yaml.safe_dump(gate, sort_keys=False))
    return gate


def _idle(gate: Mapping[str, Mapping[str, float]], file: Path) -> Iterator[str]:
    """A line for every threshold that no figure can fail."""
    for name, bounds in gate.items():
        low = -1.0 if name.startswith(_SIGNED) else 0.0
        if bounds.get("min", math.inf) <= low:
            yield f"--gate: {file} gives {name} the min {bounds['min']:g}, which nothing can fail"
        if bounds.get("max", -math.inf) >= 1 and not name.startswith(_COUNTS):
            yield f"--gate: {file} gives {name} the max {bounds['max']:g}, which nothing can fail"


def _variance(values: Sequence[float]) -> float:
    return statistics.variance(values) if len(values) > 1 else 0.0
