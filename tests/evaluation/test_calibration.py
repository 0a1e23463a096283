import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from ser_lightning.evaluation.calibration import fit_temperature, fit_zero, prob_a_wins


def _margins_and_labels(temperature, n=4000, seed=0):
    g = torch.Generator().manual_seed(seed)
    margin = torch.randn(n, generator=g) * 3
    return margin, (torch.rand(n, generator=g) < torch.sigmoid(margin / temperature)).float()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_temperature_is_the_minimum_that_scipy_finds(temperature):
    margin, target = _margins_and_labels(temperature)
    m, y = margin.double().numpy(), (4000 * target.numpy() + 1) / 4002

    def log_loss(log_t):
        z = m / np.exp(log_t)
        return np.mean(np.logaddexp(0, -z) * y + np.logaddexp(0, z) * (1 - y))

    expected = np.exp(minimize_scalar(log_loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8}).x)
    assert fit_temperature(margin, target) == pytest.approx(expected, rel=1e-4)
    assert fit_temperature(margin, target) == pytest.approx(temperature, rel=0.15)


def test_temperature_scales_with_the_rewards_and_ignores_the_order_within_pairs():
    margin, target = _margins_and_labels(2.0)
    t = fit_temperature(margin, target)
    assert fit_temperature(10 * margin, target) == pytest.approx(10 * t, rel=1e-4)
    assert fit_temperature(-margin, 1 - target) == pytest.approx(t, rel=1e-6)


def test_a_model_that_knows_nothing_gets_probabilities_of_one_half():
    margin, _ = _margins_and_labels(1.0)
    coin = (torch.arange(len(margin)) % 2).float()
    wrong = (margin < 0).float()
    assert (prob_a_wins(margin, fit_temperature(margin, wrong)) - 0.5).abs().max() < 0.01
    assert (prob_a_wins(margin, fit_temperature(margin, coin)) - 0.5).abs().mean() < 0.02


@pytest.mark.parametrize("pairs", [10, 1000])
def test_pairs_without_a_mistake_prove_no_more_than_their_number(pairs):
    margin = torch.full((pairs,), 5.0)
    certain = prob_a_wins(margin, fit_temperature(margin, torch.ones(pairs)))[0].item()
    assert certain == pytest.approx((pairs + 1) / (pairs + 2), rel=1e-4)


def test_temperature_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="got 0 pairs"):
        fit_temperature(torch.empty(0), torch.empty(0))
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(torch.tensor([float("nan")]), torch.tensor([1.0]))


def test_zero_is_where_better_and_worse_are_equally_likely():
    g = torch.Generator().manual_seed(1)
    good, bad = 5 + torch.randn(2000, generator=g), 3 + torch.randn(2000, generator=g)
    assert fit_zero(good, bad, torch.ones(2000)) == pytest.approx(4.0, abs=0.05)
    assert fit_zero(bad, good, torch.zeros(2000)) == pytest.approx(4.0, abs=0.05)
    assert fit_zero(good + 10, bad + 10, torch.ones(2000)) == pytest.approx(14.0, abs=0.05)


def test_zero_of_rewards_that_say_nothing_is_their_mean():
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert fit_zero(reward, reward, torch.ones(4)) == pytest.approx(2.5)
