"""The work of a round, counted by hand."""

import pytest

from ser_lightning.evolution.selection import TopShareRule
from ser_lightning.evolution.settings import EvolutionSettings

PAIRS = {"seed": 30, "pool": 90, "test": 9}


def test_what_each_phase_trains_on_and_scores():
    settings = EvolutionSettings(TopShareRule(), seed_epochs=4, epochs_per_round=2, folds=3)
    first = settings.phases(0, False, PAIRS, 0)
    assert first == [pytest.approx((4 * 20, 10 + 90))] * 3 + [(4 * 30, 90 + 9)]
    # The last round labels the pool once: no fold needs labels any more.
    assert settings.phases(1, True, PAIRS, 60)[0] == pytest.approx((2 * (20 + 60), 10))
    assert EvolutionSettings(TopShareRule(), folds=0).phases(1, False, PAIRS, 60) == [(2 * (30 + 60), 90 + 9)]
