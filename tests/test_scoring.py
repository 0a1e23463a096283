import pytest
import torch
from torch import nn

from ser_lightning.records import PairScores
from ser_lightning.scoring import complete_and_unique, concatenate, evaluating


def _scores(ids):
    t = torch.tensor(ids)
    return PairScores(t, t * 1.0, -t * 1.0, t + 3, t + 5)


def test_repeats_are_removed_and_the_asked_order_is_restored():
    expected = torch.tensor([30, 10, 20, 40])
    scores = complete_and_unique(concatenate([_scores([10, 40]), _scores([20, 30, 10])]), expected)
    assert torch.equal(scores.pair_id, expected)
    assert torch.equal(scores.reward_a, expected * 1.0)
    assert torch.equal(scores.tokens_b, expected + 5)


@pytest.mark.parametrize("ids", [[10, 20], [10, 20, 30, 50], [10, 20, 30, 40, 50]])
def test_missing_or_foreign_pairs_are_an_error(ids):
    with pytest.raises(RuntimeError, match="where 4 were to be scored"):
        complete_and_unique(_scores(ids), torch.tensor([10, 20, 30, 40]))


def test_nothing_to_score_is_legal():
    assert len(complete_and_unique(concatenate([]), torch.empty(0, dtype=torch.int64))) == 0


def test_evaluating_restores_every_submodules_mode_also_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    model[1][0].eval()
    before = [m.training for m in model.modules()]

    def fail():
        with evaluating(model):
            assert not any(m.training for m in model.modules())
            assert not torch.is_grad_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [m.training for m in model.modules()] == before
    assert torch.is_grad_enabled()
