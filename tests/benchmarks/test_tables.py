from importlib import import_module

import pytest

from benchmarks import tables
from benchmarks.forecast.tables import forecast_tables
from benchmarks.guards.tables import alarm_table, confidence_table, fault_table, length_table
from benchmarks.kills.tables import kills_table
from benchmarks.policies.tables import gold_change_at, policy_tables
from benchmarks.pool_size.tables import pool_table
from benchmarks.query.tables import query_table
from benchmarks.shared.intervals import share_of_gap, t_interval, wilson_interval
from benchmarks.shared.markdown import fill, table
from benchmarks.shared.results import Results
from benchmarks.sweep.tables import settings_table

PAGES = (
    *("tutorial.md", "results.md", "defaults.md", "howto/resume.md", "rl.md", "performance.md"),
    *("evaluation.md", "forecast.md", "guards.md", "hardware.md", "security.md"),
    "howto/plain-student.md",
)


def test_interval_is_students():
    assert t_interval([0.5]) == "0.500"
    assert t_interval([0.4, 0.5, 0.6]) == "0.500 ± 0.248"  # 4.303 * 0.1 / sqrt(3)


def test_wilson_interval_by_hand():
    """(k + z^2/2) / (n + z^2) and its half width for 8 of 10; z^2 = 3.8415."""
    low, high = wilson_interval(8, 10)
    assert (low + high) / 2 == pytest.approx((8 + 1.92073) / 13.84146, abs=1e-5)
    assert (high - low) / 2 == pytest.approx(1.959964 * (10 * 0.16 + 0.960365) ** 0.5 / 13.84146, abs=1e-5)


def test_a_table_is_as_wide_as_its_header():
    assert table(["", "b"], [["x", ""]]) == "| | b |\n|---|---|\n| x | |"
    with pytest.raises(ValueError, match="has 1 entries"):
        table(["a", "b"], [["x"]])


def test_share_of_the_gap_is_the_ratio_of_mean_gaps_or_undefined():
    assert share_of_gap([0.6, 0.6, 0.6], [0.65, 0.65, 0.65], [0.7, 0.7, 0.7]).startswith("0.50 ± 0.00")
    assert share_of_gap([0.6, 0.7, 0.65], [0.6, 0.7, 0.65], [0.7, 0.6, 0.66]) == "undefined"
    assert share_of_gap([0.6], [0.65], [0.7]) == "undefined"


def test_a_table_is_replaced_and_the_rest_of_the_page_stays():
    page = "a\n<!-- x -->\n<!-- end x -->\nb\n"
    once = fill(page, "x", "| t |")
    assert once == "a\n<!-- x -->\n| t |\n<!-- end x -->\nb\n"
    assert fill(once, "x", "| u |") == once.replace("t", "u")
    with pytest.raises(ValueError, match="no place for the table y"):
        fill(page, "y", "")


@pytest.mark.slow  # every table of every study, some of them with a bootstrap
@pytest.mark.parametrize("name", PAGES)
def test_the_pages_hold_what_the_files_say(name):
    assert set(PAGES) == tables.tables().keys()
    assert tables.filled(name) == (tables.DOCS / name).read_text()


def test_settings_are_compared_on_the_random_seeds_that_both_have():
    def run(oof, test):
        return {"rounds": [{"delivered": 1, "seed_oof_accuracy": oof, "test_accuracy": test}]}

    default = {1: run(0.6, 0.7), 2: run(0.7, 0.8), 3: run(0.8, 0.9)}
    table = settings_table(default, {"add": {1: run(0.7, 0.6), 2: run(0.8, 0.7)}}).splitlines()
    assert table[2].endswith("| 3 | 0.700 ± 0.248 | - | 0.800 ± 0.248 | - |")
    assert table[3] == "| `combine: add` | 2 | 0.750 ± 0.635 | 0.100 ± 0.000 | 0.650 ± 0.635 | -0.100 ± 0.000 |"


def test_a_kill_that_ends_otherwise_is_named():
    kills = [
        {"moment": 0.5, "resumed_from": "x", "differs": ["audit 1"]},
        {"moment": 0.1, "resumed_from": "y", "differs": []},
    ]
    assert kills_table(kills).splitlines()[2:] == [
        "| 10% of the run | y | the same |",
        "| 50% of the run | x | other audit 1 |",
    ]


