"""What the guard `overconfidence` says of runs of `guard_study.py` made before it existed, from their audit files.

    python benchmarks/guard_audits.py runs/benchmark/guards/off-*     # adds to benchmarks/results/overconfidence.json
    python benchmarks/tables.py                                       # writes the table into docs/guards.md

An audit holds the stated probability of every pool pair, and `rounds.csv` the accuracy out of fold, which is all that
the guard takes. A second figure is what it would be if all rewards of the pool were three times as large: the same
order and the same labels, stated surer.
"""

import argparse
import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import torch
from guard_study import fault_of

from ser_lightning.evaluation.metrics import wilson_interval

RESULT = Path(__file__).parent / "results" / "overconfidence.json"
LARGER = 3.0
Z_95 = 1.959964


def values(run: Path) -> list[dict]:
    """The guard's value in every round of a run, as it is and with larger rewards."""
    seed = int(run.name.rpartition("-")[2])
    found = []
    with (run / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        folder = run / "rounds" / row["round"]
        guards = {one["guard"]: one["value"] for one in json.loads((folder / "guards.json").read_text())}
        accuracy, low = float(row["seed_oof_accuracy"]), guards["chance"]
        num_seed = round(Z_95**2 * low * (1 - low) / (accuracy - low) ** 2)  # Wilson's interval, solved for the pairs
        _, high = wilson_interval(accuracy * num_seed, num_seed)
        prob_a = torch.from_numpy(pq.read_table(folder / "audit.parquet")["probability"].to_numpy().copy()).double()
        line = {"seed": seed, "fault": fault_of(seed), "round": int(row["round"])}
        for name, factor in (("value", 1.0), ("value_if_larger", LARGER)):
            stated = (factor * prob_a.logit(1e-12)).sigmoid()
            line[name] = float(torch.maximum(stated, 1 - stated).mean()) - high
        found.append(line)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    runs = [run for run in parser.parse_args().runs if (run / "checkpoints" / "last.ckpt").is_file()]
    known = json.loads(RESULT.read_text())["rounds"] if RESULT.is_file() else []
    rounds = {(line["seed"], line["round"]): line for line in known}
    rounds |= {(line["seed"], line["round"]): line for run in runs for line in values(run)}
    result = {"command": "python benchmarks/guard_audits.py runs/benchmark/guards/off-*", "larger": LARGER}
    RESULT.write_text(json.dumps({**result, "rounds": [rounds[key] for key in sorted(rounds)]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
