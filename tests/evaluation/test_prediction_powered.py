"""Evaluation from labelled and unlabelled pairs: the estimate by hand, and its coverage by simulation."""

import numpy as np
import pytest
import torch
from scipy import stats

from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evaluation.prediction_powered import (
    estimate,
    estimates,
    expected_change,
    expected_credit,
    powered_mean,
)
from ser_lightning.evaluation.sets import prompt_interval
from tests.helpers import slow


def draw(generator, number, sharpness=2.0, bias=1.7):
    """Labels and the probabilities of two models of different noise, both too sure of themselves."""
    logit = generator.normal(0, sharpness, number)
    target = torch.from_numpy((generator.random(number) < 1 / (1 + np.exp(-logit))).astype(float))
    margins = [torch.from_numpy(bias * (logit + generator.normal(0, noise, number))) for noise in (2.0, 0.5)]
    return target, margins


def test_the_estimate_is_that_of_the_paper_where_every_pair_has_its_own_prompt():
    generator = np.random.default_rng(0)
    target, (_, margin) = draw(generator, 340)
    outcome, prediction = half_credit(margin, target).numpy(), expected_credit(torch.sigmoid(margin)).numpy()
    (y, f), pool = (outcome[:40], prediction[:40]), prediction[40:]
    found = powered_mean(*(torch.from_numpy(v) for v in (y, f, pool)), np.arange(40), np.arange(40, 340))
    power = np.cov(y, f)[0, 1] / 40 / (f.var(ddof=1) / 40 + pool.var(ddof=1) / 300)
    mean = y.mean() + power * (pool.mean() - f.mean())
    error = ((y - power * f).var(ddof=1) / 40 + power**2 * pool.var(ddof=1) / 300) ** 0.5
    assert 0 < power < 1 and found.power == pytest.approx(power)
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 39, mean, error))
    alone = stats.t.interval(0.95, 39, y.mean(), stats.sem(y))
    assert (found.labels_low, found.labels_high) == pytest.approx(alone)
    assert found.width_ratio < 1


def test_copies_of_a_pair_under_its_prompt_add_nothing():
    generator = np.random.default_rng(1)
    target, (_, margin) = draw(generator, 240)
    y, f = half_credit(margin, target), expected_credit(torch.sigmoid(margin))
    once = powered_mean(y[:40], f[:40], f[40:], np.arange(40), np.arange(40, 240))
    many = powered_mean(
        y[:40].repeat(3), f[:40].repeat(3), f[40:].repeat(3), np.tile(np.arange(40), 3), np.tile(np.arange(40, 240), 3)
    )
    assert (many.mean, many.low, many.high) == pytest.approx((once.mean, once.low, once.high))


def test_a_prompt_on_both_sides_is_one_draw():
    """The variance by hand, prompt by prompt; where every labelled pair is among the unlabelled ones as well, too."""
    generator = np.random.default_rng(2)
    target, (_, margin) = draw(generator, 300)
    y, f = half_credit(margin, target).numpy(), expected_credit(torch.sigmoid(margin)).numpy()
    prompt = generator.integers(0, 70, 300)
    labelled = np.arange(100)
    for rest in (np.arange(100, 300), np.arange(300)):
        given = [torch.from_numpy(one) for one in (y[labelled], f[labelled], f[rest])]
        found = powered_mean(*given, prompt[labelled], prompt[rest])
        num_labelled, num_rest = (len(set(prompt[rows].tolist())) for rows in (labelled, rest))
        u, v = [], []
        for one in range(70):
            mine, others = (rows[prompt[rows] == one] for rows in (labelled, rest))
            scale, scale_rest = (n / (n - 1) for n in (num_labelled, num_rest))
            u.append(scale**0.5 * sum(y[i] - y[labelled].mean() for i in mine) / 100)
            shift = scale_rest**0.5 * sum(f[i] - f[rest].mean() for i in others) / len(rest)
            v.append(shift - scale**0.5 * sum(f[i] - f[labelled].mean() for i in mine) / 100)
        power = min(1.0, -np.dot(u, v) / np.dot(v, v))
        mean = y[labelled].mean() + power * (f[rest].mean() - f[labelled].mean())
        error = sum((a + power * b) ** 2 for a, b in zip(u, v, strict=True)) ** 0.5
        assert power > 0 and found.power == pytest.approx(power)
        interval = stats.t.interval(0.95, num_labelled - 1, mean, error)
        assert (found.mean, found.low, found.high) == pytest.approx((mean, *interval))


