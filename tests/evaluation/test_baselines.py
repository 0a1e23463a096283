import random

import torch

from ser_lightning.evaluation.baselines import PENALTIES, BagOfWords
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
    assert model.vectorizer.get_feature_names_out()[model.weight.argmax()] == "please"


def test_weights_are_those_that_torch_finds():
    """The penalised loss has its least value where its gradient is zero."""
    pairs, target = _pairs(60, 0)
    model = BagOfWords().fit(pairs, target)
    names = list(model.vectorizer.get_feature_names_out())
    counts = torch.tensor([[[text.split().count(w) for w in names] for text in pair] for pair in pairs]).double()
    x = torch.log1p(counts[:, 0]) - torch.log1p(counts[:, 1])
    weight = torch.from_numpy(model.weight).requires_grad_()
    torch.nn.functional.binary_cross_entropy_with_logits(x @ weight, target.double(), reduction="sum").backward()
    slopes = {penalty: float((weight.grad + penalty * weight).detach().abs().max()) for penalty in PENALTIES}
    assert min(slopes.values()) < 1e-3 < sorted(slopes.values())[1]


def test_is_antisymmetric_and_says_nothing_of_unknown_words():
    model = BagOfWords().fit(*_pairs(100, 0))
    pairs, _ = _pairs(20, 1)
    assert torch.allclose(model.margin(pairs), -model.margin([(b, a) for a, b in pairs]), atol=1e-6)
    assert model.margin([("never seen", "Wörter")]).tolist() == [0.0]


def test_one_pair_is_enough():
    """Out of its fold there is nothing to fit on."""
    pair = [("yes please", "no")]
    assert BagOfWords().fit(pair, torch.tensor([1.0])).margin(pair) > 0
