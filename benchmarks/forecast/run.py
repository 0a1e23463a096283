"""What does stopping by the forecast save, and does it cost accuracy? Runs that nothing stops but the rule.

    python -m benchmarks.forecast.run   # makes the runs that are missing in results.jsonl
    python -m benchmarks.tables         # writes the tables into docs/forecast.md

A run that stops early is the beginning of one that does not, so one run serves for every stop. The paper's recipe runs
without folds, as the paper has none, and ours with two. The models of all rounds are held against the same generated
pairs, which no run has seen, judged by the gold reward. `docs/forecast.md` says what the constants were chosen on;
one of these runs is `--conditions choice --seeds 1001`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks.shared.held_out import HeldOut
from benchmarks.shared.results import Results, Run, read_figures, versions
from benchmarks.shared.runs import as_typed, fit_words, run_child, run_missing, study_arguments
from ser_lightning.callbacks.state import seed_credits
from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.records import PairScores

TEST_FRACTION, NUM_HELD = 0.02, 600
COLUMNS = ("round", "scored", "kept", "flipped", "seed_oof_accuracy", "pool_accuracy", "tokens", "seconds", "delivered")
RULE = "ser_lightning."
OURS = {"folds": 2, "rule": f"{RULE}CalibratedRule"}
SHORT = {"seed_epochs": 8, "epochs_per_round": 3}
HEAD = ["--model.backbone.train=head", "--model.optimizer.init_args.lr=0.01"]


@dataclass(frozen=True)
class Condition:
    """A recipe, and the data that it can be run on in minutes."""

    evolution: dict
    num_pairs: int = 500
    seed_fraction: float = 0.28
    flags: Sequence[str] = ()


CONDITIONS = {
    "paper": Condition({**SHORT, "max_rounds": 5, "folds": 0, "rule": f"{RULE}PaperRule"}),
    "ours": Condition({**SHORT, "max_rounds": 3, **OURS}),
    "choice": Condition({**SHORT, "max_rounds": 6, "folds": 0, "rule": f"{RULE}PaperRule"}, 600, seed_fraction=0.25),
    "frozen": Condition({"seed_epochs": 30, "epochs_per_round": 10, "max_rounds": 5, **OURS}, 2_000, flags=HEAD),
}


def command(condition: str, seed: int, run: Path) -> list[str]:
    """One run, as a user would type it."""
    recipe = CONDITIONS[condition]
    flags = [f"--data.synthetic_pairs={recipe.num_pairs}", f"--data.seed_fraction={recipe.seed_fraction}"]
    flags += [f"--evolution.{name}={value}" for name, value in recipe.evolution.items()]
    flags += [f"--data.test_fraction={TEST_FRACTION}", "--trainer.callbacks=[]", *recipe.flags]
    return fit_words(run, seed, flags)


def credits_of(run: Path, seed: int, recipe: Condition) -> list[list[float]]:
    """For each round the credit of every seed pair, out of fold; empty lists without folds."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    rounds = [PairScores(**scores) for scores in checkpoint["callbacks"]["EvolutionCallback"]["seed_scores"]]
    data = PreferenceDataModule(
        split_seed=seed,
        synthetic_pairs=recipe.num_pairs,
        seed_fraction=recipe.seed_fraction,
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


def measure(condition: str, seed: int, scratch: Path) -> Run:
    """One run, what it knew out of fold, and what each of its models is worth."""
    torch.set_num_threads(1)
    run = scratch / f"{condition}-{seed}"
    words, start = command(condition, seed, run), time.monotonic()
    run_child(words)
    rounds = read_figures(run / "rounds.csv")
    # What is forecast is left out: the tables forecast anew, from what is kept here.
    rounds = [{k: row[k] for k in COLUMNS} for row in rounds]
    held = HeldOut(NUM_HELD).compare(run, list(range(len(rounds))), ends_early=False)
    return {
        "condition": condition,
        "seed": seed,
        "command": as_typed(words, run),
        "rounds": rounds,
        "seed_credits": credits_of(run, seed, CONDITIONS[condition]),
        "pool_labels": labels_of(run, len(rounds)),
        "held": held,
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions("torch", "lightning", "transformers"),
    }


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, Path(__file__).parent / "results.jsonl", "runs/benchmark/forecast")
    parser.set_defaults(jobs=1)
    parser.add_argument("--conditions", nargs="+", choices=[*CONDITIONS], default=["paper", "ours", "frozen"])
    args = parser.parse_args()
    tasks = product(args.conditions, args.seeds)
    work = partial(measure, scratch=args.scratch)
    run_missing(Results(args.out, "condition", "seed"), tasks, work, args.jobs, in_processes=True)


if __name__ == "__main__":
    main()
