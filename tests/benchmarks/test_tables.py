import pytest

PAGES = (
    *("results.md", "defaults.md", "cli.md", "rl.md", "performance.md"),
    *("cluster.md", "evaluation.md", "forecast.md", "guards.md", "hardware.md"),
)


@pytest.fixture(scope="module")
def tables(load_benchmark):
    return load_benchmark("tables")


def test_interval_is_students(tables):
    assert tables.interval([0.5]) == "0.500"
    assert tables.interval([0.4, 0.5, 0.6]) == "0.500 ± 0.248"  # 4.303 * 0.1 / sqrt(3)


def test_share_of_the_gap_is_the_ratio_of_mean_gaps_or_undefined(tables):
    from world_tables import share_of_gap  # beside the script

    assert share_of_gap([0.6, 0.6, 0.6], [0.65, 0.65, 0.65], [0.7, 0.7, 0.7]).startswith("0.50 ± 0.00")
    assert share_of_gap([0.6, 0.7, 0.65], [0.6, 0.7, 0.65], [0.7, 0.6, 0.66]) == "undefined"
    assert share_of_gap([0.6], [0.65], [0.7]) == "undefined"


def test_a_table_is_replaced_and_the_rest_of_the_page_stays(tables):
    page = "a\n<!-- x -->\n<!-- end x -->\nb\n"
    once = tables.fill(page, "x", "| t |")
    assert once == "a\n<!-- x -->\n| t |\n<!-- end x -->\nb\n"
    assert tables.fill(once, "x", "| u |") == once.replace("t", "u")
    with pytest.raises(ValueError, match="no place for the table y"):
        tables.fill(page, "y", "")


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_hold_what_the_files_say(tables, name):
    assert set(PAGES) == tables.tables().keys()
    assert tables.filled(name) == (tables.DOCS / name).read_text()


def test_settings_are_compared_on_the_random_seeds_that_both_have(tables):
    def run(oof, test):
        return {"rounds": [{"delivered": 1, "seed_oof_accuracy": oof, "test_accuracy": test}]}

    default = {1: run(0.6, 0.7), 2: run(0.7, 0.8), 3: run(0.8, 0.9)}
    table = tables.settings_table(default, {"add": {1: run(0.7, 0.6), 2: run(0.8, 0.7)}}).splitlines()
    assert table[2].endswith("| 3 | 0.700 ± 0.248 | - | 0.800 ± 0.248 | - |")
    assert table[3] == "| `combine: add` | 2 | 0.750 ± 0.635 | 0.100 ± 0.000 | 0.650 ± 0.635 | -0.100 ± 0.000 |"


def test_a_kill_that_ends_otherwise_is_named(tables):
    kills = [
        {"moment": 0.5, "resumed_from": "x", "differs": ["audit 1"]},
        {"moment": 0.1, "resumed_from": "y", "differs": []},
    ]
    assert tables.kills_table(kills).splitlines()[2:] == [
        "| 10% of the run | y | the same |",
        "| 50% of the run | x | other audit 1 |",
    ]


def test_memory_a_pair_is_counted_from_the_smallest_pool(tables):
    def size(pairs, peak):
        seconds = dict.fromkeys(("score", "select", "accept", "write"), 1.0)
        return {
            "pairs": pairs,
            "seconds": seconds,
            "peak_bytes": {"score": peak},
            "encode_seconds": 2,
            "encode_peak": 2**20,
        }

    table = tables.pool_table([size(1000, 2**20), size(3000, 2**21)]).splitlines()
    assert table[3] == "| 3,000 | 2 MiB | 524 B | 0.33 | 0.33 | 0.33 | 0.33 | 0.33 | 1 MiB |"


def test_a_run_that_ends_by_the_forecast_is_the_beginning_of_the_run(tables):
    run = {
        "seed": 1,
        "rounds": [{"tokens": 100, "flipped": flipped, "scored": 4} for flipped in (0, 2, 0, 1)],
        # Round 1 gets ahead, round 2 does not: it is the last by the forecast. Without folds that one is delivered.
        "pool_labels": ["0000", "1100", "1100", "1110"],
        "seed_credits": [[], [], [], []],
        "held": {"accuracy": {"0": 0.6, "1": 0.7, "2": 0.75, "3": 0.7}},
    }
    found = tables.forecast_tables({"paper": {1: run}})
    assert found["savings"].splitlines()[3] == (
        "| `PaperRule`, `folds: 0` | 0.005 | 1 | 3.0 | 2.0 | 0.250 | 0.700 | 0.050 |"
    )
    assert found["fixed"].splitlines()[4] == "| always behind round 1 | 1 | 0.500 | 0.000 |"
    assert [line.split(" | ")[-2:] for line in found["errors"].splitlines()[2:]] == [
        ["0.250", "0.500 |"],
        ["0.000", "0.000 |"],
        ["0.250", "0.250 |"],
    ]


def test_errors_of_forecasts_are_of_what_came(tables):
    run = {
        "seed": 1,
        "rounds": [{"tokens": 100, "flipped": flipped, "scored": 4, "seed_oof_accuracy": 0.5} for flipped in (0, 1)],
        "pool_labels": ["0000", "1000"],
        "seed_credits": [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]],
        "held": {"accuracy": {"0": 0.6, "1": 0.7}},
    }
    cells = tables.forecast_tables({"ours": {1: run}})["errors"].splitlines()[2].split(" | ")
    # 0.5 + 0.0195 was forecast, give or take 0.35, and 0.75 came.
    assert cells[1:7] == ["1", "1", "+0.231", "0.231", "0.250", "1 of 1"]


