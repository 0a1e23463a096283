"""Who goes where, on rows made by hand: the store's arrays without a store."""

from collections import Counter

import numpy as np
import pytest

from ser_lightning.data.store import CONTRADICTION, ROLES, UNLABELLED
from ser_lightning.datamodules.splitting import (
    DataReport,
    SplitPolicy,
    Splits,
    assign_folds,
    count_splits,
    set_undecided_aside,
    split_pairs,
    take_dialogues,
)

PATH, POOL, TEST = 0, 1, 2


def split(rows, seed_fraction=0.5, test_fraction=0.0, val_fraction=0.0, split_seed=0, given=None):
    """Splits as sets of pair ids, and the counts, of rows (pair_id, dialogue_id, role, has_label)."""
    pair_id, dialogue_id, role, has_label = (np.array(column) for column in zip(*rows, strict=True))
    between = Counter()
    policy = SplitPolicy(seed_fraction, test_fraction, val_fraction, split_seed)
    given = {ROLES[i] for i in role} if given is None else given
    splits = split_pairs(pair_id, dialogue_id, role, has_label.astype(bool), given, policy, between)
    for positions in vars(splits).values():
        assert (np.diff(pair_id[positions]) > 0).all()  # sorted, each pair once
    assert len(vars(splits).pop("ties")) == 0  # nothing here reads a label
    return {name: set(pair_id[rows].tolist()) for name, rows in vars(splits).items()}, +between


def labelled(num_dialogues, pairs_per_dialogue=1):
    return [(100 * q + i, q, PATH, 1) for q in range(1, num_dialogues + 1) for i in range(pairs_per_dialogue)]


@pytest.mark.parametrize("fraction", [0.0, 0.15, 0.5, 1.0])
def test_dialogues_are_taken_whole_and_the_share_is_hit_closely(fraction):
    dialogue_id = np.random.default_rng(0).integers(0, 400, size=1000)
    chosen = take_dialogues(dialogue_id, fraction, 0, "seed")
    assert abs(chosen.sum() - fraction * 1000) <= 3
    assert not set(dialogue_id[chosen]) & set(dialogue_id[~chosen])


def test_the_choice_depends_on_seed_and_purpose_and_on_no_order():
    dialogue_id = np.random.default_rng(0).integers(0, 2**62, size=200)
    chosen = take_dialogues(dialogue_id, 0.5, 0, "seed")
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(take_dialogues(dialogue_id[order], 0.5, 0, "seed"), chosen[order])
    assert (take_dialogues(dialogue_id, 0.5, 1, "seed") != chosen).sum() > 50
    assert (take_dialogues(dialogue_id, 0.5, 0, "test") != chosen).sum() > 50


def test_one_great_dialogue_is_taken_only_when_that_is_nearer_to_the_share():
    assert take_dialogues(np.array([1] * 10), 0.4, 0, "seed").sum() == 0
    assert take_dialogues(np.array([1] * 10), 0.6, 0, "seed").sum() == 10
    assert take_dialogues(np.array([], dtype=np.int64), 0.5, 0, "seed").shape == (0,)


def test_folds_are_balanced_by_dialogue():
    dialogue_id = np.random.default_rng(0).integers(0, 90, size=300)
    folds = assign_folds(dialogue_id, 3, 0)
    assert sorted(np.bincount(folds)) == [100, 100, 100]
    assert all(len(set(folds[dialogue_id == dialogue])) == 1 for dialogue in set(dialogue_id))
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(assign_folds(dialogue_id[order], 3, 0), folds[order])
    assert (assign_folds(dialogue_id, 3, 1) != folds).any()


def test_labelled_pairs_alone_are_cut_into_test_seed_and_pool():
    splits, between = split(labelled(100), seed_fraction=0.15, test_fraction=0.2, val_fraction=0.25)
    assert {name: len(ids) for name, ids in splits.items()} == {"seed": 9, "val": 3, "pool": 68, "test": 20}
    assert len(set.union(*splits.values())) == 100
    assert not between


def test_unlabelled_rows_make_all_labelled_ones_the_seed():
    rows = [*labelled(10), (5000, 50, PATH, 0), (5001, 51, PATH, 0)]
    splits, _ = split(rows, seed_fraction=0.1, test_fraction=0.2)
    assert len(splits["seed"]) == 8
    assert splits["pool"] == {5000, 5001}


def test_a_pool_file_makes_all_labelled_ones_the_seed():
    splits, _ = split([*labelled(10), (5000, 50, POOL, 1), (5001, 51, POOL, 0)], seed_fraction=0.1)
    assert len(splits["seed"]) == 10
    assert splits["pool"] == {5000, 5001}