def test_memory_a_pair_is_counted_from_the_smallest_pool():
    def size(pairs, peak):
        seconds = dict.fromkeys(("score", "select", "accept", "write"), 1.0)
        return {
            "pairs": pairs,
            "seconds": seconds,
            "peak_bytes": {"score": peak},
            "encode_seconds": 2,
            "encode_peak": 2**20,
        }

    table = pool_table([size(1000, 2**20), size(3000, 2**21)]).splitlines()
    assert table[3] == "| 3,000 | 2 MiB | 524 B | 0.33 | 0.33 | 0.33 | 0.33 | 0.33 | 1 MiB |"


def test_a_run_that_ends_by_the_forecast_is_the_beginning_of_the_run():
    run = {
        "seed": 1,
        "rounds": [{"tokens": 100, "flipped": flipped, "scored": 4} for flipped in (0, 2, 0, 1)],
        # Round 1 gets ahead, round 2 does not: it is the last by the forecast. Without folds that one is delivered.
        "pool_labels": ["0000", "1100", "1100", "1110"],
        "seed_credits": [[], [], [], []],
        "held": {"accuracy": {"0": 0.6, "1": 0.7, "2": 0.75, "3": 0.7}},
    }
    found = forecast_tables({"paper": {1: run}})
    assert found["savings"].splitlines()[3] == (
        "| `PaperRule`, `folds: 0` | 0.005 | 1 | 3.0 | 2.0 | 0.250 | 0.700 | 0.050 |"
    )
    assert found["fixed"].splitlines()[4] == "| always after round 1 | 1 | 0.500 | 0.000 |"
    assert [line.split(" | ")[-2:] for line in found["errors"].splitlines()[2:]] == [
        ["0.250", "0.500 |"],
        ["0.000", "0.000 |"],
        ["0.250", "0.250 |"],
    ]


def test_errors_of_forecasts_are_of_what_came():
    run = {
        "seed": 1,
        "rounds": [{"tokens": 100, "flipped": flipped, "scored": 4, "seed_oof_accuracy": 0.5} for flipped in (0, 1)],
        "pool_labels": ["0000", "1000"],
        "seed_credits": [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]],
        "held": {"accuracy": {"0": 0.6, "1": 0.7}},
    }
    cells = forecast_tables({"ours": {1: run}})["errors"].splitlines()[2].split(" | ")
    # 0.5 + 0.0195 was forecast, give or take 0.35, and 0.75 came.
    assert cells[1:7] == ["1", "1", "+0.231", "0.231", "0.250", "1 of 1"]


def test_a_guard_that_a_run_did_not_know_is_not_measured_there():
    def run(seed, fault, **guards):
        found = {name: [0.0, 0.1, name == "flips"] for name in ("flips", *guards)}
        held = {"change": {"0": 0.0}}
        return {"seed": seed, "fault": fault, "off": {"delivered": 0, "rounds": [{}], "guards": [found]}, "held": held}

    runs = [run(1, None), run(2, None, overconfidence=1), run(5, "foreign_pool"), run(25, "foreign_pool", ties=1)]
    known = [{**one, "on": one["off"]} for one in runs]
    alarms = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in alarm_table(known).splitlines()[2:]}
    assert alarms["`overconfidence`"] == "0 of 1" and alarms["`flips`"] == "2 of 2"
    assert alarms["`ties`"] == "not measured"
    (line,) = fault_table(known).splitlines()[2:]
    assert "`flips` 2; " in line
    assert "`ties` not measured in 1" in line and "`overconfidence` not measured in 2" in line


def test_queries_are_held_against_random_ones_of_the_same_random_seeds():
    def run(seed_model, delivered, **asked):
        return {"held": {"seed_model": seed_model, "delivered": delivered}, "asked": asked}

    results = {
        "none": {1: run(0.6, 0.7), 2: run(0.6, 0.7)},
        "random": {s: run(0.7, 0.8, labels_as_gold=0.8) for s in (1, 2, 3, 1001)},
        "cover": {1: run(0.6, 0.8, labels_as_gold=0.5), 1001: run(0.0, 0.0, labels_as_gold=0.0)},
        "uncertain": {},
    }
    none, at_random, cover = query_table(results).splitlines()[2:]
    assert none == "| none | 2 | 0.600 ± 0.000 | -0.100 ± 0.000 | 0.700 ± 0.000 | -0.100 ± 0.000 | - |"
    assert at_random == "| at random | 3 | 0.700 ± 0.000 | - | 0.800 ± 0.000 | - | 0.800 ± 0.000 |"
    assert (
        cover == "| representative ones of the least confident (removed) | 1 | 0.600 | -0.100 | 0.800 | 0.000 | 0.500 |"
    )


