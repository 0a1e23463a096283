"""Does `length` as it is measured now tell faults from healthy runs? Seed models of runs of `guard_study.py`.

    python benchmarks/guard_length.py             # resumable: adds to benchmarks/results/guard_length.json
    python benchmarks/tables.py                   # writes the table into docs/guards.md

The study was made when the guard counted labels. Round 0 is the same in these runs, bit for bit, so the files of the
study have what it found by labels, and these runs what the model expects. Those with a foreign pool were made again
since; what it found by labels there is in the result file only.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from guard_study import HERE, fault_of, fit
from tqdm import tqdm

RESULT = HERE / "results" / "guard_length.json"
GUARD = "length"


def first_round(seed: int, scratch: Path) -> dict:
    """What the guard finds in the round of the seed model, by labels and by expectation: value, limit, fired."""
    study = json.loads((HERE / "guards" / f"{seed}.json").read_text())["off"]["guards"][0]
    expected = fit(seed, fault_of(seed), False, scratch / f"length-{seed}", max_rounds=0)["guards"][0]
    return {"seed": seed, "fault": fault_of(seed), "by_labels": study[GUARD], "expected": expected[GUARD]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    by_kind = [n for n in range(1, 101) if fault_of(n) in (None, "length_teacher", "foreign_pool")]
    chosen = [n for n in by_kind if fault_of(n)] + [n for n in by_kind if not fault_of(n)][:10]
    parser.add_argument("--seeds", type=int, nargs="+", default=chosen)
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmark/guards"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; each gets one thread")
    args = parser.parse_args()
    known = json.loads(RESULT.read_text())["runs"] if RESULT.is_file() else []
    runs = {run["seed"]: run for run in known}
    with ThreadPoolExecutor(args.jobs) as pool:
        missing = [seed for seed in args.seeds if seed not in runs]
        for run in tqdm(pool.map(lambda seed: first_round(seed, args.scratch), missing), total=len(missing)):
            runs[run["seed"]] = run
            result = {"command": "python benchmarks/guard_length.py", "runs": [runs[seed] for seed in sorted(runs)]}
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
