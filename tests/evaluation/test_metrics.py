import math

import pytest
import torch
from scipy import stats

from ser_lightning.errors import UserError
from ser_lightning.evaluation.metrics import (
    PairMetrics,
    accuracy_interval,
    calibration_error,
    confidence_and_right,
    effective_pairs,
    half_credit,
    ks_distance,
    length_correlation,
    reliability,
    wilson_interval,
)
from ser_lightning.records import PairScores


def test_a_target_that_is_a_tie_counts_half_whatever_the_margin():
    assert half_credit(torch.tensor([2.0, -1.0, 0.0]), torch.full((3,), 0.5)).tolist() == [0.5] * 3


def test_ties_count_half():
    margin, target = torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert half_credit(margin, target).tolist() == [1.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize(("right", "pairs"), [(0, 10), (7, 10), (62, 100), (500, 500)])
def test_interval_is_scipys_wilson(right, pairs):
    expected = stats.binomtest(right, pairs).proportion_ci(method="wilson")
    assert wilson_interval(right, pairs) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_pairs_of_one_prompt_count_as_often_as_they_differ():
    credit = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 1.0, 1.0])
    assert effective_pairs(credit, torch.arange(8)) == 8
    assert effective_pairs(credit.repeat_interleave(6), torch.arange(8).repeat_interleave(6)) == pytest.approx(8)
    group = [7, 3, 7, 7, 3, 3, 9, 9]
    mean = sum(credit.tolist()) / 8
    of_groups = [sum(c - mean for c, one in zip(credit.tolist(), group, strict=True) if one == g) for g in {*group}]
    expected = 8 * sum((c - mean) ** 2 for c in credit.tolist()) / sum(r * r for r in of_groups)
    assert effective_pairs(credit, torch.tensor(group)) == pytest.approx(expected) and expected < 8
    # Groups that are all alike tell more than independent pairs would; nothing is made of it.
    assert effective_pairs(torch.tensor([1.0, 0.0] * 4), torch.arange(8) // 2) == 8
    assert effective_pairs(credit, torch.zeros(8)) == 1  # of one prompt, whose share of right pairs may be any
    assert effective_pairs(torch.ones(8), torch.tensor(group)) == 3 and effective_pairs(credit[:0], credit[:0]) == 0


def test_the_interval_of_grouped_pairs_holds_the_truth_as_often_as_it_says():
    g, truth, group = torch.Generator().manual_seed(0), 0.7, torch.arange(50).repeat_interleave(6)
    held = torch.zeros(2)
    for _ in range(400):
        is_alike = torch.rand(300, generator=g) < 0.5  # half of the pairs follow their prompt
        of_prompt = (torch.rand(50, generator=g) < truth).float().repeat_interleave(6)
        credit = torch.where(is_alike, of_prompt, (torch.rand(300, generator=g) < truth).float())
        both = accuracy_interval(credit, group), wilson_interval(float(credit.sum()), 300)
        held += torch.tensor([float(low <= truth <= high) for low, high in both])
    assert 0.92 <= float(held[0]) / 400 <= 0.98 and float(held[1]) / 400 < 0.9


def test_the_interval_of_pairs_with_a_prompt_each_is_wilsons():
    credit = torch.tensor([1.0] * 62 + [0.0] * 38)
    expected = stats.binomtest(62, 100).proportion_ci(method="wilson")
    assert accuracy_interval(credit, torch.arange(100)) == pytest.approx((expected.low, expected.high))
    assert all(map(math.isnan, accuracy_interval(credit[:0], credit[:0])))


@pytest.mark.parametrize("sizes", [(1, 1), (30, 7), (200, 150)])
def test_ks_distance_is_the_largest_gap_of_the_distribution_functions_also_with_ties(sizes):
    g = torch.Generator().manual_seed(0)
    one, other = (torch.randint(0, 9, (n,), generator=g).float() for n in sizes)
    expected = max(abs(float((one <= x).double().mean() - (other <= x).double().mean())) for x in range(9))
    (distance, by_chance), turned = ks_distance(one, other, 1e-4), ks_distance(other, one, 1e-4)
    assert (distance, by_chance) == pytest.approx(turned) and distance == pytest.approx(expected)
    # Smirnov's limit: 2 exp(-2 d^2 nm / (n + m)) = p
    assert by_chance == pytest.approx(math.sqrt(-math.log(1e-4 / 2) / 2 * (1 / sizes[0] + 1 / sizes[1])))


def test_length_correlation_is_scipys_pearson_and_nan_where_undefined():
    g = torch.Generator().manual_seed(0)
    margin, difference = torch.randn(50, generator=g), torch.randint(-20, 20, (50,), generator=g)
    expected = stats.pearsonr(margin.numpy(), difference.numpy()).statistic
    assert length_correlation(margin, difference) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(length_correlation(margin, torch.zeros(50).long()))
    assert math.isnan(length_correlation(margin[:1], difference[:1]))


def test_calibration_error_by_hand():
    probability = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.65, 0.65])
    right = torch.tensor([True, True, True, False, True, False])
    expected = 4 / 6 * abs(0.95 - 0.75) + 2 / 6 * abs(0.65 - 0.5)
    assert calibration_error(probability, right) == pytest.approx(expected, abs=1e-6)


