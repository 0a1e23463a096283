"""Which response is better: by a label, by the votes of several annotators, or by two scores."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ser_lightning.data.turns import clean, is_blank
from ser_lightning.errors import UserError

Labels = Mapping[str, str | None]
"""Value in the label column -> a, b, tie, or null for no label."""

LABELS: Labels = {
    **{"1": "a", "a": "a", "true": "a"},
    **{"0": "b", "b": "b", "false": "b"},
    **{"0.5": "tie", "tie": "tie"},
}
"""What a label means unless `data.labels` says otherwise."""
OWN_LABEL = "ser_label"
"""Column of the labels in files that this package writes: a, b or tie, whatever `data.labels` says of other files."""
TIE = 0.5
"""The label of a tie: as a target of the loss, the probability that a wins."""
_NO_LABEL = ("", "none", "null", "nan")
_AS_NUMBER = {"a": 1, "b": 0, "tie": TIE}
_DECIMALS = re.compile(r"^([-+]?\d+)\.0*$")
_MAX_SHOWN = 20


def check_labels(labels: Mapping[str, str | None]) -> list[str]:
    """Problems of a label map, whatever the file."""
    strange = [
        f"{value}: {meaning}" for value, meaning in labels.items() if meaning is not None and meaning not in _AS_NUMBER
    ]
    found = [f"labels: got {{{', '.join(strange)}}}; map each label to a, b, tie or null"] if strange else []
    first: dict[str, str] = {}
    for value, meaning in labels.items():
        other = first.setdefault(_text(value), value)
        if labels[other] != meaning:
            found.append(f"labels: got {other}: {labels[other]} and {value}: {meaning}, which are one label; keep one")
    return found


def read_label(value: Any, where: str, labels: Labels | None, is_extra: bool = False) -> float | None:
    """1: the first is better, 0: the second is, 0.5: a tie, None: no label.

    Args:
        value: what the file has.
        labels: what the labels of the file mean, `LABELS` by default.
        is_extra: the row has another label beside it, so that an unknown value may mean something else.

    Raises:
        UserError: the value is not in the label map.
    """
    text = _text(value)
    known = LABELS if labels is None else {_text(key): meaning for key, meaning in labels.items()}
    meaning = known.get(text, "")
    if meaning == "" and (is_extra or text in _NO_LABEL):
        return None
    if meaning == "" and labels is None:
        raise UserError(
            f"{where}: got the label {shown(value)}; use 1 or 'a' (response_a is better), 0 or 'b', 0.5 or 'tie', or "
            f"nothing (unlabelled), or say what it means: data.labels: {{{clean(str(value)).strip()[:20]}: a}}"
        )
    if meaning == "":
        raise UserError(f"{where}: got the label {shown(value)}, which labels has not; it has {shown_names(known)}")
    return None if meaning is None else _AS_NUMBER[meaning]


def read_own_label(row: Mapping[str, Any], label_column: str, where: str) -> float | None:
    """The label of a row that this package has written; its meaning is the same in every run.

    Args:
        label_column: what other files call their labels.

    Raises:
        UserError: it is none of a, b, tie and nothing, or the row has a label of other files beside it.
    """
    for column in ("label", label_column):
        if column != OWN_LABEL and not _is_missing(row.get(column)):
            raise UserError(
                f"{where}: got {column} {shown(row[column])} beside {OWN_LABEL}; write a (response_a is better), "
                f"b or tie there, and remove {column}"
            )
    value = row[OWN_LABEL]
    if _is_missing(value):
        return None
    if (text := _text(value)) not in _AS_NUMBER:
        raise UserError(
            f"{where}: got {OWN_LABEL} {shown(value)}; use a (response_a is better), b, tie, or nothing (unlabelled)"
        )
    return _AS_NUMBER[text]


def _is_missing(value: Any) -> bool:
    return is_blank(value) or _text(value) in _NO_LABEL


def _text(value: Any) -> str:
    """In small letters; a whole number without decimals, which other programs add to a column with empty cells."""
    return _DECIMALS.sub(r"\1", clean(str(value)).strip().lower())


def read_scores(first: Any, second: Any, where: str, columns: Sequence[str]) -> float | None:
    """The label that two scores give: the higher one wins, equal ones are a tie; None where both are missing.

    Args:
        first: score of the first response, a number or one as text.
        second: score of the second response.

    Raises:
        UserError: one is missing, or no number.
    """
    scores = [_number(value, where, column) for value, column in zip((first, second), columns, strict=True)]
    if all(math.isnan(score) for score in scores):
        return None
    for score, column in zip(scores, columns, strict=True):
        if math.isnan(score):
            raise UserError(f"{where}: got no {column} beside the other score; give both, or neither")
    return TIE if scores[0] == scores[1] else float(scores[0] > scores[1])


def _number(value: Any, where: str, column: str) -> float:
    """A score; NaN where there is none."""
    if is_blank(value):
        return math.nan
    try:
        return float("" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: got {shown(value)} in {column}; give a number") from error


def majority(num_a: int, num_tie: int, num_b: int) -> float | None:
    """The label with the most votes; a tie where a and b have as many, None without a vote.

    Example:
        >>> majority(2, 0, 1), majority(1, 1, 1), majority(1, 2, 0), majority(1, 1, 0)
        (1.0, 0.5, 0.5, 1.0)
    """
    if num_a + num_tie + num_b == 0:
        return None
    return TIE if num_a == num_b or num_tie > max(num_a, num_b) else float(num_a > num_b)


def count_votes(votes: Sequence[float]) -> tuple[int, int, int]:
    """Votes for a, for a tie and for b."""
    return sum(vote == 1 for vote in votes), sum(vote == TIE for vote in votes), sum(vote == 0 for vote in votes)


def shown(value: Any) -> str:
    """A value, cut to fit into a message."""
    text = repr(clean(value) if isinstance(value, str) else value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def shown_names(names: Collection[str]) -> str:
    """Names of columns or labels for a message, the first ones of many."""
    first = ", ".join(str(name) for name, _ in zip(names, range(_MAX_SHOWN), strict=False))
    return (first or "none") + (f" and {len(names) - _MAX_SHOWN:,} more" if len(names) > _MAX_SHOWN else "")
