"""What does a plain student keep of a teacher whose own export is no plain classifier, on real human preferences?

    python -m benchmarks.student.run --data-dir FOLDER --model FOLDER   # makes the runs that are missing
    python -m benchmarks.tables                                         # writes the table of the page

The teacher reads where `auto` says and trains a head on a frozen body. A student reads the last token and learns from
the teacher's pseudo-labels beside the seed; the models that it is held against learn from the seed alone, with the same
settings. Random seed s is tested on one fifth of the prompts, which chooses nothing, and draws another seed of 15 % of
the other labels; of HH-RLHF, which has more pairs, it trains on one fifth alone and is tested on the next one. Nothing
was tuned: the learning rate is that of `rm.yaml`, and what is trained of the body was set by the time that a CPU takes.
"""

from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.real_preferences.run import DATA, NUM_FIFTHS, Setting, labelled, split_files, test_credit
from benchmarks.shared.compiled_layers import ADAPTERS
from benchmarks.shared.results import Results, Run, delivered
from benchmarks.shared.runs import add_pairs_and_model, fit, run_missing, study_arguments

HERE = Path(__file__).parent
SETTINGS = {name: Setting(name, DATA[name][0], 0.0, NUM_FIFTHS, 0.15) for name in ("pandalm", "hh")}
BODY = ("--config", "models/smollm2-135m.yaml", "--config", "hardware/cpu.yaml", "--model.backbone.dtype=bfloat16")
# Folds would fit the scale of the reward, which no accuracy depends on, with five more trainings.
PLAIN = ("--config", "student.yaml", "--evolution.rule=ser_lightning.TopShareRule", "--evolution.folds=0")
HEAD = ("--model.backbone.train=head",)
TEACHER = "teacher"
KEY = ("data", "condition", "seed")
CONDITIONS = {
    TEACHER: ("--config", "frozen.yaml"),
    "seed_head": (*PLAIN, *HEAD),
    "student_head": (*PLAIN, *HEAD),
    "seed_lora": (*PLAIN, *ADAPTERS),
    "student_lora": (*PLAIN, *ADAPTERS),
    # No plain student: it reads where a teacher does, and may learn more from the same labels.
    "student_readings": (*PLAIN, *ADAPTERS, "--model.reading=[mean,judge]"),
}


def files_of(data: str, seed: int, data_dir: Path, folder: Path) -> tuple[int, Path, Path]:
    """The fifth that a random seed is tested on, the file to train on and the file of that fifth."""
    setting, fifth = SETTINGS[data], (seed - 1) % NUM_FIFTHS
    train, test = split_files(setting, fifth, data_dir, folder)
    if data == "hh":
        train = split_files(setting, (fifth - 1) % NUM_FIFTHS, data_dir, folder)[1]
    return fifth, train, test


def run_one(data: str, condition: str, seed: int, data_dir: Path, model: Path, scratch: Path) -> Run:
    """One run and what it says of every test pair."""
    scratch /= data
    folder = scratch / "data"
    fifth, train, test = files_of(data, seed, data_dir, folder)
    share = SETTINGS[data].seed_fraction
    flags = [*BODY, *CONDITIONS[condition], f"--model.backbone.path={model}"]
    flags += [f"--data.path={train}", f"--data.test_path={test}", f"--data.seed_fraction={share}"]
    if condition.startswith("student"):
        flags.append(f"--data.teacher={scratch / f'{TEACHER}-{seed}'}")
    result = {"data": data, **fit(condition, flags, seed, scratch)}
    for private, public in ((str(model), "FOLDER_OF_THE_MODEL"), (str(folder), "FOLDER_OF_THE_SPLIT")):
        result["command"] = result["command"].replace(private, public)
    number = int(delivered(result)["round"])
    credit = test_credit(scratch / f"{condition}-{seed}", sorted({0, number}), labelled(test))
    return {**result, "fifth": fifth, "delivered": number, "test": credit}


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, HERE / "results.jsonl", "runs/benchmark/student")
    add_pairs_and_model(parser)
    parser.add_argument("--data", nargs="+", choices=[*SETTINGS], default=["pandalm"])
    parser.add_argument("--conditions", nargs="+", choices=[*CONDITIONS], default=[*CONDITIONS])
    args = parser.parse_args()
    conditions = [condition for condition in CONDITIONS if condition in args.conditions]
    tasks = [*product(args.data, conditions, args.seeds)]
    work = partial(run_one, data_dir=args.data_dir, model=args.model.resolve(), scratch=args.scratch)
    # A student needs the folder of its teacher, and shares the states of the frozen body with it.
    run_missing(Results(args.out, *KEY), tasks, work, args.jobs, together=lambda task: (task[0], task[2]))


if __name__ == "__main__":
    main()