def test_the_narrower_interval_is_reported_and_stays_within_what_an_accuracy_can_be():
    generator = np.random.default_rng(3)
    target, margins = draw(generator, 1200, sharpness=6.0, bias=0.5)
    credit = [half_credit(margin, target) for margin in margins]
    prob = [torch.sigmoid(margin) for margin in margins]
    prompt = np.arange(1200)
    for number in (200, 99):
        some, rest = slice(number), slice(number, None)
        labelled = [[one[some] for one in values] for values in (credit, prob)]
        found = estimates(*labelled, [one[rest] for one in prob], prompt[some], prompt[rest])
        assert list(found) == ["accuracy_a", "accuracy_b", "difference"]
        outcomes = {"accuracy_a": credit[0], "accuracy_b": credit[1], "difference": credit[1] - credit[0]}
        for name, one in found.items():
            low, high = prompt_interval(outcomes[name][some], prompt[some])
            assert (one.labels_low, one.labels_high) == (low, high)
            assert one.labels_value == pytest.approx(float(outcomes[name][some].mean()))
            assert one.width < high - low if one.uses_unlabelled else (one.low, one.high) == (low, high)
        used = {name for name, one in found.items() if one.uses_unlabelled}
        assert used == ({"accuracy_a", "accuracy_b"} if number == 200 else set())  # 99 prompts are too few
    right = torch.tensor([1.0] * 118 + [0.0] * 2)
    sure = torch.cat([torch.full((118,), 0.99), torch.full((2,), 0.55)])
    most = estimate(right, sure, torch.full((500,), 0.99), np.arange(120), np.arange(120, 620))
    assert most.uses_unlabelled and most.high == 1.0 and most.value <= 1.0


def test_the_labels_alone_decide_without_a_pool_or_where_predictions_say_nothing():
    y = torch.tensor([1.0, 0, 1, 1, 0, 1])
    for f, pool in ((torch.full((6,), 0.7), torch.full((9,), 0.2)), (y, torch.empty(0)), (1 - y, torch.rand(9))):
        found = powered_mean(y, f, pool, np.arange(6), 6 + np.arange(len(pool)))
        assert found.power == 0 and found.mean == found.labels_mean == pytest.approx(4 / 6)
        assert (found.low, found.high) == (found.labels_low, found.labels_high)
    with pytest.raises(ValueError, match="got 1 labelled prompts"):
        powered_mean(y, y, y, np.zeros(6), np.arange(1, 7))


def test_predictions_by_hand():
    assert expected_credit(torch.tensor([0.9, 0.2, 0.5])).tolist() == pytest.approx([0.9, 0.8, 0.5])
    by_a, by_b = torch.tensor([0.9, 0.9, 0.4, 0.5]), torch.tensor([0.8, 0.2, 0.9, 0.9])
    # Alike; B alone for the other, which both together hold for the worse; B alone for a; A is tied.
    assert expected_change(by_a, by_b).tolist() == pytest.approx([0.0, -0.1, 0.3, 0.2])
    assert expected_change(by_b, by_a).tolist() == pytest.approx([0.0, 0.1, -0.3, -0.2])


@pytest.mark.parametrize("num_labelled", [40, *slow(150)])
def test_intervals_cover_the_truth_and_are_narrower(num_labelled):
    """1,000 draws: 95 % up to 3 points, whatever the models' confidence is worth; an accuracy, and a difference."""
    generator = np.random.default_rng(num_labelled)
    target, (worse, better) = draw(generator, 1_000_000)
    truth = [
        float(half_credit(better, target).mean()),
        float((half_credit(better, target) - half_credit(worse, target)).mean()),
    ]
    hits, alone, ratios = np.zeros(2), np.zeros(2), np.zeros(2)
    prompt, pool_prompt = np.arange(num_labelled), np.arange(num_labelled, num_labelled + 1000)
    for _ in range(1000):
        target, (worse, better) = draw(generator, num_labelled + 1000)
        credit = half_credit(better, target)
        prob = [torch.sigmoid(margin) for margin in (worse, better)]
        asked = [(credit, expected_credit(prob[1])), (credit - half_credit(worse, target), expected_change(*prob))]
        for k, (y, f) in enumerate(asked):
            found = powered_mean(y[:num_labelled], f[:num_labelled], f[num_labelled:], prompt, pool_prompt)
            hits[k] += found.low <= truth[k] <= found.high
            alone[k] += found.labels_low <= truth[k] <= found.labels_high
            ratios[k] += found.width_ratio / 1000
    assert np.all(np.abs(hits / 1000 - 0.95) < 0.03), hits
    assert np.all(np.abs(alone / 1000 - 0.95) < 0.03), alone
    assert np.all(ratios < 0.99), ratios
