"""The simulation in small: intervals hold the truth as often as they say, and where they do not, that shows."""

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.prediction_powered.run import OWN_POOL, WORLDS, run_one, true_accuracy
from benchmarks.prediction_powered.tables import RESULTS, coverage_table
from ser_lightning.evaluation.prediction_powered import MIN_PROMPTS

DRAWS = 200
BLIND = "100 labels, blind confidence"


def bounds(draws):
    """Shares of intervals that hold the truth which 95 % ones leave once in a thousand on either side."""
    return binom.ppf(0.001, draws, 0.95) / draws, binom.ppf(0.999, draws, 0.95) / draws


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["300 labels, prompts on both sides", BLIND])
def test_intervals_hold_the_truth_as_often_as_they_say(condition):
    low, high = bounds(DRAWS)
    for one in run_one(condition, DRAWS)["figures"]:
        assert low <= one["covered"] <= high, one
        assert one["width"] <= one["labels_width"], one
        assert (one["used"] > 0.5) == (condition != BLIND) or one["figure"] != "accuracy_b", one


@pytest.mark.slow
def test_a_seed_model_may_predict_on_the_pool_of_its_run_and_the_evolved_model_may_not():
    """The evolved model is surer of pairs that it labelled itself, so its estimate is too high."""
    by = {case.predictor: run_one(condition, 60)["figures"][0] for condition, case in OWN_POOL.items()}
    low, high = bounds(60)
    assert low <= by["seed model"]["covered"] <= high and abs(by["seed model"]["error"]) < 0.01
    assert by["itself"]["error"] > 0.01 and by["itself"]["covered"] < by["itself"]["labels_covered"]


def test_the_true_accuracy_is_that_of_many_pairs():
    generator = np.random.default_rng(0)
    weight, true_weight = generator.normal(size=6), generator.normal(size=6)
    x = generator.normal(size=(400_000, 6))
    prob = 1 / (1 + np.exp(-x @ true_weight))
    assert true_accuracy(weight, true_weight) == pytest.approx(
        np.where(x @ weight > 0, prob, 1 - prob).mean(), abs=2e-3
    )


def test_committed_results_are_of_all_conditions_and_within_binomial_bounds():
    runs = {run["condition"]: run for run in RESULTS.read()}
    assert set(runs) == {*WORLDS, *OWN_POOL}
    for name, world in WORLDS.items():
        low, _ = bounds(runs[name]["draws"])
        for one in runs[name]["figures"]:
            # A percentile bootstrap of so few labels is a little short itself; the pool does not shorten it further.
            is_enough = world.prompts >= MIN_PROMPTS
            assert not is_enough or one["covered"] >= min(low, one["labels_covered"] - 0.01), (name, one)
    assert coverage_table(list(runs.values())).count("\n") == 1 + 3 * len(WORLDS) + len(OWN_POOL)
