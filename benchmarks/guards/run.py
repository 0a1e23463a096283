"""Do the drift guards catch faults, and do they do no harm? Short runs of the embedded world, a fifth with a fault.

    python benchmarks/guard_study.py                  # resumable: a run whose JSON is there is not repeated
    python benchmarks/tables.py                       # writes the tables into docs/guards.md

Every run is made with all guards at `warn`, and again with their default levels where one of these would have acted
(elsewhere the two are the same run). Seed model and delivered models are held against 20,000 generated pairs, judged by
the gold reward; the count ends early where the question, more than one point worse or not, is settled by four standard
errors. Random seeds from 1001 on served to choose thresholds.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
from guard_faults import write_foreign_pairs
from record import read_figures
from torch import Tensor
from tqdm import tqdm

from ser_lightning import Scorer
from ser_lightning.callbacks.guards import GuardCallback
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evolution.guards import KINDS
from ser_lightning.records import PreferencePair
from ser_lightning.synthetic.world import generate_pairs

HERE = Path(__file__).parent
FAULTS = ("labels_flipped", "length_teacher", "foreign_pool", "rewards_collapse")
NUM_PAIRS, SEED_FRACTION, TEST_FRACTION = 800, 0.19, 0.02
NUM_TEST, CHUNK = 20_000, 2_000
HARM = 0.01
"""Accuracy that a delivered model may lose against its own seed model."""


def fault_of(seed: int) -> str | None:
    """Every fifth run has a fault, each fault as often."""
    return FAULTS[seed // 5 % len(FAULTS)] if seed % 5 == 0 else None


def command(seed: int, fault: str | None, guards: bool, run: Path, max_rounds: int = 1) -> list[str]:
    """One short run."""
    callbacks: list[dict] = [{"class_path": "ser_lightning.GuardCallback"}]
    if not guards:
        callbacks[0]["init_args"] = {"levels": dict.fromkeys(KINDS, "warn")}
    injected = {"length_teacher": "LengthTeacher", "rewards_collapse": "DecayedWeights"}.get(fault or "")
    callbacks += [{"class_path": f"guard_faults.{injected}"}] if injected else []
    rule = "guard_faults.FlippingRule" if fault == "labels_flipped" else "ser_lightning.CalibratedRule"
    evolution: dict = {"max_rounds": max_rounds, "seed_epochs": 8, "epochs_per_round": 4, "folds": 2}
    evolution["rule"] = {"class_path": rule}
    callbacks.append({"class_path": "ser_lightning.EvolutionCallback", "init_args": evolution})
    flags = [f"--data.synthetic_pairs={NUM_PAIRS}", f"--data.seed_fraction={SEED_FRACTION}"]
    if fault == "foreign_pool":
        flags = [f"--data.path={run.parent}/seed-{seed}.jsonl", f"--data.pool_path={run.parent}/foreign-{seed}.jsonl"]
        flags.append("--data.seed_fraction=1.0")
    return [
        *(sys.executable, "-m", "ser_lightning", "fit", "--config", "rm.yaml", f"--run_dir={run}"),
        *(f"--seed_everything={seed}", f"--data.split_seed={seed}", f"--data.test_fraction={TEST_FRACTION}", *flags),
        f"--trainer.callbacks={json.dumps(callbacks)}",
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    ]


def fit(seed: int, fault: str | None, guards: bool, run: Path, max_rounds: int = 1) -> dict:
    """Run it; which round is delivered and what the guards found."""
    if fault == "foreign_pool":
        run.parent.mkdir(parents=True, exist_ok=True)
        num_seed = round(NUM_PAIRS * (1 - TEST_FRACTION) * SEED_FRACTION)
        pairs = [{"prompt": p.prompt, "response_a": p.response_a, "response_b": p.response_b, "label": p.label}
                 for p in generate_pairs(num_seed, seed)]  # fmt: skip
        (run.parent / f"seed-{seed}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        write_foreign_pairs(run.parent / f"foreign-{seed}.jsonl", NUM_PAIRS - num_seed, seed)
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command(seed, fault, guards, run, max_rounds), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"random seed {seed} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    rounds = read_figures(run / "rounds.csv")
    found = [json.loads((run / f"rounds/{n}/guards.json").read_text()) for n in range(len(rounds))]
    figures = [{f["guard"]: [f["value"], f["limit"], f["fired"]] for f in one} for one in found]
    delivered = next(n for n, row in enumerate(rounds) if row["delivered"])
    return {"delivered": delivered, "rounds": rounds, "guards": figures}


def acts(result: dict) -> bool:
    """Whether a guard of a level above `warn` fired before the end."""
    strict = {name for name, guard in GuardCallback().guards.items() if guard.level in ("stop", "rollback")}
    return any(strict & {name for name, (_, _, fired) in found.items() if fired} for found in result["guards"])


class Held:
    """Pairs that no run has seen, and which side the gold reward prefers.

    Args:
        num_pairs: how many.
    """

    def __init__(self, num_pairs: int = NUM_TEST) -> None:
        pairs = list(generate_pairs(num_pairs, seed=-1))
        random.Random(0).shuffle(pairs)
        self.gold = torch.tensor([float(p.gold_a > p.gold_b) for p in pairs])
        self.pairs = [
            PreferencePair(i, [{"role": "user", "content": p.prompt}], p.response_a, p.response_b, None)
            for i, p in enumerate(pairs)
        ]

    def credits(self, run: Path, rounds: list[int]) -> Iterator[Tensor]:
        """Credit of each pair (1 right, 0.5 tie, 0 wrong) by some rounds' models: (rounds, pairs), in chunks of pairs.

        Args:
            run: folder of a run.
            rounds: whose models.
        """
        scorer = Scorer.load(run)
        models = [torch.load(run / f"rounds/{n}/model.pt", weights_only=True)["weights"] for n in rounds]
        for name, weight in scorer.judge.reward_model.named_parameters():
            weight.requires_grad_(name in models[0])  # what was trained is what `model.pt` holds
        for start in range(0, len(self.pairs), CHUNK):
            encoded = [pair for pair in scorer.encode(self.pairs[start : start + CHUNK]) if pair is not None]
            gold, found = self.gold[start : start + CHUNK], []
            for weights in models:
                scorer.judge.reward_model.load_trainable_state(weights)
                first, second = scorer.score_encoded(encoded)
                found.append(half_credit(first - second, gold))
            yield torch.stack(found)

    def compare(self, run: Path, rounds: list[int], ends_early: bool = True) -> dict:
        """Accuracy of some rounds' models on the same pairs, and of each the difference to the first.

        Args:
            run: folder of a run.
            rounds: 0 first.
            ends_early: where it is settled which of them are more than `HARM` worse than the first.
        """
        credit = torch.empty(len(rounds), 0)
        for chunk in self.credits(run, rounds):
            credit = torch.cat([credit, chunk], 1)
            change = credit[1:] - credit[:1]
            error = change.std(1) / change.shape[1] ** 0.5
            if ends_early and bool(((change.mean(1) + HARM).abs() > 4 * error).all()):
                break
        names = [str(n) for n in rounds]
        return {
            "pairs": credit.shape[1],
            "accuracy": dict(zip(names, credit.mean(1).tolist(), strict=True)),
            "change": dict(zip(names[1:], change.mean(1).tolist(), strict=True)),
            "standard_error": dict(zip(names[1:], error.tolist(), strict=True)),
        }


def measure(seed: int, out: Path, scratch: Path) -> None:
    """One random seed: without guards, with them, and what both delivered."""
    torch.set_num_threads(1)
    fault, start = fault_of(seed), time.monotonic()
    off = fit(seed, fault, False, scratch / f"off-{seed}")
    on = fit(seed, fault, True, scratch / f"on-{seed}") if acts(off) else off
    held = Held()
    result = {
        "seed": seed,
        "fault": fault,
        "off": off,
        "on": {"delivered": on["delivered"], "num_rounds": len(on["rounds"]), "guards": on["guards"]},
        "held": held.compare(scratch / f"off-{seed}", list(range(len(off["rounds"])))),
        "seconds": round(time.monotonic() - start, 1),
        "versions": {name: version(name) for name in ("torch", "lightning", "transformers")},
    }
    (out / f"{seed}.json").write_text(json.dumps(result) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(1, 101))
    parser.add_argument("--out", type=Path, default=HERE / "guards")
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmark/guards"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; each gets one thread")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in args.seeds if not (args.out / f"{seed}.json").is_file()]
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:  # a fork of torch may hang
        waiting = [pool.submit(measure, seed, args.out, args.scratch) for seed in missing]
        for one in tqdm(waiting, desc="runs"):
            one.result()


if __name__ == "__main__":
    main()
