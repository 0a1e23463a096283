"""Error rate and cost of the sequential comparison, computed exactly: `python -m benchmarks.sequential.run`.

For a number of discordant pairs, effects at which McNemar's exact test has a given power; then the distribution of the
place at which the sequential test decides, with as many pairs at most, all of them discordant. Writes
results.jsonl; then `python -m benchmarks.tables`.
"""

import numpy as np
from scipy import optimize, stats

from benchmarks.sequential.tables import RESULTS
from benchmarks.shared.results import versions
from ser_lightning.evaluation.paired_tests import boundary

ALPHA = 0.05
POWERS = (None, 0.5, 0.95, 0.99)
"""None: both models are equally good."""


def fixed_power(share: float, number: int) -> float:
    """Of McNemar's exact test on `number` discordant pairs, of which B wins this share on average."""
    least = int(stats.binom.isf(ALPHA / 2, number, 0.5)) + 1
    return float(stats.binom.sf(least - 1, number, share) + stats.binom.cdf(number - least, number, share))


def outcome(share: float, number: int) -> dict[str, float]:
    """Probability that the test decides (for B and at all) within `number` pairs, and how many pairs it looks at.

    Args:
        share: of the pairs, won by B on average.
        number: of pairs.
    """
    prob = np.zeros(2 * number + 1)  # of B's wins less A's, from -number on, where nothing is decided
    prob[number] = 1.0
    for_a, for_b = np.zeros(number), np.zeros(number)
    for place, bound in enumerate(boundary([True] * number, number, ALPHA)):
        prob = share * np.roll(prob, 1) + (1 - share) * np.roll(prob, -1)
        for_b[place], for_a[place] = prob[number + bound :].sum(), prob[: number - bound + 1].sum()
        prob[number + bound :] = prob[: number - bound + 1] = 0.0
    by_then = np.cumsum(for_a + for_b)
    decided, looked = float(by_then[-1]), np.arange(1, number + 1)
    return {
        "decided": decided,
        "right": float(for_b.sum()),
        "median_share": (int(np.argmax(by_then >= 0.5)) + 1) / number if decided >= 0.5 else 1.0,
        "mean_share": float(((for_a + for_b) * looked).sum() + (1 - decided) * number) / number,
    }


def main() -> None:
    """Compute and write."""
    rows, made_with = [], {"versions": versions("numpy", "scipy")}
    for number in (50, 200, 1000):
        for power in POWERS:
            share = 0.5
            if power is not None:
                share = optimize.brentq(lambda s, p=power, n=number: fixed_power(s, n) - p, 0.5, 0.999)
            rows.append({"discordant": number, "power": power, "share": share, **outcome(share, number), **made_with})
    RESULTS.file.unlink(missing_ok=True)
    RESULTS.add(*rows)


if __name__ == "__main__":
    main()
