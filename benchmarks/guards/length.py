"""Does `length` as it is measured now tell faults from healthy runs? Seed models of runs of `run.py`.

    python -m benchmarks.guards.length    # makes the runs that are missing in length.jsonl
    python -m benchmarks.tables           # writes the table into docs/guards.md

The study was made when the guard counted labels. Round 0 is the same in these runs, bit for bit, so the files of the
study have what it found by labels, and these runs what the model expects. Those with a foreign pool were made again
since; what it found by labels there is in the result file only.
"""

from pathlib import Path

from benchmarks.guards.run import fault_of, fit
from benchmarks.guards.tables import LENGTH, RESULTS
from benchmarks.shared.results import Results, Run
from benchmarks.shared.runs import run_missing, study_arguments

GUARD = "length"


def first_round(seed: int, by_labels: Run, scratch: Path) -> Run:
    """What the guard finds in the round of the seed model, by labels and by expectation: value, limit, fired."""
    expected = fit(seed, fault_of(seed), False, scratch / f"length-{seed}", max_rounds=0)["guards"][0]
    return {"seed": seed, "fault": fault_of(seed), "by_labels": by_labels[GUARD], "expected": expected[GUARD]}


def main() -> None:
    """Command line."""
    by_kind = [n for n in range(1, 101) if fault_of(n) in (None, "length_teacher", "foreign_pool")]
    chosen = [n for n in by_kind if fault_of(n)] + [n for n in by_kind if not fault_of(n)][:10]
    parser = study_arguments(__doc__, LENGTH.file, "runs/benchmark/guards")
    parser.set_defaults(seeds=chosen)
    args = parser.parse_args()
    study = {run["seed"]: run["off"]["guards"][0] for run in RESULTS.read()}

    def run_one(seed: int) -> Run:
        return first_round(seed, study[seed], args.scratch)

    run_missing(Results(args.out, "seed"), [(seed,) for seed in args.seeds], run_one, args.jobs)


if __name__ == "__main__":
    main()