def test_the_audits_of_a_fault_are_counted_by_themselves():
    lines = [(None, 0.02, 0.2), (None, -0.03, 0.05), ("foreign_pool", 0.3, 0.4)]
    rounds = [
        {"fault": fault, "value": value, "value_if_larger": larger, "larger": 3.0} for fault, value, larger in lines
    ]
    healthy, foreign = confidence_table(rounds, 0.1).splitlines()[2:]
    assert healthy == "| healthy | 2 | -0.030 to +0.020 | 0 | +0.050 to +0.200 | 1 |"
    assert foreign.endswith("| 1 | +0.300 to +0.300 | 1 | +0.400 to +0.400 | 1 |")


def test_policies_are_compared_where_their_kl_is_equal():
    """By hand: the seed's policy comes to 2 nats, the other to 4; half of its way, and half of what it gains."""

    def run(seed, gold, *path):
        steps = [{"kl": k, "judge_score": g} for k, g in path]
        answers = {"gold_before": [0.0, 0.0], "gold_after": [gold, 0.0], "reward_change": 0.5}
        return {"seed": seed, "reward_model_test_accuracy": 0.8, "steps": steps, **answers}

    found = {
        "seed": {1: run(1, 1.0, (0, -1.0), (2, -0.9)), 2: run(2, 1.0, (0, -1.0), (2, -0.9))},
        "evolved": {1: run(1, 2.0, (0, -1.0), (4, -0.5))},
        "all_labels": {1: run(1, -1.0, (0, -1.0), (3, -1.3), (2.5, -1.0))},
    }
    made = policy_tables(found)
    first, evolved, every = made["policies"].splitlines()[2:]
    assert first.split(" | ")[1:] == ["1", "0.800", "0.500", "0.750", "-", "2.000", "0.100", "0.500 |"]
    assert evolved.split(" | ")[3:8] == ["1.000", "0.750", "0.750", "4.000", "0.250"]
    assert every.split(" | ")[3:8] == ["-0.500", "0.250", "0.250", "2.500", "-0.200"]
    assert made["policy_differences"].splitlines()[2].endswith("| 1 | 0.500 | 0.150 |")
    assert "No random seed" in policy_tables({"seed": found["seed"]})["policies"]


def test_a_kl_that_a_policy_never_has_is_refused():
    with pytest.raises(ValueError, match="random seed 7 never comes to a KL of 3"):
        gold_change_at({"seed": 7, "steps": [{"kl": 0, "judge_score": 0}, {"kl": 2, "judge_score": 1}]}, 3)


def test_what_length_finds_is_told_for_each_kind_of_run():
    def run(seed, fault, by_labels, expected):
        return {"seed": seed, "fault": fault, "by_labels": [*by_labels], "expected": [*expected]}

    runs = [
        run(1, None, (0.1, 0.15, False), (0.02, 0.15, False)),
        run(2, None, (0.2, 0.15, True), (0.05, 0.15, False)),
        run(5, "length_teacher", (0.4, 0.15, True), (0.3, 0.15, True)),
    ]
    assert length_table(runs).splitlines()[2:] == [
        "| healthy | 2 | 0.100 to 0.200 | 1 | 0.020 to 0.050 | 0 |",
        "| rewards of the pool weigh length twice as much as what was learnt | 1 | 0.400 to 0.400 | 1 "
        "| 0.300 to 0.300 | 1 |",
    ]


TARGETS = {"real_preferences": "make study", "speed": "make bench", "gpu": "python benchmarks/gpu/run.py"}


@pytest.mark.parametrize("study", sorted(file.parent.name for file in tables.HERE.glob("*/tables.py")))
def test_a_page_names_the_command_that_makes_its_tables(study):
    made = import_module(f"benchmarks.{study}.tables")
    for name in [made.PAGE] if hasattr(made, "PAGE") else made.tables():
        page = (tables.DOCS / name).read_text()
        assert f"python -m benchmarks.{study}.run" in page or TARGETS.get(study, "?") in page
    assert (tables.HERE / study / "run.py").is_file()


@pytest.mark.parametrize("study", sorted(file.parent.name for file in tables.HERE.glob("*/results.jsonl")))
def test_committed_results_are_as_they_would_be_written(study, tmp_path):
    results = import_module(f"benchmarks.{study}.tables").RESULTS
    copy = Results(tmp_path / "results.jsonl", *results.key)
    copy.add(*results.read())
    assert copy.file.read_bytes() == results.file.read_bytes()
