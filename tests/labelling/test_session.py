"""What is asked, in which order, and what an answer becomes."""

import pytest

from ser_lightning.labelling.label_file import HumanLabel, LabelFile
from ser_lightning.labelling.session import NotAsked, Session
from tests.labelling.people import pair


@pytest.fixture
def file(tmp_path):
    with LabelFile(tmp_path, "ana") as file:
        yield file


def shown(session):
    return int(session.state()["pair"]["id"])


def test_pairs_are_asked_in_order_and_once(file):
    pairs = [pair(n) for n in range(4)]
    session = Session(pairs, file, "ana")
    for one in pairs:
        assert shown(session) == one.pair_id
        session.answer(one.pair_id, "left", 1.0)
    state = session.state()
    assert state["pair"] is None and (state["done"], state["total"], state["labelled"]) == (4, 4, 4)


def test_a_choice_becomes_the_response_on_that_side(file):
    pairs = [pair(n) for n in range(40)]
    session = Session(pairs, file, "ana")
    for number, one in enumerate(pairs):
        screen, side = session.state()["pair"], "left" if number % 2 else "right"
        assert {screen["left"], screen["right"]} == {one.response_a, one.response_b}
        session.answer(one.pair_id, side, 1.0)
        label = file.labels[-1]
        assert screen[side] == {"a": one.response_a, "b": one.response_b}[label.answer]
        assert screen["left"] == {"a": one.response_a, "b": one.response_b}[label.left]
    lefts = [label.left for label in file.labels]
    assert 10 < lefts.count("a") < 30  # a coin toss for each pair


def test_sides_are_remembered_and_differ_between_annotators(file):
    session, again = Session([], file, "ana"), Session([], file, "ana")
    other = Session([], file, "ben")
    ids = range(100)
    assert [session.left_of(i) for i in ids] == [again.left_of(i) for i in ids]
    assert 25 < sum(session.left_of(i) == other.left_of(i) for i in ids) < 75


def test_an_answer_to_another_pair_counts_for_nothing(file):
    pairs = [pair(n) for n in range(2)]
    session = Session(pairs, file, "ana")
    with pytest.raises(NotAsked):
        session.answer(pairs[1].pair_id, "left", 1.0)
    session.answer(pairs[0].pair_id, "left", 1.0)
    with pytest.raises(NotAsked):
        session.answer(pairs[0].pair_id, "right", 1.0)  # the same key twice
    assert len(file.labels) == 1
    session.answer(pairs[1].pair_id, "skip", None)
    with pytest.raises(NotAsked):
        session.answer(pairs[1].pair_id, "left", 1.0)  # nothing is asked any more


def test_undo_asks_again_with_the_same_sides(file):
    pairs = [pair(n) for n in range(3)]
    session = Session(pairs, file, "ana")
    before = session.state()["pair"]
    assert not session.state()["can_undo"]
    session.answer(pairs[0].pair_id, "tie", 1.0)
    session.answer(pairs[1].pair_id, "skip", 1.0)
    assert (session.state()["ties"], session.state()["skipped"]) == (1, 1)
    session.undo()
    assert shown(session) == pairs[1].pair_id
    session.undo()
    assert session.state()["pair"] == before and session.state()["done"] == 0
    session.undo()
    assert session.state()["done"] == 0


def test_labels_of_other_pairs_stay_and_do_not_count(file):
    file.add(HumanLabel(99, "a", "a", 1.0))
    session = Session([pair(1)], file, "ana")
    assert session.state()["done"] == 0 and not session.state()["can_undo"]
    session.undo()
    assert [label.pair_id for label in file.labels] == [99]


def test_the_pace_is_that_of_the_last_labels(file):
    pairs = [pair(n) for n in range(10)]
    session = Session(pairs, file, "ana")
    assert session.state()["pace"] == ""
    session.answer(pairs[0].pair_id, "left", 4.04)
    assert session.state()["pace"] == "The last one took 4 s. About 36 s to go."
    for number, seconds in enumerate([100.0, 1.0, 2.0, 30.0, 5.0, 6.0], start=1):
        session.answer(pairs[number].pair_id, "left", seconds)
    # The median of 4, 100, 1, 2, 30, 5, 6 is 5, and three pairs are left.
    assert session.state()["pace"] == "The last 5 took 1, 2, 30, 5, 6 s. About 15 s to go."
