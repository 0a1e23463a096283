"""Error rate and cost of the sequential comparison, by simulation: `python benchmarks/sequential.py`.

For a number of discordant pairs, effects at which McNemar's exact test has a given power; then 2,000 sequential tests
on at most as many pairs. Writes `benchmarks/results/sequential.json`; then `python benchmarks/tables.py`.
"""

import json
import math
from importlib.metadata import version
from pathlib import Path

import torch
from rl_speed import machine
from scipy import optimize, stats

from ser_lightning.ab_tests import concentration

HERE = Path(__file__).parent
ALPHA = 0.05
NUM_SIMULATIONS = 2000
POWERS = (None, 0.5, 0.95, 0.99)
"""None: both models are equally good."""


def fixed_power(share: float, number: int) -> float:
    """Of McNemar's exact test on `number` discordant pairs, of which B wins this share on average."""
    least = int(stats.binom.isf(ALPHA / 2, number, 0.5)) + 1
    return float(stats.binom.sf(least - 1, number, share) + stats.binom.cdf(number - least, number, share))


def simulate(share: float, number: int, seed: int) -> dict[str, float]:
    """Share of simulations that decide (for B and at all) within `number` pairs, and how many pairs they look at."""
    generator = torch.Generator().manual_seed(seed)
    wins = (torch.rand(NUM_SIMULATIONS, number, generator=generator) < share).double().cumsum(1)
    n = torch.arange(1, number + 1, dtype=torch.float64)
    a = torch.tensor(concentration(number), dtype=torch.float64)
    log_e = n * math.log(2) + torch.lgamma(wins + a) + torch.lgamma(n - wins + a) - torch.lgamma(n + 2 * a)
    log_e -= 2 * torch.lgamma(a) - torch.lgamma(2 * a)
    crossed = log_e >= -math.log(ALPHA)
    decided = crossed.any(1)
    looked = torch.where(decided, crossed.double().argmax(1) + 1, number).double()
    right = decided & (wins.gather(1, (looked.long() - 1)[:, None])[:, 0] * 2 > looked)
    return {
        "decided": float(decided.double().mean()),
        "right": float(right.double().mean()),
        "median_share": float(looked.median()) / number,
        "mean_share": float(looked.mean()) / number,
    }


def main() -> None:
    """Simulate and write."""
    rows = []
    for number in (50, 200, 1000):
        for power in POWERS:
            share = 0.5
            if power is not None:
                share = optimize.brentq(lambda s, p=power, n=number: fixed_power(s, n) - p, 0.5, 0.999)
            rows.append({"discordant": number, "power": power, "share": share, **simulate(share, number, seed=0)})
    found = {"command": "python benchmarks/sequential.py", "machine": machine(), "rows": rows}
    found["versions"] = {name: version(name) for name in ("torch", "scipy")}
    (HERE / "results" / "sequential.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
