"""The headline of the study on real preferences: `benchmarks/real_preferences/tables.py`."""

from dataclasses import astuple

import numpy as np
import pytest

from benchmarks.real_preferences import tables as study


def draws(probability, shape, seed):
    return (np.random.default_rng(seed).random(shape) < probability).astype(float)


def closed(seed_model, delivered, every, prompt):
    return study.closed([study.Block(np.stack([seed_model, delivered, every]), prompt)])


def test_the_share_is_the_ratio_of_mean_gaps_and_its_interval_holds_it():
    """300 prompts; the seed model orders 60 % right, evolution half of what all labels add, pair by pair."""
    order = np.tile(np.arange(300), (4, 1))
    seed_model, delivered, every = ((order < right).astype(float) for right in (180, 195, 210))
    found = closed(seed_model, delivered, every, np.arange(300))
    assert (found.seed_model.mean, found.gap.mean, found.gain.mean) == pytest.approx((0.6, 0.1, 0.05))
    assert found.share.mean == pytest.approx(0.5)
    assert found.share.low < 0.5 < found.share.high and found.gap.low > 0
    # A share of 15 in 300, drawn 300 times: standard error sqrt(0.05 * 0.95 / 300), by hand.
    assert (found.gain.high - found.gain.low) / 2 == pytest.approx(1.96 * 0.01258, rel=0.1)


def test_without_a_gap_the_share_is_undefined():
    same = draws(0.6, (5, 200), 1)
    assert closed(same, draws(0.9, (5, 200), 2), same, np.arange(200)).share is None


def test_pairs_of_one_prompt_are_drawn_together():
    """A hundred prompts, once and five times: the copies hold no new information."""
    models = [draws(p, (3, 100), i) for i, p in enumerate((0.5, 0.6, 0.9))]
    once = closed(*models, np.arange(100))
    often = closed(*(np.repeat(m, 5, axis=1) for m in models), np.repeat(np.arange(100), 5))
    for name in ("seed_model", "gain", "gap", "share"):
        assert astuple(getattr(once, name)) == pytest.approx(astuple(getattr(often, name)))


def test_random_seeds_widen_the_interval_where_they_differ():
    """Ten random seeds that agree, and ten that differ by 20 points, with the same mean."""
    agree = np.tile(draws(0.6, (1, 1000), 3), (10, 1))
    differ = agree.copy()
    differ[::2, :100] = 1.0
    differ[1::2, :100] = 2 * agree[1::2, :100] - 1.0  # not a credit: it only keeps the mean
    widths = [(e.high - e.low) for e in (closed(m, m, m, np.arange(1000)).seed_model for m in (agree, differ))]
    assert widths[1] > 1.2 * widths[0]


def test_blocks_of_other_test_pairs_add_up():
    """Two random seeds on 60 pairs, three on 40 others, by hand: 0.6 * 0.5 + 0.4 * 1 right, pair by pair."""
    blocks = [
        study.Block(np.full((3, 2, 60), 0.5), np.arange(60)),
        study.Block(np.ones((3, 3, 40)), np.arange(40)),
    ]
    found = study.closed(blocks)
    assert found.seed_model.mean == pytest.approx(0.7)
    # Pairs of a block are alike and every block gives as many prompts as it has: nothing is left to vary.
    assert (found.seed_model.low, found.seed_model.high) == pytest.approx((0.7, 0.7))


def test_four_fifths_more_to_test_on_halve_the_interval():
    one = study.Block(np.stack([draws(p, (5, 100), i) for i, p in enumerate((0.5, 0.6, 0.9))]), np.arange(100))
    blocks = [
        one,
        *(study.Block(one.models[:, :, np.random.default_rng(k).permutation(100)], one.prompt) for k in range(3)),
    ]
    widths = [(e.high - e.low) for e in (study.closed([one]).gap, study.closed(blocks).gap)]
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.1)


def test_ties_count_half():
    assert study.credits("10h").tolist() == [1.0, 0.0, 0.5]


def run_of(setting, condition, seed, credit, last=None, **more):
    """A run on 100 test prompts: ten times the same ten credits of its seed model, and of its delivered model."""
    credit = {"0": credit * 10, "1": (last or credit) * 10}
    test = {"prompt": list(range(100)), "credit": credit}
    names = {"setting": setting, "condition": condition, "seed": seed, "fifth": more.pop("fifth", 0)}
    return {**names, "delivered": 1 if last else 0, "test": test, **more}


def baselines_run(setting, seed, longer, bag):
    figures = {"longer": longer, "bag_of_words_seed": 0.5, "bag_of_words_all_labels": bag}
    return {"setting": setting, "condition": "baselines", "seed": seed, "figures": figures}


