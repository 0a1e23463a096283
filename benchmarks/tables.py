"""Write the tables of `docs/` from the JSON files beside this script: `python benchmarks/tables.py`.

Text between `<!-- NAME -->` and `<!-- end NAME -->` is replaced; everything else in the page is written by hand.
"""

import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

from forecast_tables import forecast_tables
from gpu.tables import gpu_tables
from guard_tables import confidence_table, guard_tables, length_table
from guard_tables import settings_table as settings_of_guards
from intervals import interval
from policy_tables import policy_tables
from rl_tables import coevolution_table, memory_table, rl_speed_table, rl_table
from study_mistakes import mistakes_table
from study_tables import study_tables
from world_tables import (
    delivered,
    floors_table,
    learned_table,
    rounds_by_round_table,
    rules_table,
    run_table,
    world_share,
)

from ser_lightning.evaluation.metrics import wilson_interval
from ser_lightning.evolution.guards import KINDS

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SETTINGS = {
    "nothing: the default": "nothing: `restart: weights`, `combine: replace`, 2 epochs, target set by the rule",
    "restart_nothing": "`restart: nothing`",
    "restart_optimizer": "`restart: optimizer`",
    "epochs_1": "`epochs_per_round: 1`",
    "epochs_4": "`epochs_per_round: 4`",
    "seed_share_0.3": "`seed_share: 0.3`",
    "seed_share_0.5": "`seed_share: 0.5`",
    "target_0.75": "`rule.target: 0.75`",
    "target_0.9": "`rule.target: 0.9`",
    "add": "`combine: add`",
    "quota": "`length_quota: seed`",
}
QUERIES = {
    "none": "none",
    "random": "at random",
    "cover": "`CoverUncertain`, the default",
    "uncertain": "`MostUncertain`",
}


def load(folder: Path) -> dict[str, dict[int, dict]]:
    """Results by condition and random seed."""
    results: dict[str, dict[int, dict]] = defaultdict(dict)
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        results[result["condition"]][result["seed"]] = result
    return results


