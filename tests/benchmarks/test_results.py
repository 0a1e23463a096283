"""Files of results, and the driver that fills them: `benchmarks/shared/results.py` and `runs.py`."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.shared.results import Results, read_figures
from benchmarks.shared.runs import STANDARD_RECIPE, fit_words, run_child, run_missing


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "study" / "results.jsonl", "condition", "seed")


def run(condition, seed, **more):
    return {"condition": condition, "seed": seed, **more}


def test_lines_are_sorted_and_a_run_made_again_takes_the_place_of_its_line(results):
    assert results.read() == [] and results.missing([("a", 1)]) == [("a", 1)]
    results.add(run("b", 10), run("b", 9, x=1))
    results.add(run("a", 2), run("b", 9, x=float("nan")))
    lines = results.file.read_text().splitlines()
    assert lines[0] == '{"condition": "a", "seed": 2}' and lines[1] == '{"condition": "b", "seed": 9, "x": NaN}'
    assert [json.loads(line)["seed"] for line in lines] == [2, 9, 10]
    assert ("b", 10) in results and ("b", 2) not in results
    assert results.by_condition()["b"].keys() == {9, 10}
    assert [file.name for file in results.file.parent.iterdir()] == ["results.jsonl"]


def test_no_line_is_lost_where_many_are_added_at_once(results):
    barrier = threading.Barrier(8)

    def add(seed):
        barrier.wait()
        results.add(run("a", seed))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert [one["seed"] for one in results.read()] == [*range(8)]


def test_only_what_is_missing_is_run_and_a_failure_stops_nothing_else(results):
    results.add(run("a", 1, was="there"))
    called = []

    def work(condition, seed):
        called.append((condition, seed))
        if seed == 2:
            raise RuntimeError("broken")
        return run(condition, seed)

    with pytest.raises(ExceptionGroup, match="1 of 2 failed"):
        run_missing(results, [("a", 1), ("a", 2), ("a", 3)], work, jobs=1)
    assert sorted(called) == [("a", 2), ("a", 3)]
    assert results.read() == [run("a", 1, was="there"), run("a", 3)]


def test_tasks_that_share_a_folder_go_one_after_the_other(results):
    busy, seen = threading.Lock(), []

    def work(condition, seed):
        assert busy.acquire(blocking=False)
        seen.append(condition)
        busy.release()
        return run(condition, seed)

    run_missing(results, [("a", 1), ("b", 1), ("c", 1)], work, jobs=3, together=lambda task: task[1])
    assert seen == ["a", "b", "c"]


def test_empty_fields_are_left_out(tmp_path):
    (tmp_path / "steps.csv").write_text("step,judge_score,kl\n0,,0.5\n")
    assert read_figures(tmp_path / "steps.csv") == [{"step": 0.0, "kl": 0.5}]


def test_a_child_that_fails_says_why():
    with pytest.raises(RuntimeError, match="lost"):
        run_child([sys.executable, "-c", "raise SystemExit('lost')"])
    assert Path(run_child([sys.executable, "-c", "import benchmarks; print(benchmarks.__file__)"]).strip()).is_file()


@pytest.mark.parametrize(
    ("config", "flags", "has_recipe"),
    [
        ("rm.yaml", ["--evolution.max_rounds=1"], True),
        ("rm.yaml", ["--config", "x.yaml"], False),
        ("sft.yaml", [], False),
    ],
)
def test_the_recipe_of_studies_wins_over_no_config_of_their_own(config, flags, has_recipe):
    words = fit_words(Path("run"), 3, iter(flags), config)
    assert (set(STANDARD_RECIPE) <= set(words)) == has_recipe
    assert (set(STANDARD_RECIPE) & set(words) != set()) == has_recipe
    assert set(flags) <= set(words) and "--seed_everything=3" in words
