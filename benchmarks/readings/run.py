"""Where should a reward model read, and what do evolution, ensembles, views and queries add to it, on real preferences?

    python -m benchmarks.readings.run --data-dir FOLDER --models NAME=FOLDER ...   # makes the runs that are missing
    python -m benchmarks.tables                                                    # writes the tables

A setting is a data set, a body and a part of the study. The body is frozen: its states at every candidate reading are
computed once (into `--scratch`) and all heads are solved on them, so a run takes seconds. A fifth of the prompts, by a
hash, is the test set of a run and chooses nothing. Random seeds take one fifth after the other and change which labels
the seed keeps.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.readings.answers import compute_answers, usual_view
from benchmarks.readings.heads import (
    Round,
    Task,
    View,
    choose_view,
    evolve,
    judge_head,
    make_task,
    make_view,
    out_of_fold_margins,
    pair_ids,
    seed_scores,
)
from benchmarks.readings.queries import FIRST_LABELS, STRATEGIES, ask
from benchmarks.readings.states import NUM_FIFTHS, StudyPairs, compute_comparisons, compute_states
from benchmarks.shared.results import Results, Run, versions
from benchmarks.shared.runs import run_missing, study_arguments
from ser_lightning.callbacks.rounds import choose_round
from ser_lightning.evaluation.calibration import fit_temperature
from ser_lightning.evaluation.metrics import confidence_and_right, half_credit, reliability
from ser_lightning.evolution.pairwise_judge import PairwiseJudge, hold_vote
from ser_lightning.evolution.selection import (
    CalibratedRule,
    PaperRule,
    ReleasedRule,
    SelectionContext,
    SelectionRule,
    TopShareRule,
)
from ser_lightning.models.readings import standard_reading
from ser_lightning.training.linear_head import log_loss
from ser_lightning.training.reading_choice import candidate_sets

HERE = Path(__file__).parent
DATA = {
    "hh_1000": ("hh_helpful_base.jsonl", "hh_helpful_rs.jsonl"),
    "hh": ("hh_helpful_base.jsonl", "hh_helpful_rs.jsonl"),
    "pandalm": ("pandalm_test.jsonl",),
    "ultrafeedback": ("ultrafeedback_sample.jsonl",),
}
FIRST = {"hh_1000": 1000}
"""Pairs of the files that are taken, where it is not all."""
SEEDS_PER_FIFTH = {"hh_1000": 5, "hh": 2, "pandalm": 5, "ultrafeedback": 5}
"""Random seeds 1, 2, ... are tested on the first fifth, the next ones on the second, and so on."""
SHARES = {"5": 0.05, "15": 0.15}
SIZES = (25, 50, 100, 200, 400, 1000)
JUDGED = {"judge_5": "5", "judge_15": "15"}
"""Parts about the pairwise judge, and their shares of the labels."""
PARTS = (*SHARES, "curve", "all", "queries", "answers", *JUDGED)
NUM_FOLDS = 5
CALIBRATED_FOLDS = (2, 3, 5)
NUM_QUERY_SEEDS = 10
MAX_TRAIN = 1000
"""Training pairs up to which every condition is run."""
RULES: dict[str, SelectionRule] = {
    "calibrated": CalibratedRule(),
    "paper": PaperRule(),
    "released": ReleasedRule(),
    "keep_all": TopShareRule(1.0),
}


class Way(NamedTuple):
    """A condition: what is read (`ours` is what `auto` chooses), the rule, and whether the models of the folds vote."""

    reads: str
    rule: str
    is_ensemble: bool = False


CONDITIONS = {
    **{f"{reads}_{rule}": Way(reads, rule) for reads in ("ours", "standard") for rule in RULES},
    "ours_ensemble": Way("ours", "calibrated", is_ensemble=True),
    **{f"views_{rule}": Way("views", rule) for rule in ("calibrated", "keep_all")},
    "views_ensemble": Way("views", "keep_all", is_ensemble=True),
}
JUDGED_RULES = ("calibrated", "keep_all")
FEW = ("ours_calibrated", "standard_calibrated")
"""Those of larger data sets, where a condition takes minutes."""


def credit_text(margin: Tensor, target: Tensor) -> str:
    """`1`, `0` and `h` for a tie, a letter a pair."""
    return "".join({1.0: "1", 0.0: "0", 0.5: "h"}[c] for c in half_credit(margin, target).tolist())


def delivered_rounds(rounds: Sequence[Round], target: Tensor) -> dict[str, int]:
    """Which round each way of delivering hands over, by the seed out of fold.

    `not_worse` is the latest that is not worse than the best by a standard error of their paired difference. The others
    take the best round, the earliest of several, where its paired gain over the seed model in accuracy or log loss is
    more than so many standard errors, and else the seed model. So `accuracy_0` is `choose_round`.

    Args:
        rounds: of a run.
        target: labels of the seed.
    """
    credit = [half_credit(one.out_of_fold, target) for one in rounds]
    loss = [log_loss(m / fit_temperature(m, target), target) for m in (one.out_of_fold for one in rounds)]
    top = credit[choose_round(credit)]
    not_worse = [r for r, one in enumerate(credit) if _is_within_error(top - one)]
    found = {"not_worse": not_worse[-1]}
    for what, worth in (("accuracy", credit), ("loss", [-one for one in loss])):
        best = max(range(len(rounds)), key=lambda r: float(worth[r].mean()))
        gain = worth[best] - worth[0]
        error = float(gain.std()) / len(gain) ** 0.5
        found |= {f"{what}_{z}": best if float(gain.mean()) > z * error else 0 for z in (0, 1, 2)}
    return found


def _is_within_error(loss: Tensor) -> bool:
    """Whether paired differences are at most one standard error from nothing in the mean."""
    return bool(loss.mean() <= loss.std() / len(loss) ** 0.5)


def evolved(task: Task, views: Sequence[View], way: Way, seed: int) -> Run:
    """One way to evolve: for every round what the test says, and which round would be delivered."""
    rounds = evolve(task, views, RULES[way.rule], task.folds(NUM_FOLDS, seed), way.is_ensemble)
    target = task.target[task.test]
    return {
        "credit": [credit_text(one.test, target) for one in rounds],
        "kept": [round(one.kept, 4) for one in rounds],
        "kept_right": [round(one.kept_right, 4) for one in rounds],
        "delivered": delivered_rounds(rounds, task.target[task.seed]),
    }


def share_run(task: Task, seed: int, conditions: Sequence[str]) -> Run:
    """Every condition with a share of the labels."""
    num_layers = task.pairs.num_layers
    choice, ours = choose_view(task)
    read = {
        "ours": [ours],
        "standard": [make_view(task, [standard_reading(num_layers)])],
        "views": [make_view(task, [reading]) for reading in candidate_sets(num_layers)[0]],
    }
    ways = {name: CONDITIONS[name] for name in conditions}
    return {
        "reading": choice.chosen.name,
        "conditions": {name: evolved(task, read[way.reads], way, seed) for name, way in ways.items()},
        "calibration": {str(k): calibration(task, ours, k, seed) for k in CALIBRATED_FOLDS},
    }


def calibration(task: Task, view: View, num_folds: int, seed: int) -> list[dict[str, float]]:
    """Bins of what the seed model says of the test pairs, with the temperature of so many folds."""
    out_of_fold = out_of_fold_margins(task, view, task.folds(num_folds, seed))
    temperature = fit_temperature(out_of_fold, task.target[task.seed])
    return reliability(*confidence_and_right(seed_margins(task, view), task.target[task.test], temperature))


def seed_margins(task: Task, view: View) -> Tensor:
    """(test,) margins by the head on all labels of a task."""
    return view.differences[task.test] @ view.seed_weight(task)


def both_readings(task: Task) -> Run:
    """The models of a task's labels without evolution: the standard reading, and the one that is chosen."""
    target = task.target[task.test]
    choice, ours = choose_view(task)
    standard = make_view(task, [standard_reading(task.pairs.num_layers)])
    credit = {name: credit_text(seed_margins(task, v), target) for name, v in (("ours", ours), ("standard", standard))}
    return {"labels": len(task.seed), "reading": choice.chosen.name, "credit": credit}


