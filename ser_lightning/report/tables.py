"""The tables and sentences of a report on one run: outcome, settings, rounds, flow, cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ser_lightning.evolution.guards import allowed
from ser_lightning.report.data import Round, Run, flat, flow_of
from ser_lightning.report.outcome import answers, has_interval
from ser_lightning.runs.files import first_round, how_delivered
from ser_lightning.runs.shapes import COST_PARTS

_ASKED = {
    "data": "data.path",
    "more pool pairs": "data.pool_path",
    "test pairs from": "data.test_path",
    "arrived later": "data.new_data_path",
    "pseudo-labels from": "data.teacher",
    "share with human labels": "data.seed_fraction",
    "model": "model.backbone.path",
}
"""What a config asked for in short: name, dotted key."""
_ASKED_TOGETHER = {
    "training": [
        "model.backbone.train",
        "model.backbone.quantize",
        "model.backbone.dtype",
        "model.reading",
        "model.optimizer.lr",
    ],
    "random seeds": ["seed_everything", "data.split_seed"],
}
_UNUSED_WHERE_SOLVED = ("optimizer.lr", ".seed_epochs", ".epochs_per_round", ".min_steps")
_ROUND_SETTINGS = (
    *("max_rounds", "seed_epochs", "epochs_per_round", "min_steps", "folds", "restart", "min_gain", "stop_by"),
)


@dataclass(frozen=True)
class Table:
    """A table of a page."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = field(default_factory=frozenset)
    """Rows to set in bold."""
    is_text: bool = False
    """Long values, which wrap; numbers do not."""


def outcome_of(run: Run) -> list[str]:
    """Whether self-evolution helped, whether the model is good enough, and what next."""
    measured = {one.number: one.notes.get("test", {}) for one in run.rounds}
    return answers([one.row for one in run.rounds], measured, same_seed=len(set(run.seed_counts)) <= 1)


def asked_for(config: dict[str, Any], is_solved: bool = False) -> list[tuple[str, str]]:
    """What a flat config asked for, in short: names and values; without what has no part in a head that is solved."""
    config = {key: value for key, value in config.items() if not (is_solved and key.endswith(_UNUSED_WHERE_SOLVED))}
    asked = [(name, plain(config[key])) for name, key in _ASKED.items() if config.get(key) is not None]
    asked += [(name, _settings(config, keys)) for name, keys in _ASKED_TOGETHER.items()]
    for key in [key for key in config if key.endswith(".rule.class_path")]:
        rule, evolution = key.removesuffix(".class_path"), key.removesuffix(".rule.class_path")
        own = [name for name in config if name.startswith(f"{rule}.") and name != key]
        asked.append(("rule", ", ".join(filter(None, [str(config[key]).rpartition(".")[2], _settings(config, own)]))))
        asked.append(("rounds", _settings(config, [f"{evolution}.{name}" for name in _ROUND_SETTINGS])))
    return [(name, value) for name, value in asked if value]


def _settings(config: dict[str, Any], keys: Sequence[str]) -> str:
    """`name value, name value`; what is null is left out."""
    given = {key.rpartition(".")[2]: plain(config[key]) for key in keys if config.get(key) is not None}
    return ", ".join(f"{name} {value}" for name, value in given.items())


def round_note(run: Run) -> str:
    """What stands below the table of rounds."""
    how = how_delivered(one.row["seed_oof_accuracy"] for one in run.rounds)
    first = first_round(flat(run.config).get("data.teacher"))
    lines = [f"Round 0 is {first}; the delivered round is bold, {how}. Accuracies have 95 % intervals.", *_TERMS]
    if _has_statuses(run):
        lines.append(
            "learning status: in the paper's words, 1 where the model tells a good from a bad response, 2 where it "
            "sees a clear difference, 0 neither"
        )
    if len(set(run.seed_counts)) > 1:
        counts = ", ".join(str(count) for count in run.seed_counts)
        lines.append(
            f"The seed has grown ({counts} pairs by round): accuracies out of fold are of different seed pairs, and "
            "can be compared within equal numbers only."
        )
    return "\n".join(lines)


_TERMS = (
    "kept: pool pairs whose label, given by the model, trains the next round",
    "flipped: pool pairs that the model labels otherwise than in the round before",
    "labels correct: share that agrees with the human labels in the file, which are only counted and decide nothing",
    "out of fold: no seed pair is scored by a model that trained on it",
    "calibration error: mean distance of stated confidence from accuracy, on the seed, out of fold",
    "length correlation: of reward and length; far from 0, the model may just like long or short responses",
)


def _has_statuses(run: Run) -> bool:
    """Whether the rule tells statuses apart, as the paper's do."""
    return any(one.row["status"] == 2 for one in run.rounds)