def fill(page: str, name: str, table: str) -> str:
    """The page with one table replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no place for the table {name}")
    return pattern.sub(lambda m: m[1] + table + "\n" + m[2], page)


def settings_table(default: dict[int, dict], conditions: dict[str, dict[int, dict]]) -> str:
    """One line a setting of the evolution: out-of-fold accuracy of the seed, which chooses, and test accuracy."""
    lines = [
        "| changed | random seeds | seed, out of fold | against the default | test | against the default |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in {"nothing: the default": default, **conditions}.items():
        seeds = sorted(runs.keys() & default.keys())
        cells = [SETTINGS.get(name, name), str(len(seeds))]
        for column in ("seed_oof_accuracy", "test_accuracy"):
            own, other = ([delivered(group[seed])[column] for seed in seeds] for group in (runs, default))
            cells.append(interval(own))
            cells.append("-" if runs is default else interval([a - b for a, b in zip(own, other, strict=True)]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed_table(results: dict[str, dict]) -> str:
    """Pairs a second, ours over every other way, by profile and task."""
    profiles = {"hh": "HH-RLHF", "ultrafeedback": "UltraFeedback"}
    tasks = {"train": ("training", "TRL"), "label": ("labelling", "pipeline")}
    lines = [
        "| lengths of | | way | ours is faster by | tokens a pair, padding included | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for profile, found in results.items():
        for task, (title, other) in tasks.items():
            names = {
                "ours": "ours",
                "padded": "ours, `layout: padded`",
                "usual": f"{other}, batches of 8 in random order",
            }
            names["best"] = f"{other}, best setting: {found[task]['best_setting']}"
            ways = found[task]["ways"]
            for way, name in names.items():
                if way not in ways:
                    continue
                ratio = ways["ours"]["pairs_per_second"] / ways[way]["pairs_per_second"]
                cells = [profiles[profile], title, name, "-" if way == "ours" else f"{ratio:.2f}"]
                cells += [f"{ways[way]['tokens_per_pair']:.0f}", f"{ways[way]['peak_bytes'] / 2**20:.0f} MiB"]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hardware_table(plans: list[dict]) -> str:
    """One line for each model under each overlay: GiB by kind, as `plan` expects them."""
    kinds = {
        "weights": "weights",
        "adapters": "adapters",
        "optimiser": "optimiser",
        "gradients": "gradients",
        "activations, estimate": "activations",
        "workspace, estimate": "workspace",
    }
    lines = [
        "| `models/` | `hardware/` | tokens a batch, training and labelling | "
        + " | ".join(kinds.values())
        + " | all, training | all, labelling | the card |",
        "|" + "---|" * (len(kinds) + 6),
    ]
    for plan in plans:
        tokens = plan["batch_tokens"]
        cells = [plan["model"], plan["overlay"], f"{tokens['training']:,} and {tokens['labelling']:,}"]
        cells += [_gibibytes(plan["kinds"].get(kind, {}).get("training", 0)) for kind in kinds]
        cells += [_gibibytes(plan["all"][phase]) for phase in ("training", "labelling")]
        lines.append("| " + " | ".join([*cells, f"{plan['gigabytes']} GB"]) + " |")
    return "\n".join(lines)


def _gibibytes(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f}"


def cluster_table(sizes: list[dict]) -> str:
    """One line for each number of pairs in shards: peak memory, and time a pair against the smallest."""
    stages = ("label", "select", "accept")
    lines = [
        "| pairs | in shards of a million | peak memory | labels accepted | on disk | "
        + " | ".join(f"{stage}, time a pair" for stage in stages)
        + " |",
        "|" + "---|" * (5 + len(stages)),
    ]
    for size in sizes:
        growth = size["pairs"] / sizes[0]["pairs"]
        cells = [f"{size['pairs']:,}", f"{size['pairs'] // 1_000_000}", f"{size['peak_bytes'] / 2**20:.0f} MiB"]
        cells += [f"{size['kept']:,}", f"{size['disk_bytes'] / size['pairs']:.0f} B a pair"]
        cells += [f"{size['seconds'][stage] / sizes[0]['seconds'][stage] / growth:.2f}" for stage in stages]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sequential_table(rows: list[dict]) -> str:
    """One line for each number of discordant pairs and power of the fixed test."""
    lines = [
        "| discordant pairs | power of the fixed test | share of them won by B | sequential: decides "
        "| median, share of the pairs | mean |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        power = "equal models" if row["power"] is None else f"{row['power']:.2f}"
        cells = [str(row["discordant"]), power, f"{row['share']:.3f}", f"{row['decided']:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{row['median_share']:.2f}", f"{row['mean_share']:.2f}"]) + " |")
    return "\n".join(lines)


def bodies_table(runs: list[dict]) -> str:
    """One line for each way to train a body: its seed model and its delivered model."""
    lines = [
        "| data, model | trained | seed model: seed, out of fold | test | pool | delivered: test | pool |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        first, last = run["rounds"][0], next(row for row in run["rounds"] if row["delivered"])
        cells = [run["data"], f"`{run['train']}`", f"{first['seed_oof_accuracy']:.3f}"]
        for row in (first, last if len(run["rounds"]) > 1 else None):
            cells += (
                [wilson(row["test_accuracy"], run["test_pairs"]), f"{row['pool_accuracy']:.3f}"] if row else ["-", "-"]
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def wilson(share: float, num_pairs: int) -> str:
    """A share with its 95 % interval."""
    low, high = wilson_interval(round(share * num_pairs), num_pairs)
    return f"{share:.3f} ({low:.3f} to {high:.3f})"


def kills_table(kills: list[dict]) -> str:
    """One line a kill, in the order of the moments."""
    lines = ["| killed at | resumed from | ends with |", "|---|---|---|"]
    for kill in sorted(kills, key=lambda kill: kill["moment"]):
        outcome = "the same" if not kill["differs"] else "other " + ", ".join(kill["differs"])
        lines.append(f"| {kill['moment']:.0%} of the run | {kill['resumed_from']} | {outcome} |")
    return "\n".join(lines)


def pool_table(sizes: list[dict]) -> str:
    """Memory by the size of the pool, and the cost of a pair against that in the smallest pool."""
    stages = {"score": "labelling", "select": "selecting", "accept": "accepting", "write": "audit and table"}
    lines = [
        "| pool pairs | peak memory | more than the smallest, a pair | "
        + " | ".join(stages.values())
        + " | encoding, once | its peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first = sizes[0]
    for size in sizes:
        growth = size["pairs"] / first["pairs"]
        peak = max(size["peak_bytes"].values())
        more = (peak - max(first["peak_bytes"].values())) / max(1, size["pairs"] - first["pairs"])
        costs = [size["seconds"][name] / first["seconds"][name] / growth for name in stages]
        costs.append(size["encode_seconds"] / first["encode_seconds"] / growth)
        cells = [f"{size['pairs']:,}", f"{peak / 2**20:.0f} MiB", f"{more:.0f} B" if size is not first else "-"]
        cells += [*(f"{cost:.2f}" for cost in costs), f"{size['encode_peak'] / 2**20:.0f} MiB"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def query_table(results: dict[str, dict[int, dict]], first_tuning_seed: int = 1001) -> str:
    """One line for each way to choose 100 pairs: accuracy on held-out pairs, and its paired difference to random."""
    lines = [
        "| 100 more labels | random seeds | seed model | against random | after one round | against random "
        "| of these labels as the gold reward says |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in QUERIES.items():
        seeds = sorted(s for s in results[name].keys() & results["random"].keys() if s < first_tuning_seed)
        if not seeds:
            continue
        cells = [title, str(len(seeds))]
        for model in ("seed_model", "delivered"):
            own, other = ([results[c][s]["held"][model] for s in seeds] for c in (name, "random"))
            cells.append(interval(own))
            cells.append("-" if name == "random" else interval([a - b for a, b in zip(own, other, strict=True)]))
        right = [results[name][s]["asked"].get("labels_as_gold") for s in seeds]
        cells.append("-" if None in right else interval(right))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def guard_runs() -> list[dict]:
    """The runs of the guard study in the order of their random seeds."""
    return sorted((json.loads(file.read_text()) for file in (HERE / "guards").glob("*.json")), key=lambda r: r["seed"])


def study_results() -> list[dict]:
    """The runs on real preferences."""
    return [json.loads(file.read_text()) for file in sorted((HERE / "study").glob("*.json"))]


def read(name: str) -> dict:
    """A JSON file beside this script."""
    return json.loads((HERE / name).read_text())


@cache
def tables() -> dict[str, dict[str, str]]:
    """Every table by its page and name."""
    results, on_gpu = load(HERE / "rules"), gpu_tables()
    return {
        "results.md": {
            **study_tables(study_results(), world_share(results)),
            "study_mistakes": mistakes_table(read("results/study_mistakes.json")["runs"]),
            "rules": rules_table(results),
            "floors": floors_table(results),
            "rounds": rounds_by_round_table(results),
            "learned": learned_table(read("what_is_learned.json")["rounds"]),
            **{file.stem: run_table(json.loads(file.read_text())) for file in sorted((HERE / "real").glob("*.json"))},
        },
        "rl.md": {
            "rl": rl_table(load(HERE / "rl")),
            **policy_tables(load(HERE / "policy")),
            "memory": memory_table(read("rl_memory.json")),
            "coevolution": coevolution_table(read("coevolve.json")),
            "speed": rl_speed_table(read("rl_speed.json")["estimators"]),
            **on_gpu["rl.md"],
        },
        "performance.md": {
            "speed": speed_table(read("results/speed.json")["results"]),
            "features": bodies_table(read("features.json")["runs"]),
            **on_gpu["performance.md"],
        },
        "cluster.md": {"cluster_scale": cluster_table(read("results/cluster_scale.json")["sizes"])},
        "evaluation.md": {"sequential": sequential_table(read("results/sequential.json")["rows"])},
        "forecast.md": forecast_tables(load(HERE / "forecast")),
        "guards.md": {
            "settings": settings_of_guards(),
            **guard_tables(guard_runs()),
            "length": length_table(read("results/guard_length.json")["runs"]),
            "overconfidence": confidence_table(
                read("results/overconfidence.json"), KINDS["overconfidence"].default.threshold
            ),
        },
        "hardware.md": {"plans": hardware_table(read("results/hardware_plan.json")["plans"]), **on_gpu["hardware.md"]},
        "defaults.md": {"settings": settings_table(results["ours"], load(HERE / "sweep"))},
        "cli.md": {
            "kills": kills_table(read("kills.json")["kills"]),
            "pool_scale": pool_table(read("pool_scale.json")["sizes"]),
            "query": query_table(load(HERE / "query")),
        },
    }


def filled(name: str) -> str:
    """A page of the docs with its tables made anew."""
    page = (DOCS / name).read_text()
    for table, text in tables()[name].items():
        page = fill(page, table, text)
    return page


if __name__ == "__main__":
    for page_name in tables():
        (DOCS / page_name).write_text(filled(page_name))
