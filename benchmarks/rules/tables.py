"""Tables of the runs on the embedded synthetic world: rules, floors, rounds, what is learned."""

import math
from collections import defaultdict

from intervals import interval
from rules import NAMES
from scipy import stats

FLOORS = {
    "longer": "take the longer response",
    "bag_of_words_seed": "bag of words, fitted on the seed",
    "bag_of_words_all_labels": "bag of words, fitted on all labels",
    "ceiling": "ceiling: the gold reward itself against the noisy labels",
}


def delivered(result: dict) -> dict:
    """The round that the run handed over."""
    return next(row for row in result["rounds"] if row["delivered"])


def share_of_gap(seed: list[float], evolved: list[float], full: list[float]) -> str:
    """Ratio of mean gaps, with a paired jackknife interval over random seeds; undefined where there is no gap."""
    gaps = [f - s for s, f in zip(seed, full, strict=True)]
    gains = [e - s for s, e in zip(seed, evolved, strict=True)]
    n = len(gaps)
    if n < 3 or sum(gaps) / n <= stats.t.ppf(0.975, n - 1) * stats.sem(gaps):
        return "undefined"
    ratio = sum(gains) / sum(gaps)
    left_out = [(sum(gains) - gains[i]) / (sum(gaps) - gaps[i]) for i in range(n)]
    mean = sum(left_out) / n
    error = math.sqrt((n - 1) / n * sum((r - mean) ** 2 for r in left_out))
    return f"{ratio:.2f} ± {stats.t.ppf(0.975, n - 1) * error:.2f}"


def rules_table(results: dict[str, dict[int, dict]]) -> str:
    """One line a rule: seed, delivered and all-labels accuracy on the test pairs."""
    full = {seed: r["rounds"][0]["test_accuracy"] for seed, r in results["all_labels"].items()}
    lines = [
        "| rule | random seeds | seed model | delivered | gain | all labels | share of the gap | kept, first round "
        "| kept labels right | rounds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for condition, name in NAMES.items():
        runs = [results[condition][s] for s in sorted(results[condition]) if s in full]
        if not runs:
            continue
        seed = [r["rounds"][0]["test_accuracy"] for r in runs]
        evolved = [delivered(r)["test_accuracy"] for r in runs]
        labels = [full[r["seed"]] for r in runs]
        gain = [e - s for s, e in zip(seed, evolved, strict=True)]
        first = [r["rounds"][0] for r in runs]
        cells = [name, str(len(runs)), interval(seed), interval(evolved), interval(gain), interval(labels)]
        cells += [share_of_gap(seed, evolved, labels), f"{sum(f['kept'] / f['scored'] for f in first) / len(runs):.0%}"]
        right = [f["kept_accuracy"] for f in first if not math.isnan(f["kept_accuracy"])]
        cells += [interval(right) if right else "-", f"{sum(len(r['rounds']) - 1 for r in runs) / len(runs):.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def world_share(results: dict[str, dict[int, dict]], condition: str = "ours") -> str:
    """Share of the gap that a rule closes on the synthetic world."""
    seeds = sorted(results[condition].keys() & results["all_labels"].keys())
    runs, full = ([results[name][seed] for seed in seeds] for name in (condition, "all_labels"))
    first = [run["rounds"][0]["test_accuracy"] for run in runs]
    last = [delivered(run)["test_accuracy"] for run in runs]
    return share_of_gap(first, last, [run["rounds"][0]["test_accuracy"] for run in full])


def floors_table(results: dict[str, dict[int, dict]]) -> str:
    """Floors and ceiling on the same test pairs."""
    runs = list(results["floors"].values())
    lines = ["| on the same test pairs | accuracy |", "|---|---|"]
    lines += [f"| {name} | {interval([r['figures'][key] for r in runs])} |" for key, name in FLOORS.items()]
    return "\n".join(lines)


def rounds_by_round_table(results: dict[str, dict[int, dict]], condition: str = "ours") -> str:
    """Means over random seeds, round by round, of the runs that reached the round."""
    runs = list(results[condition].values())
    names = ["test_accuracy", "seed_oof_accuracy", "pool_accuracy", "kept_accuracy", "calibration_error"]
    lines = [f"| round | runs | kept | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    for number in range(max(len(r["rounds"]) for r in runs)):
        rows = [r["rounds"][number] for r in runs if len(r["rounds"]) > number]
        kept = sum(row["kept"] / row["scored"] for row in rows) / len(rows)
        cells = [interval([row[name] for row in rows]) for name in names]
        lines.append(f"| {number} | {len(rows)} | {kept:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def learned_table(rounds: list[dict]) -> str:
    """Shares of right pairs that differ in one kind of context, for our rule round by round and for all labels."""
    groups: dict[tuple[str, int], list[dict]] = defaultdict(list)
    for row in rounds:
        groups[row["condition"], row["round"]].append(row)
    names = {("ours", number): f"round {number}" for number in range(10)} | {("all_labels", 0): "all labels"}
    lines = ["| | random seeds | plain faults | manners |", "|---|---|---|---|"]
    for key, name in names.items():
        if rows := groups.get(key):
            cells = [interval([row[kind] for row in rows]) for kind in ("plain", "manners")]
            lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run_table(result: dict) -> str:
    """The table of rounds of one run, as it stands in `rounds.csv`."""
    names = [n for n in result["rounds"][0] if n != "seconds"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in result["rounds"]:
        lines.append("| " + " | ".join(f"{row[n]:.4g}" for n in names) + " |")
    return "\n".join(lines)
