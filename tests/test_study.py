"""The headline of the study on real preferences: `benchmarks/study_tables.py`."""

import importlib.util
import sys
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "study_tables.py"


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # as where a script lies when it is run
        spec = importlib.util.spec_from_file_location("study_tables", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "study_tables", module)  # dataclasses look their module up there
        spec.loader.exec_module(module)
        yield module


def draws(probability, shape, seed):
    return (np.random.default_rng(seed).random(shape) < probability).astype(float)


def test_the_share_is_the_ratio_of_mean_gaps_and_its_interval_holds_it(study):
    """300 prompts; the seed model orders 60 % right, evolution half of what all labels add, pair by pair."""
    order = np.tile(np.arange(300), (4, 1))
    seed_model, delivered, every = ((order < right).astype(float) for right in (180, 195, 210))
    found = study.closed(seed_model, delivered, every, np.arange(300))
    assert (found.seed_model.mean, found.gap.mean, found.gain.mean) == pytest.approx((0.6, 0.1, 0.05))
    assert found.share.mean == pytest.approx(0.5)
    assert found.share.low < 0.5 < found.share.high and found.gap.low > 0
    # A share of 15 in 300, drawn 300 times: standard error sqrt(0.05 * 0.95 / 300), by hand.
    assert (found.gain.high - found.gain.low) / 2 == pytest.approx(1.96 * 0.01258, rel=0.1)


def test_without_a_gap_the_share_is_undefined(study):
    same = draws(0.6, (5, 200), 1)
    assert study.closed(same, draws(0.9, (5, 200), 2), same, np.arange(200)).share is None


def test_pairs_of_one_prompt_are_drawn_together(study):
    """A hundred prompts, once and five times: the copies hold no new information."""
    models = [draws(p, (3, 100), i) for i, p in enumerate((0.5, 0.6, 0.9))]
    once = study.closed(*models, np.arange(100))
    often = study.closed(*(np.repeat(m, 5, axis=1) for m in models), np.repeat(np.arange(100), 5))
    for name in ("seed_model", "gain", "gap", "share"):
        assert astuple(getattr(once, name)) == pytest.approx(astuple(getattr(often, name)))


def test_random_seeds_widen_the_interval_where_they_differ(study):
    """Ten random seeds that agree, and ten that differ by 20 points, with the same mean."""
    agree = np.tile(draws(0.6, (1, 1000), 3), (10, 1))
    differ = agree.copy()
    differ[::2, :100] = 1.0
    differ[1::2, :100] = 2 * agree[1::2, :100] - 1.0  # not a credit: it only keeps the mean
    widths = [(e.high - e.low) for e in (study.closed(m, m, m, np.arange(1000)).seed_model for m in (agree, differ))]
    assert widths[1] > 1.2 * widths[0]


def test_ties_count_half(study):
    assert study.credits("10h").tolist() == [1.0, 0.0, 0.5]
