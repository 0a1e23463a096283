"""Bodies that are trained with LoRA, on real human preferences: what a reading and evolution add there.

    python -m benchmarks.trained.run --data-dir FOLDER --model FOLDER                  # makes the runs that are missing
    python -m benchmarks.trained.run ... --body qwen2.5-coder-0.5b --conditions ours   # some of another body
    python -m benchmarks.tables                                                        # writes the table

Random seed s is tested on one fifth of the prompts, which chooses nothing, and draws another seed of 15 % of the other
labels. Nothing was tuned: the learning rate is that of `rm.yaml`, `mean` and `judge` read at their usual depths, and
the number of steps was set by the time that a CPU takes: 40 for a seed, two epochs for more pairs. There are no folds,
which would take five more trainings: what is delivered is the last round, unjudged. bfloat16, adapters on queries and
values. On a CPU, compiled layers and eager attention make a step some three times as fast.
"""

from functools import partial
from pathlib import Path

from benchmarks.real_preferences.run import NUM_FIFTHS, labelled, split_files, test_credit
from benchmarks.shared.compiled_layers import ADAPTERS
from benchmarks.shared.results import Results, Run, delivered
from benchmarks.shared.runs import add_pairs_and_model, fit, run_missing, study_arguments
from benchmarks.student.run import BODY, SETTINGS

HERE = Path(__file__).parent
SETTING = SETTINGS["pandalm"]
TRAINING = (
    *(*BODY, *ADAPTERS, "--evolution.rule=ser_lightning.TopShareRule", "--evolution.folds=0"),
    *("--evolution.seed_epochs=2", "--evolution.epochs_per_round=1"),
)
ALL_LABELS = ("--data.seed_fraction=1", "--evolution.max_rounds=0")
STANDARD, OURS = "--model.reading=last", "--model.reading=[mean,judge]"
CONDITIONS = {
    "ours": (OURS, "--evolution.max_rounds=2"),
    "standard_all": (STANDARD, *ALL_LABELS),
    "ours_all": (OURS, *ALL_LABELS),
    # With SmolLM2 these two are `seed_lora` and `teacher` of benchmarks/student.
    "standard": (STANDARD, "--evolution.max_rounds=0"),
    "frozen": ("--config", "frozen.yaml"),
}
SMALL, LARGE = BODIES = "smollm2-135m", "qwen2.5-coder-0.5b"


def run_one(body: str, condition: str, seed: int, data_dir: Path, model: Path, scratch: Path) -> Run:
    """One run and what its rounds say of every test pair."""
    folder, fifth, name = scratch / "data", (seed - 1) % NUM_FIFTHS, f"{body}-{condition}"
    train, test = split_files(SETTING, fifth, data_dir, folder)
    flags = [*(BODY if condition == "frozen" else TRAINING), f"--model.backbone.path={model}"]
    flags += [f"--data.path={train}", f"--data.test_path={test}", f"--data.seed_fraction={SETTING.seed_fraction}"]
    flags += CONDITIONS[condition]
    result = {**fit(name, flags, seed, scratch), "body": body, "condition": condition}
    for private, public in ((str(model), "FOLDER_OF_THE_MODEL"), (str(folder), "FOLDER_OF_THE_SPLIT")):
        result["command"] = result["command"].replace(private, public)
    last = int(delivered(result)["round"])
    credit = test_credit(scratch / f"{name}-{seed}", list(range(last + 1)), labelled(test))
    return {**result, "fifth": fifth, "delivered": last, "test": credit}


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, HERE / "results.jsonl", "runs/benchmark/trained")
    add_pairs_and_model(parser)
    parser.add_argument("--body", choices=BODIES, default=SMALL, help="what --model is")
    parser.add_argument("--conditions", nargs="+", choices=[*CONDITIONS], default=[*CONDITIONS][:3])
    args = parser.parse_args()
    tasks = [(args.body, condition, seed) for seed in args.seeds for condition in args.conditions]
    work = partial(run_one, data_dir=args.data_dir, model=args.model.resolve(), scratch=args.scratch)
    run_missing(Results(args.out, "body", "condition", "seed"), tasks, work, args.jobs)


if __name__ == "__main__":
    main()
