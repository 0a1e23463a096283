import math

import numpy as np
import pytest
import torch
from scipy import stats

from ser_lightning.ab_tests import first_decision, log_e_value, mcnemar, paired, same_order


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 1), (3, 3), (2, 11), (40, 12), (500, 580), (1000, 1000)])
def test_mcnemar_is_scipys_binomial_test(only_a, only_b):
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-8)


def test_the_interval_is_that_of_a_loop_over_resampled_prompts():
    generator = np.random.default_rng(1)
    prompt = generator.integers(15, size=50)
    credits = [torch.tensor(generator.choice([0, 0.5, 1], size=50), dtype=torch.float32) for _ in range(2)]
    found = paired(*credits, torch.ones(50, dtype=torch.bool), prompt, seed=4)
    names, draws, means = np.unique(prompt), np.random.default_rng(4), []
    for _ in range(2000):
        rows = [i for n in draws.integers(len(names), size=len(names)) for i in np.flatnonzero(prompt == names[n])]
        means.append(np.mean([float(credits[1][i] - credits[0][i]) for i in rows]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))
    assert found.difference == pytest.approx(float((credits[1] - credits[0]).mean()))
    assert found.only_a == int((credits[0] > credits[1]).sum()) and found.agreement == 1.0


def test_turning_the_models_turns_every_sign():
    generator = np.random.default_rng(2)
    a, b = (torch.tensor(generator.integers(2, size=80), dtype=torch.float32) for _ in range(2))
    same = torch.tensor(generator.integers(2, size=80), dtype=torch.bool)
    one, other = paired(a, b, same, np.arange(80)), paired(b, a, same, np.arange(80))
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert (one.only_a, one.only_b, one.p_value) == (other.only_b, other.only_a, other.p_value)


def test_ties_agree_with_ties_alone():
    found = same_order(torch.tensor([1.0, -1, 0, 0]), torch.tensor([2.0, 1, 0, 3]))
    assert found.tolist() == [True, False, True, False]


@pytest.mark.parametrize("a", [1.0, 5.0])
@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 3), (5, 2), (30, 60)])
def test_the_e_value_is_the_mean_capital_over_all_bets(only_a, only_b, a):
    """Oracle: capital of one bet is the product of its odds; the mixture is their mean under Beta(a, a)."""
    shares = stats.beta(a, a).ppf((np.arange(20_000) + 0.5) / 20_000)
    capital = np.mean((2 * shares) ** only_b * (2 * (1 - shares)) ** only_a)
    assert math.exp(log_e_value(only_a, only_b, a)) == pytest.approx(capital, rel=1e-3)


def test_equal_models_are_hardly_ever_told_apart_however_often_one_looks():
    """2,000 simulations of 400 discordant pairs; the binomial bound lets a true 5 % pass."""
    generator = torch.Generator().manual_seed(0)
    wins = (torch.rand(2000, 400, generator=generator) < 0.5).double().cumsum(1)
    n = torch.arange(1, 401, dtype=torch.float64)
    log_e = n * math.log(2) + torch.lgamma(wins + 1) + torch.lgamma(n - wins + 1) - torch.lgamma(n + 2)
    assert torch.allclose(log_e[0, 99], torch.tensor(log_e_value(100 - int(wins[0, 99]), int(wins[0, 99]))).double())
    wrong = int((log_e.max(1).values >= math.log(20)).sum())
    assert stats.binomtest(wrong, 2000, 0.05, alternative="greater").pvalue > 0.01


def test_a_decision_is_the_first_crossing():
    assert first_decision(torch.ones(20), 0.05) == next(n for n in range(1, 20) if 2**n / (n + 1) >= 20)
    assert first_decision(torch.tensor([1.0, 0] * 50), 0.05) is None
    assert first_decision(torch.empty(0), 0.05) is None
