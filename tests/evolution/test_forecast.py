"""Forecasts of the next round, counted by hand."""

import math

import pytest
import torch

from ser_lightning.evolution.forecast import look_ahead, net_label_change, net_share, rounds_that_gain

NOTHING = torch.empty(0)


def labels(text):
    return torch.tensor([int(digit) for digit in text], dtype=torch.int8)


def credit(text):
    return torch.tensor([float(digit) for digit in text])


def test_headway_is_the_way_from_two_rounds_ago():
    earlier, before = labels("11110000"), labels("01110000")
    assert net_label_change(labels("00110000"), before, earlier) == 1 / 8  # one more label has left the old ones
    assert net_label_change(labels("11110000"), before, earlier) == -1 / 8  # back again
    assert net_label_change(labels("10110000"), before, earlier) == 0  # one gone, another back
    assert net_label_change(before, before, earlier) == 0
    assert net_label_change(1 - labels("00110000"), 1 - before, 1 - earlier) == 1 / 8


def test_half_of_what_the_first_round_changes_is_headway():
    assert net_label_change(labels("01110000"), labels("11110000"), None) == 0.5 / 8
    assert net_label_change(labels(""), labels(""), None) == 0


def test_without_a_round_to_go_by_there_is_a_prior_alone():
    ahead = look_ahead([NOTHING], [], 0.005)
    assert ahead.gain == pytest.approx(0.5 * 0.13 * 0.3)
    assert ahead.rounds_left == 2  # 0.0195, 0.00975, and 0.0049 is too little
    assert all(math.isnan(value) for value in (ahead.accuracy, ahead.low, ahead.high))
    ahead = look_ahead([credit("1" * 60 + "0" * 40)], [], 0.005)
    assert ahead.accuracy == pytest.approx(0.6195)
    assert ahead.high - ahead.accuracy == pytest.approx(1.96 * math.sqrt(0.13 / 100 + (0.065 * 0.15) ** 2), rel=1e-4)


def test_the_next_round_by_hand():
    before = credit("1" * 60 + "0" * 40)
    now = credit("00" + "1" * 58 + "1111" + "0" * 36)  # two lost, four won: 0.62
    ahead = look_ahead([before, now], [0.08], 0.005)
    noise = (6 + 1) / 102 / 100
    share = (0.3 * noise + 0.15**2 * 0.02 * 0.08) / (noise + 0.15**2 * 0.08**2)
    assert share == pytest.approx(0.29133, abs=1e-5)
    assert ahead.gain == pytest.approx(0.04 * share, rel=1e-5)
    assert ahead.accuracy == pytest.approx(0.63165, abs=1e-5)
    assert (ahead.low, ahead.high) == pytest.approx((0.57921, 0.68410), abs=1e-5)
    assert ahead.rounds_left == 2  # 0.01165, 0.00583, and 0.0029 is too little


def test_a_large_seed_outweighs_the_prior_belief():
    first = credit("1" * 6000 + "0" * 4000)
    now = credit("0" * 50 + "1" * 5950 + "1" * 250 + "0" * 3750)
    assert net_share([first, now], [0.1])[0] == pytest.approx(0.2, abs=0.002)  # 0.02 gained on a way of 0.1
    assert net_share([now, first], [0.1])[0] == pytest.approx(-0.2, abs=0.01)
    assert net_share([first, now], [0.1])[1] < 0.02 < net_share([first[::100], now[::100]], [0.1])[1]
    assert look_ahead([now, first], [0.1], 0.005).rounds_left == 0  # it has lost, and would lose more


@pytest.mark.parametrize("way", [0.0, -0.02])
def test_where_no_label_gets_ahead_evolution_has_converged(way):
    same = credit("1101001")
    ahead = look_ahead([same, same, same], [0.05, way], 1e-6)
    assert ahead.gain == 0 and ahead.rounds_left == 0
    assert ahead.accuracy == pytest.approx(4 / 7) and ahead.low < ahead.accuracy < ahead.high


def test_the_order_of_the_pairs_does_not_matter():
    torch.manual_seed(0)
    rounds = [torch.randint(0, 3, (50,)) / 2 for _ in range(3)]
    mixed = torch.randperm(50)
    one, other = look_ahead(rounds, [0.06, 0.03], 0.005), look_ahead([r[mixed] for r in rounds], [0.06, 0.03], 0.005)
    assert vars(one) == pytest.approx(vars(other))
    pools = [torch.randint(0, 2, (40,)) for _ in range(3)]
    mixed = torch.randperm(40)
    assert net_label_change(*pools) == net_label_change(*(pool[mixed] for pool in pools))


@pytest.mark.parametrize("gain", [-0.1, 0.0, 0.004, 0.005, 0.0199, 0.02, 0.3])
def test_rounds_that_gain_are_counted_one_by_one(gain):
    counted, left = 0, gain
    while left >= 0.005:
        counted, left = counted + 1, left / 2
    assert rounds_that_gain(gain, 0.005) == counted
