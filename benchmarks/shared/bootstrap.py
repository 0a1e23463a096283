"""A paired bootstrap over random seeds and prompts.

Shapes: M models, S random seeds, N test pairs that they share, P prompts of these, R resamples. A data set is tested on
in one or several such blocks of runs.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @classmethod
    def of(cls, mean: float, drawn: Floats) -> "Estimate":
        """Percentiles of what the resamples gave, NaN left out."""
        low, high = np.nanquantile(drawn, (0.025, 0.975))
        return cls(mean, float(low), float(high))


@dataclass(frozen=True)
class Block:
    """Runs that are tested on the same pairs.

    Args:
        models: (M, S, N) credit of each random seed's models.
        prompt: (N,) which prompt each pair has.
    """

    models: Floats
    prompt: NDArray[np.int64]


def credits(text: str) -> Floats:
    """(N,) 1, 0 and 0.5 of `1`, `0` and `h`."""
    return np.array([{"1": 1.0, "0": 0.0, "h": 0.5}[c] for c in text])


def blocks_by_fifth(runs: Iterable[tuple[int, Sequence[int], Sequence[str]]]) -> list[Block]:
    """A block for each fifth of the prompts.

    Args:
        runs: for each random seed its fifth, the prompts of its test pairs, and the credit of each of M models.
    """
    credit: dict[int, list[list[Floats]]] = defaultdict(list)
    prompts = {}
    for fifth, prompt, models in runs:
        credit[fifth].append([credits(text) for text in models])
        prompts[fifth] = prompt
    return [Block(np.array(own).transpose(1, 0, 2), np.array(prompts[fifth])) for fifth, own in credit.items()]


@cache
def _draws(sizes: tuple[tuple[int, int], ...]) -> list[tuple[Floats, Floats]]:
    """For each block how often a resample draws each random seed (R, S) and, apart from them, each prompt (R, P)."""
    generator, found = np.random.default_rng(0), []
    for size in sizes:
        times = [
            [np.bincount(generator.integers(number, size=number), minlength=number) for number in size]
            for _ in range(NUM_RESAMPLES)
        ]
        seeds, prompts = (np.stack(drawn).astype(np.float64) for drawn in zip(*times, strict=True))
        found.append((seeds, prompts))
    return found


def accuracies(blocks: Sequence[Block]) -> tuple[Floats, Floats]:
    """(M,) accuracies of the models over the pairs of all blocks, and (R, M) those of the resamples.

    A resample draws, in every block, random seeds and, apart from them, prompts with all their pairs; all models are
    judged on the same draw. `scipy.stats.bootstrap` could draw both ways too, but only from samples of two or more and
    pair by pair, which takes minutes.
    """
    groups = [np.unique(block.prompt, return_inverse=True)[1] for block in blocks]
    sizes = tuple((block.models.shape[1], int(group.max()) + 1) for block, group in zip(blocks, groups, strict=True))
    num_models = len(blocks[0].models)
    drawn, mean, num_pairs = np.zeros((NUM_RESAMPLES, num_models)), np.zeros(num_models), np.zeros(NUM_RESAMPLES)
    for block, group, (seeds, prompts) in zip(blocks, groups, _draws(sizes), strict=True):
        right = np.zeros((*block.models.shape[:2], prompts.shape[1]))
        np.add.at(right, (slice(None), slice(None), group), block.models)
        drawn += np.einsum("rs,msr->rm", seeds / seeds.shape[1], right @ prompts.T)
        num_pairs += prompts @ np.bincount(group)
        mean += block.models.mean(1).sum(1)
    return mean / sum(len(block.prompt) for block in blocks), drawn / num_pairs[:, None]


def share_of(mean: Floats, drawn: Floats) -> Estimate | None:
    """Of the gap between the first and the third model, what the second has closed: the ratio of mean gains.

    None where the interval of the gap itself holds 0.

    Args:
        mean: (3,) accuracies.
        drawn: (R, 3) those of the resamples.
    """
    gain, gap = drawn[:, 1] - drawn[:, 0], drawn[:, 2] - drawn[:, 0]
    if Estimate.of(0.0, gap).low <= 0:
        return None
    gap[np.isclose(gap, 0, atol=1e-9)] = np.nan  # up to rounding: no share of nothing
    return Estimate.of(float((mean[1] - mean[0]) / (mean[2] - mean[0])), gain / gap)