def test_reliability_by_hand():
    margin, target = torch.tensor([0.0, 2.0, -2.0, 2.0]), torch.ones(4)
    low, high = reliability(*confidence_and_right(margin, target, 2.0))
    assert low == {"pairs": 1, "confidence": 0.5, "right": 0}
    assert high == {"pairs": 3, "confidence": pytest.approx(0.731059, abs=1e-6), "right": 2}


def test_reliability_has_the_bins_of_the_calibration_error_also_at_their_edges():
    probability = torch.cat([torch.linspace(0.5, 1, 41), torch.rand(200) / 2 + 0.5, torch.ones(3)])
    right = torch.rand(len(probability)) < 0.6
    bins = reliability(probability, right)
    error = sum(abs(b["right"] - b["pairs"] * b["confidence"]) for b in bins) / len(probability)
    assert sum(b["pairs"] for b in bins) == len(probability)
    assert error == pytest.approx(calibration_error(probability, right), abs=1e-6)


def _scores(margin, difference):
    n = len(margin)
    return PairScores(
        torch.arange(n), margin, torch.zeros(n), difference.clamp_min(0) + 5, (-difference).clamp_min(0) + 5
    )


def test_figures_do_not_depend_on_how_the_pairs_are_batched_and_leave_fillers_out():
    g = torch.Generator().manual_seed(0)
    margin, difference = torch.randn(37, generator=g), torch.randint(-9, 9, (37,), generator=g)
    target = (torch.rand(37, generator=g) < 0.7).float()
    dialogue, results = torch.arange(37) // 3, []
    for cuts in ([37], [1, 5, 31], [10, 10, 17]):
        metric = PairMetrics()
        start = 0
        for size in cuts:
            part = slice(start, start + size)
            metric.update(_scores(margin[part], difference[part]), target[part], dialogue[part], torch.ones(size))
            start += size
        metric.update(_scores(margin[:2], difference[:2]), 1 - target[:2], dialogue[:2], torch.zeros(2))
        results.append(metric.compute(2.0))
    assert results[0] == pytest.approx(results[1]) and results[0] == pytest.approx(results[2])
    right = sum((m > 0) == (t == 1) for m, t in zip(margin.tolist(), target.tolist(), strict=True))
    assert results[0]["accuracy"] == pytest.approx(right / 37)
    longer = sum(
        0.5 if d == 0 else float((d > 0) == (t == 1)) for d, t in zip(difference.tolist(), target, strict=True)
    )
    assert results[0]["longer_accuracy"] == pytest.approx(longer / 37)
    assert results[0]["pairs"] == 37
    interval = accuracy_interval(half_credit(margin, target), dialogue)
    assert (results[0]["accuracy_low"], results[0]["accuracy_high"]) == pytest.approx(interval)


def test_rewards_that_are_no_numbers_are_no_accuracy():
    """Their pairs would count as "b wins", right half of the time."""
    metric, margin = PairMetrics(), torch.tensor([1.0, math.nan, math.inf])
    metric.update(_scores(margin, torch.ones(3).long()), torch.ones(3), torch.arange(3), torch.ones(3))
    with pytest.raises(UserError, match="rewards: got NaN or infinity for 2 of 3 pairs; compute in float32"):
        metric.compute()


def test_temperature_changes_only_the_calibration_error():
    metric = PairMetrics()
    scores = _scores(torch.tensor([3.0, -2.0, 1.0]), torch.tensor([1, 2, 3]))
    metric.update(scores, torch.ones(3), torch.arange(3), torch.ones(3))
    one = metric.compute(1.0)
    metric._computed = None
    other = metric.compute(5.0)
    assert {k for k in one if one[k] != other[k]} == {"calibration_error"}


def test_without_a_pair_there_is_nothing_but_their_number():
    assert PairMetrics().compute() == {"pairs": 0}
