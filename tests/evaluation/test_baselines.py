import random

import torch

from ser_lightning.evaluation.baselines import BagOfWords
from ser_lightning.evaluation.metrics import half_credit


def _pairs(n, seed):
    """A word decides: whoever says "please" wins; the rest is noise."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(50)]
    pairs, target = [], []
    for _ in range(n):
        texts = [" ".join(rng.choices(words, k=12)) for _ in range(2)]
        winner = rng.randrange(2)
        texts[winner] += " please"
        pairs.append((texts[0], texts[1]))
        target.append(float(winner == 0))
    return pairs, torch.tensor(target)


def test_finds_the_word_that_decides():
    model = BagOfWords().fit(*_pairs(200, 0))
    pairs, target = _pairs(200, 1)
    assert half_credit(model.margin(pairs), target).mean() > 0.95
    assert max(model.column, key=lambda w: model.weight[model.column[w]].item()) == "please"


def test_is_antisymmetric_and_says_nothing_of_unknown_words():
    model = BagOfWords().fit(*_pairs(100, 0))
    pairs, _ = _pairs(20, 1)
    assert torch.allclose(model.margin(pairs), -model.margin([(b, a) for a, b in pairs]), atol=1e-6)
    assert model.margin([("never seen", "Wörter")]).tolist() == [0.0]
