"""Are the pairs that `query` asks labels for worth more than random ones? Short runs of the synthetic dataset.

    python -m benchmarks.query.run      # makes the runs that are missing in results.jsonl
    python -m benchmarks.tables         # writes the table into docs/results.md

A seed model (`base`, with two folds: its confidence is calibrated) chooses 100 pairs of its pool by each condition.
They get their hidden label, as an annotator would give it, and a **new** run has them in its seed; `none` is one
without them. Nothing that an earlier training left behind stands between the conditions. To be affordable the new runs
go without folds: a seed model, then one round on the half of its labels with the largest margins, which is delivered.
Both are held against 6,000 generated pairs that no run has seen, judged by the gold reward. Random seeds from 1001 on
are there to choose a default.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.guards.run import NUM_PAIRS, SEED_FRACTION, TEST_FRACTION
from benchmarks.rules.run import CONDITIONS as RULES
from benchmarks.shared.held_out import HeldOut
from benchmarks.shared.results import Results, Run
from benchmarks.shared.runs import fit, run_missing, study_arguments
from ser_lightning.cli.query import query
from ser_lightning.data.formats import parse_row
from ser_lightning.evolution.query import MostUncertain, QueryStrategy
from ser_lightning.records import PreferencePair
from ser_lightning.synthetic.world import generate_pairs

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
    return {"uncertain": MostUncertain(), "random": AtRandom(seed)}


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


def measure(condition: str, seed: int, scratch: Path) -> Run:
    """The run with the labels that a condition asks for, and what its models are worth."""
    torch.set_num_threads(1)
    scratch.mkdir(parents=True, exist_ok=True)
    fit("base", BASE, seed, scratch)  # one that is there already ends at once
    asked, more = {}, []
    if condition != "none":
        to = scratch / f"{condition}-{seed}.jsonl"
        asked = label_pairs(scratch / f"base-{seed}", strategies(seed)[condition], seed, to)
        more = [f"--data.new_data_path={to}"]
    result = fit(condition, [*AFTER, *more], seed, scratch)
    credit = torch.cat(list(HeldOut(NUM_HELD).credits(scratch / f"{condition}-{seed}", [0, 1])), 1)
    held = dict(zip(("seed_model", "delivered"), credit.mean(1).tolist(), strict=True))
    return {**result, "held_pairs": NUM_HELD, "asked": asked, "held": held}


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, Path(__file__).parent / "results.jsonl", "runs/benchmark/query")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    args = parser.parse_args()
    tasks = product(args.conditions, args.seeds)
    work = partial(measure, scratch=args.scratch)
    results = Results(args.out, "condition", "seed")
    # The conditions of a random seed share the run that asks.
    run_missing(results, tasks, work, args.jobs, together=lambda task: task[1], in_processes=True)


if __name__ == "__main__":
    main()
