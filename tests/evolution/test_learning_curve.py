"""What more labels gain: subsets of the seed, the power law, the forecast."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ser_lightning.evaluation.metrics import Z_95, half_credit
from ser_lightning.evolution import learning_curve as module
from ser_lightning.evolution.learning_curve import (
    EXPONENT,
    SCATTER,
    SHARES,
    LearningCurve,
    label_gain,
    label_gains,
    learning_curve,
    power_law,
)
from ser_lightning.training.linear_head import fit_linear_head


def pairs(number, noise=1.0, dim=30, seed=0):
    """Differences, labels that a direction of them tells with noise, and two pairs a prompt."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, dim, generator=generator) / dim**0.5
    signal = 3 * x[:, :5].sum(1)
    target = (signal + noise * torch.randn(number, generator=generator) > 0).double()
    return x, target, [i // 2 for i in range(number)]


def test_the_whole_of_what_a_fold_leaves_is_plain_cross_validation():
    from sklearn.model_selection import GroupKFold

    x, target, group = pairs(60)
    curve = learning_curve(x, target, group, 1.0)
    expected = torch.zeros(60, dtype=torch.float64)
    for kept, left in GroupKFold(5).split(x, groups=group):
        margin = x[left].double() @ fit_linear_head(x[kept], target[kept], 1.0)
        expected[left] = half_credit(margin, target[left])
    assert torch.equal(curve.credit[-1], expected)
    assert curve.sizes == pytest.approx([48 * share for share in SHARES])


def test_labels_of_a_fold_do_not_move_the_heads_that_judge_it():
    """Turn one prompt's labels: its own credit turns with them, as its heads have not seen them."""
    x, target, group = pairs(60)
    before = learning_curve(x, target, group, 1.0).credit
    turned = target.clone()
    turned[:2] = 1 - turned[:2]
    after = learning_curve(x, turned, group, 1.0).credit
    assert torch.allclose(after[:, :2], 1 - before[:, :2])
    assert not torch.equal(after[:, 2:], before[:, 2:])


def test_ties_train_the_heads_and_are_no_part_of_the_accuracy():
    x, target, group = pairs(60)
    tied = target.clone()
    tied[:10] = 0.5
    curve = learning_curve(x, tied, group, 1.0)
    assert curve.num_labels == 60 and curve.credit.shape == (4, 50) and curve.group.tolist() == group[10:]
    assert not torch.equal(curve.credit, learning_curve(x, target, group, 1.0).credit[:, 10:])


def test_the_power_law_is_the_least_squares_fit():
    sizes = np.array([10.0, 20.0, 40.0, 80.0])
    assert power_law(sizes, 0.8 - 0.9 * sizes**-0.5, 0.5) == pytest.approx((0.8, 0.9))
    noisy = np.array([0.55, 0.63, 0.62, 0.70])

    def loss(p):
        return ((p[0] - p[1] * sizes**-0.5 - noisy) ** 2).sum()

    assert power_law(sizes, noisy, 0.5) == pytest.approx(minimize(loss, [0.7, 0.5]).x, abs=1e-4)
    falling = np.array([0.7, 0.65, 0.6, 0.55])
    assert power_law(sizes, falling, 0.5) == pytest.approx((falling.mean(), 0.0))


def test_the_gain_of_a_known_curve_and_of_more_labels():
    sizes = np.array([10.0, 20.0, 40.0, 80.0])
    accuracy = torch.from_numpy(0.9 - 0.9 * sizes**-EXPONENT)
    curve = LearningCurve(sizes, accuracy[:, None].expand(-1, 100), np.arange(100), 100)
    found = [label_gain(curve, labels) for labels in (100, 200)]
    assert [one.gain for one in found] == pytest.approx([0.9 * (100**-EXPONENT - m**-EXPONENT) for m in (200, 300)])
    for one in found:  # nothing to resample: what is left is the exponent and the scatter
        assert one.low < one.gain - Z_95 * SCATTER / 10 < one.gain + Z_95 * SCATTER / 10 < one.high
    assert found[1].high > found[0].high


def test_a_flat_curve_promises_nothing_and_owns_to_the_scatter():
    credit = torch.full((4, 60), 0.7, dtype=torch.float64)
    curve = LearningCurve(np.array([10.0, 20, 40, 80]), credit, np.arange(60), 60)
    found, by_draw = label_gain(curve, 100), Z_95 * SCATTER / 60**0.5
    assert (found.gain, found.low, found.high) == pytest.approx((0.0, -by_draw, by_draw), abs=1e-9)


def test_pairs_of_one_prompt_are_resampled_together(monkeypatch):
    monkeypatch.setattr(module, "SCATTER", 0.0)
    generator = torch.Generator().manual_seed(1)
    credit = (torch.rand(4, 30, generator=generator) > torch.tensor([[0.5], [0.45], [0.4], [0.3]])).double()
    sizes = np.array([10.0, 20, 40, 80])
    apart = label_gain(LearningCurve(sizes, credit.repeat(1, 4), np.arange(120), 120), 100)
    together = label_gain(LearningCurve(sizes, credit.repeat(1, 4), np.tile(np.arange(30), 4), 120), 100)
    assert together.gain == pytest.approx(apart.gain)
    assert together.high - together.low > 1.2 * (apart.high - apart.low)


@pytest.mark.slow
def test_the_forecast_is_nearer_to_what_labels_then_gain_than_nothing():
    """On made-up pairs: forecast from 100 labels, add 100, test on 2,000 others; the mean of eight draws."""
    forecasts, gains = [], []
    for seed in range(8):
        x, target, group = pairs(2200, noise=0.7, seed=seed)
        rows, more = slice(0, 100), slice(0, 200)
        forecasts.append(label_gains(x[rows], target[rows], group[rows], 1.0)[0].gain)
        credit = [
            half_credit(x[200:].double() @ fit_linear_head(x[part], target[part], 1.0), target[200:]).mean()
            for part in (rows, more)
        ]
        gains.append(float(credit[1] - credit[0]))
    assert np.mean(gains) > 0.015
    assert abs(np.mean(forecasts) - np.mean(gains)) < np.mean(gains) / 2


@pytest.mark.parametrize(("number", "prompts"), [(49, 49), (60, 4)])
def test_no_forecast_of_a_seed_that_is_too_small(number, prompts):
    x, target, _ = pairs(number)
    assert label_gains(x, target, [i % prompts for i in range(number)], 1.0) == []


def test_no_forecast_of_a_seed_that_takes_minutes(monkeypatch):
    x, target, group = pairs(60)
    assert [one.labels for one in label_gains(x, target, group, 1.0)] == [100, 200]
    monkeypatch.setattr(module, "MAX_LABELS", 59)
    assert label_gains(x, target, group, 1.0) == []