def curve_run(pairs: StudyPairs, fifth: int, seed: int) -> Run:
    """Both readings with ever more labels; a smaller seed is part of every larger one."""
    num_train = int((pairs.fifth != fifth).sum())
    return {str(n): both_readings(make_task(pairs, fifth, n, seed)) for n in SIZES if n < num_train}


def query_run(pairs: StudyPairs, fifth: int, seed: int) -> Run:
    """Accuracy with ever more labels, by who chooses them."""
    start, readings = make_task(pairs, fifth, FIRST_LABELS, seed), candidate_sets(pairs.num_layers)[0]
    found = {}
    for name, strategy in STRATEGIES.items():
        credit = ask(start, readings, strategy, SIZES[1:], seed)
        found[name] = {str(size): round(float(one.mean()), 6) for size, one in credit.items()}
    return found


def answer_run(pairs: StudyPairs, fifth: int, seed: int, answers: Tensor) -> Run:
    """The judge's answer by itself, and heads on ever more labels without and with it."""
    num_train = int((pairs.fifth != fifth).sum())
    found: Run = {"sizes": {}}
    for size in (n for n in SIZES if n < num_train):
        task = make_task(pairs, fifth, size, seed)
        target, views = task.target[task.test], {"usual": usual_view(task), "with_answer": usual_view(task, answers)}
        found["answer"] = credit_text(answers[task.test, 0] - answers[task.test, 1], target)
        credit = {name: credit_text(seed_margins(task, view), target) for name, view in views.items()}
        found["sizes"][str(size)] = {"labels": len(task.seed), "credit": credit}
    return found


