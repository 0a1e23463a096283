"""The study of the advisor: halves, results, tables."""

import numpy as np
import pytest
import torch

from benchmarks.advisor.run import SEED_SIZES, Learner, free_power_law, halves, run_one
from benchmarks.advisor.tables import covered, label_table, powered_table
from benchmarks.readings.states import StudyPairs
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evolution.learning_curve import LearningCurve, label_gains
from ser_lightning.training.linear_head import choose_penalty, fit_linear_head

READINGS = ["last@6", "mean@3", "last@4", "judge@4"]


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A folder with 520 pairs of 260 prompts whose label a direction of the mean and one of the judge's state tell."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(520, 2, 4, 8, generator=generator)
    signal = (found[:, 0, 1, :2] - found[:, 1, 1, :2]).sum(1) + (found[:, 0, 3, 0] - found[:, 1, 3, 0])
    label = (signal + torch.randn(520, generator=generator) > 0).long()
    prompt = [f"{i // 2 * 16**12 // 260:012x}" for i in range(520)]
    folder = tmp_path_factory.mktemp("states")
    tokens = torch.full((520, 2), 9)
    StudyPairs(found.bfloat16(), READINGS, label, prompt, tokens, [*range(520)]).save(folder / "made-tiny.pt")
    return folder


def test_no_prompt_is_in_both_halves_and_more_labels_hold_the_fewer():
    group = np.random.default_rng(0).integers(40, size=300)
    test, train = halves(group, 3)
    assert sorted([*test, *train]) == [*range(300)] and not set(group[test]) & set(group[train])
    assert len(set(group[test])) == 20
    assert not np.array_equal(halves(group, 4)[1][:50], train[:50])


@pytest.mark.slow
def test_a_run_is_forecast_from_the_first_labels_and_measured_on_the_other_half(states):
    run = run_one("made/tiny", 1, states)
    assert [(one["size"], one["more"]) for one in run["labels"]] == [(50, 100), (50, 200), (100, 100)]
    learner = Learner(states / "made-tiny.pt", "usual", 1)
    rows = {n: learner.train[:n] for n in (100, 200)}
    credit = {}
    for n, some in rows.items():
        penalty = choose_penalty(learner.x[some], learner.target[some], learner.group[some].tolist()).penalty
        weight = fit_linear_head(learner.x[some], learner.target[some], penalty)
        credit[n] = half_credit(learner.x[learner.test].double() @ weight, learner.target[learner.test]).mean()
        if n == 100:
            x, target, group = learner.x[some], learner.target[some], learner.group[some].tolist()
            forecast = label_gains(x, target, group, penalty)[0]
    last = run["labels"][-1]
    assert last["gain"] == pytest.approx(float(credit[200] - credit[100]), abs=1e-5)
    assert abs(last["forecast"] - forecast.gain) < 0.02  # other subsets, the same labels
    assert {(one["asked"], one["labelled"]) for one in run["powered"]} >= {("usual_200 - usual_50", 60)}
    assert all(0.5 < one["width_ratio"] <= 1.05 for one in run["powered"])
    assert max(SEED_SIZES) + 100 > len(learner.train)
    assert "| made/tiny | 100 | 100 | 1 |" in label_table([run])
    assert "| made/tiny | `usual_200` | 60 | 1 |" in powered_table([run])


def test_the_free_exponent_is_that_of_the_curve():
    sizes = np.array([10.0, 20, 40, 80])
    accuracy = torch.from_numpy(0.8 - 0.9 * sizes**-0.7)
    curve = LearningCurve(sizes, accuracy[:, None].expand(-1, 100), np.arange(100), 100)
    assert free_power_law(curve, 100) == pytest.approx(0.9 * (100**-0.7 - 200**-0.7), abs=1e-4)


def test_coverage_with_and_without_the_noise_of_the_test_half():
    usual = {"forecast": 0.02, "low": 0.0, "high": 0.05, "test_error": 0.02}
    lines = [{**usual, "gain": gain} for gain in (0.01, -0.01, 0.06, 0.2)]
    assert covered(lines, with_test_noise=False) == 0.25 and covered(lines, with_test_noise=True) == 0.75