ROUND_COLUMNS = {
    "pseudo_label_accuracy": "kept labels correct",
    "pool_accuracy": "pool labels correct",
    "seed_oof_accuracy": "seed, out of fold",
    "test_accuracy": "test",
}


def round_table(run: Run) -> Table:
    """The rounds, as in `rounds.csv`, with the difference from the seed model on the test pairs."""
    counts = ["round", "scored", "kept", "flipped", *(["status"] if _has_statuses(run) else [])]
    names = {"scored": "pool pairs", "status": "learning status"}
    ends = ["test, less seed model", "calibration error", "length correlation"]
    rows = []
    for one in run.rounds:
        scales = [number_text(one.row["calibration_error"]), number_text(one.row["length_correlation"], "+.3f")]
        rows.append(
            [
                *(f"{one.row[name]:.0f}" for name in counts),
                *(with_interval(one, column) for column in ROUND_COLUMNS),
                difference(one, "seed"),
                *scales,
            ]
        )
    headers = [*(names.get(name, name) for name in counts), *ROUND_COLUMNS.values(), *ends]
    return Table(headers, rows, frozenset({run.rounds.index(run.delivered)}))


LENGTH_NOTE = (
    "Of the delivered round. Quarters of the test pairs by length, from those whose better response is much shorter "
    "than the other to those where it is much longer: a model that just likes length is bad at the top. Intervals are "
    "over prompts."
)


def length_table(run: Run) -> Table | None:
    """Accuracy on the test pairs by length of the better response; None where it was not measured."""
    groups = run.delivered.notes.get("test", {}).get("by_length", {})
    rows = [[name, f"{one['pairs']:.0f}", _share_cell(one, "low", "high")] for name, one in groups.items()]
    return Table(["the better response is", "pairs", "right"], rows) if rows else None


SETS_NOTE = (
    "The last test and validate with data.eval_sets, for each set and its groups: quarters by length of the better "
    "response, categories (data.eval_category), sections of a benchmark. Intervals are over prompts."
)


def sets_table(run: Run) -> Table | None:
    """Accuracy on named sets and their groups; None without any."""
    rows: list[list[str]] = []
    strong: list[int] = []
    for name, found in run.evaluations.items():
        strong.append(len(rows))
        rows.append([name, f"{found['pairs']:.0f}", _share_cell(found, "accuracy_low", "accuracy_high")])
        for key in ("by_section", "by_category", "by_length"):
            groups = found.get(key, {})
            rows += [[group, f"{one['pairs']:.0f}", _share_cell(one, "low", "high")] for group, one in groups.items()]
    return Table(["set", "pairs", "right"], rows, frozenset(strong)) if rows else None


def _share_cell(found: dict[str, float], low: str, high: str) -> str:
    return f"{found['accuracy']:.3f}\n{found[low]:.3f}–{found[high]:.3f}"


def difference(one: Round, other: str) -> str:
    """Of a round and another model on the test pairs, paired."""
    found = one.notes.get("test", {}).get("against", {}).get(other)
    if not found:
        return "–"
    interval = f"\n{found['low']:+.3f} to {found['high']:+.3f}" if has_interval(found) else ""
    return f"{found['difference']:+.3f}{interval}"


FORECAST_NOTE = (
    "Each round's accuracy on the seed, out of fold, as forecast when the round before was over, with a 95 % interval. "
    "After a round: what the next one is forecast to gain, and the round at which evolution converges. Net label "
    "change: how much further the pool's labels are from those of two rounds before."
)
AHEAD = {"net_label_change": "+.3f", "predicted_gain": "+.4f", "predicted_last_round": ".0f"}


def forecast_table(run: Run) -> Table | None:
    """The forecast and the result of each round; None for runs from before there were forecasts."""
    headers = [
        "round",
        "forecast",
        "out of fold",
        "error",
        "net label change",
        "predicted gain",
        "predicted last round",
    ]
    rows = []
    for one in run.rounds:
        row = one.row
        if "predicted_last_round" not in row:
            return None
        forecast, low, high = (number_text(row[f"forecast_{name}"]) for name in ("accuracy", "low", "high"))
        came = [number_text(row["seed_oof_accuracy"]), number_text(row["forecast_error"], "+.3f")]
        ahead = [number_text(row[name], form) for name, form in AHEAD.items()]
        interval = f"\n{low}–{high}" if forecast != "–" else ""
        rows.append([f"{one.number}", forecast + interval, *came, *ahead])
    return Table(headers, rows)


READING_NOTE = (
    "Where the head could have read, each set with the penalty that did best for it, out of fold on the human labels "
    "of the seed. The first set is the usual one; another is chosen only where its log loss is lower by three standard "
    "errors. The bold one was chosen."
)


