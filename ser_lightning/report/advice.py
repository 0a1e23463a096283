"""What to spend next on: labels, another round or another body, and whether to train it.

The same sentences on the page and in the terminal.
"""

from math import sqrt
from pathlib import Path
from typing import Any

from ser_lightning.evolution.learning_curve import MAX_LABELS, MIN_LABELS
from ser_lightning.runs.files import ADVICE, read_json
from ser_lightning.runs.shapes import ADVICE as SHAPE

FEW_LABELS = 100
"""Seeds below it gained more than forecast where this was measured (docs/forecast.md)."""


def read_advice(run: Path) -> list[str]:
    """The sentences on a finished run; none of a run that has not finished, or is from before there was advice.

    Raises:
        UserError: the file is damaged.
    """
    advice = read_json(run / ADVICE, SHAPE)
    return advice_sentences(advice) if advice else []


def advice_sentences(advice: dict[str, Any]) -> list[str]:
    """One sentence on labels, one on a round, and whether training the body, any label or a larger body pays.

    Args:
        advice: what `advice.json` holds; `docs/metrics.md` defines the keys.
    """
    gains, next_round = advice["labels"], advice["next_round"]
    delivered = advice.get("delivered_accuracy")
    found = [_on_labels(advice)]
    for key, what, baseline, instead in _BASELINES:
        if (accuracy := advice.get(key)) is not None and delivered is not None:
            found.append(_paid_off(what, baseline, accuracy, delivered, advice["seed_pairs"], instead))
    if next_round is not None:
        found.append(f"Another round is forecast to gain {_points(next_round)}.")
    expected = [next_round or 0.0, *(one["gain"] for one in gains)]
    if gains and max(expected) < advice["min_gain"]:
        what = "That is below" if next_round is None else "Neither reaches"
        found.append(
            f"{what} evolution.min_gain ({_points(advice['min_gain'])}): a larger or better pretrained model "
            "(model.backbone.path) is the next thing to try; no forecast says what it gains."
        )
    return found


def _on_labels(advice: dict[str, Any]) -> str:
    gains = advice["labels"]
    if not advice["is_solved"]:
        return (
            "What more labels gain is not forecast: the body is trained, and would have to be trained again on every "
            "subset of the seed (model.backbone.train=head forecasts it)."
        )
    if not gains:
        return (
            f"What more labels gain is not forecast: a seed needs {MIN_LABELS} to {MAX_LABELS} labels of several "
            f"prompts, this one has {advice['seed_pairs']} labels."
        )
    texts = [
        f"{_points(one['gain'])} from {one['labels']} more labels "
        f"(95 % interval {100 * one['low']:+.1f} to {100 * one['high']:+.1f})"
        for one in gains
    ]
    few = "; seeds this small have mostly gained more" if advice["seed_pairs"] < FEW_LABELS else ""
    return f"The seed model is forecast to gain {', '.join(texts)}{few}."


_BASELINES = (
    (
        "frozen_accuracy",
        "fine-tuning",
        "a head on the frozen body",
        "The overlay frozen.yaml trains such a head in less time.",
    ),
    (
        "answer_accuracy",
        "the labels",
        "the pretrained model's own answer to whether a response is good, which needs no label,",
        "The command export --answer writes that answer as a reward model.",
    ),
)
"""For each key what has to pay off, over which baseline, and what to do where it has not."""


def _paid_off(what: str, baseline: str, accuracy: float, delivered: float, labels: int, instead: str) -> str:
    """Whether the delivered model beats a baseline on the seed by more than chance may give.

    Two standard errors as if both were measured on labels of their own: on the same ones chance mostly gives less.
    """
    figures = (
        f"out of fold on the {labels} labels of the seed, {baseline} has {accuracy:.3f}, the delivered model "
        f"{delivered:.3f}"
    )
    chance = 2 * sqrt((accuracy * (1 - accuracy) + delivered * (1 - delivered)) / labels)
    if delivered - accuracy > chance:
        return f"Did {what} pay off? Apparently so: {figures}."
    verdict = "No" if accuracy - delivered > chance else "Not shown"
    may = "" if verdict == "No" else ", which may be chance"
    return f"Did {what} pay off? {verdict}: {figures}{may}. {instead}"


def _points(share: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * share:+.1f} points"
