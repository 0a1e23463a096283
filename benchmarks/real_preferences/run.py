"""Does self-evolution with few labels reach what all of them reach, on real human preferences?

    python -m benchmarks.real_preferences.run --data-dir FOLDER --model FOLDER   # makes the runs that are missing
    python -m benchmarks.tables                                                  # writes the tables of docs/results.md

A setting is a data set and the share of labels that the seed keeps. The gap check comes first: `--conditions ours
all_labels baselines`. A fifth of the prompts, by a hash of their text, is the test set of a run; it chooses nothing.
Small data sets take one fifth after the other, five random seeds each, so that every prompt is tested on. A random seed
changes which labels the seed keeps, the order of the batches and every new weight. The body is frozen and its features
are computed once for a test set, by the first run on it. Learning rates were chosen by the accuracy of the seed out of
fold on random seeds from 1001 on, the number of layers by the labels of all training pairs (`docs/results.md`).
"""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.rules.run import CONDITIONS as RULES
from benchmarks.shared.results import Results, Run, delivered
from benchmarks.shared.runs import add_pairs_and_model, fit, run_missing, study_arguments
from ser_lightning.data.formats import parse_row
from ser_lightning.records import PreferencePair

HERE = Path(__file__).parent
NUM_FIFTHS, SEEDS_PER_FIFTH = 5, 5


@dataclass(frozen=True)
class Setting:
    """A data set, its learning rate, how many fifths of it are tested on, and the share of labels that are kept."""

    data: str
    files: tuple[str, ...]
    lr: float
    num_tested: int
    seed_fraction: float


DATA = {
    "hh": (("hh_helpful_base.jsonl", "hh_helpful_rs.jsonl"), 3e-4, 1),
    "ultrafeedback": (("ultrafeedback_sample.jsonl",), 3e-4, 5),
    "pandalm": (("pandalm_test.jsonl",), 1e-3, 5),
}
SETTINGS = {
    f"{data}-{fraction:.0%}".replace("%", ""): Setting(data, *settings, fraction)
    for data, settings in DATA.items()
    for fraction in (0.02, 0.05, 0.15)
    if data == "hh" or fraction > 0.02
}
WHOLE = {f"{data}-all": Setting(data, *settings, 1.0) for data, settings in DATA.items()}
"""Where all labels are trained on: once for all settings of a data set."""
EVOLUTION = {"max_rounds": 3, "seed_epochs": 25, "epochs_per_round": 25}
TRAINING = (
    *("--config", "models/smollm2-135m.yaml", "--config", "hardware/cpu.yaml"),
    *("--model.backbone.train=head", "--model.reading=[last@20]"),
    *(f"--evolution.{name}={value}" for name, value in EVOLUTION.items()),
)
# results.jsonl holds more: options that no longer exist (docs/results.md).
CONDITIONS = {
    "ours": RULES["ours"],
    "all_labels": [flag for flag in RULES["all_labels"] if "seed_epochs" not in flag],
    **{name: RULES[name] for name in ("paper", "released", "keep_all", "top_half")},
}
BASELINES = "baselines"


def tested_fifth(setting: Setting, seed: int) -> int:
    """Which fifth of the prompts a random seed is tested on: 1 to 5 on the first, 6 to 10 on the next, and so on."""
    return (seed - 1) // SEEDS_PER_FIFTH % setting.num_tested


def split_files(setting: Setting, fifth: int, data_dir: Path, folder: Path) -> tuple[Path, Path]:
    """Files to train on and to test on, made once from a data set's rows by a hash of their prompts."""
    parts = folder / f"{setting.data}-{fifth}-train.jsonl", folder / f"{setting.data}-{fifth}-test.jsonl"
    if not all(part.is_file() for part in parts):
        lines: tuple[list[str], list[str]] = ([], [])
        for name in setting.files:
            for line in (data_dir / name).read_text(encoding="utf-8").splitlines():
                place = int(hashlib.sha256(json.loads(line)["prompt"].encode()).hexdigest()[:12], 16) / 16**12
                lines[int(place * NUM_FIFTHS) == fifth].append(line)
        folder.mkdir(parents=True, exist_ok=True)
        for part, own in zip(parts, lines, strict=True):
            part.write_text("".join(line + "\n" for line in own), encoding="utf-8")
    return parts


def labelled(file: Path) -> dict[int, PreferencePair]:
    """The labelled pairs of a file by their id."""
    found = {}
    for i, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        pair = parse_row(json.loads(line), {}, f"{file}:{i + 1}")
        if isinstance(pair, PreferencePair) and pair.label is not None:
            found[pair.pair_id] = pair
    return found


