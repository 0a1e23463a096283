"""Pairs to read: which ones, and their texts."""

import numpy as np
import pytest

from ser_lightning.records import PreferencePair
from ser_lightning.report.cards import MAX_CHARACTERS, NUM_CARDS, mistake_cards, pool_cards, shorten


def texts(ids):
    """Stands for a DataModule: gives the texts of any pair."""
    return [PreferencePair(i, [{"role": "user", "content": f"<p{i}>"}], f"a{i}", f"b{i}", None) for i in ids]


def test_cards_are_the_surest_the_least_sure_and_those_that_flipped():
    probability = np.array([0.51, 0.99, 0.02, 0.7, 0.3, 0.6, 0.45], np.float32)
    audit = {
        "pair_id": np.arange(100, 107),
        "probability": probability,
        "reward_a": 3 * probability,
        "reward_b": 3 * (1 - probability),
        "label": (probability > 0.5).astype(np.int8),
        "reason": np.array(["kept"] * 7, object),
    }
    before = {"pair_id": np.array([101, 102, 103, 106, 999]), "probability": np.array([0.9, 0.8, 0.4, 0.4, 0.1])}
    cards = pool_cards(texts, audit, before)
    ids = {kind: [card["pair_id"] for card in found] for kind, found in cards.items()}
    assert ids["most"] == ["101", "102", "104", "103", "105"] or ids["most"] == ["101", "102", "103", "104", "105"]
    assert ids["least"][:2] == ["100", "106"]
    assert ids["flipped"] == ["102", "103"]
    surest = cards["most"][0]
    assert (surest["prompt"], surest["response_b"], surest["label"]) == ("user: <p101>", "b101", 1)
    assert surest["before"] == pytest.approx(0.9)
    assert cards["least"][0]["before"] is None


def test_labels_that_contradict_their_rewards_are_those_of_the_judge():
    probability = np.array([0.9, 0.6, 0.3, 0.8], np.float32)
    audit = {
        "pair_id": np.arange(4),
        "probability": probability,
        "reward_a": np.array([0.0, 0.0, 2.0, 1.0], np.float32),
        "reward_b": np.array([1.0, 0.5, 1.0, 0.0], np.float32),
        "label": (probability > 0.5).astype(np.int8),
        "reason": np.array(["kept"] * 4, object),
    }
    cards = pool_cards(texts, audit, None)
    assert [card["pair_id"] for card in cards["overruled"]] == ["0", "2", "1"]
    one_view = audit | {"reward_a": probability, "reward_b": 1 - probability}
    assert "overruled" not in pool_cards(texts, one_view, None)


def test_long_and_broken_texts_are_cut_and_mended():
    assert shorten("short") == "short"
    long = "x" * MAX_CHARACTERS + "tail"
    assert shorten(long) == "x" * MAX_CHARACTERS + " … [4 more characters]"
    assert shorten("head" + "y" * MAX_CHARACTERS, from_end=True) == "[4 more characters] … " + "y" * MAX_CHARACTERS
    assert shorten("half \ud83d of a pair").encode("utf-8") == b"half ? of a pair"


def test_mistakes_are_the_surest_wrong_answers_with_the_human_label():
    probability = np.array([0.9, 0.8, 0.1, 0.3, 0.5, 0.7])
    target = np.array([1, 0, 1, 0, 1, 0.5])  # right, wrong, surely wrong, right, a tie of rewards, a tie of people
    cards = mistake_cards(texts, np.arange(20, 26), probability, target)
    assert [(card["pair_id"], card["label"], card["before"]) for card in cards] == [("22", 1, None), ("21", 0, None)]
    many = mistake_cards(texts, np.arange(50), np.linspace(0.6, 0.9, 50), np.zeros(50))
    assert [card["pair_id"] for card in many] == ["49", "48", "47", "46", "45"] and len(many) == NUM_CARDS
    assert mistake_cards(texts, np.arange(2), np.array([0.9, 0.1]), np.array([1, 0])) == []
