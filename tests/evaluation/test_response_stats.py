import math

import pytest
import torch
from scipy import stats

from ser_lightning.evaluation.response_stats import distinct_n, mean_interval, paired_change, repetition, win_rate


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a b c d", 3, 0.0),
        ("a b c a b c", 3, 1 / 4),  # abc bca cab abc
        ("Yes yes YES yes", 1, 3 / 4),
        ("no no no no no", 3, 2 / 3),
        ("!!!!", 2, 2 / 3),
        ("two words", 3, 0.0),
        ("", 1, 0.0),
    ],
)
def test_repetition_is_the_share_of_ngrams_seen_before(text, n, expected):
    assert repetition(text, n) == pytest.approx(expected)


def test_repetition_grows_with_every_copy_of_a_sentence():
    shares = [repetition("the cat sat on the mat. " * copies) for copies in range(1, 5)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] > 0.6


def test_distinct_n_counts_over_all_texts():
    assert distinct_n(["a b a", "a b", "c"]) == pytest.approx(2 / 3)  # ab ba | ab
    assert distinct_n(["a b a", "a b", "c"], n=1) == pytest.approx(3 / 6)
    assert distinct_n(["one two three"] * 5) == pytest.approx(1 / 5)
    assert math.isnan(distinct_n(["word", ""]))


def test_win_rate_counts_ties_half_within_scipys_wilson_interval():
    now, start = torch.tensor([2.0, 1.0, 0.0, 3.0, 5.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 2.0, 4.0, 1.0])
    rate = win_rate(now, start)  # three won, two tied, one lost
    oracle = stats.binomtest(4, 6).proportion_ci(method="wilson")
    assert rate == pytest.approx((4 / 6, oracle.low, oracle.high))
    assert win_rate(start, now).estimate == pytest.approx(2 / 6)
    assert all(map(math.isnan, win_rate(torch.empty(0), torch.empty(0))))


@pytest.mark.parametrize("num_values", [2, 3, 4, 5, 8, 31, 100, 401])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99999])
def test_intervals_of_means_are_scipys(num_values, confidence):
    now, then = torch.randn(num_values) + 0.3, torch.randn(num_values)
    oracle = stats.ttest_rel(now.double(), then.double()).confidence_interval(confidence)
    change = paired_change(now, then, confidence)
    assert change == pytest.approx((float((now.double() - then.double()).mean()), oracle.low, oracle.high), rel=1e-6)
    oracle = stats.ttest_1samp(now.double(), 0).confidence_interval(confidence)
    assert mean_interval(now, confidence)[1:] == pytest.approx((oracle.low, oracle.high), rel=1e-6)


def test_pairing_takes_out_what_the_prompts_have_in_common():
    hardness, gain = 100 * torch.randn(50), 0.1 * torch.randn(50)
    shifted = paired_change(hardness + gain, hardness)
    assert shifted.high - shifted.low < 0.1
    assert shifted == pytest.approx(mean_interval(gain), abs=1e-3)


def test_one_number_has_a_mean_and_no_interval():
    estimate, low, high = mean_interval(torch.tensor([1.5]))
    assert estimate == 1.5 and math.isnan(low) and math.isnan(high)


def test_equal_numbers_have_an_interval_of_a_point():
    assert paired_change(torch.full((7,), 2.0), torch.ones(7)) == (1.0, 1.0, 1.0)
