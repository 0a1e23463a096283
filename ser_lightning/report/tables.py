"""The tables and sentences of a report: outcome, settings, rounds, flow, cost, runs side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ser_lightning.report.data import Round, Run, flat, flow_of
from ser_lightning.runs.files import how_delivered
from ser_lightning.runs.shapes import COST_PARTS

BASELINE_NAMES = {"longer": "take the longer", "bag_of_words": "bag of words"}
_ASKED = {
    "data": "data.path",
    "more pool pairs": "data.pool_path",
    "test pairs from": "data.test_path",
    "arrived later": "data.new_data_path",
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


def summary_of(run: Run) -> str:
    """The outcome in a few sentences."""
    shown, low_high = run.delivered, run.delivered.interval("test_accuracy")
    share = shown.row["test_accuracy"]
    text = f"Round {shown.number} is delivered, of rounds {run.rounds[0].number} to {run.rounds[-1].number}"
    if share == share:
        text += f": {share:.3f} of the test pairs are right"
        text += f" (95 % interval {low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
        text += ", which is worse than a coin" if share < 0.5 else ""
    baselines = shown.notes.get("baselines", {})
    if baselines:
        text += "; the baselines are " + " and ".join(f"{BASELINE_NAMES[k]} {v:.3f}" for k, v in baselines.items())
        best = max(baselines, key=lambda key: baselines[key])
        if low_high and low_high[0] <= baselines[best]:
            text += f". The interval reaches down to “{BASELINE_NAMES[best]}”: it may have learnt no more than that"
    return text + "."


def asked_for(config: dict[str, Any], is_solved: bool = False) -> list[tuple[str, str]]:
    """What a flat config asked for, in short: names and values; without what has no part in a head that is solved."""
    config = {key: value for key, value in config.items() if not (is_solved and key.endswith(_UNUSED_WHERE_SOLVED))}
    asked = [(name, _plain(config[key])) for name, key in _ASKED.items() if config.get(key) is not None]
    asked += [(name, _settings(config, keys)) for name, keys in _ASKED_TOGETHER.items()]
    for key in [key for key in config if key.endswith(".rule.class_path")]:
        rule, evolution = key.removesuffix(".class_path"), key.removesuffix(".rule.class_path")
        own = [name for name in config if name.startswith(f"{rule}.") and name != key]
        asked.append(("rule", ", ".join(filter(None, [str(config[key]).rpartition(".")[2], _settings(config, own)]))))
        asked.append(("rounds", _settings(config, [f"{evolution}.{name}" for name in _ROUND_SETTINGS])))
    return [(name, value) for name, value in asked if value]


def _settings(config: dict[str, Any], keys: Sequence[str]) -> str:
    """`name value, name value`; what is null is left out."""
    given = {key.rpartition(".")[2]: _plain(config[key]) for key in keys if config.get(key) is not None}
    return ", ".join(f"{name} {value}" for name, value in given.items())


def round_note(run: Run) -> str:
    """What stands below the table of rounds."""
    how = how_delivered(one.row["seed_oof_accuracy"] for one in run.rounds)
    return (
        f"Round 0 is the seed model; the delivered round is bold, {how}. Accuracies are shares of right answers with "
        "their 95 % intervals; test and hidden pool labels are only counted and decide nothing."
    )


ROUND_COLUMNS = {
    "pseudo_label_accuracy": "kept labels right",
    "pool_accuracy": "pool labels right",
    "seed_oof_accuracy": "seed, out of fold",
    "test_accuracy": "test",
}


def round_table(run: Run) -> Table:
    """The rounds, as in `rounds.csv`."""
    headers = ["round", "scored", "kept", "flipped", "status", *ROUND_COLUMNS.values(), "cal. error", "length corr."]
    rows = []
    for one in run.rounds:
        counts = [f"{one.row[name]:.0f}" for name in ("round", "scored", "kept", "flipped", "status")]
        scales = [number_text(one.row["calibration_error"]), number_text(one.row["length_correlation"], "+.3f")]
        rows.append([*counts, *(_with_interval(one, column) for column in ROUND_COLUMNS), *scales])
    return Table(headers, rows, frozenset({run.rounds.index(run.delivered)}))


FORECAST_NOTE = (
    "Each round's accuracy on the seed, out of fold, as forecast when the round before was over, with a 95 % interval. "
    "Behind a round: what the next one is forecast to gain, and the round at which evolution converges. Net label "
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


GUARD_NOTE = "A value and its limit; a guard that fired is marked with what it did. No held-out label is read."


def guard_table(run: Run) -> Table | None:
    """What every drift guard found in every round; None without guards."""
    names = list(dict.fromkeys(found["guard"] for one in run.rounds for found in one.guards))
    if not names:
        return None
    by_round = [{found["guard"]: found for found in one.guards} for one in run.rounds]
    rows = [[name, *(_guard_cell(guards.get(name)) for guards in by_round)] for name in names]
    return Table(["guard", *(f"round {one.number}" for one in run.rounds)], rows)


def fired_guards(run: Run) -> list[str]:
    """A sentence for every guard that fired."""
    return [
        f"Round {one.number}, guard {found['guard']} ({found['level']}): {found['meaning']}. To do: {found['action']}."
        for one in run.rounds
        for found in one.guards
        if found["fired"]
    ]


def _guard_cell(found: dict[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "–"
    mark = f"! {found['level']}: " if found["fired"] else ""
    return f"{mark}{found['value']:.3f}\nlimit {found['limit']:.3f}"


def cost_table(run: Run) -> Table:
    """Tokens and seconds of every round and in all, with what they went for where the run has noted it."""
    parts = [part for part in COST_PARTS if any(part in r.cost for r in run.rounds)]
    lines = [(str(r.number), r.spent("tokens"), r.spent("seconds")) for r in run.rounds]
    lines.append(("all", _added([line[1] for line in lines]), _added([line[2] for line in lines])))
    rows = []
    for name, tokens, seconds in lines:
        in_all, time = sum(tokens.values()), sum(seconds.values())
        cells = [f"{_thousands(tokens[part])}\n{seconds[part]:.1f} s" if part in tokens else "–" for part in parts]
        rate = _thousands(in_all / time) if time and in_all else "–"
        rows.append([name, *cells, _thousands(in_all), f"{time:.1f}", rate])
    headers = ["round", *(COST_PARTS[part] for part in parts), "tokens", "seconds", "tokens a second"]
    return Table(headers, rows, frozenset({len(rows) - 1}))


def comparison_table(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """A line for each figure, a column for each run."""
    shown = [run.delivered for run in runs]
    rows = [["delivered round", *(str(r.number) for r in shown)]]
    rows += [[name, *(_with_interval(r, column) for r in shown)] for column, name in reversed(ROUND_COLUMNS.items())]
    for key, name in BASELINE_NAMES.items():
        rows.append(
            [f"baseline: {name}", *(number_text(r.notes.get("baselines", {}).get(key, math.nan)) for r in shown)]
        )
    rows += [
        ["pool pairs", *(f"{r.row['scored']:.0f}" for r in shown)],
        ["kept", *(f"{r.row['kept']:.0f}" for r in shown)],
        ["calibration error", *(number_text(r.row["calibration_error"]) for r in shown)],
        ["length correlation", *(number_text(r.row["length_correlation"], "+.3f") for r in shown)],
        ["tokens", *(_thousands(sum(r.row["tokens"] for r in run.rounds)) for run in runs)],
        ["seconds", *(f"{sum(r.row['seconds'] for r in run.rounds):.1f}" for run in runs)],
    ]
    return Table(["", *names], rows)


def difference_table(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """Settings in which the runs differ."""
    configs = [_comparable(run.config) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
    return Table(
        ["", *names], [[key, *(_plain(config.get(key)) for config in configs)] for key in differing], is_text=True
    )


def data_warning(runs: Sequence[Run]) -> str:
    """A sentence where the runs are known to have been measured on different pairs, else nothing."""
    found = {run.delivered.notes.get("fingerprints", {}).get("data") for run in runs} - {None}
    return "The runs split different data: their accuracies are of different pairs." if len(found) > 1 else ""


def run_names(runs: Sequence[Run]) -> list[str]:
    """The folders' names; where two are the same, all of them with the folders above."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


# Formatting


def _with_interval(one: Round, column: str) -> str:
    bounds = one.interval(column)
    return number_text(one.row[column]) + (f"\n{bounds[0]:.3f}–{bounds[1]:.3f}" if bounds else "")


def number_text(value: float, form: str = ".3f") -> str:
    return "–" if math.isnan(value) else format(value, form)


def _added(counts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: sum(count.get(key, 0.0) for count in counts) for key in {key for count in counts for key in count}}


def _thousands(number: float) -> str:
    return f"{number:,.0f}".replace(",", " ")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return "null" if value is None else str(value)


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a config, with callbacks by their class; which of them there are is no setting of the method."""
    trainer = config.get("trainer") or {}
    callbacks = trainer.get("callbacks")
    if not isinstance(callbacks, list):
        return flat(config)
    named = {str(c["class_path"]).rpartition(".")[2]: c.get("init_args") or {} for c in callbacks}
    rest = {name: value for name, value in trainer.items() if name != "callbacks"}
    return flat({**config, "trainer": rest}) | {k: v for k, v in flat(named).items() if v != {}}
