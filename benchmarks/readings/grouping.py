"""Results of the study of readings by data set, body and part, as its tables take them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from benchmarks.shared.bootstrap import Block, Floats, credits
from benchmarks.shared.results import Run

DELIVERED = "accuracy_0"
"""Way of delivering in all tables but that of ways."""

Runs = Mapping[int, Run]
"""By random seed."""
Settings = Mapping[str, Mapping[str, Runs]]
"""By data set and body (`pandalm/NAME`), and part of the study."""


def by_setting(found: Iterable[Run]) -> Settings:
    """Results in the order of the tables."""
    results: dict[str, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for one in found:
        where, _, part = one["setting"].rpartition("/")
        results[where][part][one["seed"]] = one
    return dict(sorted(results.items()))


def blocks_of(runs: Iterable[Run], models: Callable[[Run], Sequence[str | Floats]]) -> list[Block]:
    """A block for each fifth of the prompts.

    Args:
        runs: each with its `fifth` and the `prompt` of its test pairs.
        models: from a run to the credits of the same number of models, as text or as numbers.
    """
    fifths: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        fifths[run["fifth"]].append(run)
    return [
        Block(
            np.stack([[credits(c) if isinstance(c, str) else c for c in models(run)] for run in own]).transpose(
                1, 0, 2
            ),
            np.array(own[0]["prompt"]),
        )
        for own in fifths.values()
    ]


def names(where: str) -> list[str]:
    """Data set and body."""
    data, _, body = where.partition("/")
    return [data, body]
