"""Seed, delivered and all-labels accuracy for each selection rule on the embedded synthetic world.

    python benchmarks/rules.py                    # resumable: a run whose JSON is there is not repeated
    python benchmarks/tables.py                   # writes the table into docs/results.md

A random seed changes the world's pairs, the split, the order of the batches and every new weight. One JSON a run goes
to `benchmarks/rules/`. The test split chooses nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from record import record
from tqdm import tqdm

HERE = Path(__file__).parent
RULE = "ser_lightning.selection."
NO_FOLDS = ["--trainer.callbacks.folds=0"]
CONDITIONS = {
    "ours": [],
    "paper": [f"--trainer.callbacks.rule={RULE}PaperRule", *NO_FOLDS],
    "released": [f"--trainer.callbacks.rule={RULE}ReleasedRule", *NO_FOLDS],
    "keep_all": [f"--trainer.callbacks.rule={RULE}TopShareRule", "--trainer.callbacks.rule.share=1.0", *NO_FOLDS],
    "top_half": [f"--trainer.callbacks.rule={RULE}TopShareRule", "--trainer.callbacks.rule.share=0.5", *NO_FOLDS],
    "all_labels": [
        f"--trainer.callbacks.rule={RULE}TopShareRule",
        "--data.seed_fraction=1.0",
        "--trainer.callbacks.max_rounds=0",
        "--trainer.callbacks.seed_epochs=4",  # 8, as the seed takes, would be twice the steps for nothing
        *NO_FOLDS,
    ],
}


def command(condition: str, seed: int, run: Path) -> list[str]:
    """The command of one run, as a user would type it."""
    return [
        *(sys.executable, "-m", "ser_lightning", "fit", "--config", "rm.yaml"),
        *(f"--run_dir={run}", f"--seed_everything={seed}", f"--data.split_seed={seed}"),
        *CONDITIONS[condition],
        "--trainer.enable_progress_bar=false",
    ]


def measure(condition: str, seed: int, scratch: Path, threads: int) -> dict:
    """One run and all that its `rounds.csv` says."""
    run = scratch / f"{condition}-{seed}"
    words = command(condition, seed, run)
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    spoken = " ".join(["python", *words[1:]]).replace(str(scratch), "runs")
    seconds = round(time.monotonic() - start, 1)
    return {"condition": condition, "seed": seed, "seconds": seconds, "threads": threads, **record(run, spoken)}


def measure_floors(seed: int) -> dict:
    """Floors, and the ceiling that the label noise leaves, on the same test pairs."""
    from ser_lightning.backbone import Backbone, load_tokenizer
    from ser_lightning.callbacks.floors import bag_of_words_accuracy
    from ser_lightning.datamodules.preference import PreferenceDataModule
    from ser_lightning.datamodules.synthetic import gold_reward
    from ser_lightning.metrics import half_credit

    figures = {}
    for name, fraction in (("seed", 0.15), ("all_labels", 1.0)):
        data = PreferenceDataModule(split_seed=seed, seed_fraction=fraction, max_length=256)
        data.tokenizer = load_tokenizer(Backbone("world_lm"))
        data.prepare_data()
        data.setup("test")
        figures[f"bag_of_words_{name}"] = bag_of_words_accuracy(data, "test")
    ids = data.pair_ids("test")
    gold = [
        gold_reward(p.prompt[-1]["content"], p.response_a) - gold_reward(p.prompt[-1]["content"], p.response_b)
        for p in data.lookup(ids)
    ]
    lengths = [len(p.response_a.split()) - len(p.response_b.split()) for p in data.lookup(ids)]
    for name, margin in (("ceiling", gold), ("longer", lengths)):
        label = half_credit(torch.tensor(margin, dtype=torch.float32), torch.ones(len(ids)))
        known, right = data.hidden_truth("test").count_right(ids, label)
        figures[name] = right / known
    return {"condition": "floors", "seed": seed, "figures": figures, "test_pairs": len(ids)}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Random seed 0 is the demo's; its test figures are in view whenever anybody tunes.
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--conditions", nargs="*", default=[*CONDITIONS, "floors"])
    parser.add_argument("--out", type=Path, default=HERE / "rules")
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; each gets one thread")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [(c, s) for s in args.seeds for c in args.conditions]
    missing = [(c, s) for c, s in wanted if not (args.out / f"{c}-{s}.json").is_file()]

    def work(task: tuple[str, int]) -> None:
        condition, seed = task
        result = measure_floors(seed) if condition == "floors" else measure(condition, seed, args.scratch, 1)
        (args.out / f"{condition}-{seed}.json").write_text(json.dumps(result, indent=1) + "\n")

    with ThreadPoolExecutor(args.jobs) as pool:
        list(tqdm(pool.map(work, missing), total=len(missing), desc="runs"))


if __name__ == "__main__":
    main()
