"""The table of trained bodies: the standard reading, ours, evolved and with all labels, on the same test pairs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.shared.bootstrap import Block, Estimate, accuracies, credits
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run
from benchmarks.student.tables import RESULTS as STUDENTS

PAGE = "results.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed")
PLAIN = ("teacher", "seed_lora")
"""Conditions of the study of students: their teacher, and a standard reward model of the seed."""
COLUMNS = {
    "standard": (0, 1, 0, 0, 0, 0),
    "`[mean, judge]`": (0, 0, 1, 0, 0, 0),
    "difference": (0, -1, 1, 0, 0, 0),
    "`[mean, judge]`, last round": (0, 0, 0, 1, 0, 0),
    "gain of evolution": (0, 0, -1, 1, 0, 0),
    "frozen body, `auto`": (1, 0, 0, 0, 0, 0),
    "frozen minus standard": (1, -1, 0, 0, 0, 0),
    "standard, all labels": (0, 0, 0, 0, 1, 0),
    "`[mean, judge]`, all labels": (0, 0, 0, 0, 0, 1),
    "last round minus standard with all labels": (0, 0, 0, 1, -1, 0),
}
"""Weights of the six models of a block."""


def blocks_of(plain: Mapping[str, Mapping[int, Run]], found: Sequence[Run]) -> tuple[list[Block], int]:
    """For each fifth of the prompts the six models of `COLUMNS`, and the number of random seeds that have them all.

    The models are the frozen and the standard one of the seed, ours, ours evolved, and both with all labels.

    Args:
        plain: runs of the study of students, by condition and random seed; their teachers have frozen bodies.
        found: the other runs.
    """
    runs: dict[int, dict[str, Run]] = defaultdict(dict)
    for run in found:
        runs[run["seed"]][run["condition"]] = run
    fifths: dict[int, list[list[str]]] = defaultdict(list)
    prompts, number = {}, 0
    for seed, own in sorted(runs.items()):
        if any(seed not in plain.get(name, {}) for name in PLAIN) or not {"ours", "standard_all", "ours_all"} <= {*own}:
            continue
        ours, alls = own["ours"], [own[name] for name in ("standard_all", "ours_all")]
        others = [plain[name][seed] for name in PLAIN]
        assert all(run["test"]["prompt"] == ours["test"]["prompt"] for run in (*others, *alls))
        credit = [run["test"]["credit"] for run in (*others, ours, ours, *alls)]
        rounds = ("0", "0", "0", str(ours["delivered"]), "0", "0")
        fifths[ours["fifth"]].append([of[which] for of, which in zip(credit, rounds, strict=True)])
        prompts[ours["fifth"]] = ours["test"]["prompt"]
        number += 1
    blocks = [
        Block(np.array([[credits(text) for text in run] for run in seeds]).transpose(1, 0, 2), np.array(prompts[fifth]))
        for fifth, seeds in fifths.items()
    ]
    return blocks, number


def trained_table(plain: Mapping[str, Mapping[int, Run]], found: Sequence[Run]) -> str:
    """One line."""
    blocks, number = blocks_of(plain, found)
    rows = []
    if number:
        mean, drawn = accuracies(blocks)
        figures = [Estimate.of(float(mean @ np.array(w)), drawn @ np.array(w)) for w in COLUMNS.values()]
        rows = [[str(number), *map(str, figures)]]
    return table(["random seeds", *COLUMNS], rows)


def tables() -> dict[str, str]:
    """The table by its name."""
    return {"trained": trained_table(STUDENTS.by_condition(), RESULTS.read())}
