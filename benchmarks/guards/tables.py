"""Tables of `docs/guards.md`, from the runs of `guard_study.py`."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from ser_lightning.evaluation.metrics import wilson_interval
from ser_lightning.evolution.guards import KINDS

HARM = 0.01
FAULTS = {
    "labels_flipped": "a rule gives every label to the wrong side",
    "length_teacher": "rewards of the pool weigh length twice as much as what was learnt",
    "foreign_pool": "the pool is of sums, the seed of the embedded world",
    "rewards_collapse": "from round 1 on a weight decay of 300 shrinks all weights",
}


def change(run: dict[str, Any], side: str) -> float:
    """Accuracy of what was delivered minus that of the run's seed model."""
    return run["held"]["change"].get(str(run[side]["delivered"]), 0.0)


def fired(run: dict[str, Any]) -> list[set[str]]:
    """Guards that fired in each round of the run without consequences."""
    return [{name for name, (_, _, is_fired) in found.items() if is_fired} for found in run["off"]["guards"]]


def measured(runs: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The runs that knew a guard: those made before it existed say nothing of it."""
    return [run for run in runs if all(name in found for found in run["off"]["guards"])]


def fault_table(runs: Sequence[dict[str, Any]]) -> str:
    """One line for each fault: which guards fired how often within a round, and what was delivered."""
    lines = [
        "| fault | runs | caught | by (runs) | last round against the seed model | delivered, guards off "
        "| delivered, guards on |",
        "|---|---|---|---|---|---|---|",
    ]
    for fault, text in FAULTS.items():
        here = [run for run in runs if run["fault"] == fault]
        if not here:
            continue
        sets = [set.union(*fired(run)) for run in here]
        counts = {name: sum(name in found for found in sets) for name in KINDS}
        by = ", ".join(f"`{name}` {count}" for name, count in counts.items() if count)
        unknown = {name: len(here) - len(measured(here, name)) for name in KINDS}
        by += "".join(f"; `{name}` not measured in {count}" for name, count in unknown.items() if count)
        last = [run["held"]["change"].get(str(len(run["off"]["rounds"]) - 1), 0.0) for run in here]
        cells = [text, str(len(here)), str(sum(bool(found) for found in sets)), by, f"{mean(last):+.3f}"]
        cells += [f"{mean(change(run, side) for run in here):+.3f}" for side in ("off", "on")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def harm_table(runs: Sequence[dict[str, Any]]) -> str:
    """Harmed runs and mean gain, healthy and faulty, with guards and without."""
    lines = [
        "| runs | guards | delivered more than 1 point worse than the seed model | 95 % interval | mean change |",
        "|---|---|---|---|---|",
    ]
    for name, here in (
        ("healthy", [run for run in runs if run["fault"] is None]),
        ("with a fault", [run for run in runs if run["fault"] is not None]),
        ("all", list(runs)),
    ):
        for side in ("off", "on") if here else ():
            changes = [change(run, side) for run in here]
            harmed = sum(value < -HARM for value in changes)
            low, high = wilson_interval(harmed, len(changes))
            lines.append(
                f"| {name} | {side} | {harmed} of {len(changes)} | {max(low, 0):.3f} to {high:.3f} "
                f"| {mean(changes):+.4f} |"
            )
    return "\n".join(lines)


def alarm_table(runs: Sequence[dict[str, Any]]) -> str:
    """How often each guard fires in runs without a fault."""
    lines = ["| guard | level | fired in healthy runs | of these, the last round was worse |", "|---|---|---|---|"]
    for name, kind in KINDS.items():
        healthy = measured([run for run in runs if run["fault"] is None], name)
        if not healthy:
            lines.append(f"| `{name}` | {kind.default.level} | not measured | - |")
            continue
        hit = [run for run in healthy if name in set.union(*fired(run))]
        worse = sum(run["held"]["change"].get(str(len(run["off"]["rounds"]) - 1), 0.0) < 0 for run in hit)
        lines.append(f"| `{name}` | {kind.default.level} | {len(hit)} of {len(healthy)} | {worse} |")
    return "\n".join(lines)


def confidence_table(study: dict[str, Any], threshold: float) -> str:
    """What `overconfidence` says of audits, healthy and faulty, and would say if rewards were larger."""
    lines = [
        "| runs | rounds | value, lowest to highest | fires in "
        f"| value if rewards were {study['larger']:.0f} times as large | would fire in |",
        "|---|---|---|---|---|---|",
    ]
    for fault in (None, *FAULTS):
        here = [line for line in study["rounds"] if line["fault"] == fault]
        if not here:
            continue
        cells = ["healthy" if fault is None else FAULTS[fault], str(len(here))]
        for name in ("value", "value_if_larger"):
            found = [line[name] for line in here]
            cells += [f"{min(found):+.3f} to {max(found):+.3f}", str(sum(value > threshold for value in found))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def length_table(runs: Sequence[dict[str, Any]]) -> str:
    """What `length` finds in the first round, counting labels and by what the model expects."""
    lines = [
        "| runs | number | by labels, lowest to highest | fires in | by what the model expects, lowest to highest "
        "| fires in |",
        "|---|---|---|---|---|---|",
    ]
    for fault in (None, *FAULTS):
        here = [run for run in runs if run["fault"] == fault]
        if not here:
            continue
        cells = ["healthy" if fault is None else FAULTS[fault], str(len(here))]
        for name in ("by_labels", "expected"):
            values = [run[name][0] for run in here]
            cells += [f"{min(values):.3f} to {max(values):.3f}", str(sum(run[name][2] for run in here))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def guard_tables(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """All tables by name."""
    return {"faults": fault_table(runs), "harm": harm_table(runs), "alarms": alarm_table(runs)}


def settings_table() -> str:
    """Level and threshold of every guard, as the code has them."""
    lines = ["| guard | level | fires | what it means | what to do |", "|---|---|---|---|---|"]
    for name, kind in KINDS.items():
        side = "below" if kind.is_bad_below else "above"
        lines.append(
            f"| `{name}` | {kind.default.level} | {side} {kind.default.threshold} | {kind.meaning} | {kind.action} |"
        )
    return "\n".join(lines)
