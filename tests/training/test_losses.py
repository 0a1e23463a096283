import math

import pytest
import torch

from ser_lightning.training.losses import bradley_terry, centring, pointwise


def test_bradley_terry_is_minus_log_sigmoid_of_the_margin():
    a, b = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([1.0, 0.5, 3.0])
    loss = bradley_terry(a, b, torch.tensor([1.0, 1.0, 0.0]))
    expected = [math.log(1 + math.exp(-1.0)), math.log(2), math.log(1 + math.exp(-4.0))]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_label_noise_follows_the_mixture_formula(noise):
    margins = torch.linspace(-5, 5, 11)
    for target in (0.0, 0.25, 1.0):
        loss = bradley_terry(margins, torch.zeros(11), torch.full((11,), target), noise)
        for m, value in zip(margins.tolist(), loss.tolist(), strict=True):
            p = (1 - 2 * noise) / (1 + math.exp(-m)) + noise
            assert value == pytest.approx(-target * math.log(p) - (1 - target) * math.log(1 - p), abs=1e-5)


def test_label_noise_bounds_the_loss_of_a_wrong_label():
    loss = bradley_terry(torch.tensor([200.0]), torch.tensor([0.0]), torch.tensor([0.0]), 0.1)
    assert loss.item() == pytest.approx(-math.log(0.1), rel=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_swapping_the_responses_changes_nothing(noise):
    a, b, target = torch.randn(8), torch.randn(8), torch.rand(8)
    assert torch.allclose(bradley_terry(a, b, target, noise), bradley_terry(b, a, 1 - target, noise), atol=1e-6)
    assert torch.allclose(pointwise(a, b, target), pointwise(b, a, 1 - target))
    assert torch.equal(centring(a, b), centring(b, a))


def test_anchors_fix_the_zero_that_bradley_terry_leaves_free():
    a, b, target = torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([1.0])
    assert torch.allclose(bradley_terry(a + 7, b + 7, target), bradley_terry(a, b, target))
    assert centring(a + 7, b + 7).item() == pytest.approx(14.0**2)
    assert centring(a, b).item() == 0.0
    assert pointwise(a, b, target).item() == pytest.approx(math.log(1 + math.exp(-1.0)), rel=1e-6)
    assert pointwise(a + 7, b + 7, target).item() > pointwise(a, b, target).item()
