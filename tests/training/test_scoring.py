import pytest
import torch
from torch import nn

from ser_lightning.errors import UserError
from ser_lightning.records import PairScores
from ser_lightning.training.scoring import ScoreBuffer, complete_and_unique, concatenate, evaluating, score_pairs


def _scores(ids):
    t = torch.tensor(ids, dtype=torch.int64)
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


@pytest.mark.parametrize("expected", [0, 3, 7, 100])
def test_a_buffer_holds_what_was_added_whatever_was_expected(expected):
    parts = [_scores(ids) for ids in ([5, 4], [], [9], [1, 2, 3, 8])]
    buffer = ScoreBuffer(expected)
    for part in parts:
        buffer.add(part)
    for name, value in vars(concatenate(parts)).items():
        found = getattr(buffer.scores(), name)
        assert torch.equal(found, value) and found.dtype == value.dtype


def test_scores_come_to_the_host_a_few_batches_at_a_time():
    buffer, copies = ScoreBuffer(40), []
    copy, buffer._copy = buffer._copy, lambda: (copies.append(len(buffer._waiting)), copy())
    for i in range(40):
        buffer.add(_scores([i]))
    assert buffer.scores().pair_id.tolist() == [*range(40)]
    assert copies == [16, 16, 8]


def test_rewards_that_are_no_numbers_stop_the_run():
    class Trainer:
        is_global_zero, progress_bar_callback, lightning_module = False, None, nn.Identity()

        class strategy:
            batch_to_device = staticmethod(lambda batch: batch)
            predict_step = staticmethod(lambda batch, batch_idx: batch)

    bad = PairScores(*(t.clone() for t in vars(_scores([1, 2, 3])).values()))
    bad.reward_b[1] = float("nan")
    with pytest.raises(UserError, match=r"got NaN or infinity for 1 of 3 pairs \(labelling\)"):
        score_pairs(Trainer, [bad], bad.pair_id, "labelling")
    good = _scores([1, 2, 3])
    assert torch.equal(score_pairs(Trainer, [good], good.pair_id, "labelling").margin, good.margin)
