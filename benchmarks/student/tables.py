"""The table of plain students: what they keep of their teacher, and what a plain model of the seed alone has."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.shared.bootstrap import Block, Estimate, accuracies, blocks_by_fifth
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run
from benchmarks.student.run import KEY

PAGE = "howto/plain-student.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", *KEY)
TRAINED = {"head": "`head`, body frozen", "lora": "`lora`"}
Conditions = Mapping[str, Mapping[int, Run]]
"""Runs by condition and random seed."""


def delivered_credit(run: Run) -> str:
    """Which test pairs the delivered model orders right."""
    return run["test"]["credit"][str(run["delivered"])]


def agreement(one: str, other: str) -> str:
    """`1` where two models order a pair alike: of two responses both are right, or both are wrong."""
    return "".join("1" if a == b else "0" for a, b in zip(one, other, strict=True))


def blocks_of(conditions: Conditions, trained: str, seeds: Iterable[int]) -> list[Block]:
    """For each fifth of the prompts the teacher's seed model and delivered model, the plain model of the seed, the
    student, and where the student orders as its teacher."""
    found = []
    for seed in seeds:
        teacher, plain, student = (
            conditions[name][seed] for name in ("teacher", f"seed_{trained}", f"student_{trained}")
        )
        assert teacher["test"]["prompt"] == plain["test"]["prompt"] == student["test"]["prompt"]
        first, last = teacher["test"]["credit"]["0"], delivered_credit(teacher)
        own = [first, last, delivered_credit(plain), delivered_credit(student)]
        found.append((teacher["fifth"], teacher["test"]["prompt"], [*own, agreement(own[1], own[3])]))
    return blocks_by_fifth(found)


def student_table(conditions: Conditions) -> str:
    """One line for each way to train."""
    rows = []
    for trained, name in TRAINED.items():
        names = ("teacher", f"seed_{trained}", f"student_{trained}")
        seeds = sorted(set.intersection(*({*conditions.get(one, {})} for one in names)))
        if not seeds:
            continue
        mean, drawn = accuracies(blocks_of(conditions, trained, seeds))
        weights = (
            *((1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0)),
            *((0, 0, -1, 1, 0), (0, -1, 0, 1, 0), (0, 0, 0, 0, 1)),
        )
        figures = [Estimate.of(float(mean @ np.array(w)), drawn @ np.array(w)) for w in weights]
        rows.append([name, str(len(seeds)), *map(str, figures)])
    header = "student trains|random seeds|teacher, seed model|teacher, delivered|plain, seed alone|plain student"
    more = "student minus seed alone|student minus teacher|orders as the teacher"
    return table([*header.split("|"), *more.split("|")], rows)


def tables() -> dict[str, str]:
    """The table by its name."""
    return {"student": student_table(RESULTS.by_condition(data="pandalm"))}
