"""What the guard `overconfidence` says of runs of `run.py` made before it existed, from their audit files.

    python -m benchmarks.guards.audits runs/benchmark/guards/off-*    # adds to audits.jsonl
    python -m benchmarks.tables                                       # writes the table into docs/guards.md

An audit holds the stated probability of every pool pair, and `rounds.csv` the accuracy out of fold, which is all that
the guard takes. A second figure is what it would be if all rewards of the pool were three times as large: the same
order and the same labels, stated surer.
"""

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq
import torch
from scipy import stats

from benchmarks.guards.run import fault_of
from benchmarks.guards.tables import AUDITS
from benchmarks.shared.results import Run, read_figures
from ser_lightning.evaluation.metrics import wilson_interval

LARGER = 3.0
Z_95 = float(stats.norm.ppf(0.975))


def values(run: Path) -> list[Run]:
    """The guard's value in every round of a run, as it is and with larger rewards."""
    seed = int(run.name.rpartition("-")[2])
    found = []
    for row in read_figures(run / "rounds.csv"):
        number = int(row["round"])
        folder = run / "rounds" / str(number)
        guards = {one["guard"]: one["value"] for one in json.loads((folder / "guards.json").read_text())}
        accuracy, low = row["seed_oof_accuracy"], guards["chance"]
        num_seed = round(Z_95**2 * low * (1 - low) / (accuracy - low) ** 2)  # Wilson's interval, solved for the pairs
        _, high = wilson_interval(accuracy * num_seed, num_seed)
        prob_a = torch.from_numpy(pq.read_table(folder / "audit.parquet")["probability"].to_numpy().copy()).double()
        line = {"seed": seed, "fault": fault_of(seed), "round": number, "larger": LARGER}
        for name, factor in (("value", 1.0), ("value_if_larger", LARGER)):
            stated = (factor * prob_a.logit(1e-12)).sigmoid()
            line[name] = float(torch.maximum(stated, 1 - stated).mean()) - high
        found.append(line)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    for run in parser.parse_args().runs:
        if (run / "checkpoints" / "last.ckpt").is_file():
            AUDITS.add(*values(run))


if __name__ == "__main__":
    main()
