"""Table of the pairs a second of every way, and the last line of `make bench`."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run
from benchmarks.speed.lengths import MODEL, PROFILES

PAGE = "performance.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "name")
WAYS = ("ours", "padded", "usual", "best")
TITLES = {"hh": "HH-RLHF", "ultrafeedback": "UltraFeedback"}
TASKS = {"train": ("training", "TRL"), "label": ("labelling", "pipeline")}
Speeds = Mapping[str, Mapping[str, Mapping[str, dict[str, Any]]]]
"""By profile, task and way."""


def speeds(measured: Sequence[Run]) -> Speeds:
    """Medians over repetitions, and the setting of theirs that was best."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    compared = [run for run in measured if run.get("way") in WAYS]
    for profile in PROFILES:
        for task in TASKS:
            for way in WAYS:
                here = [run for run in compared if (run["profile"], run["task"], run["way"]) == (profile, task, way)]
                if here:
                    names = ("pairs_per_second", "tokens_per_pair", "peak_bytes")
                    medians = {name: statistics.median(run[name] for run in here) for name in names}
                    own = found.setdefault(profile, {}).setdefault(task, {})
                    own[way] = {**medians, "setting": here[0]["setting"]}
    return found


def speed_table(found: Speeds) -> str:
    """Pairs a second, ours over every other way, by profile and task."""
    rows = []
    for profile, tasks in found.items():
        for task, ways in tasks.items():
            title, other = TASKS[task]
            for way, figures in ways.items():
                name = {
                    "ours": "ours",
                    "padded": "ours, `layout: padded`",
                    "usual": f"{other}, batches of 8 in random order",
                    "best": f"{other}, best setting: {figures['setting']}",
                }[way]
                ratio = ways["ours"]["pairs_per_second"] / figures["pairs_per_second"]
                row = [TITLES[profile], title, name, "-" if way == "ours" else f"{ratio:.2f}"]
                memory = f"{figures['peak_bytes'] / 2**20:.0f} MiB"
                rows.append([*row, f"{figures['tokens_per_pair']:.0f}", memory])
    header = ["lengths of", "", "way", "ours is faster by", "tokens a pair, padding included", "peak memory"]
    return table(header, rows)


def layer_parameters() -> int:
    """Weights of the model without its embeddings: two operations each for a token."""
    hidden, inner = MODEL["hidden_size"], MODEL["intermediate_size"]
    return MODEL["num_hidden_layers"] * (4 * hidden * hidden + 3 * hidden * inner)


def matmul_share(measured: Sequence[Run], profile: str) -> float:
    """Rate of operations of our labelling, as a share of the rate at which the machine multiplies matrices."""
    rate = statistics.median(run["rate"] for run in measured if run["name"].startswith("matmul"))
    labelling = speeds(measured)[profile]["label"]["ours"]
    return 2 * layer_parameters() * labelling["pairs_per_second"] * labelling["tokens_per_pair"] / rate


def last_line(found: Mapping[str, Mapping[str, dict[str, Any]]], share: float, profile: str) -> str:
    """Pairs a second of ours over theirs."""

    def ratio(task: str, other: str) -> str:
        ways = found[task]
        return f"{ways['ours']['pairs_per_second'] / ways[other]['pairs_per_second']:.2f}" if other in ways else "-"

    names = {"trl": ("train", "usual"), "best_trl": ("train", "best")}
    parts = [f"train_vs_{name}_{profile}={ratio(*way)}" for name, way in names.items()]
    names = {"pipeline": ("label", "usual"), "best_pipeline": ("label", "best")}
    parts += [f"label_vs_{name}_{profile}={ratio(*way)}" for name, way in names.items()]
    return " ".join([*parts, f"matmul_share={share:.2f}"])


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"speed": speed_table(speeds(RESULTS.read()))}
