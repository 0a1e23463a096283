"""Tables of the guards: faults and healthy runs, the audits and first rounds read anew, and the guards' settings."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from benchmarks.shared.held_out import HARM
from benchmarks.shared.intervals import wilson_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run
from ser_lightning.evolution.guards import KINDS

HERE = Path(__file__).parent
PAGE = "guards.md"
RESULTS = Results(HERE / "results.jsonl", "seed")
LENGTH = Results(HERE / "length.jsonl", "seed")
AUDITS = Results(HERE / "audits.jsonl", "seed", "round")
FAULTS = {
    "labels_flipped": "a rule gives every label to the wrong side",
    "length_teacher": "rewards of the pool weigh length twice as much as what was learnt",
    "foreign_pool": "the pool has arithmetic problems, the seed of the synthetic dataset",
    "rewards_collapse": "from round 1 on a weight decay of 300 shrinks all weights",
}


def change(run: Run, side: str) -> float:
    """Accuracy of what was delivered minus that of the run's seed model."""
    return run["held"]["change"].get(str(run[side]["delivered"]), 0.0)


def last_change(run: Run) -> float:
    """Accuracy of the last round's model, without guards, minus that of the seed model."""
    return run["held"]["change"].get(str(len(run["off"]["rounds"]) - 1), 0.0)


def fired(run: Run) -> list[set[str]]:
    """Guards that fired in each round of the run without consequences."""
    return [{name for name, (_, _, is_fired) in found.items() if is_fired} for found in run["off"]["guards"]]


def measured(runs: Sequence[Run], name: str) -> list[Run]:
    """The runs that knew a guard: those made before it existed say nothing of it."""
    return [run for run in runs if all(name in found for found in run["off"]["guards"])]


def fault_table(runs: Sequence[Run]) -> str:
    """One line for each fault: which guards fired how often within a round, and what was delivered."""
    rows = []
    for fault, text in FAULTS.items():
        here = [run for run in runs if run["fault"] == fault]
        if not here:
            continue
        sets = [set.union(*fired(run)) for run in here]
        counts = {name: sum(name in found for found in sets) for name in KINDS}
        by = ", ".join(f"`{name}` {count}" for name, count in counts.items() if count)
        unknown = {name: len(here) - len(measured(here, name)) for name in KINDS}
        by += "".join(f"; `{name}` not measured in {count}" for name, count in unknown.items() if count)
        caught = str(sum(bool(found) for found in sets))
        changes = [mean(last_change(run) for run in here)]
        changes += [mean(change(run, side) for run in here) for side in ("off", "on")]
        rows.append([text, str(len(here)), caught, by, *(f"{value:+.3f}" for value in changes)])
    header = ["fault", "runs", "caught", "by (runs)", "last round against the seed model"]
    return table([*header, "delivered, guards off", "delivered, guards on"], rows)


def harm_table(runs: Sequence[Run]) -> str:
    """Harmed runs and mean gain, healthy and faulty, with guards and without."""
    rows = []
    for name, here in (
        ("healthy", [run for run in runs if run["fault"] is None]),
        ("with a fault", [run for run in runs if run["fault"] is not None]),
        ("all", list(runs)),
    ):
        for side in ("off", "on") if here else ():
            changes = [change(run, side) for run in here]
            harmed = sum(value < -HARM for value in changes)
            low, high = wilson_interval(harmed, len(changes))
            share = f"{harmed} of {len(changes)}"
            rows.append([name, side, share, f"{low:.3f} to {high:.3f}", f"{mean(changes):+.4f}"])
    header = ["runs", "guards", "delivered more than 1 point worse than the seed model", "95 % interval", "mean change"]
    return table(header, rows)


