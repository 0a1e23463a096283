"""Labels of several annotators -> one label a pair, and a file of pairs that `fit` reads as it is."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ser_lightning.data.labels import OWN_LABEL, TIE
from ser_lightning.labelling.label_file import HumanLabel, latest
from ser_lightning.records import PreferencePair

Verdict = Literal["a", "b", "tie", "split"]
_AS_LABEL: dict[str, float] = {"a": 1, "b": 0, "tie": TIE}
_ANSWERS = {label: answer for answer, label in _AS_LABEL.items()}


@dataclass
class MergeCounts:
    """What became of the labelled pairs of a file."""

    labelled: int = 0
    """Ties among them."""
    ties: int = 0
    split: int = 0
    """Left out: the annotators are divided."""
    unlabelled: int = 0
    """Pairs that nobody has decided, skipped ones among them."""
    overruled: int = 0
    """Pairs whose label in the file is another one than the annotators' and stays."""
    lost: set[int] = field(default_factory=set)
    """Ids of decided or divided pairs that the file does not have."""


def verdicts(labels: Mapping[str, Sequence[HumanLabel]]) -> dict[int, Verdict]:
    """What most annotators say of each pair; `split` where two answers are equally frequent.

    A skip is no answer: a pair that everybody skipped has no verdict.
    """
    votes: dict[int, Counter[str]] = {}
    for given in labels.values():
        for label in latest(given).values():
            if label.answer != "skip":
                votes.setdefault(label.pair_id, Counter())[label.answer] += 1
    return {pair_id: _most_frequent(counts) for pair_id, counts in votes.items()}


def _most_frequent(counts: Counter[str]) -> Verdict:
    (first, most), *others = counts.most_common()
    if others and others[0][1] == most:
        return "split"
    answers: dict[str, Verdict] = {"a": "a", "b": "b", "tie": "tie"}
    return answers[first]


def training_rows(
    pairs: Iterable[PreferencePair], found: Mapping[int, Verdict], counts: MergeCounts, with_pool: bool
) -> Iterator[dict[str, Any]]:
    """Rows for `data.path` or `data.new_data_path`; labels that the pairs had before stay.

    Args:
        pairs: in the order of the file.
        found: by pair id.
        counts: is kept up to date.
        with_pool: whether pairs without a label are written too, for the pool.
    """
    counts.lost = {*found}
    for pair in pairs:
        counts.lost.discard(pair.pair_id)
        verdict = found.get(pair.pair_id)
        if pair.label is not None:
            counts.overruled += verdict is not None and _AS_LABEL.get(verdict) != pair.label
            verdict = None
        if verdict == "split":
            counts.split += 1
            continue
        label = pair.label if verdict is None else _AS_LABEL[verdict]
        counts.ties += label == TIE
        counts.labelled += label is not None
        counts.unlabelled += label is None
        if label is not None or with_pool:
            yield pair_row(pair, label)


def pair_row(pair: PreferencePair, label: float | None) -> dict[str, Any]:
    """A pair as a line of a JSONL file, which means the same to every run, whatever its columns and labels."""
    texts = {"prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b}
    answer = None if label is None else _ANSWERS[label]
    return {"id": pair.source_id or str(pair.pair_id), **texts, OWN_LABEL: answer}
