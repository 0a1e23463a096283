"""Several annotators -> one label a pair, and rows that `fit` reads."""

from ser_lightning.data.formats import parse_row
from ser_lightning.labelling.merge import MergeCounts, training_rows, verdicts
from tests.labelling.people import labels, pair


def test_the_most_frequent_answer_is_the_verdict():
    found = verdicts(
        {
            "ana": labels(p1="a", p2="a", p3="tie", p4="a", p5="skip", p6="skip", p7="a"),
            "ben": labels(p1="a", p2="b", p3="tie", p4="tie", p5="b", p6="skip", p7="tie"),
            "cleo": labels(p1="b", p4="b", p7="tie"),
        }
    )
    assert found == {1: "a", 2: "split", 3: "tie", 4: "split", 5: "b", 7: "tie"}


def test_rows_are_what_fit_reads_and_old_labels_stay():
    pairs = [pair(0, label=1), pair(1), pair(2), pair(3), pair(4), pair(5)]
    found = {p.pair_id: v for p, v in zip(pairs, ["b", "a", "b", "tie", "split"], strict=False)}
    counts = MergeCounts()
    rows = [*training_rows(pairs, found, counts, with_pool=True)]
    assert (counts.labelled, counts.ties, counts.split, counts.unlabelled) == (4, 1, 1, 1)
    assert counts.overruled == (pairs[0].label != 0) and not counts.lost
    assert [*training_rows(pairs[1:], {**found, 7: "a", 9: "split"}, counts, True)]
    assert counts.lost == {pairs[0].pair_id, 7, 9}
    read = [parse_row(row, {}, "here") for row in rows]
    assert [(p.pair_id, p.label) for p in read] == [
        (pairs[0].pair_id, pairs[0].label),  # what the file said, whatever the annotators say
        (pairs[1].pair_id, 1),
        (pairs[2].pair_id, 0),
        (pairs[3].pair_id, 0.5),
        (pairs[5].pair_id, None),
    ]
    assert [parse_row(row, {}, "here").pair_id for row in training_rows(pairs, found, MergeCounts(), False)] == [
        p.pair_id for p in pairs[:4]
    ]
