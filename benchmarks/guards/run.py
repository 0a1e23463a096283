"""Do the drift guards catch faults, and do they do no harm? Short runs of the synthetic dataset, a fifth with a fault.

    python -m benchmarks.guards.run     # makes the runs that are missing in results.jsonl
    python -m benchmarks.tables         # writes the tables into docs/guards.md

Every run is made with all guards at `warn`, and again with their default levels where one of these would have acted
(elsewhere the two are the same run). Seed model and delivered models are held against 20,000 generated pairs, judged by
the gold reward; the count ends early where the question, more than one point worse or not, is settled by four standard
errors. Random seeds from 1001 on served to choose thresholds.
"""

import json
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.guards.faults import write_foreign_pairs
from benchmarks.shared.held_out import HeldOut
from benchmarks.shared.results import Results, Run, read_figures, versions
from benchmarks.shared.runs import fit_words, run_child, run_missing, study_arguments
from ser_lightning.callbacks.guards import GuardCallback
from ser_lightning.evolution.guards import KINDS
from ser_lightning.synthetic.world import generate_pairs

FAULTS = ("labels_flipped", "length_teacher", "foreign_pool", "rewards_collapse")
NUM_PAIRS, SEED_FRACTION, TEST_FRACTION = 800, 0.19, 0.02


def fault_of(seed: int) -> str | None:
    """Every fifth run has a fault, each fault as often."""
    return FAULTS[seed // 5 % len(FAULTS)] if seed % 5 == 0 else None


def command(seed: int, fault: str | None, guards: bool, run: Path, max_rounds: int = 1) -> list[str]:
    """One short run."""
    callbacks: list[dict] = [{"class_path": "ser_lightning.GuardCallback"}]
    if not guards:
        callbacks[0]["init_args"] = {"levels": dict.fromkeys(KINDS, "warn")}
    injected = {"length_teacher": "LengthTeacher", "rewards_collapse": "DecayedWeights"}.get(fault or "")
    callbacks += [{"class_path": f"benchmarks.guards.faults.{injected}"}] if injected else []
    rule = "benchmarks.guards.faults.FlippingRule" if fault == "labels_flipped" else "ser_lightning.CalibratedRule"
    evolution = {"max_rounds": max_rounds, "seed_epochs": 8, "epochs_per_round": 4, "folds": 2, "rule": rule}
    flags = [f"--data.synthetic_pairs={NUM_PAIRS}", f"--data.seed_fraction={SEED_FRACTION}"]
    if fault == "foreign_pool":
        flags = [f"--data.path={run.parent}/seed-{seed}.jsonl", f"--data.pool_path={run.parent}/foreign-{seed}.jsonl"]
        flags.append("--data.seed_fraction=1.0")
    flags += [f"--evolution.{name}={value}" for name, value in evolution.items()]
    flags += [f"--data.test_fraction={TEST_FRACTION}", f"--trainer.callbacks={json.dumps(callbacks)}"]
    return fit_words(run, seed, flags)


def fit(seed: int, fault: str | None, guards: bool, run: Path, max_rounds: int = 1) -> dict:
    """Run it; which round is delivered and what the guards found."""
    if fault == "foreign_pool":
        run.parent.mkdir(parents=True, exist_ok=True)
        num_seed = round(NUM_PAIRS * (1 - TEST_FRACTION) * SEED_FRACTION)
        pairs = [{"prompt": p.prompt, "response_a": p.response_a, "response_b": p.response_b, "label": p.label}
                 for p in generate_pairs(num_seed, seed)]  # fmt: skip
        (run.parent / f"seed-{seed}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        write_foreign_pairs(run.parent / f"foreign-{seed}.jsonl", NUM_PAIRS - num_seed, seed)
    run_child(command(seed, fault, guards, run, max_rounds))
    rounds = read_figures(run / "rounds.csv")
    found = [json.loads((run / f"rounds/{n}/guards.json").read_text()) for n in range(len(rounds))]
    figures = [{f["guard"]: [f["value"], f["limit"], f["fired"]] for f in one} for one in found]
    delivered = next(n for n, row in enumerate(rounds) if row["delivered"])
    return {"delivered": delivered, "rounds": rounds, "guards": figures}


def acts(result: dict) -> bool:
    """Whether a guard of a level above `warn` fired before the end."""
    strict = {name for name, guard in GuardCallback().guards.items() if guard.level in ("stop", "rollback")}
    return any(strict & {name for name, (_, _, fired) in found.items() if fired} for found in result["guards"])


def measure(seed: int, scratch: Path) -> Run:
    """One random seed: without guards, with them, and what both delivered."""
    torch.set_num_threads(1)
    fault, start = fault_of(seed), time.monotonic()
    off = fit(seed, fault, False, scratch / f"off-{seed}")
    on = fit(seed, fault, True, scratch / f"on-{seed}") if acts(off) else off
    return {
        "seed": seed,
        "fault": fault,
        "off": off,
        "on": {"delivered": on["delivered"], "num_rounds": len(on["rounds"]), "guards": on["guards"]},
        "held": HeldOut().compare(scratch / f"off-{seed}", list(range(len(off["rounds"])))),
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions("torch", "lightning", "transformers"),
    }


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, Path(__file__).parent / "results.jsonl", "runs/benchmark/guards")
    parser.set_defaults(seeds=range(1, 101))
    args = parser.parse_args()
    tasks = [(seed,) for seed in args.seeds]
    work = partial(measure, scratch=args.scratch)
    run_missing(Results(args.out, "seed"), tasks, work, args.jobs, in_processes=True)


if __name__ == "__main__":
    main()