def test_credit(run: Path, rounds: list[int], pairs: dict[int, PreferencePair]) -> dict:
    """Which test pairs some rounds of a run order right: `1`, `0` and `h` for a tie, and which prompt each has."""
    tables = [pq.read_table(run / f"rounds/{number}/test.parquet").to_pylist() for number in rounds]
    ids = [row["pair_id"] for row in tables[0]]
    prompts: dict[str, int] = {}
    found: dict = {"prompt": [prompts.setdefault(json.dumps(pairs[i].prompt), len(prompts)) for i in ids], "credit": {}}
    for number, rows in zip(rounds, tables, strict=True):
        assert [row["pair_id"] for row in rows] == ids
        margins = [(row["reward_a"] - row["reward_b"]) * (1 if pairs[row["pair_id"]].label else -1) for row in rows]
        found["credit"][str(number)] = "".join("h" if m == 0 else str(int(m > 0)) for m in margins)
    return found


def run_one(name: str, condition: str, seed: int, data_dir: Path, model: Path, scratch: Path) -> Run:
    """One run in a setting and what it says of every test pair; or the baselines there."""
    setting, folder = (SETTINGS | WHOLE)[name], scratch / "data"
    fifth = tested_fifth(setting, seed)
    train, test = split_files(setting, fifth, data_dir, folder)
    data = {"path": str(train), "test_path": str(test), "seed_fraction": setting.seed_fraction}
    if condition == BASELINES:
        figures = baselines({**data, "split_seed": seed}, model)
        return {"setting": name, "condition": condition, "seed": seed, "fifth": fifth, "figures": figures}
    flags = [*TRAINING, f"--model.optimizer.init_args.lr={setting.lr}", f"--model.backbone.path={model}"]
    flags += [f"--data.{k}={v}" for k, v in data.items()]
    result = fit(f"{name}-{condition}", [*flags, *CONDITIONS[condition]], seed, scratch)
    for private, public in ((str(model), "FOLDER_OF_THE_MODEL"), (str(folder), "FOLDER_OF_THE_SPLIT")):
        result["command"] = result["command"].replace(private, public)
    number = int(delivered(result)["round"])
    credit = test_credit(scratch / f"{name}-{condition}-{seed}", sorted({0, number}), labelled(test))
    return {**result, "setting": name, "condition": condition, "fifth": fifth, "delivered": number, "test": credit}


def baselines(data: dict, model: Path) -> dict[str, float]:
    """Take-the-longer and a bag of words, fitted on the labels that the seed has and on all, on the same test pairs."""
    from ser_lightning.callbacks.baselines import bag_of_words_accuracy, longer_accuracy
    from ser_lightning.datamodules.preference import PreferenceDataModule
    from ser_lightning.models.backbone import Backbone, load_tokenizer

    found = {}
    for labels, fraction in (("seed", data["seed_fraction"]), ("all_labels", 1.0)):
        module = PreferenceDataModule(**{**data, "seed_fraction": fraction}, max_length=512)
        module.tokenizer = load_tokenizer(Backbone(str(model)))
        module.prepare_data()
        module.setup("test")
        found[f"bag_of_words_{labels}"] = bag_of_words_accuracy(module, "test")
        found["longer"] = longer_accuracy(module, "test")
    return found


def _task(setting: str, condition: str, seed: int) -> tuple[str, str, int]:
    return (f"{SETTINGS[setting].data}-all" if condition == "all_labels" else setting), condition, seed


def _test_set(task: tuple[str, str, int]) -> tuple[str, int]:
    """Data set and fifth that a run is tested on."""
    setting = (SETTINGS | WHOLE)[task[0]]
    return setting.data, tested_fifth(setting, task[2])


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, HERE / "results.jsonl", "runs/benchmark/study")
    add_pairs_and_model(parser)
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS], default=[*SETTINGS])
    parser.add_argument("--conditions", nargs="+", choices=[*CONDITIONS, BASELINES], default=[*CONDITIONS, BASELINES])
    parser.set_defaults(seeds=None)  # five for each fifth that is tested on; settings were tried on 1001 and up
    args = parser.parse_args()
    tasks = list(
        dict.fromkeys(
            _task(setting, condition, seed)
            for setting, condition in product(args.settings, args.conditions)
            for seed in args.seeds or range(1, SEEDS_PER_FIFTH * SETTINGS[setting].num_tested + 1)
        )
    )
    results = Results(args.out, "setting", "condition", "seed")
    work = partial(run_one, data_dir=args.data_dir, model=args.model.resolve(), scratch=args.scratch)
    # The first run on a test set computes the features of its data set, alone.
    first = {_test_set(task): task for task in reversed(results.missing(tasks))}
    run_missing(results, first.values(), work, jobs=1)
    run_missing(results, tasks, work, args.jobs)


if __name__ == "__main__":
    main()
