"""The table of trained bodies: with the labels of the seed, evolved, and with all labels, on the same test pairs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.shared.bootstrap import Block, Estimate, accuracies, blocks_by_fifth
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run
from benchmarks.student.tables import RESULTS as STUDENTS
from benchmarks.trained.run import LARGE, SMALL

PAGE = "results.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "body", "condition", "seed")
Model = tuple[str, bool]
"""A condition, and whether its delivered round is meant and not its seed model."""
Weights = Mapping[Model, float]
"""A sum over accuracies of models."""
Runs = Mapping[str, Mapping[int, Run]]
"""By condition and random seed."""

STANDARD, OURS, FROZEN = "standard", "`[mean, judge]`", "frozen body, `auto`"
TAUGHT = "`[mean, judge]`, taught"
"""With LoRA, on the seed and on the pseudo-labels that the frozen body keeps, whose seed model stands in its line."""
CONDITIONS = {
    STANDARD: ("standard", "", "standard_all"),
    OURS: ("ours", "ours", "ours_all"),
    FROZEN: ("frozen", "frozen", ""),
    TAUGHT: ("frozen", "taught", "ours_all"),
}
"""For each line the conditions of its seed model, of its evolved model and with all labels, as far as there are any."""
DIFFERENCES = ((OURS, STANDARD), (FROZEN, STANDARD), (FROZEN, OURS), (TAUGHT, OURS), (TAUGHT, FROZEN))
WITH_ALL: Model = ("standard_all", False)
OF_STUDENTS = {"seed_lora": "standard", "teacher": "frozen", "student_readings": "taught"}
"""Conditions of the study of students, and what they are here: the flags are the same."""
STUDENTS_BODIES = {"pandalm": SMALL, "hh": f"{SMALL}, HH-RLHF"}
"""What the first column says of the study of students, by data set."""
HEADER = (
    "body|model|random seeds|15 % of the labels|evolved|gain of evolution|all labels|evolved minus standard, all labels"
)


def cells_of(name: str) -> list[Counter[Model]]:
    """What stands in the cells of a line after its random seeds; nothing where a condition does not exist."""
    seed, evolved, all_labels = CONDITIONS[name]
    first, last = Counter({(seed, False): 1.0}), Counter({(evolved, True): 1.0} if evolved else {})
    whole = Counter({(all_labels, False): 1.0} if all_labels else {})
    return [first, last, _minus(last, first), whole, _minus(last, Counter({WITH_ALL: 1.0}))]


def _minus(one: Counter[Model], other: Counter[Model]) -> Counter[Model]:
    """The difference of two sums, nothing where one of them is not there."""
    if not one or not other:
        return Counter()
    found = Counter(one)
    found.subtract(other)
    return found


def blocks_of(models: Sequence[Model], runs: Runs, seeds: Sequence[int]) -> list[Block]:
    """For each fifth of the prompts what the models say of its pairs."""
    found = []
    for seed in seeds:
        of = [(runs[name][seed], str(runs[name][seed]["delivered"] if evolved else 0)) for name, evolved in models]
        first = of[0][0]
        assert all(run["test"]["prompt"] == first["test"]["prompt"] for run, _ in of)
        credit = [run["test"]["credit"][number] for run, number in of]
        found.append((first["fifth"], first["test"]["prompt"], credit))
    return blocks_by_fifth(found)


def line(body: str, name: str, cells: Sequence[Weights], runs: Runs) -> list[str]:
    """The cells of a line, all of the random seeds that have every run of it; empty where there are none."""
    models = sorted({model for weights in cells for model in weights if model[0] in runs})
    seeds = sorted(set.intersection(*({*runs[condition]} for condition, _ in models))) if models else []
    if not seeds:
        return []
    mean, drawn = accuracies(blocks_of(models, runs, seeds))
    figures = []
    for weights in cells:
        column = np.array([weights.get(model, 0.0) for model in models])
        is_there = weights and all(model in models for model in weights)
        figures.append(str(Estimate.of(float(mean @ column), drawn @ column)) if is_there else "-")
    return [body, name, str(len(seeds)), *figures]


def trained_table(bodies: Mapping[str, Runs]) -> str:
    """A line for each body and way to train, and their differences on the random seeds that both have."""
    lines = []
    for body, runs in bodies.items():
        there = [name for name, own in CONDITIONS.items() if {*own[:2]} - {""} <= {*runs}]
        lines += [line(body, name, cells_of(name), runs) for name in there]
        for one, other in DIFFERENCES:
            cells = [_minus(a, b) for a, b in zip(cells_of(one)[:4], cells_of(other)[:4], strict=True)]
            lines.append(line(body, f"{one} minus {other}", [*cells, Counter()], runs))
    return table(HEADER.split("|"), [cells for cells in lines if any(cell != "-" for cell in cells[3:])])


def runs_by_body() -> dict[str, dict[str, dict[int, Run]]]:
    """Those of this study, with SmolLM2's of the study of students."""
    found: dict[str, dict[str, dict[int, Run]]] = {SMALL: {}, LARGE: {}}
    for data, body in STUDENTS_BODIES.items():
        by_condition = STUDENTS.by_condition(data=data)
        found[body] = {OF_STUDENTS[name]: runs for name, runs in by_condition.items() if name in OF_STUDENTS}
    for run in RESULTS.read():
        found[run["body"]].setdefault(run["condition"], {})[run["seed"]] = run
    return found


def tables() -> dict[str, str]:
    """The table by its name."""
    return {"trained": trained_table(runs_by_body())}
