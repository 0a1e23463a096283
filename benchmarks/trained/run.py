"""Bodies that are trained with LoRA, on real human preferences: what a reading and evolution add there.

    python -m benchmarks.trained.run --data-dir FOLDER --models NAME=FOLDER ...   # makes the runs that are missing
    python -m benchmarks.tables                                                   # writes the table of docs/results.md

Random seed s is tested on one fifth of the prompts, which chooses nothing, and draws another seed of 15 % of the other
labels. Nothing was tuned: the learning rate is that of `rm.yaml`, `mean` and `judge` read at their usual depths, and
the number of steps was set by the time that a CPU takes: 40 for a seed, two epochs for more pairs. There are no folds,
which would take five more trainings: what is delivered is the last round, unjudged. bfloat16, adapters on queries and
values. On a CPU the layers are compiled and attention is written out, which makes a step some three times as fast.
"""

from functools import partial
from pathlib import Path

from benchmarks.real_preferences.run import DATA, NUM_FIFTHS, Setting, labelled, split_files, test_credit
from benchmarks.shared.results import Results, Run, delivered
from benchmarks.shared.runs import fit, run_missing, study_arguments

HERE = Path(__file__).parent
DATA_NAME = "pandalm"
SETTING = Setting(DATA_NAME, DATA[DATA_NAME][0], 0.0, NUM_FIFTHS, 0.15)
TRAINING = (
    *("--config", "models/smollm2-135m.yaml", "--config", "hardware/cpu.yaml"),
    *("--trainer.precision=bf16-mixed", "--model.backbone.dtype=bfloat16"),
    *("--model.backbone.attn_implementation=eager", "--model.backbone.lora.dropout=0"),
    "--model.backbone.lora.target_modules=[q_proj,v_proj]",
    *("--model.optimizer.init_args.lr=5.0e-4", "--data.pairs_per_step=8"),
    *("--data.tokens_per_batch=512", "--data.tokens_per_scoring_batch=512"),
    *("--evolution.rule=ser_lightning.TopShareRule", "--evolution.folds=0"),
    *("--evolution.seed_epochs=2", "--evolution.epochs_per_round=1", "--evolution.min_steps=40"),
    "--trainer.callbacks+=benchmarks.shared.compiled_layers.CompiledLayers",
)
SEED_ALONE = "--evolution.max_rounds=0"
ALL_LABELS = ("--data.seed_fraction=1", SEED_ALONE)
STANDARD, OURS = "--model.reading=last", "--model.reading=[mean,judge]"
# The standard reading of the seed alone is `seed_lora` of benchmarks/student, with the same flags.
CONDITIONS = {
    "ours": (OURS, "--evolution.max_rounds=2"),
    "standard_all": (STANDARD, *ALL_LABELS),
    "ours_all": (OURS, *ALL_LABELS),
}


def run_one(name: str, condition: str, seed: int, data_dir: Path, models: dict[str, Path], scratch: Path) -> Run:
    """One run of one body and what its rounds say of every test pair."""
    model, folder, fifth = models[name], scratch / "data", (seed - 1) % NUM_FIFTHS
    train, test = split_files(SETTING, fifth, data_dir, folder)
    flags = [*TRAINING, f"--model.backbone.path={model}", f"--data.path={train}", f"--data.test_path={test}"]
    flags += [f"--data.seed_fraction={SETTING.seed_fraction}", *CONDITIONS[condition]]
    if gguf := next(iter(model.glob("*.gguf")), None):
        flags.append(f"--model.backbone.gguf_file={gguf.name}")
    result = fit(f"{name}-{condition}", flags, seed, scratch)
    for private, public in ((str(model), "FOLDER_OF_THE_MODEL"), (str(folder), "FOLDER_OF_THE_SPLIT")):
        result["command"] = result["command"].replace(private, public)
    last = int(delivered(result)["round"])
    credit = test_credit(scratch / f"{name}-{condition}-{seed}", list(range(last + 1)), labelled(test))
    return {**result, "model": name, "condition": condition, "fifth": fifth, "delivered": last, "test": credit}


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, HERE / "results.jsonl", "runs/benchmark/trained")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the files of preference pairs")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="decoders to train")
    parser.add_argument("--conditions", nargs="+", choices=[*CONDITIONS], default=[*CONDITIONS])
    args = parser.parse_args()
    models = {name: Path(folder).resolve() for name, _, folder in (one.partition("=") for one in args.models)}
    tasks = [(name, condition, seed) for name in models for seed in args.seeds for condition in args.conditions]
    work = partial(run_one, data_dir=args.data_dir, models=models, scratch=args.scratch)
    run_missing(Results(args.out, "model", "condition", "seed"), tasks, work, args.jobs)


if __name__ == "__main__":
    main()
