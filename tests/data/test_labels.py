"""Who is better: by labels, by votes of several annotators, by two scores, and where they contradict one another."""

import pytest

from ser_lightning.data.formats import parse_row
from ser_lightning.data.labels import majority, read_scores
from ser_lightning.errors import UserError

PAIR = {"prompt": "Tea?", "response_a": "one", "response_b": "two"}
ORDERED = {"prompt": "Tea?", "chosen": "one", "rejected": "two"}
SCORES = {"score_a": "s1", "score_b": "s2"}


def verdict(row: dict, columns: dict | None = None):
    """The label and the votes as seen from the response `one`."""
    pair = parse_row(row, columns or {}, "f, line 1")
    if pair.response_a == "one" or pair.label is None:
        return pair.label, list(pair.votes)
    return 1 - pair.label, [1 - vote for vote in pair.votes]


@pytest.mark.parametrize(
    ("votes", "label"),
    [
        ((0, 0, 0), None),
        ((1, 0, 0), 1),
        ((1, 0, 2), 0),
        ((2, 3, 2), 0.5),
        ((2, 0, 2), 0.5),
        ((0, 1, 0), 0.5),
        ((2, 2, 1), 1),
        ((1, 2, 2), 0),
        ((1, 2, 0), 0.5),
    ],
)
def test_majority(votes, label):
    assert majority(*votes) == label


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**PAIR, "label": ["a", "b", "a"]}, (1, [1, 0, 1])),
        ({**PAIR, "label": [0, "tie", None, 0]}, (0, [0, 0.5, 0])),
        ({**PAIR, "label": [1, 0]}, (0.5, [1, 0])),
        ({**PAIR, "label": []}, (None, [])),
        ({**ORDERED, "label": [1, 1, 0]}, (1, [1, 1, 0])),
        ({**ORDERED, "label": ["cooking", "tea"]}, (1, [])),
    ],
)
def test_a_list_of_labels_is_votes(row, expected):
    assert verdict(row) == expected


def test_a_row_of_a_named_annotator_is_a_vote_and_an_unnamed_one_a_label():
    row = {**PAIR, "label": 1, "annotator": "Ann"}
    assert verdict(row) == (1, [])  # read only where it is asked for
    assert verdict(row, {"annotator": "annotator"}) == (1, [1])
    assert parse_row(row, {"annotator": "annotator"}, "here").annotator == "Ann"
    assert verdict({**row, "annotator": None}, {"annotator": "annotator"}) == (1, [])
    assert verdict({**row, "label": None}, {"annotator": "annotator"}) == (None, [])
    assert verdict({**ORDERED, "annotator": 7}, {"annotator": "annotator"}) == (1, [1])


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({**PAIR, "s1": 0.25, "s2": -1}, 1),
        ({**PAIR, "s1": "7", "s2": "8.5"}, 0),
        ({**PAIR, "s1": 0, "s2": 0.0}, 0.5),
        ({**PAIR, "s1": None, "s2": " "}, None),
        ({**PAIR, "s1": float("nan"), "s2": float("nan")}, None),
        ({**PAIR, "label": 1, "s1": 2, "s2": 1}, 1),
        ({**PAIR, "label": 1, "s1": None, "s2": None}, 1),
        ({**ORDERED, "s1": 8.5, "s2": 3}, 1),
        ({**ORDERED, "s1": 4, "s2": 4}, 0.5),
    ],
)
def test_the_higher_score_wins(row, label):
    assert verdict(row, SCORES) == (label, [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PAIR, "s1": 1, "s2": None}, "got no s2 beside the other score; give both, or neither"),
        ({**PAIR, "s1": 1}, "got no s2 beside the other score"),
        ({**PAIR, "s1": "good", "s2": 1}, "got 'good' in s1; give a number"),
        ({**PAIR, "s1": True, "s2": 1}, "got True in s1; give a number"),
        ({**PAIR, "s1": [1], "s2": 1}, r"got \[1\] in s1; give a number"),
        ({**PAIR, "label": "b", "s1": 2, "s2": 1}, "got s1 2 and s2 1, which contradict label; correct one of them"),
        ({**PAIR, "label": 1, "s1": 1, "s2": 1}, "got s1 1 and s2 1, which contradict label"),
        ({**ORDERED, "s1": 1, "s2": 2}, "got s1 1 and s2 2, which contradict chosen and rejected"),
        ({**ORDERED, "label": [1, 0]}, r"got label \[1, 0\] beside chosen and rejected"),
        ({**PAIR, "label": ["a", "?"]}, r"got the label '\?'; use 1 or 'a'"),
    ],
)
def test_what_contradicts_itself_or_is_no_number_is_refused(row, message):
    with pytest.raises(UserError, match=f"f, line 1: {message}") as caught:
        parse_row(row, SCORES, "f, line 1")
    assert len(caught.value.problems) == 1


def test_swapping_scores_swaps_the_label():
    for first, second in ((1, 2), (2, 1), (3, 3), (-0.5, "0")):
        assert read_scores(first, second, "", ("x", "y")) == 1 - read_scores(second, first, "", ("y", "x"))
