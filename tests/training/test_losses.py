import math

import pytest
import torch

from ser_lightning.training.losses import bradley_terry, centring


def test_bradley_terry_is_minus_log_sigmoid_of_the_margin():
    a, b = torch.tensor([2.0, 0.5, -1.0, 1.0]), torch.tensor([1.0, 0.5, 3.0, 0.0])
    loss = bradley_terry(a, b, torch.tensor([1.0, 1.0, 0.0, 0.25]))
    soft = 0.25 * math.log(1 + math.exp(-1.0)) + 0.75 * math.log(1 + math.exp(1.0))
    expected = [math.log(1 + math.exp(-1.0)), math.log(2), math.log(1 + math.exp(-4.0)), soft]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)


def test_swapping_the_responses_changes_nothing():
    a, b, target = torch.randn(8), torch.randn(8), torch.rand(8)
    assert torch.allclose(bradley_terry(a, b, target), bradley_terry(b, a, 1 - target), atol=1e-6)
    assert torch.equal(centring(a, b), centring(b, a))


def test_the_anchor_fixes_the_zero_that_bradley_terry_leaves_free():
    a, b, target = torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([1.0])
    assert torch.allclose(bradley_terry(a + 7, b + 7, target), bradley_terry(a, b, target))
    assert centring(a + 7, b + 7).item() == pytest.approx(14.0**2)
    assert centring(a, b).item() == 0.0