def judge_run(task: Task, judge: PairwiseJudge, seed: int) -> Run:
    """Evolution with and without a pairwise judge, what the judge is worth by itself, and all labels."""
    target, everything = task.target[task.test], replace(task, seed=task.train)
    _, view = choose_view(task)
    folds = task.folds(NUM_FOLDS, seed)
    found: Run = {"conditions": {}}
    for rule in JUDGED_RULES:
        for name, used in (("ours", None), ("judge", judge)):
            rounds = evolve(task, [view], RULES[rule], folds, judge=used)
            found["conditions"][f"{name}_{rule}"] = {
                "credit": [credit_text(one.test, target) for one in rounds],
                "pool_right": [round(one.pool_right, 4) for one in rounds],
                "kept_right": [round(one.kept_right, 4) for one in rounds],
                "delivered": delivered_rounds(rounds, task.target[task.seed]),
            }
    head = judge_head(task, judge)
    alone = head.logits(pair_ids(task, task.test))
    context = SelectionContext(seed_scores(task, view, folds), task.target[task.seed])
    found |= {"judge_alone": credit_text(alone, target), "is_used": hold_vote(context, head).is_used}
    standard = make_view(everything, [standard_reading(task.pairs.num_layers)])
    found["standard_all"] = credit_text(seed_margins(everything, standard), target)
    found["ours_all"] = credit_text(seed_margins(everything, choose_view(everything)[1]), target)
    return found


@cache
def load(file: Path) -> StudyPairs:
    """The states of a data set and a body."""
    return StudyPairs.load(file)


