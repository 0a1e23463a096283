"""A head on the pretrained body, out of fold. Oracles: scikit-learn's logistic regression, transformers alone."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel

from ser_lightning.errors import UserError
from ser_lightning.training.frozen_head import frozen_accuracy, out_of_fold_accuracy
from ser_lightning.training.linear_head import choose_penalty
from tests.helpers import data, evolution, module, trainer

N, D = 60, 8
FOLDS = [torch.arange(N) % 2 == fold for fold in range(2)]


def pairs():
    """Differences and labels of N pairs that a head can learn in part."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (N,), generator=generator).float()
    x = torch.randn(N, D, generator=generator)
    x[:, 0] += 2 * label - 1
    return x, label


def plain_accuracy(x, label, folds):
    """Mean over pairs, by scikit-learn, one fold after the other."""
    scaled = x / (x.square().mean(0).sqrt() * x.shape[1] ** 0.5)
    right = np.zeros(len(x))
    for fold in (fold.numpy() for fold in folds):
        penalty = choose_penalty(scaled[~fold], label[~fold], range(int((~fold).sum()))).penalty
        head = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=10_000)
        right[fold] = head.fit(scaled[~fold], label[~fold]).predict(scaled[fold]) == label[fold].numpy()
    return right.mean()


def test_each_pair_is_ordered_by_a_head_of_the_other_folds():
    x, label = pairs()
    found = out_of_fold_accuracy(x, 1, label, range(N), FOLDS)
    assert found == pytest.approx(plain_accuracy(x, label, FOLDS)) and 0.6 < found < 1


def test_labels_without_a_pattern_are_not_learned_by_heart():
    x = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(1)).float()
    folds = [torch.arange(200) % 4 == fold for fold in range(4)]
    assert 0.35 < out_of_fold_accuracy(x, 1, label, range(200), folds) < 0.65


class Measured(Callback):
    """What is found before the first step, and the states of the seed by transformers alone."""

    def on_fit_start(self, trainer, pl_module):
        self.found = frozen_accuracy(trainer, pl_module.reward_model)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_run_measures_it_on_its_own_folds_and_pretrained_states(tiny_model_dir, pairs_file, train):
    measured, batches = Measured(), data(pairs_file)
    trainer("run", evolution(max_rounds=0), measured).fit(module(tiny_model_dir, train=train), batches)
    body, store, ids = AutoModel.from_pretrained(tiny_model_dir).eval(), batches.data.store, batches.pair_ids("seed")
    states = []
    for row in batches.data.rows_of(ids.tolist()):
        both = [torch.from_numpy(one.astype(np.int64))[None] for one in store.ids(int(row))]
        with torch.no_grad():
            first, second = (body(one).last_hidden_state[0, -1] for one in both)
        states.append(first - second)
    folds = [torch.isin(ids, batches.pair_ids("seed", fold, 2)) for fold in range(2)]
    expected = plain_accuracy(torch.stack(states), batches.seed_labels(ids), folds)
    assert measured.found == pytest.approx(expected)


def test_states_that_are_not_finite_give_no_figure(tiny_model_dir, pairs_file):
    """The training says what is wrong, in a line of its own."""
    model, measured = module(tiny_model_dir), Measured()

    class Broken(Callback):
        def on_fit_start(self, trainer, pl_module):
            with torch.no_grad():
                next(iter(pl_module.reward_model.body.parameters())).fill_(torch.nan)

    with pytest.raises(UserError, match="train/loss: got nan"):
        trainer("run", Broken(), evolution(), measured).fit(model, data(pairs_file))
    assert measured.found is None
