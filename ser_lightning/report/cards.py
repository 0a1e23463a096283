"""Pairs of a round to read, with the model's probability: texts for a person, where tables have only ids."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ser_lightning.records import PreferencePair
from ser_lightning.runs.pair_tables import Audit

NUM_CARDS = 5
"""Pairs of each kind."""
MAX_CHARACTERS = 700
"""Of a text on the page."""
Lookup = Callable[[list[int]], Sequence[PreferencePair]]
"""Gives the texts of pairs by their ids."""


def pool_cards(lookup: Lookup, audit: Audit, before: Audit | None) -> dict[str, list[dict[str, Any]]]:
    """Pool pairs to read: the surest, the least sure, and the surest of those whose label has flipped.

    Where a pairwise judge has overruled the reward model, so that a label contradicts the rewards, the surest of these
    as `overruled`.

    Args:
        audit: (N,) columns of the round's audit.
        before: those of the round before.
    """
    probability = audit["probability"]
    order = _by_confidence(probability)
    earlier = np.full(len(probability), np.nan)
    if before is not None:
        _, here, there = np.intersect1d(audit["pair_id"], before["pair_id"], return_indices=True)
        earlier[here] = before["probability"][there]
    # As in the audit: a wins above one half, and nothing has flipped where there was no label.
    flipped = ~np.isnan(earlier) & ((earlier > 0.5) != (probability > 0.5))
    chosen = {"most": order[:NUM_CARDS], "least": order[::-1][:NUM_CARDS], "flipped": order[flipped[order]][:NUM_CARDS]}
    # Without a judge a label follows its margin, up to what rounding does to a tie.
    margin = audit["reward_a"] - audit["reward_b"]
    overruled = (np.abs(margin) > 1e-6) & ((margin > 0) != (probability > 0.5))
    if overruled.any():
        chosen["overruled"] = order[overruled[order]][:NUM_CARDS]
    return {
        kind: [
            _card(pair, float(probability[row]), int(audit["label"][row]), str(audit["reason"][row]), earlier[row])
            for row, pair in zip(rows, lookup(audit["pair_id"][rows].tolist()), strict=True)
        ]
        for kind, rows in chosen.items()
    }


def mistake_cards(
    lookup: Lookup, pair_id: np.ndarray, probability: np.ndarray, target: np.ndarray
) -> list[dict[str, Any]]:
    """The test pairs on which the model is surest and wrong; their label is the human one.

    Args:
        pair_id: (N,) of the test pairs.
        probability: (N,) the model's, that a wins.
        target: (N,) human labels, 1: a is the better one; pairs of neither are no mistakes.
    """
    is_wrong = ((target == 1) & (probability < 0.5)) | ((target == 0) & (probability > 0.5))
    order = _by_confidence(probability)
    rows = order[is_wrong[order]][:NUM_CARDS]
    pairs = lookup(pair_id[rows].tolist())
    return [
        _card(pair, float(probability[row]), int(target[row]), "wrong", np.nan)
        for row, pair in zip(rows, pairs, strict=True)
    ]


def _by_confidence(probability: np.ndarray) -> np.ndarray:
    """(N,) places, the surest pair first."""
    return np.argsort(np.maximum(probability, 1 - probability), kind="stable")[::-1]


def _card(pair: PreferencePair, probability: float, label: int, reason: str, earlier: float) -> dict[str, Any]:
    prompt = [f"{turn['role']}: {turn['content']}" for turn in pair.prompt]
    return {
        "pair_id": str(pair.pair_id),  # JSON readers other than Python's round such numbers
        "prompt": shorten("\n\n".join(prompt), from_end=True),
        "response_a": shorten(pair.response_a),
        "response_b": shorten(pair.response_b),
        "probability": probability,
        "before": None if np.isnan(earlier) else float(earlier),
        "label": label,
        "reason": reason,
    }


def shorten(text: str, from_end: bool = False) -> str:
    """A text of at most `MAX_CHARACTERS` and a word on what is missing, which any file can hold.

    Args:
        text: may hold halves of surrogate pairs, as JSON allows; they become question marks.
        from_end: keep the end: of a conversation the last turn matters most.
    """
    text = text.encode("utf-8", "replace").decode()
    cut = len(text) - MAX_CHARACTERS
    if cut <= 0:
        return text
    missing = f"[{cut} more characters]"
    return f"{missing} … {text[cut:]}" if from_end else f"{text[:MAX_CHARACTERS]} … {missing}"
