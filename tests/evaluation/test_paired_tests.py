import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from ser_lightning.evaluation.paired_tests import boundary, first_decision, paired, prompts_won, same_order, sign_test


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 1), (3, 3), (2, 11), (40, 12), (500, 580), (1000, 1000)])
def test_the_p_value_counts_the_splits_of_the_discordant_pairs_which_is_mcnemars_test(only_a, only_b):
    """Where every prompt has one pair; 5 pairs more are as good for both."""
    n = only_a + only_b
    as_uneven = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(only_a - only_b))
    expected = float(Fraction(as_uneven, 2**n))
    assert sign_test(only_a, only_b) == pytest.approx(expected, rel=1e-8)
    change = torch.tensor([-1.0] * only_a + [1.0] * only_b + [0.0] * 5)
    found = paired(torch.zeros(n + 5), change, change == 0, np.arange(n + 5))
    assert (found.only_a, found.only_b, found.p_value) == (only_a, only_b, sign_test(only_a, only_b))


def test_a_prompt_is_won_by_the_sum_of_its_pairs():
    generator = np.random.default_rng(6)
    prompt, change = generator.integers(20, size=90), generator.choice([-1, -0.5, 0, 0.5, 1], size=90)
    sums = {name: sum(change[i] for i in range(90) if prompt[i] == name) for name in set(prompt.tolist())}
    expected = sum(one < 0 for one in sums.values()), sum(one > 0 for one in sums.values())
    assert prompts_won(torch.tensor(change), prompt) == expected
    found = paired(torch.zeros(90), torch.tensor(change), torch.ones(90, dtype=torch.bool), prompt)
    assert found.p_value == pytest.approx(stats.binomtest(expected[0], sum(expected)).pvalue)
    assert (found.only_a, found.only_b) == (int((change < 0).sum()), int((change > 0).sum()))


def test_pairs_of_one_prompt_weigh_as_little_as_one():
    """Six copies of every pair: a test of the pairs would take 9 wins of 30 for 54 of 180."""
    change = torch.tensor([1.0] * 9 + [-1.0] * 21)
    alone, copied = (
        paired(torch.zeros(30 * n), change.repeat(n), change.repeat(n) == 0, np.tile(np.arange(30), n)) for n in (1, 6)
    )
    assert copied.p_value == alone.p_value > 0.04 and copied.only_b == 6 * alone.only_b


def test_equal_models_have_a_small_p_value_in_5_of_100_cases_at_most_also_with_many_pairs_a_prompt():
    generator = np.random.default_rng(0)
    won = generator.choice([-1.0, 0.0, 0.0, 1.0], size=(1000, 60))  # by the prompt alone
    prompt = np.repeat(np.arange(60), 6)
    small = [sign_test(*prompts_won(torch.from_numpy(one).repeat_interleave(6), prompt)) < 0.05 for one in won]
    assert sum(small) > 0 and stats.binomtest(sum(small), 1000, 0.05, alternative="greater").pvalue > 0.01


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


def naive_boundary(is_discordant, num_pairs, alpha):
    """Oracle: all sequences of coins, one by one; at each pair the least lead that stops few enough of them."""
    walks = [list(itertools.accumulate(coins)) for coins in itertools.product((-1, 1), repeat=sum(is_discordant))]
    alive, stopped, bounds = walks, 0, []
    for looked in range(1, len(is_discordant) + 1):
        coins = sum(is_discordant[:looked])
        lead = [abs(walk[coins - 1]) if coins else 0 for walk in alive]
        allowed = Fraction(alpha) * looked / num_pairs * len(walks) - stopped
        bounds.append(next(c for c in range(1, coins + 2) if sum(size >= c for size in lead) <= allowed))
        alive = [walk for walk, size in zip(alive, lead, strict=True) if size < bounds[-1]]
        stopped = len(walks) - len(alive)
    return bounds, Fraction(stopped, len(walks))


@pytest.mark.parametrize("alpha", [Fraction(1, 4), Fraction(1, 16)])
@pytest.mark.parametrize("pattern", ["1" * 11, "0" * 3 + "1" * 9, "0110100110010110111", "1110000000", "10" * 9])
def test_the_boundary_is_that_of_all_sequences_counted(pattern, alpha):
    is_discordant = [mark == "1" for mark in pattern]
    expected, error = naive_boundary(is_discordant, len(pattern), alpha)
    found = list(boundary(is_discordant, len(pattern), float(alpha)))
    # A lead that the walk cannot have had yet decides nothing: the two may name different ones.
    reach = list(itertools.accumulate(is_discordant))
    assert [min(b, r + 1) for b, r in zip(found, reach, strict=True)] == expected
    assert error <= alpha


def test_equal_models_are_told_apart_in_5_of_100_cases_at_most_whenever_discordant_pairs_come():
    """4,000 simulations of 600 pairs, more of them discordant towards the end; and it spends what it may."""
    generator = torch.Generator().manual_seed(0)
    is_discordant = torch.rand(600, generator=generator) < torch.linspace(0.1, 0.6, 600)
    sign = (torch.rand(4000, 600, generator=generator) < 0.5).int() * 2 - 1
    lead = (sign * is_discordant).cumsum(1).abs()
    wrong = int((lead >= torch.tensor(list(boundary(is_discordant.tolist(), 600, 0.05)))).any(1).sum())
    assert stats.binomtest(wrong, 4000, 0.05, alternative="greater").pvalue > 0.01
    assert stats.binomtest(wrong, 4000, 0.04, alternative="less").pvalue > 0.01


def test_the_error_may_be_spent_as_fast_as_pairs_are_looked_at():
    """Of 40 pairs B wins all: 2 / 2^n must not exceed 0.05 n / 40."""
    n = next(n for n in range(1, 40) if 2 / 2**n <= 0.05 * n / 40)
    assert first_decision([1.0] * 40, 40, 0.05) == (n, n)
    assert first_decision([-0.5] * 40, 40, 0.05) == (n, -n)
    late = [0.0] * 20 + [1.0] * 20  # what was not spent is still there
    assert first_decision(late, 40, 0.05) == (20 + 6, 6) and 2 / 2**6 <= 0.05 * 26 / 40 < 2 / 2**5


def test_no_pair_is_asked_for_behind_the_decision():
    asked = []

    def wins():
        for number in range(100):
            asked.append(number)
            yield 1.0

    looked, _ = first_decision(wins(), 100, 0.05)
    assert len(asked) == looked < 15


def test_even_models_are_not_told_apart():
    assert first_decision([1.0, -1.0] * 50, 100, 0.05) is None
    assert first_decision([0.0] * 10, 10, 0.05) is None
    assert first_decision([], 10, 0.05) is None
