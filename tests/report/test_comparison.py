"""Several runs side by side."""

import copy

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.report_pages import page_of
from tests.report_runs import CONFIG, notes, row, write_run


@pytest.fixture
def run():
    return write_run("run", [row(0), row(1, True, test_accuracy=0.8)], notes())


def give_test_pairs(run, ids, number):
    columns = {"pair_id": ids, "reward_a": [0.5] * len(ids), "reward_b": [0.0] * len(ids)}
    pq.write_table(pa.table(columns), run / "rounds" / str(number) / "test.parquet")


def test_several_runs_stand_side_by_side(run):
    config = copy.deepcopy(CONFIG)
    config["trainer"]["callbacks"].insert(0, {"class_path": "ser_lightning.ReportCallback"})
    config["trainer"]["callbacks"][1]["init_args"]["max_rounds"] = 3
    other = write_run("other", [row(0, True, test_accuracy=0.65)], notes(fingerprints={"data": "other"}), config=config)
    page = page_of(run, other)
    side_by_side = {line[0]: line[1:] for line in page.tables["Side by side"]}
    assert side_by_side[""] == ["run", "other"]
    assert [cell.split()[0] for cell in side_by_side["test"]] == ["0.800", "0.650"]
    assert side_by_side["delivered round"] == ["1", "0"]
    assert side_by_side["tokens"] == ["24 690", "12 345"]
    assert side_by_side["baseline: bag of words on the seed"] == ["0.510", "0.510"]
    assert page.tables["What differs"][1:] == [["EvolutionCallback.max_rounds", "1", "3"]]
    assert "different data: their accuracies may be of different pairs." in page.text
    assert {"Rounds of run", "Rounds of other"} <= page.tables.keys()
    assert sum(tag == "img" for tag, _ in page.tags) == 2


def test_runs_of_one_name_are_told_apart_by_their_folders():
    runs = [write_run(f"{folder}/run", [row(0, True)], notes()) for folder in "ab"]
    assert page_of(*runs).tables["Side by side"][0] == ["", "a/run", "b/run"]
    assert "different data" not in page_of(*runs).text


def test_a_run_without_callbacks_is_compared_all_the_same():
    plain = {**CONFIG, "trainer": {"max_epochs": 3}}
    runs = [
        write_run(name, [row(0, True)], notes(), config={**plain, "seed_everything": seed})
        for name, seed in (("one", 1), ("two", 2))
    ]
    assert page_of(*runs).tables["What differs"][1:] == [["seed_everything", "1", "2"]]


def test_test_sets_are_said_to_differ_only_where_they_do(run):
    other = write_run("other", [row(0, True)], notes(fingerprints={"data": "other"}))
    give_test_pairs(run, [1, 2, 3], 1)
    give_test_pairs(other, [3, 1, 2], 0)
    text = page_of(run, other).text
    assert "The runs have the same test pairs, but other seed or pool pairs" in text
    give_test_pairs(other, [1, 2, 4], 0)
    assert "The runs have different test pairs: their test accuracies cannot be compared." in page_of(run, other).text
    same = write_run("same", [row(0, True)], notes())
    give_test_pairs(same, [1, 2, 3], 0)
    text = page_of(run, same).text
    assert "different test pairs" not in text and "same test pairs" not in text
