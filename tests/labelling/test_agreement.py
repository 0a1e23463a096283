"""Agreement of two annotators, by hand and against textbook figures."""

import math

import pytest

from ser_lightning.labelling.agreement import agreement, print_agreement
from ser_lightning.labelling.label_file import HumanLabel


def given(answers, first=0):
    return [HumanLabel(first + i, answer, "a", 2.0) for i, answer in enumerate(answers)]


def test_share_and_kappa_by_hand():
    # 50 pairs: both a 20, both b 15, a and b 5, b and a 10. By chance (25*30 + 25*20) / 2500 = 0.5, so kappa is 0.4.
    one = given("a" * 20 + "a" * 5 + "b" * 10 + "b" * 15)
    two = given("a" * 20 + "b" * 5 + "a" * 10 + "b" * 15)
    found = agreement(one, two)
    assert (found.num_pairs, found.share) == (50, pytest.approx(0.7))
    assert found.kappa == pytest.approx(0.4)
    assert (found.low, found.high) == (pytest.approx(0.562, abs=1e-3), pytest.approx(0.809, abs=1e-3))
    # The asymptotic standard error of kappa is sqrt(0.7 * 0.3 / 50) / 0.5 = 0.13.
    assert found.kappa_low == pytest.approx(0.4 - 1.96 * 0.13, abs=0.04)
    assert found.kappa_high == pytest.approx(0.4 + 1.96 * 0.13, abs=0.04)
    assert agreement(two, one).kappa == pytest.approx(found.kappa)


def test_only_what_both_have_answered_counts():
    one = [HumanLabel(1, "a"), HumanLabel(2, "skip"), HumanLabel(3, "tie"), HumanLabel(4, "b"), HumanLabel(3, "b")]
    two = [HumanLabel(1, "a"), HumanLabel(2, "a"), HumanLabel(3, "tie"), HumanLabel(5, "b")]
    found = agreement(one, two)  # pairs 1 and 3; the last label of 3 is b
    assert (found.num_pairs, found.share) == (2, 0.5)


def test_without_a_shared_pair_nothing_is_known():
    found = agreement([HumanLabel(1, "a")], [HumanLabel(2, "a")])
    assert found.num_pairs == 0 and math.isnan(found.share) and math.isnan(found.kappa)


def test_one_class_alone_has_no_kappa():
    found = agreement(given("aaaa"), given("aaaa"))
    assert found.share == 1.0 and math.isnan(found.kappa)


def test_the_table_shows_people_and_pairs_of_people(capsys):
    one = [HumanLabel(i, "a", "a" if i < 3 else "b", 4.0) for i in range(4)]
    two = [HumanLabel(0, "a"), HumanLabel(1, "b"), HumanLabel(2, "tie"), HumanLabel(3, "skip")]
    print_agreement({"ana": one, "ben": two})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # ana: 4 labels, no tie or skip, 3 of 4 for the left one; ben: nobody knows what stood left
    assert ["ana", "4", "0", "0", "0.75", "0.30", "to", "0.95", "4"] in lines
    assert ["ben", "2", "1", "1", "-", "-", "-"] in lines
    assert next(line for line in lines if line[:1] == ["ana,"])[:7] == [
        "ana,",
        "ben",
        "3",
        "0.33",
        "0.06",
        "to",
        "0.79",
    ]


def test_one_annotator_agrees_with_nobody(capsys):
    print_agreement({"ana": given("ab")})
    assert "agreement needs a second one" in capsys.readouterr().out