def reading_table(run: Run) -> Table | None:
    """What the choice of readings saw; None where there was none."""
    rows = run.delivered.notes.get("readings", [])
    if not rows:
        return None
    headers = ["reads", "penalty", "right, out of fold", "log loss", "log loss below the first"]
    found = []
    for row in rows:
        gap = "–" if row is rows[0] else f"{row['advantage']:+.4f} ± {row['standard_error']:.4f}"
        figures = [f"{row['penalty']:.3g}", f"{row['accuracy']:.3f}", f"{row['log_loss']:.4f}", gap]
        found.append([row["readings"], *figures])
    return Table(headers, found, frozenset(i for i, row in enumerate(rows) if row["is_chosen"]))


def flow_table(run: Run) -> Table | None:
    """What became of the pool's pairs from round to round."""
    headers = ["round", "kept", "kept again", "newly kept", "no longer kept", "flipped", "left out"]
    rows = []
    for one in run.rounds:
        if one.audit is None:
            continue
        before = run.before(one)
        flow = flow_of(one.audit, before.audit if before else None)
        counts = (
            flow.kept,
            flow.kept & flow.kept_before,
            flow.kept & ~flow.kept_before,
            ~flow.kept & flow.kept_before,
            flow.flipped,
            ~flow.kept,
        )
        rows.append([str(one.number), *(str(int(mask.sum())) for mask in counts)])
    return Table(headers, rows) if rows else None


GUARD_NOTE = (
    "A value, and the side of its limit on which it is fine; a guard that fired is marked with what it did. No "
    "held-out label is read."
)


def guard_table(run: Run) -> Table | None:
    """What every drift guard found in every round; None without guards."""
    names = list(dict.fromkeys(found["guard"] for one in run.rounds for found in one.guards))
    if not names:
        return None
    by_round = [{found["guard"]: found for found in one.guards} for one in run.rounds]
    rows = [[name, *(_guard_cell(guards.get(name)) for guards in by_round)] for name in names]
    return Table(["guard", *(f"round {one.number}" for one in run.rounds)], rows)


def fired_guards(run: Run) -> list[str]:
    """A sentence for every guard that fired, with all rounds in which it did the same."""
    rounds: dict[tuple[str, ...], list[str]] = {}
    for one in run.rounds:
        for found in one.guards:
            if found["fired"]:
                key = tuple(found[name] for name in ("guard", "level", "meaning", "action"))
                rounds.setdefault(key, []).append(str(one.number))
    return [
        f"Guard {guard} ({level}) fired in round{'s' if len(numbers) > 1 else ''} {_listed(numbers)}: {meaning}. "
        f"To do: {action}."
        for (guard, level, meaning, action), numbers in rounds.items()
    ]


def _listed(words: Sequence[str]) -> str:
    """`1`, `1 and 2`, `1, 2 and 3`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _guard_cell(found: dict[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "–"
    mark = f"! {found['level']}: " if found["fired"] else ""
    return f"{mark}{found['value']:.3f}\n{allowed(found['guard'])} {found['limit']:.3f}"


def cost_table(run: Run) -> Table:
    """Tokens and seconds of every round and in all, with what they went for where the run has noted it."""
    parts = [part for part in COST_PARTS if any(part in r.cost for r in run.rounds)]
    lines = [(str(r.number), r.spent("tokens"), r.spent("seconds")) for r in run.rounds]
    lines.append(("all", _added([line[1] for line in lines]), _added([line[2] for line in lines])))
    rows = []
    for name, tokens, seconds in lines:
        in_all, time = sum(tokens.values()), sum(seconds.values())
        cells = [f"{thousands(tokens[part])}\n{seconds[part]:.1f} s" if part in tokens else "–" for part in parts]
        rate = thousands(in_all / time) if time and in_all else "–"
        rows.append([name, *cells, thousands(in_all), f"{time:.1f}", rate])
    headers = ["round", *(COST_PARTS[part] for part in parts), "tokens", "seconds", "tokens a second"]
    return Table(headers, rows, frozenset({len(rows) - 1}))


# Formatting


def with_interval(one: Round, column: str) -> str:
    bounds = one.interval(column)
    return number_text(one.row[column]) + (f"\n{bounds[0]:.3f}–{bounds[1]:.3f}" if bounds else "")


def number_text(value: float, form: str = ".3f") -> str:
    return "–" if math.isnan(value) else format(value, form)


def _added(counts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: sum(count.get(key, 0.0) for count in counts) for key in {key for count in counts for key in count}}


def thousands(number: float) -> str:
    return f"{number:,.0f}".replace(",", " ")


def plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return "null" if value is None else str(value)
