"""Are the pairs that `query` asks labels for worth more than random ones? Short runs of the embedded world.

    python benchmarks/query_study.py                  # resumable: a run whose JSON is there is not repeated
    python benchmarks/tables.py                       # writes the table into docs/cli.md

A seed model (`base`, with two folds: its confidence is calibrated) chooses 100 pairs of its pool by each condition.
They get their hidden label, as an annotator would give it, and a **new** run has them in its seed; `none` is one
without them. Nothing that an earlier training left behind stands between the conditions. To be affordable the new runs
go without folds: a seed model, then one round on the surer half of its labels, which is delivered. Both are held
against 6,000 generated pairs that no run has seen, judged by the gold reward. Random seeds from 1001 on are there to
choose a default.
"""

import argparse
import json
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch
from guard_study import NUM_PAIRS, SEED_FRACTION, TEST_FRACTION, Held
from rules import CONDITIONS as RULES
from torch import Tensor
from tqdm import tqdm

from runs import measure
from ser_lightning.cli.query import CoverUncertain, MostUncertain, QueryStrategy, query
from ser_lightning.data.formats import parse_row
from ser_lightning.records import PreferencePair
from ser_lightning.synthetic.world import generate_pairs

HERE = Path(__file__).parent
NUM_LABELS, NUM_HELD = 100, 6_000


class AtRandom:
    """What `query` has to beat.

    Args:
        seed: of the draw.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"query {seed}")

    def choose(self, prob_a: Tensor, pairs: Sequence[PreferencePair], num_pairs: int) -> list[int]:
        """As `QueryStrategy` says."""
        return self.random.sample(range(len(pairs)), num_pairs)


def strategies(seed: int) -> dict[str, QueryStrategy]:
    """The conditions with labels, by name."""
    return {"cover": CoverUncertain(), "uncertain": MostUncertain(), "random": AtRandom(seed)}


CONDITIONS = ("none", *strategies(0))
WORLD = [
    *(f"--data.synthetic_pairs={NUM_PAIRS}", f"--data.seed_fraction={SEED_FRACTION}"),
    *(f"--data.test_fraction={TEST_FRACTION}", "--ckpt_path=auto"),
]
BASE = [*WORLD, "--evolution.max_rounds=0"]
AFTER = [*WORLD, *RULES["top_half"], "--evolution.max_rounds=1"]


def label_pairs(run: Path, strategy: QueryStrategy, seed: int, to: Path) -> dict[str, float]:
    """Write the pairs that a strategy asks for with their labels; what these pairs are like.

    Args:
        run: folder of the run that asks.
        strategy: chooses pairs of its pool.
        seed: of the world.
        to: file for `new_data_path`.
    """
    world = {}
    for pair in generate_pairs(NUM_PAIRS, seed):
        row = parse_row(asdict(pair), {}, "")
        assert isinstance(row, PreferencePair)
        is_turned = row.response_a != pair.response_a
        world[row.pair_id] = row.label, pair.gold_b - pair.gold_a if is_turned else pair.gold_a - pair.gold_b
    asked = query(run, NUM_LABELS, strategy)
    labels, gold = zip(*(world[pair.pair_id] for pair in asked), strict=True)
    rows = [
        {"prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b, "label": label}
        for pair, label in zip(asked, labels, strict=True)
    ]
    to.write_text("".join(json.dumps(row) + "\n" for row in rows))
    agree = [(margin > 0) == (label == 1) for margin, label in zip(gold, labels, strict=True)]
    return {
        "gold_margin": sum(map(abs, gold)) / NUM_LABELS,
        "labels_as_gold": sum(agree) / NUM_LABELS,
    }


def measure_seed(seed: int, conditions: Sequence[str], out: Path, scratch: Path) -> None:
    """All missing conditions of one random seed."""
    torch.set_num_threads(1)
    missing = [condition for condition in conditions if not (out / f"{condition}-{seed}.json").is_file()]
    if not missing:
        return
    scratch.mkdir(parents=True, exist_ok=True)
    measure("base", BASE, seed, scratch)  # one that is there already ends at once
    held, asking = Held(NUM_HELD), strategies(seed)
    for condition in missing:
        asked, more = {}, []
        if condition != "none":
            to = scratch / f"{condition}-{seed}.jsonl"
            asked, more = (
                label_pairs(scratch / f"base-{seed}", asking[condition], seed, to),
                [f"--data.new_data_path={to}"],
            )
        result = measure(condition, [*AFTER, *more], seed, scratch)
        result |= {"held_pairs": NUM_HELD, "asked": asked}
        accuracy = torch.cat(list(held.credits(scratch / f"{condition}-{seed}", [0, 1])), 1).mean(1).tolist()
        result["held"] = dict(zip(("seed_model", "delivered"), accuracy, strict=True))
        (out / f"{condition}-{seed}.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--conditions", nargs="*", default=CONDITIONS)
    parser.add_argument("--out", type=Path, default=HERE / "query")
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmark/query"))
    parser.add_argument("--jobs", type=int, default=2, help="random seeds at a time; each gets one thread")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:  # a fork of torch may hang
        waiting = [pool.submit(measure_seed, seed, args.conditions, args.out, args.scratch) for seed in args.seeds]
        for one in tqdm(waiting, desc="random seeds"):
            one.result()


if __name__ == "__main__":
    main()