def test_files_without_one_usable_row_still_say_what_the_others_are():
    splits, _ = split(labelled(10), test_fraction=0.5, given={"path", "pool_path", "test_path"})
    assert {name: len(ids) for name, ids in splits.items()} == {"seed": 10, "val": 0, "pool": 0, "test": 0}


def test_a_test_file_is_the_test_set_and_wins_over_everything():
    rows = [
        (100, 1, PATH, 1),
        (101, 1, PATH, 1),
        (200, 2, PATH, 1),
        (300, 3, POOL, 0),
        (102, 1, POOL, 0),
        (100, 1, TEST, 1),
        (310, 3, TEST, 0),
    ]
    splits, between = split(rows, test_fraction=0.9)
    assert splits == {"test": {100}, "seed": {200}, "pool": {300}, "val": set()}
    assert between == {"leak_path": 2, "leak_pool": 1, "test_unlabelled": 1}


def test_pool_pairs_of_a_test_dialogue_leave_the_pool():
    rows = [(100 * q + i, q, PATH, i == 0) for q in range(1, 11) for i in range(2)]
    splits, between = split(rows, test_fraction=0.3)
    assert len(splits["test"]) == 3
    assert {i // 100 for i in splits["pool"]} == {i // 100 for i in splits["seed"]}
    assert between == {"leak_path": 3, "shared_dialogue": 7}


def test_pool_keeps_only_pairs_that_the_seed_has_not_and_each_once():
    rows = [
        (100, 1, PATH, 1),
        (200, 2, PATH, 1),
        (100, 1, POOL, 1),
        (101, 1, POOL, 0),
        (300, 3, PATH, 0),
        (300, 3, POOL, 0),
    ]
    splits, between = split(rows)
    assert splits == {"test": set(), "seed": {100, 200}, "pool": {101, 300}, "val": set()}
    assert between == {"pool_repeats": 2, "shared_dialogue": 1}


def test_contradictions_and_ties_leave_every_split_but_the_pool_and_ties_of_the_seed_are_kept():
    rows = np.arange(12)
    splits = Splits(seed=rows[:3], val=rows[3:6], pool=rows[6:9], test=rows[9:])
    both, tie = CONTRADICTION, 0.5
    labels = np.array([both, 1, tie, 0, both, tie, both, 1, tie, both, 0, tie])
    between = Counter()
    kept = set_undecided_aside(splits, labels, between)
    assert {name: rows.tolist() for name, rows in vars(kept).items()} == {
        "seed": [1],
        "val": [3],
        "pool": [6, 7, 8],
        "test": [10],
        "ties": [2],
    }
    assert between == {f"{what}_{name}": 1 for what in ("contradiction", "tie") for name in ("seed", "val", "test")}
    assert count_splits(kept, rows, labels) == {
        "seed": (1, 1, 1),
        "val": (1, 1, 1),
        "pool": (3, 3, 1),
        "test": (1, 1, 1),
    }


def test_report_counts_pairs_dialogues_and_labels_and_leaves_out_what_did_not_happen():
    rows = np.arange(4)
    splits = Splits(seed=rows[:2], val=rows[:0], pool=rows[2:], test=rows[:0])
    labels = np.array([0, 1, UNLABELLED, CONTRADICTION])
    read = {
        "path": Counter(rows=9, empty=2),
        "pool_path": Counter(),
        "test_path": Counter(rows=3),
        "new_data_path": Counter(),
    }
    report = DataReport(read, Counter(shared_dialogue=1), count_splits(splits, np.array([7, 7, 8, 9]), labels))
    assert report.splits == {"seed": (2, 1, 2), "val": (0, 0, 0), "pool": (2, 2, 0), "test": (0, 0, 0)}
    lines = [line.split() for line in report.table().splitlines()]
    assert lines[0] == ["path", "test_path"]
    assert lines[1] == ["rows", "read", "9", "3"]
    assert lines[2] == [*"dropped: empty prompt or response".split(), "2", "0"]
    assert lines[3][-1] == "1"
    assert [line[0] for line in lines[4:]] == ["split", "seed", "val", "pool", "test"]


def test_many_pairs_of_few_prompts_are_said_and_few_pairs_are_not():
    report = DataReport({}, splits={"seed": (73, 13, 73), "val": (0, 0, 0), "pool": (90, 9, 90), "test": (40, 2, 40)})
    seed, test = report.few_prompts()
    assert seed.startswith("data: seed has 73 pairs of only 13 prompts, and") and "test has 40 pairs of only 2" in test
    enough = {"seed": (900, 30, 900), "val": (19, 19, 19), "pool": (0, 0, 0), "test": (20, 15, 20)}
    assert DataReport({}, splits=enough).few_prompts() == []
