"""A run as one page that needs no network, or several runs side by side."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template

from ser_lightning.errors import UserError
from ser_lightning.report.advice import read_advice
from ser_lightning.report.comparison import comparison_table, data_warning, difference_table, run_names
from ser_lightning.report.data import Round, Run, confidence_of, file_hashes, flat, read_run
from ser_lightning.report.figures import (
    Picture,
    draw_accuracy,
    draw_comparison,
    draw_confidence,
    draw_flow,
    draw_length,
    draw_loss,
    draw_reliability,
)
from ser_lightning.report.policy import is_policy_run, policy_values, read_policy_run
from ser_lightning.report.tables import (
    FORECAST_NOTE,
    GUARD_NOTE,
    LENGTH_NOTE,
    READING_NOTE,
    ROUND_COLUMNS,
    SETS_NOTE,
    asked_for,
    cost_table,
    fired_guards,
    flow_table,
    forecast_table,
    guard_table,
    length_table,
    number_text,
    outcome_of,
    reading_table,
    round_note,
    round_table,
    sets_table,
)
from ser_lightning.utils.atomic import write_text_atomically

CARD_KINDS = {
    "mistakes": (
        "Mistakes on the test pairs",
        "Those that the model is surest of. The label is the human one: is it the model that is wrong? To read, not to "
        "train on, or the test pairs are no test any more.",
    ),
    "most": ("Most confident", "If some of these are wrong, the model is wrong where it is surest."),
    "flipped": ("Flipped", "Labelled otherwise in the round before; the surest of them."),
    "overruled": (
        "Labels against the reward model",
        "Here the pairwise judge has overruled it: the two views disagree, and human labels are worth most. Without a "
        "judge, look for swapped sides in the selection rule.",
    ),
    "least": ("Least confident", "Close to a coin toss; a good place to add human labels."),
}


def write_report(runs: Sequence[Path], to: Path, note: str = "") -> Path:
    """Write the page of one run, or of several reward models side by side.

    Returns:
        `to`.

    Raises:
        UserError: a folder holds no finished round, nothing logged of a policy, or several hold one of a policy.
    """
    policies = [run for run in runs if is_policy_run(run)]
    if policies and len(runs) > 1:
        raise UserError(f"report: got {policies[0]}, a run of a policy, among several; give it alone")
    if policies:
        text = _render(**policy_values(read_policy_run(policies[0]), note))
    else:
        found = [read_run(run) for run in runs]
        text = page_of(found[0], note) if len(found) == 1 else page_of_several(found)
    write_text_atomically(to, text)
    return to


def page_of(run: Run, note: str = "") -> str:
    """One run as HTML, its summary behind a note."""
    shown, config, forecasts = run.delivered, flat(run.config), forecast_table(run)
    is_solved = config.get("model.backbone.train") == "head" and bool(shown.notes.get("readings"))
    tables = [("Rounds", round_table(run), round_note(run))]
    if forecasts:
        tables.append(("Forecasts", forecasts, FORECAST_NOTE))
    if readings := reading_table(run):
        tables.append(("Where the head reads", readings, READING_NOTE))
    return _render(
        title=f"Run {run.name}",
        outcome=[*([note] if note else []), *outcome_of(run), *read_advice(run.path)],
        asked=asked_for(config, is_solved) + _splits(shown),
        tables=tables,
        pictures=pictures_of(run),
        more=[
            (heading, table, text)
            for heading, table, text in (
                ("Test pairs by length", length_table(run), LENGTH_NOTE),
                ("Evaluation sets", sets_table(run), SETS_NOTE),
            )
            if table
        ],
        flow=flow_table(run),
        guards=guard_table(run),
        guard_note=GUARD_NOTE,
        fired=fired_guards(run),
        cost=cost_table(run),
        cards=_cards(shown),
        shown=shown.number,
        config_text=run.config_text,
        versions=shown.notes.get("versions", {}),
        hashes=file_hashes(run) | {k: v for k, v in shown.notes.get("fingerprints", {}).items() if v},
    )


def page_of_several(runs: Sequence[Run]) -> str:
    """Several runs side by side as HTML."""
    names = run_names(runs)
    pictures = [
        Picture(
            title,
            f"{title} by round: " + "; ".join(f"{n}: {_course(r, column)}" for n, r in zip(names, runs, strict=True)),
            "Bars are 95 % intervals, where the run has noted how many labels there were.",
            draw_comparison(runs, names, column, name),
        )
        for column, title, name in (
            ("test_accuracy", "Test accuracy", "test pairs"),
            ("seed_oof_accuracy", "Accuracy out of fold", "seed, out of fold"),
        )
    ]
    note = "The figures of the delivered round; tokens and seconds of all rounds."
    more = [
        ("What differs", difference_table(runs, names), "Settings that are not the same in all runs."),
        *((f"Rounds of {name}", round_table(run), "") for name, run in zip(names, runs, strict=True)),
    ]
    return _render(
        title=f"{len(runs)} runs",
        outcome=list(filter(None, [data_warning(runs)])),
        tables=[("Side by side", comparison_table(runs, names), note)],
        pictures=pictures,
        more=more,
    )


# Pictures


def pictures_of(run: Run) -> list[Picture]:
    """What there is to draw of a run."""
    shown, found = run.delivered, []
    text = "; ".join(f"{name}: {_course(run, column)}" for column, name in ROUND_COLUMNS.items())
    note = "Bars are 95 % intervals. The pale band is the delivered round."
    found.append(Picture("Accuracy over rounds", f"Accuracy by round. {text}", note, draw_accuracy(run)))
    if any(r.audit is not None for r in run.rounds):
        text = ", ".join(f"round {r.number} kept {r.row['kept']:.0f} of {r.row['scored']:.0f}" for r in run.rounds)
        note = "Flipped: labelled otherwise in the round before."
        found.append(Picture("What became of the pool", f"Pool pairs by round: {text}.", note, draw_flow(run)))
    if shown.audit is not None and len(shown.audit["pair_id"]):
        median = float(np.median(confidence_of(shown.audit)))
        text = f"Histogram of the confidence of round {shown.number}; its median is {median:.3f}."
        found.append(Picture("Confidence", text, f"Of pool pairs, in round {shown.number}.", draw_confidence(run)))
    if bins := shown.notes.get("reliability"):
        text = "; ".join(f"stated {b['confidence']:.2f}, right {b['right'] / b['pairs']:.2f}" for b in bins)
        note = f"Round {shown.number}. Below the dashed line it is too sure. The numbers count pairs."
        found.append(Picture("Reliability", f"Reliability diagram: {text}.", note, draw_reliability(shown)))
    if shown.notes.get("length"):
        slope = number_text(shown.row["length_correlation"], "+.3f")
        text = f"Reward difference against length difference of pool pairs; their correlation is {slope}."
        note = (
            f"Round {shown.number}, {len(shown.notes['length'])} pool pairs. A slope means that rewards follow length."
        )
        found.append(Picture("Reward and length", text, note, draw_length(shown)))
    if len(run.losses) > 1:  # a head that is solved has a step for each phase, of which few are logged
        note = (
            "At each dotted line a round ends. Every fold and every main training starts anew, which makes the teeth."
        )
        first, last = run.losses[[0, -1], 1]
        text = f"Training loss over {len(run.losses)} logged steps, from {first:.3f} to {last:.3f}."
        found.append(Picture("Training loss", text, note, draw_loss(run)))
    return found


# Formatting


@cache
def _template() -> Template:
    """The page, compiled once: a run writes it after every round."""
    source = files("ser_lightning.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def _render(**values: Any) -> str:
    usual: dict[str, Any] = {
        "asked": [],
        "flow": None,
        "cost": None,
        "cards": None,
        "shown": 0,
        "more": [],
        "samples": [],
    }
    usual |= {"config_text": "", "versions": {}, "hashes": {}, "guards": None, "guard_note": "", "fired": []}
    return _template().render(usual | values)


def _cards(shown: Round) -> list[dict[str, Any]] | None:
    """The groups of cards; None where the round has noted none."""
    cards = shown.notes.get("cards")
    return cards and [
        {"title": title, "note": note, "cards": cards[key], "is_human": key == "mistakes"}
        for key, (title, note) in CARD_KINDS.items()
        if key in cards
    ]


def _splits(shown: Round) -> list[tuple[str, str]]:
    pairs, prompts = shown.notes.get("pairs"), shown.notes.get("prompts", {})
    if not pairs:
        return []
    of = {name: f" of {prompts[name]} prompts" if prompts.get(name) else "" for name in pairs}
    return [("pairs", ", ".join(f"{count} {name}{of[name]}" for name, count in pairs.items()))]


def _course(run: Run, column: str) -> str:
    return ", ".join(number_text(r.row[column]) for r in run.rounds)
