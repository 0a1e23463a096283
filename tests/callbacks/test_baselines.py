import json
import random

import pytest
import torch

from ser_lightning.callbacks.baselines import (
    BaselineCallback,
    bag_of_words_accuracy,
    longer_accuracy,
    measure_round,
    seed_bag_of_words,
)
from ser_lightning.evaluation.baselines import BagOfWords
from ser_lightning.records import PairScores
from ser_lightning.runs.files import round_files
from ser_lightning.runs.pair_tables import write_test_scores
from tests.helpers import data, module, trainer


@pytest.fixture
def polite_file(tmp_path):
    """Whoever says "please" was chosen, in four of five pairs."""
    rng, file = random.Random(0), tmp_path / "polite.jsonl"
    with file.open("w") as out:
        for i in range(150):
            word = f"word{rng.randrange(9)}"
            polite, plain = f"{word} please", f"{word} now"
            chosen, rejected = (polite, plain) if i % 5 else (plain, polite)
            out.write(json.dumps({"prompt": f"ask {i}", "chosen": chosen, "rejected": rejected}) + "\n")
    return file


def test_the_floor_is_fitted_on_the_seed_and_judged_on_the_test_pairs(tiny_model_dir, polite_file):
    pairs = data(polite_file, val_fraction=0.2)
    model = module(tiny_model_dir)
    run = trainer("run", BaselineCallback(), max_epochs=1)
    run.fit(model, pairs)
    (figures,) = run.test(model, pairs, verbose=False)
    oracle = ["please" in (p.response_a if label == 1 else p.response_b) for p, label in _labelled_test(pairs)]
    assert figures["test/bag_of_words_accuracy"] == pytest.approx(sum(oracle) / len(oracle))
    (figures,) = run.validate(model, pairs, verbose=False)
    assert figures["val/bag_of_words_accuracy"] == pytest.approx(bag_of_words_accuracy(pairs, "val"))


def _labelled_test(pairs):
    """Test pairs with their labels, which only counts can tell: one pair is asked at a time."""
    ids = pairs.pair_ids("test")
    for i, pair in zip(ids, pairs.lookup(ids), strict=True):
        yield pair, int(pairs.held_out_labels("test").count_right(i[None], torch.ones(1))[1])


def test_the_floor_does_not_see_other_labels(polite_file, tiny_model_dir):
    pairs = data(polite_file)
    pairs.tokenizer = module(tiny_model_dir).tokenizer
    pairs.prepare_data()
    pairs.setup("test")
    seed = pairs.pair_ids("seed")
    model = BagOfWords().fit([(p.response_a, p.response_b) for p in pairs.lookup(seed)], pairs.seed_labels(seed))
    assert 0 < len(seed) < 60 and len(model.weight) <= 11


@pytest.fixture
def measured(polite_file, tiny_model_dir):
    """A DataModule, and two rounds that take all test pairs but some for what people say."""
    pairs = data(polite_file)
    pairs.tokenizer = module(tiny_model_dir).tokenizer
    pairs.prepare_data()
    pairs.setup("test")
    ids, target = pairs.test_labels()
    for number, wrong in enumerate(([0, 1, 2], [2, 3])):
        margin = 2 * target - 1
        margin[wrong] *= -1
        file = round_files("run", number).test_scores
        file.parent.mkdir(parents=True)
        shuffled = torch.randperm(len(ids))
        scores = PairScores(ids, margin, torch.zeros(len(ids)), ids, ids)[shuffled]
        write_test_scores(file, scores)
    return pairs


def test_the_labels_of_the_test_pairs_are_those_that_the_counts_know(measured):
    ids, target = measured.test_labels()
    assert ids.tolist() == measured.pair_ids("test").tolist()
    assert measured.held_out_labels("test").count_right(ids, target) == (len(ids), len(ids))


def test_a_round_is_held_against_the_seed_model_and_the_baselines_pair_by_pair(measured):
    ids, target = measured.test_labels()
    number = len(ids)
    found = measure_round(measured, "run", 1)
    assert (found["pairs"], found["prompts"]) == (number, number)
    assert found["accuracy"] == pytest.approx(1 - 2 / number)
    seed = found["against"]["seed"]
    assert seed["difference"] == pytest.approx(1 / number)
    assert (seed["only_a"], seed["only_b"]) == (1, 2)  # pair 3 was right before, pairs 0 and 1 are right now
    assert seed["low"] < 0 < seed["high"]
    polite = sum("please" in (p.response_a if label == 1 else p.response_b) for p, label in _labelled_test(measured))
    words = found["against"]["bag_of_words"]
    assert words["difference"] == pytest.approx(found["accuracy"] - polite / number)
    assert found["against"]["longer"]["difference"] == pytest.approx(
        found["accuracy"] - longer_accuracy(measured, "test")
    )
    assert sum(group["pairs"] for group in found["by_length"].values()) == number
    assert "seed" not in measure_round(measured, "run", 0)["against"]


def test_what_has_not_scored_all_test_pairs_is_not_measured(measured):
    assert measure_round(measured, "run", 7) == {}
    file = round_files("run", 0).test_scores
    file.unlink()
    ids = measured.pair_ids("test")[1:]
    write_test_scores(file, PairScores(ids, ids.float(), ids.float(), ids, ids))
    assert measure_round(measured, "run", 0) == {}
    assert "seed" not in measure_round(measured, "run", 1)["against"]


def test_the_bag_of_words_is_fitted_once_for_a_seed(measured):
    assert seed_bag_of_words(measured) is seed_bag_of_words(measured)


def test_without_rounds_a_fit_ends_with_both_baselines(tiny_model_dir, polite_file, capsys):
    pairs = data(polite_file)
    trainer("run", BaselineCallback(), max_epochs=1).fit(module(tiny_model_dir), pairs)
    assert "Baselines on the test pairs: take the longer" in capsys.readouterr().out
