"""Work left of an evolution, counted by hand."""

from types import SimpleNamespace

import pytest

from ser_lightning.callbacks import progress
from ser_lightning.callbacks.progress import SCORING, StatusLine, duration
from tests.helpers import evolution
from tests.report_runs import row

PAIRS = {"seed": 30, "pool": 90, "test": 9}


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def trainer_of(callback, accepted=0):
    data = SimpleNamespace(pair_ids=lambda split: range(PAIRS[split]), pairs_per_step=8, accepted=range(accepted))
    return SimpleNamespace(callbacks=[callback], datamodule=data)


def test_time_left_is_of_the_work_left(clock):
    callback = evolution(max_rounds=0, seed_epochs=4, folds=2)
    line = StatusLine(trainer_of(callback))
    assert line.text(trainer_of(callback)) == ""  # nothing is known yet
    folds, main = 4 * 15 + SCORING * 15, 4 * 30 + SCORING * (90 + 9)  # the last round: no fold labels the pool
    total, first_phase = 2 * folds + main, folds
    callback.state.phase_index, callback.state.epochs_done, callback.state.phase_first_epoch = 1, 4, 4
    clock.seconds = 600.0
    left = 600 * (total - first_phase) / first_phase
    assert line.text(trainer_of(callback)) == f"at most {duration(left)} left | "


def test_at_most_counts_what_is_accepted_and_later_the_whole_pool(clock):
    """Round 0 has labels of a teacher; round 1 may keep all 90 pairs of the pool."""
    callback = evolution(max_rounds=1, seed_epochs=2, epochs_per_round=3, folds=0)
    trainer = trainer_of(callback, accepted=40)
    line = StatusLine(trainer)
    callback.state.epochs_done = 1
    clock.seconds = 60.0
    done, total = 30 + 40, 2 * (30 + 40) + 3 * (30 + 90) + 2 * SCORING * (90 + 9)
    assert line.text(trainer) == f"at most {duration(60 * (total - done) / done)} left | "


def test_accuracy_so_far_is_that_of_the_last_round(clock):
    callback = evolution()
    callback.state.rows = [row(0, seed_oof_accuracy=0.61), row(1, seed_oof_accuracy=0.64)]
    assert StatusLine(trainer_of(callback)).text(trainer_of(callback)) == "oof 0.640 | "
    callback.state.rows = [row(0, seed_oof_accuracy=float("nan"))]
    assert StatusLine(trainer_of(callback)).text(trainer_of(callback)) == ""


def test_other_trainings_have_nothing_to_say():
    trainer = SimpleNamespace(callbacks=[], datamodule=None)
    assert StatusLine(trainer).text(trainer) == ""
