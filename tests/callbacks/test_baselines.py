import json
import random

import pytest
import torch

from ser_lightning.callbacks.baselines import BaselineCallback, bag_of_words_accuracy
from ser_lightning.evaluation.baselines import BagOfWords
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
