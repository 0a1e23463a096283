"""The work of a round, counted by hand."""

import pytest

from ser_lightning.errors import UserError
from ser_lightning.evolution.selection import TopShareRule
from ser_lightning.evolution.settings import EvolutionSettings

PAIRS = {"seed": 30, "pool": 90, "test": 9}


def test_what_each_phase_trains_on_and_scores():
    settings = EvolutionSettings(TopShareRule(), seed_epochs=4, epochs_per_round=2, folds=3)
    first = settings.phases(False, settings.epochs_of_phases(0, 30, 0, 8), PAIRS, 0)
    assert first == [pytest.approx((4 * 20, 10 + 90))] * 3 + [(4 * 30, 90 + 9)]
    # The last round labels the pool once: no fold needs labels any more.
    assert settings.phases(True, settings.epochs_of_phases(1, 30, 60, 8), PAIRS, 60)[0] == pytest.approx(
        (2 * (20 + 60), 10)
    )
    without = EvolutionSettings(TopShareRule(), folds=0)
    assert without.phases(False, without.epochs_of_phases(1, 30, 60, 8), PAIRS, 60) == [(2 * (30 + 60), 90 + 9)]


def test_few_pairs_get_more_epochs_where_steps_are_asked_for():
    settings = EvolutionSettings(TopShareRule(), seed_epochs=4, epochs_per_round=2, folds=3, min_steps=20)
    # A fold leaves 20 of 30 pairs, three steps of 8; all are four steps; with the pool there are enough in two epochs.
    assert settings.epochs_of_phases(0, 30, 0, 8) == [7, 7, 7, 5]
    assert settings.epochs_of_phases(1, 30, 90, 8) == [2, 2, 2, 2]


def test_settings_out_of_range_are_refused_together():
    with pytest.raises(UserError) as error:
        EvolutionSettings(TopShareRule(), max_rounds=-1, seed_epochs=0, epochs_per_round=0, folds=1, min_steps=-1)
    assert error.value.problems == [
        "evolution.seed_epochs: got 0; need at least 1",
        "evolution.epochs_per_round: got 0; need at least 1",
        "evolution.min_steps: got -1; need 0 or more",
        "evolution.max_rounds: got -1; need 0 or more",
        "evolution.folds: got 1; need 0 or at least 2",
    ]
