"""Seed, delivered and all-labels accuracy for each selection rule on the synthetic dataset.

    python -m benchmarks.rules.run      # makes the runs that are missing in results.jsonl
    python -m benchmarks.tables         # writes the tables into docs/results.md

A random seed changes the world's pairs, the split, the order of the batches and every new weight. The test split
chooses nothing.
"""

from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.shared.results import Results, Run
from benchmarks.shared.runs import fit, run_missing, study_arguments

RULE = "ser_lightning.evolution.selection."
NO_FOLDS = ["--evolution.folds=0"]
CONDITIONS = {
    "ours": [],
    "paper": [f"--evolution.rule={RULE}PaperRule", *NO_FOLDS],
    "released": [f"--evolution.rule={RULE}ReleasedRule", *NO_FOLDS],
    "keep_all": [f"--evolution.rule={RULE}TopShareRule", "--evolution.rule.share=1.0", *NO_FOLDS],
    "top_half": [f"--evolution.rule={RULE}TopShareRule", "--evolution.rule.share=0.5", *NO_FOLDS],
    "all_labels": [
        f"--evolution.rule={RULE}TopShareRule",
        "--data.seed_fraction=1.0",
        "--evolution.max_rounds=0",
        "--evolution.seed_epochs=4",  # 8, as the seed takes, would be twice the steps for nothing
        *NO_FOLDS,
    ],
}
NAMES = {
    "ours": "`CalibratedRule` (ours)",
    "paper": "`PaperRule`",
    "released": "`ReleasedRule`",
    "keep_all": "keep all (`TopShareRule`, 1.0)",
    "top_half": "top half by margin (`TopShareRule`, 0.5)",
}
"""What tables call the rules."""


BASELINES = "baselines"


def measure_baselines(seed: int) -> Run:
    """Baselines, and the ceiling that the label noise leaves, on the same test pairs."""
    import torch

    from ser_lightning.callbacks.baselines import bag_of_words_accuracy
    from ser_lightning.datamodules.preference import PreferenceDataModule
    from ser_lightning.evaluation.metrics import half_credit
    from ser_lightning.models.backbone import Backbone, load_tokenizer
    from ser_lightning.synthetic.world import gold_reward

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
        known, right = data.held_out_labels("test").count_right(ids, label)
        figures[name] = right / known
    return {"condition": BASELINES, "seed": seed, "figures": figures, "test_pairs": len(ids)}


def run_one(condition: str, seed: int, scratch: Path) -> Run:
    """One run of a rule, or the baselines."""
    if condition == BASELINES:
        return measure_baselines(seed)
    return fit(condition, CONDITIONS[condition], seed, scratch)


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, Path(__file__).parent / "results.jsonl", "runs/benchmark")
    names = [*CONDITIONS, BASELINES]
    parser.add_argument("--conditions", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    tasks = product(args.conditions, args.seeds)
    run_missing(Results(args.out, "condition", "seed"), tasks, partial(run_one, scratch=args.scratch), args.jobs)


if __name__ == "__main__":
    main()