def setting_runs(setting, seed_model, delivered, every, longer=0.5, bag=0.5):
    return [
        one
        for seed in (1, 2)
        for one in (
            run_of(setting, "ours", seed, seed_model, delivered),
            run_of(f"{setting.rpartition('-')[0]}-all", "all_labels", seed, every),
            baselines_run(setting, seed, longer, bag),
        )
    ]


def test_a_setting_with_a_gap_carries_the_headline():
    """By hand: 50 % of the seed model, 65 % delivered, 80 % of all labels; 0.15 of 0.3 are closed."""
    good = setting_runs("good-5", "1111100000", "11111h1000", "1111111100")
    found = study.headline(study.by_setting(good), "0.27 ± 0.10")
    assert found.startswith("`gap closed: 0.50 [") and "on good-5` (2 random seeds)" in found and "world" not in found


def test_the_fifths_of_a_data_set_are_judged_together():
    """Random seeds 1 and 2 on one fifth, as above, and 6 on another, where evolution loses what it gained."""
    runs = setting_runs("good-5", "1111100000", "11111h1000", "1111111100")
    runs += [
        run_of("good-5", "ours", 6, "1111100000", "111h000000", fifth=1),
        run_of("good-all", "all_labels", 6, "1111111100", fifth=1),
    ]
    number, figures = study.closed_in(study.by_setting(runs)["good-5"], "ours")
    assert number == 3 and figures.gain.mean == pytest.approx(0.0) and figures.gap.mean == pytest.approx(0.3)
    assert "| good-5 | 3 | 200 | 200 | 0.500 [" in study.gap_table(study.by_setting(runs))


def test_a_rule_is_held_against_ours_on_the_random_seeds_of_both():
    """By hand: ours delivers 60 % on random seeds 1 and 2, the other 80 % on 2 and 3; 2 is what both have."""
    runs = setting_runs("x-5", "1111100000", "1111110000", "1111111100")
    runs += [run_of("x-5", "top_half", seed, "1111100000", "1111111100", rounds=[ROW]) for seed in (2, 3)]
    runs += [run_of("x-all", "all_labels", 3, "1111111100")]
    runs = [{**run, "rounds": [ROW]} for run in runs]
    ours, other = study.study_table(study.by_setting(runs)).splitlines()[2:]
    assert "| 2 | 0.600 [" in ours and "| 0.100 [" in ours and "| - |" in ours
    assert "| 2 | 0.800 [" in other and other.split(" | ")[5].startswith("0.200 [")


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("all labels are no better than a baseline", {"every": "1111111100", "bag": 0.8}),
        ("all labels are no better than the longer response", {"every": "1111111100", "longer": 0.85}),
        ("no gap", {"every": "1111100000"}),
    ],
)
def test_other_settings_leave_the_headline_to_the_world(name, runs):
    results = study.by_setting(setting_runs("bad-5", "1111100000", "1111110000", **runs))
    found = study.headline(results, "0.27 ± 0.10")
    assert found.startswith("`gap closed: 0.27 ± 0.10 on the synthetic dataset`"), name
    assert study.gap_table(results).splitlines()[2].endswith("| no |")


def test_without_baselines_no_setting_carries_the_headline():
    runs = [
        one for one in setting_runs("x-5", "1111100000", "1111110000", "1111111100") if one["condition"] != "baselines"
    ]
    assert "on the synthetic dataset" in study.headline(study.by_setting(runs), "0.27")


ROW = {"scored": 10, "kept": 5, "pseudo_label_accuracy": 0.7}


def test_rounds_are_means_of_the_runs_that_reached_them():
    def row(**figures):
        names = ("test_accuracy", "pool_accuracy", "pseudo_label_accuracy", "calibration_error", "length_correlation")
        return {**dict.fromkeys(names, 0.5), "scored": 10, "kept": 5, "tokens": 3, **figures}

    nothing = row(kept=0, pseudo_label_accuracy=float("nan"))
    first = run_of("x-5", "ours", 1, "1111100000", rounds=[row(test_accuracy=0.6), nothing])
    second = run_of("x-5", "ours", 2, "1111100000", rounds=[row(test_accuracy=0.8, kept=10)])
    results = study.by_setting([first, second])
    assert study.rounds_table(results).splitlines()[2:] == [
        "| x-5 | 0 | 2 | 75% | 0.700 | 0.500 | 0.500 | 0.500 | 0.500 |",
        "| x-5 | 1 | 1 | 0% | 0.500 | 0.500 | - | 0.500 | 0.500 |",
    ]
    # 2 * 3 and 3 tokens.
    assert study.cost_table(results).splitlines()[2:] == ["| x-5 | `CalibratedRule` (ours) | 4 |"]


def test_settings_come_by_their_share_of_labels():
    runs = [run_of(setting, "ours", 1, "1111100000") for setting in ("b-2", "a-15", "a-2", "a-5")]
    assert [*study.by_setting(runs)] == ["a-2", "a-5", "a-15", "b-2"]
