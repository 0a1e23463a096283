"""What does stopping by the forecast save, and does it cost accuracy? Runs that nothing stops but the rule.

    python benchmarks/forecast_study.py               # resumable: a run whose JSON is there is not repeated
    python benchmarks/tables.py                       # writes the tables into docs/forecast.md

A run that stops early is the beginning of one that does not, so one run serves for every stop. The paper's recipe runs
without folds, as the paper has none, and ours with two. The models of all rounds are held against the same generated
pairs, which no run has seen, judged by the gold reward. `docs/forecast.md` says what the constants were chosen on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import torch
from guard_study import Held
from record import read_figures
from tqdm import tqdm

from ser_lightning.callbacks.state import seed_credits
from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.records import PairScores

HERE = Path(__file__).parent
SEED_FRACTION, TEST_FRACTION, NUM_HELD = 0.28, 0.02, 600
COLUMNS = ("round", "scored", "kept", "flipped", "seed_oof_accuracy", "pool_accuracy", "tokens", "seconds", "delivered")
RULE = "ser_lightning.evolution.selection."
OURS = {"folds": 2, "rule": {"class_path": f"{RULE}CalibratedRule"}}
SHORT = {"seed_epochs": 8, "epochs_per_round": 3}
HEAD = ["--model.backbone.train=head", "--model.optimizer.init_args.lr=0.01"]


@dataclass(frozen=True)
class Condition:
    """A recipe, and the data that it can be run on in minutes."""

    evolution: dict
    num_pairs: int = 500
    flags: Sequence[str] = ()


CONDITIONS = {
    "paper": Condition({**SHORT, "max_rounds": 5, "folds": 0, "rule": {"class_path": f"{RULE}PaperRule"}}),
    "ours": Condition({**SHORT, "max_rounds": 3, **OURS}),
    "frozen": Condition({"seed_epochs": 30, "epochs_per_round": 10, "max_rounds": 5, **OURS}, 2_000, HEAD),
}


def command(condition: str, seed: int, run: Path) -> list[str]:
    """One run, as a user would type it."""
    recipe, name = CONDITIONS[condition], "ser_lightning.EvolutionCallback"
    callbacks = [{"class_path": name, "init_args": recipe.evolution}]
    return [
        *(sys.executable, "-m", "ser_lightning", "fit", "--config", "rm.yaml", f"--run_dir={run}"),
        *(f"--seed_everything={seed}", f"--data.split_seed={seed}", f"--data.synthetic_pairs={recipe.num_pairs}"),
        *(f"--data.seed_fraction={SEED_FRACTION}", f"--data.test_fraction={TEST_FRACTION}"),
        *(*recipe.flags, f"--trainer.callbacks={json.dumps(callbacks)}"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    ]


def credits_of(run: Path, seed: int, num_pairs: int) -> list[list[float]]:
    """For each round the credit of every seed pair, out of fold; empty lists without folds."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    rounds = [PairScores(**scores) for scores in checkpoint["callbacks"]["EvolutionCallback"]["seed_scores"]]
    data = PreferenceDataModule(
        split_seed=seed,
        synthetic_pairs=num_pairs,
        seed_fraction=SEED_FRACTION,
        test_fraction=TEST_FRACTION,
        max_length=256,
    )
    data.tokenizer = load_tokenizer(Backbone("world_lm"))
    data.prepare_data()
    data.setup("fit")
    ids = data.pair_ids("seed")
    return [credit.tolist() for credit in seed_credits(rounds, ids, data.seed_labels(ids))]


def labels_of(run: Path, num_rounds: int) -> list[str]:
    """For each round the label of every pool pair, a digit each."""
    files = [run / "rounds" / str(number) / "audit.parquet" for number in range(num_rounds)]
    return ["".join(map(str, pq.read_table(file)["label"].to_pylist())) for file in files]


def measure(condition: str, seed: int, run: Path) -> dict:
    """One run, what it knew out of fold, and what each of its models is worth."""
    words, start = command(condition, seed, run), time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{condition}-{seed} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    rounds = read_figures(run / "rounds.csv")
    # What is forecast is left out: the tables forecast anew, from what is kept here.
    rounds = [{k: row[k] for k in COLUMNS} for row in rounds]
    held = Held(NUM_HELD).compare(run, list(range(len(rounds))), ends_early=False)
    return {
        "condition": condition,
        "seed": seed,
        "command": " ".join(["python", *words[1:]]).replace(str(run.parent), "runs"),
        "rounds": rounds,
        "seed_credits": credits_of(run, seed, CONDITIONS[condition].num_pairs),
        "pool_labels": labels_of(run, len(rounds)),
        "held": held,
        "seconds": round(time.monotonic() - start, 1),
        "versions": {name: version(name) for name in ("torch", "lightning", "transformers")},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(1, 6))
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--out", type=Path, default=HERE / "forecast")
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmark/forecast"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    wanted = [(condition, seed) for condition in args.conditions for seed in args.seeds]
    for condition, seed in tqdm(wanted, desc="runs"):
        file = args.out / f"{condition}-{seed}.json"
        if not file.is_file():
            result = measure(condition, seed, args.scratch / f"{condition}-{seed}")
            file.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