def run_one(setting: str, seed: int, states: Path, conditions: Sequence[str] | None = None) -> Run:
    """A part of the study on a data set and a body.

    Args:
        setting: data set, body and part.
        seed: of the run.
        states: folder of the bodies' states.
        conditions: with a share of the labels, None = all, or `FEW` on large data sets.
    """
    torch.set_num_threads(1)
    data, body, part = setting.split("/")
    pairs = load(states / f"{data}-{body}.pt")
    fifth = fifth_of(data, part, seed)
    found: Run = {"setting": setting, "seed": seed, "fifth": fifth, "versions": versions()}
    if part == "queries":
        return {**found, "accuracy": query_run(pairs, fifth, seed)}
    task = make_task(pairs, fifth, SHARES.get(JUDGED.get(part, part), 1.0), seed)
    numbers: dict[str, int] = {}
    found["prompt"] = [numbers.setdefault(pairs.prompt[i], len(numbers)) for i in task.test.tolist()]
    if part == "curve":
        return {**found, "sizes": curve_run(pairs, fifth, seed)}
    if part == "answers":
        answers = torch.load(states / f"{data}-{body}-answers.pt", weights_only=True)
        return {**found, **answer_run(pairs, fifth, seed, answers)}
    if part == "all":
        longer = pairs.num_tokens[task.test, 0] - pairs.num_tokens[task.test, 1]
        accuracy = float(half_credit(longer.double(), task.target[task.test]).mean())
        return {**found, **both_readings(task), "longer": round(accuracy, 6)}
    if part in JUDGED:
        judge = PairwiseJudge(**torch.load(states / f"{data}-{body}-comparisons.pt", weights_only=True))
        return {**found, "labels": len(task.seed), **judge_run(task, judge, seed)}
    conditions = conditions or (FEW if len(task.train) > MAX_TRAIN else [*CONDITIONS])
    return {**found, "labels": len(task.seed), **share_run(task, seed, conditions)}


def fifth_of(data: str, part: str, seed: int) -> int:
    """Which fifth of the prompts a random seed is tested on: all labels need one run for each."""
    per_fifth = {"all": 1, "queries": NUM_QUERY_SEEDS // NUM_FIFTHS}.get(part, SEEDS_PER_FIFTH[data])
    return (seed - 1) // per_fifth % NUM_FIFTHS


def seeds_of(data: str, part: str) -> range:
    """Random seeds of a part, each fifth in turn."""
    number = {"all": NUM_FIFTHS, "queries": NUM_QUERY_SEEDS}.get(part, NUM_FIFTHS * SEEDS_PER_FIFTH[data])
    return range(1, number + 1)


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, HERE / "results.jsonl", "runs/benchmark/readings")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the files of preference pairs")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="bodies as transformers has")
    parser.add_argument("--data", nargs="+", choices=[*DATA], default=["pandalm", "hh"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument(
        "--conditions", nargs="+", choices=[*CONDITIONS], help="default: all, or two on large data sets"
    )
    parser.set_defaults(seeds=None)
    args = parser.parse_args()
    bodies = dict(one.split("=", 1) for one in args.models)
    for data, (body, folder) in ((data, body) for data in args.data for body in bodies.items()):
        files = [args.data_dir / name for name in DATA[data]]
        if not (file := args.scratch / f"{data}-{body}.pt").is_file():
            partial_states = file.with_suffix(".partial")
            compute_states(files, Path(folder), FIRST.get(data), partial_states).save(file)
            shutil.rmtree(partial_states)
        if set(args.parts) & {*JUDGED} and not (compared := args.scratch / f"{data}-{body}-comparisons.pt").is_file():
            torch.save(vars(compute_comparisons(files, Path(folder), load(file))), compared)
        if "answers" in args.parts and not (answered := args.scratch / f"{data}-{body}-answers.pt").is_file():
            torch.save(compute_answers(Path(folder), load(file)), answered)
    tasks = [
        (f"{data}/{body}/{part}", seed)
        for part in args.parts
        for data in args.data
        for body in bodies
        for seed in args.seeds or seeds_of(data, part)
    ]
    run_missing(
        Results(args.out, "setting", "seed"),
        tasks,
        partial(run_one, states=args.scratch, conditions=args.conditions),
        args.jobs,
    )


if __name__ == "__main__":
    main()