def delivery_table(runs: Sequence[Run]) -> str:
    """What rules for the delivered round would have handed over in the healthy runs, without guards."""
    healthy = [run for run in runs if run["fault"] is None]
    rules: dict[str, Callable[[list[float]], int]] = {
        "the best out of fold, the earlier of equal ones (`choose_round`)": lambda a: max(
            range(len(a)), key=lambda r: (a[r], -r)
        ),
        **{
            f"the latest that is at most {loss:g} below the seed model out of fold": partial(_latest, loss)
            for loss in (0.01, 0.02, 0.03, 0.05)
        },
        "the last one": lambda a: len(a) - 1,
    }
    rows = []
    for name, rule in rules.items():
        chosen = [rule([one["seed_oof_accuracy"] for one in run["off"]["rounds"]]) for run in healthy]
        changes = [run["held"]["change"].get(str(r), 0.0) for run, r in zip(healthy, chosen, strict=True)]
        harmed = sum(value < -HARM for value in changes)
        seeds = sum(r == 0 for r in chosen)
        rows.append([name, f"{seeds} of {len(healthy)}", f"{harmed} of {len(healthy)}", f"{mean(changes):+.4f}"])
    header = ["delivered", "the seed model in", "more than 1 point worse than the seed model", "mean change"]
    return table(header, rows)


def _latest(loss: float, accuracy: list[float]) -> int:
    """The latest round that is at most so far below the first one."""
    return max(r for r, value in enumerate(accuracy) if value >= accuracy[0] - loss)


def alarm_table(runs: Sequence[Run]) -> str:
    """How often each guard fires in runs without a fault."""
    rows = []
    for name, kind in KINDS.items():
        healthy = measured([run for run in runs if run["fault"] is None], name)
        if healthy:
            hit = [run for run in healthy if name in set.union(*fired(run))]
            figures = [f"{len(hit)} of {len(healthy)}", str(sum(last_change(run) < 0 for run in hit))]
        else:
            figures = ["not measured", "-"]
        rows.append([f"`{name}`", kind.default.level, *figures])
    return table(["guard", "level", "fired in healthy runs", "of these, the last round was worse"], rows)


def confidence_table(rounds: Sequence[Run], threshold: float) -> str:
    """What `overconfidence` says of audits, healthy and faulty, and would say if rewards were larger."""
    rows = []
    for name, here in by_fault(rounds).items():
        row = [name, str(len(here))]
        for column in ("value", "value_if_larger"):
            found = [one[column] for one in here]
            row += [f"{min(found):+.3f} to {max(found):+.3f}", str(sum(value > threshold for value in found))]
        rows.append(row)
    larger = f"value if rewards were {rounds[0]['larger']:.0f} times as large"
    return table(["runs", "rounds", "value, lowest to highest", "fires in", larger, "would fire in"], rows)


def length_table(runs: Sequence[Run]) -> str:
    """What `length` finds in the first round, counting labels and by what the model expects."""
    rows = []
    for name, here in by_fault(runs).items():
        row = [name, str(len(here))]
        for column in ("by_labels", "expected"):
            values = [run[column][0] for run in here]
            row += [f"{min(values):.3f} to {max(values):.3f}", str(sum(run[column][2] for run in here))]
        rows.append(row)
    header = "runs|number|by labels, lowest to highest|fires in|by what the model expects, lowest to highest|fires in"
    return table(header.split("|"), rows)


def by_fault(found: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs or rounds of healthy runs and of those with each fault, without those that there are none of."""
    names = {None: "healthy", **FAULTS}
    groups = {name: [one for one in found if one["fault"] == fault] for fault, name in names.items()}
    return {name: here for name, here in groups.items() if here}


def settings_table() -> str:
    """Level and threshold of every guard, as the code has them."""
    rows = []
    for name, kind in KINDS.items():
        fires = f"{'below' if kind.is_bad_below else 'above'} {kind.default.threshold}"
        rows.append([f"`{name}`", kind.default.level, fires, kind.meaning, kind.action])
    return table(["guard", "level", "fires", "what it means", "what to do"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    runs = RESULTS.read()
    return {
        "settings": settings_table(),
        "faults": fault_table(runs),
        "harm": harm_table(runs),
        "delivery": delivery_table(runs),
        "alarms": alarm_table(runs),
        "length": length_table(LENGTH.read()),
        "overconfidence": confidence_table(AUDITS.read(), KINDS["overconfidence"].default.threshold),
    }
