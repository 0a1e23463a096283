"""Who is better: by labels, by votes of several annotators, by two scores, and where they contradict one another."""

import json
from types import SimpleNamespace

import pytest

from ser_lightning.data.columns import LIST_COLUMNS
from ser_lightning.data.formats import parse_row, parse_rows
from ser_lightning.data.labels import check_labels, majority, read_scores
from ser_lightning.errors import UserError
from ser_lightning.inference.scoring_rows import RowCounts, read_rows

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
        ({**PAIR, "s1": 10**400, "s2": 1}, "got 1000.* in s1; give a number"),
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


OWN = {"id": "7", "prompt": [{"role": "user", "content": "Tea?"}], "response_a": "Leaves.", "response_b": "Fruit."}
MAPS = [None, {"0": "a", "1": "b"}, {"1": "a", "2": "b", "0": "tie"}, {"model_a": "a", "model_b": "b"}, {"a": "b"}]
MAPPINGS = [
    {},
    {"prompt": "question", "response_a": "response_0", "response_b": "response_1", "label": "better"},
    {"response_a": "response_b", "response_b": "response_a", "label": "ser_label"},
    {"chosen": "response_b", "rejected": "response_a", "prompt": "id"},
    {"prompt": "prompt.0.content", "responses": "prompt", "ranks": "id", "annotator": "id", "system": "id"},
]


@pytest.mark.parametrize("columns", MAPPINGS)
@pytest.mark.parametrize("labels", MAPS)
@pytest.mark.parametrize("answer", ["a", "b", "tie", None])
def test_what_this_package_writes_means_the_same_to_every_run(columns, labels, answer):
    """As JSON and as a table of a spreadsheet, to `fit` and to `score`."""
    expected = parse_row({**OWN, "label": answer}, {}, "here")
    row = {**OWN, "ser_label": answer}
    as_csv = {**row, "prompt": json.dumps(row["prompt"]), "ser_label": answer or ""}
    for one in (row, as_csv):
        assert [*parse_rows(one, columns, "here", labels)] == [expected]
        source = SimpleNamespace(name="own", rows=lambda one=one: iter([("here", one)]))
        pairs = {name: column for name, column in columns.items() if name not in LIST_COLUMNS}
        [scored] = [found.pair for found in read_rows(source, pairs, RowCounts(), labels=labels)]
        better = {"a": 1, "b": 0, "tie": 0.5, None: None}[answer]
        assert (scored.response_a, scored.response_b, scored.label) == ("Leaves.", "Fruit.", better)


def test_rows_of_another_file_in_one_table_keep_their_own_meaning():
    columns = {"prompt": "q", "response_a": "x", "response_b": "y", "label": "z"}
    texts = dict.fromkeys(OWN) | {"ser_label": None, "q": "Tea?", "x": "Leaves.", "y": "Fruit."}
    for value, label in (("0", "a"), ("1", "b"), (None, None)):
        expected = parse_row({**OWN, "id": None, "label": label}, {}, "here")
        assert parse_row({**texts, "z": value}, columns, "here", {"0": "a", "1": "b"}) == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ser_label": 1}, "here: got ser_label 1; use a (response_a is better), b, tie, or nothing (unlabelled)"),
        (
            {"ser_label": None, "label": 1},
            "here: got label 1 beside ser_label; write a (response_a is better), b or tie there, and remove label",
        ),
        (
            {"ser_label": "a", "better": 0},
            "here: got better 0 beside ser_label; write a (response_a is better), b or tie there, and remove better",
        ),
    ],
)
def test_a_label_of_doubtful_meaning_is_refused(more, message):
    with pytest.raises(UserError) as found:
        parse_row({**OWN, **more}, {"label": "better"}, "here", {"0": "a", "1": "b"})
    assert found.value.problems == [message]


def test_files_of_earlier_versions_are_read_where_nothing_is_mapped():
    for label, answer in ((1, "a"), (0, "b"), (0.5, "tie"), (None, None)):
        assert parse_row({**OWN, "label": label}, {}, "here") == parse_row({**OWN, "ser_label": answer}, {}, "here")


def test_two_meanings_of_one_label_are_refused():
    assert check_labels({"1": "a", "1.0": "a", "A": "b", "x": None}) == []
    [line] = check_labels({"1": "a", "1.0": "b"})
    assert line == "labels: got 1: a and 1.0: b, which are one label; keep one"
    assert len(check_labels({"A": "a", "a ": None, "x": "first"})) == 2
