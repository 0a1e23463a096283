"""Evaluation sets hold no pair of a dialogue that training sees, wherever the dialogue is split into prompts."""

import pytest
import torch

from ser_lightning.errors import UserError


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def first(i):
    return {"prompt": turns(f"Question {i}?"), "chosen": f"yes {i}", "rejected": f"no {i}"}


def second(i):
    """The next turn of the dialogue of `first`."""
    return {"prompt": turns(f"Question {i}?", f"yes {i}", "And then?"), "chosen": f"good {i}", "rejected": f"bad {i}"}


@pytest.fixture
def measured(load, write_jsonl):
    """`measured(training, evaluation, **arguments)`: prompts of the pairs that an evaluation set is left with."""

    def make(training, evaluation, **arguments):
        path, named = write_jsonl("training.jsonl", training), str(write_jsonl("named.jsonl", evaluation))
        settings = {"seed_fraction": 1.0, "test_fraction": 0.0, **arguments}
        (one,) = load(path, stage="test", eval_sets={"named": named}, **settings).eval_sets
        return sorted(pair.prompt[0]["content"] for pair in one.store.read_texts(one.rows))

    return make


@pytest.mark.parametrize("seed_fraction", [1.0, 0.5])
@pytest.mark.parametrize(
    ("trained", "asked"), [((first, second), (second,)), ((first,), (second,)), ((second,), (first, second))]
)
def test_a_dialogue_is_one_over_both_files(measured, trained, asked, seed_fraction):
    """40 dialogues are trained on, 3 are new: whichever of their prompts either file has."""
    training = [kind(i) for kind in trained for i in range(40)]
    evaluation = [kind(i) for kind in asked for i in range(43)]
    with pytest.warns(UserWarning, match=f"{40 * len(asked)} of {43 * len(asked)} pairs of named are of dialogues"):
        found = measured(training, evaluation, seed_fraction=seed_fraction)
    assert found == sorted(f"Question {i}?" for i in range(40, 43) for _ in asked)


def test_prompts_that_only_begin_alike_are_different_dialogues_as_in_the_splits(measured):
    other = {**second(0), "prompt": turns("Question 0?", "another answer", "And then?")}
    assert measured([second(i) for i in range(10)], [other]) == ["Question 0?"]


def test_dialogues_of_ties_are_trained_on(measured):
    training = [first(i) for i in range(10)]
    training += [{"prompt": f"Tie {i}?", "response_a": "x", "response_b": "y", "label": "tie"} for i in range(5)]
    evaluation = [{"prompt": f"Tie {i}?", "chosen": "z", "rejected": "w"} for i in range(7)]
    with pytest.warns(UserWarning, match="5 of 7 pairs"):
        assert measured(training, evaluation) == ["Tie 5?", "Tie 6?"]


def test_dialogues_of_pairs_that_arrived_are_trained_on(measured, write_jsonl):
    later = write_jsonl("later.jsonl", [second(i) for i in range(20, 25)])
    with pytest.warns(UserWarning, match="15 of 17 pairs"):
        found = measured([first(i) for i in range(10)], [second(i) for i in [*range(10), *range(20, 27)]],
                         new_data_path=later)  # fmt: skip
    assert found == ["Question 25?", "Question 26?"]


def test_dialogues_of_test_pairs_are_measured(measured, write_jsonl):
    apart = write_jsonl("apart.jsonl", [first(i) for i in range(5)])
    training = [first(i) for i in range(10, 20)]
    assert len(measured(training, [second(i) for i in range(5)], test_path=apart)) == 5


def test_pairs_without_a_category_are_of_one(load, write_jsonl):
    rows = [{**first(i), **more} for i, more in enumerate(({"kind": "sum"}, {"kind": None}, {"kind": ""}, {}))]
    sets = {"eval_sets": {"named": write_jsonl("named.jsonl", rows)}, "eval_category": "kind"}
    (one,) = load(write_jsonl("training.jsonl", [first(i) for i in range(10, 20)]), stage="test", **sets).eval_sets
    assert sorted(one.categories(torch.from_numpy(one.store.pair_id))) == ["none", "none", "none", "sum"]


def test_a_set_of_known_dialogues_alone_is_an_error(measured):
    with pytest.raises(UserError, match="every pair of named is of a dialogue that training sees"), pytest.warns():
        measured([first(i) for i in range(10)], [second(i) for i in range(10)])


def test_a_dialogue_that_goes_on_in_an_arrival_is_counted_once(load, write_jsonl):
    path, later = (write_jsonl(f"{kind.__name__}.jsonl", [kind(i) for i in range(10)]) for kind in (first, second))
    found = load(path, seed_fraction=1.0, test_fraction=0.0, new_data_path=later)
    assert found.report.splits["seed"] == (20, 10, 20)


def test_ties_are_counted_and_left_out(measured, caplog):
    tie = {"prompt": "Tie?", "response_a": "x", "response_b": "y", "label": "tie"}
    with caplog.at_level("INFO"):
        assert measured([first(i) for i in range(10)], [first(77), tie]) == ["Question 77?"]
    assert "data.eval_sets: 1 of 2 pairs of named are ties and left out" in caplog.messages
