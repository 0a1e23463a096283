"""Which pairs there are to label: those of a file that have no label, or the pool of a run."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ser_lightning.data.formats import DROPS, canonical
from ser_lightning.data.labels import Labels, check_labels, count_votes, majority
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.inference.scoring_rows import RowCounts, column_problems, open_source, read_rows, survey
from ser_lightning.records import PreferencePair


@dataclass(frozen=True)
class PairFile:
    """A file of pairs, of which some may have a label."""

    path: str
    columns: Mapping[str, str]
    label_map: Labels | None
    _dropped: Counter[str] = field(default_factory=Counter, init=False)

    def pairs(self) -> Iterator[PreferencePair]:
        """All pairs in the order of the file, in canonical form, as `fit` reads them.

        Pairs with votes of annotators come last, each once, with what most of them say.

        Raises:
            UserError: up to ten causes at once.
        """
        raise_problems([*column_problems(self.columns), *check_labels(self.label_map or {})])
        source = open_source(self.path)
        found = survey(source, self.columns, self.label_map)
        self._dropped.clear()
        self._dropped.update(found.dropped)
        if "single" in found.kinds:
            raise UserError(f"{self.path}: got single responses; give pairs, with response_a and response_b")
        voted: dict[int, PreferencePair] = {}
        votes: dict[int, list[float]] = {}
        known: set[tuple[int, str | None, float | None]] = set()
        for row in read_rows(source, self.columns, RowCounts(), labels=self.label_map):
            pair = canonical(row.pair)
            vote = pair.pair_id, pair.annotator, pair.label
            if not pair.votes:
                yield pair
            elif pair.annotator is None or vote not in known:
                known.add(vote)
                voted.setdefault(pair.pair_id, pair)
                votes.setdefault(pair.pair_id, []).extend(pair.votes)
        for pair_id, pair in voted.items():
            yield replace(pair, label=majority(*count_votes(votes[pair_id])))

    def left_out(self) -> list[str]:
        """A line for each reason why rows of the file are no pairs, once it has been read."""
        return [f"Left out: {count:,} rows, {DROPS[why]}" for why, count in sorted(self._dropped.items())]

    def unlabelled(self) -> list[PreferencePair]:
        """The pairs that nobody has labelled, each once, by their id: a random order that is everybody's.

        Raises:
            UserError: there is none.
        """
        found: dict[int, PreferencePair] = {}
        labelled: set[int] = set()
        for pair in self.pairs():
            found.setdefault(pair.pair_id, pair)
            if pair.label is not None:
                labelled.add(pair.pair_id)
        if not (asked := sorted(found.keys() - labelled)):
            raise UserError(f"{self.path}: got {len(found)} pairs, none without a label; give a file of pairs to label")
        return [found[pair_id] for pair_id in asked]