def test_a_guard_that_a_run_did_not_know_is_not_measured_there(tables):
    def run(seed, fault, **guards):
        found = {name: [0.0, 0.1, name == "flips"] for name in ("flips", *guards)}
        held = {"change": {"0": 0.0}}
        return {"seed": seed, "fault": fault, "off": {"delivered": 0, "rounds": [{}], "guards": [found]}, "held": held}

    runs = [run(1, None), run(2, None, overconfidence=1), run(5, "foreign_pool"), run(25, "foreign_pool", ties=1)]
    known = [{**one, "on": one["off"]} for one in runs]
    found = tables.guard_tables(known)
    alarms = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in found["alarms"].splitlines()[2:]}
    assert alarms["`overconfidence`"] == "0 of 1" and alarms["`flips`"] == "2 of 2"
    assert alarms["`ties`"] == "not measured"
    (line,) = found["faults"].splitlines()[2:]
    assert "`flips` 2; " in line
    assert "`ties` not measured in 1" in line and "`overconfidence` not measured in 2" in line


def test_queries_are_held_against_random_ones_of_the_same_random_seeds(tables):
    def run(seed_model, delivered, **asked):
        return {"held": {"seed_model": seed_model, "delivered": delivered}, "asked": asked}

    results = {
        "none": {1: run(0.6, 0.7), 2: run(0.6, 0.7)},
        "random": {s: run(0.7, 0.8, labels_as_gold=0.8) for s in (1, 2, 3, 1001)},
        "cover": {1: run(0.6, 0.8, labels_as_gold=0.5), 1001: run(0.0, 0.0, labels_as_gold=0.0)},
        "uncertain": {},
    }
    none, at_random, cover = tables.query_table(results).splitlines()[2:]
    assert none == "| none | 2 | 0.600 ± 0.000 | -0.100 ± 0.000 | 0.700 ± 0.000 | -0.100 ± 0.000 | - |"
    assert at_random == "| at random | 3 | 0.700 ± 0.000 | - | 0.800 ± 0.000 | - | 0.800 ± 0.000 |"
    assert cover == "| `CoverUncertain`, the default | 1 | 0.600 | -0.100 | 0.800 | 0.000 | 0.500 |"


def test_the_audits_of_a_fault_are_counted_by_themselves(tables):
    lines = [(None, 0.02, 0.2), (None, -0.03, 0.05), ("foreign_pool", 0.3, 0.4)]
    rounds = [{"fault": fault, "value": value, "value_if_larger": larger} for fault, value, larger in lines]
    healthy, foreign = tables.confidence_table({"larger": 3.0, "rounds": rounds}, 0.1).splitlines()[2:]
    assert healthy == "| healthy | 2 | -0.030 to +0.020 | 0 | +0.050 to +0.200 | 1 |"
    assert foreign.endswith("| 1 | +0.300 to +0.300 | 1 | +0.400 to +0.400 | 1 |")


def test_policies_are_compared_where_their_kl_is_equal(tables):
    """By hand: the seed's policy comes to 2 nats, the other to 4; half of its way, and half of what it gains."""

    def run(seed, gold, *path):
        steps = [{"kl": k, "gold": g} for k, g in path]
        answers = {"gold_before": [0.0, 0.0], "gold_after": [gold, 0.0], "reward_change": 0.5}
        return {"seed": seed, "reward_model_test_accuracy": 0.8, "steps": steps, **answers}

    found = {
        "seed": {1: run(1, 1.0, (0, -1.0), (2, -0.9)), 2: run(2, 1.0, (0, -1.0), (2, -0.9))},
        "evolved": {1: run(1, 2.0, (0, -1.0), (4, -0.5))},
        "all_labels": {1: run(1, -1.0, (0, -1.0), (3, -1.3), (2.5, -1.0))},
    }
    made = tables.policy_tables(found)
    first, evolved, every = made["policies"].splitlines()[2:]
    assert first.split(" | ")[1:] == ["1", "0.800", "0.500", "0.750", "-", "2.000", "0.100", "0.500 |"]
    assert evolved.split(" | ")[3:8] == ["1.000", "0.750", "0.750", "4.000", "0.250"]
    assert every.split(" | ")[3:8] == ["-0.500", "0.250", "0.250", "2.500", "-0.200"]
    assert made["policy_differences"].splitlines()[2].endswith("| 1 | 0.500 | 0.150 |")
    assert "No random seed" in tables.policy_tables({"seed": found["seed"]})["policies"]


def test_a_kl_that_a_policy_never_has_is_refused(tables):
    from policy_tables import gold_change_at

    with pytest.raises(ValueError, match="random seed 7 never comes to a KL of 3"):
        gold_change_at({"seed": 7, "steps": [{"kl": 0, "gold": 0}, {"kl": 2, "gold": 1}]}, 3)


def test_what_length_finds_is_told_for_each_kind_of_run(tables):
    def run(seed, fault, by_labels, expected):
        return {"seed": seed, "fault": fault, "by_labels": [*by_labels], "expected": [*expected]}

    runs = [
        run(1, None, (0.1, 0.15, False), (0.02, 0.15, False)),
        run(2, None, (0.2, 0.15, True), (0.05, 0.15, False)),
        run(5, "length_teacher", (0.4, 0.15, True), (0.3, 0.15, True)),
    ]
    assert tables.length_table(runs).splitlines()[2:] == [
        "| healthy | 2 | 0.100 to 0.200 | 1 | 0.020 to 0.050 | 0 |",
        "| rewards of the pool weigh length twice as much as what was learnt | 1 | 0.400 to 0.400 | 1 "
        "| 0.300 to 0.300 | 1 |",
    ]
