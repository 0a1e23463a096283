"""Which labels the study keeps and which of them are wrong: `benchmarks/real_preferences/mistakes.py`."""

import numpy as np
import pytest

from benchmarks.real_preferences.mistakes import NAMES, mistakes, mistakes_table, right_with_length


def test_shares_by_hand():
    """Six pairs, two of each likeness in length; the model keeps five and is wrong on the first, third and fifth."""
    length = np.array([[10, 11], [11, 10], [10, 20], [20, 10], [10, 90], [90, 10]])
    people = np.array([1, 1, 1, 1, 1, 1])
    model = np.array([0, 1, 0, 1, 0, 1])
    kept = np.array([True, True, True, True, True, False])
    found = mistakes(people, model, kept, length)
    assert found == {
        "longer_by_people": pytest.approx(2 / 5),  # the second and fourth
        "longer_by_model": pytest.approx(1.0),
        "wrong_that_say_longer": pytest.approx(1.0),
        "kept_alike": pytest.approx(1.0),
        "kept_unlike": pytest.approx(0.5),
        "right_alike": pytest.approx(0.5),
        "right_unlike": pytest.approx(0.0),
    }


def test_sides_change_nothing():
    generator = np.random.default_rng(0)
    people, model = generator.integers(0, 2, (2, 300))
    kept, length = generator.random(300) < 0.5, generator.integers(1, 500, (300, 2))
    length[:, 1] += length[:, 0] == length[:, 1]
    assert mistakes(people, model, kept, length) == pytest.approx(
        mistakes(1 - people, 1 - model, kept, length[:, ::-1])
    )


def test_where_nothing_is_kept_nothing_is_said():
    length, none = np.array([[1, 2], [3, 4]]), np.zeros(2, dtype=bool)
    found = mistakes(np.array([1, 0]), np.array([1, 1]), none, length)
    assert np.isnan(found["longer_by_model"]) and found["kept_alike"] == 0.0


@pytest.mark.parametrize(("length_counts", "says_more"), [(True, True), (False, False)])
def test_length_helps_only_where_it_says_what_the_margin_does_not(length_counts, says_more):
    generator = np.random.default_rng(1)
    length, margin = generator.integers(10, 500, (4000, 2)), generator.normal(size=4000)
    ratio = np.log(length[:, 0] / length[:, 1])
    logit = 2 * margin + (2 * ratio if length_counts else 0)
    people = (generator.random(4000) < 1 / (1 + np.exp(-logit))).astype(int)
    found = right_with_length(people, margin, length)
    assert found["right_by_margin"] == ((margin > 0) == people).mean()
    assert (found["right_by_both"] > found["right_by_margin"] + 0.05) == says_more
    assert found["right_by_both"] > found["right_by_margin"] - 0.01


def test_settings_come_in_the_order_of_the_study():
    names = dict.fromkeys(NAMES, 0.25)
    runs = [{"setting": setting, "seed": 1, **names} for setting in ("pandalm-15", "hh-2", "hh-15")]
    runs.append({"setting": "hh-15", "seed": 2, **dict.fromkeys(NAMES, 0.75)})
    assert [line.split(" | ")[:3] for line in mistakes_table(runs).splitlines()[2:]] == [
        ["| hh-2", "1", "25.0%"],
        ["| hh-15", "2", "50.0%"],
        ["| pandalm-15", "1", "25.0%"],
    ]
