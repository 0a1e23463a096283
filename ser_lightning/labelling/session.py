"""What one annotator is asked: which pair comes next, which response stands on the left, and how far they are."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from ser_lightning.data.formats import content_hash
from ser_lightning.labelling.label_file import Answer, HumanLabel, LabelFile, Side, latest
from ser_lightning.records import PreferencePair
from ser_lightning.utils.durations import duration

Choice = Literal["left", "right", "tie", "skip"]
NUM_RECENT = 5
"""Labels whose times are shown."""


class NotAsked(Exception):
    """An answer to another pair than the one that is asked for: from an old tab, or given twice."""


class Session:
    """One annotator's way through a list of pairs.

    Args:
        pairs: to be labelled, in this order; those that the file has an answer for are not asked again.
        file: where the labels go.
        annotator: decides with the pair which response stands on the left.
    """

    def __init__(self, pairs: Sequence[PreferencePair], file: LabelFile, annotator: str) -> None:
        self.pairs, self.file, self.annotator = pairs, file, annotator
        self._ids = {pair.pair_id for pair in pairs}

    @property
    def current(self) -> PreferencePair | None:
        """The first pair without an answer; None where all have one."""
        answered = {label.pair_id for label in self.file.labels}
        return next((pair for pair in self.pairs if pair.pair_id not in answered), None)

    @property
    def labels(self) -> list[HumanLabel]:
        """The labels of these pairs."""
        return [label for label in latest(self.file.labels).values() if label.pair_id in self._ids]

    def left_of(self, pair_id: int) -> Side:
        """The response that stands on the left: a coin toss that comes out the same whenever the pair is shown."""
        return "a" if content_hash(self.annotator, str(pair_id)) & 1 else "b"

    def answer(self, pair_id: int, choice: Choice, seconds: float | None) -> None:
        """Write the answer to the pair that is asked for; `NotAsked` if another pair is asked for."""
        current = self.current
        if current is None or current.pair_id != pair_id:
            raise NotAsked
        left = self.left_of(pair_id)
        right: Side = "b" if left == "a" else "a"
        answers: dict[Choice, Answer] = {"left": left, "right": right, "tie": "tie", "skip": "skip"}
        self.file.add(HumanLabel(pair_id, answers[choice], left, None if seconds is None else round(seconds, 1)))

    def undo(self) -> None:
        """Take back the last answer to one of these pairs; nothing where there is none."""
        if self.file.labels and self.file.labels[-1].pair_id in self._ids:
            self.file.undo()

    def state(self) -> dict[str, Any]:
        """What the page shows, as plain values."""
        current, labels = self.current, self.labels
        counts = Counter(label.answer for label in labels)
        return {
            "pair": None if current is None else self._shown(current),
            "annotator": self.annotator,
            "done": len(labels),
            "total": len(self.pairs),
            "labelled": counts["a"] + counts["b"],
            "ties": counts["tie"],
            "skipped": counts["skip"],
            "pace": " ".join(self._pace(labels)),
            "can_undo": bool(self.file.labels) and self.file.labels[-1].pair_id in self._ids,
        }

    def _shown(self, pair: PreferencePair) -> dict[str, Any]:
        texts = [pair.response_a, pair.response_b]
        left, right = texts if self.left_of(pair.pair_id) == "a" else reversed(texts)
        # The id as text: a number of 63 bits is more than JavaScript can count to.
        return {"id": str(pair.pair_id), "prompt": pair.prompt, "left": left, "right": right}

    def _pace(self, labels: Sequence[HumanLabel]) -> Iterator[str]:
        """How long the last labels took, and how long the rest will."""
        times = [label.seconds for label in labels if label.seconds is not None]
        if not times:
            return
        recent = times[-NUM_RECENT:]
        yield f"The last {len(recent)} took" if len(recent) > 1 else "The last one took"
        yield ", ".join(f"{seconds:.0f}" for seconds in recent) + " s."
        if left := len(self.pairs) - len(labels):
            yield f"About {duration(statistics.median(times) * left)} to go."
