"""Training cannot see a label of the pool: with every one of them turned or taken away, it gets the same."""

import gc
import itertools

import numpy as np
import pytest
import torch

from ser_lightning.datamodules.label_firewall import HeldOutLabels
from ser_lightning.records import Selection

FRACTIONS = {"seed_fraction": 0.4, "test_fraction": 0.25, "val_fraction": 0.2}


def everything_but_hidden_labels(datamodule) -> list:
    """All that training, selection and validation can reach: ids, splits, order, batches, targets, weights, texts."""
    pool = datamodule.pair_ids("pool")
    labels = (pool % 2).to(torch.int8)
    seen: list = [datamodule.data.fingerprint, datamodule.num_train_pairs]
    seen += [datamodule.pair_ids(split).tolist() for split in ("seed", "pool", "test", "all")]
    seen.append([vars(pair) for pair in datamodule.lookup(datamodule.pair_ids("all"))])
    seen.append(datamodule.seed_labels(datamodule.pair_ids("seed")).tolist())
    for fold, epoch in itertools.product((None, 0, 1), (0, 1)):
        datamodule.trainer.current_epoch = epoch
        datamodule.accept(Selection(pool[::2], labels[::2], torch.full((len(labels[::2]),), 0.8), 1, 0))
        datamodule.begin_phase(1, fold, 2)
        seen.append([as_numbers(batch) for step in datamodule.train_dataloader() for batch in step])
    for split, fold in (("seed", None), ("seed", 0), ("pool", None), ("test", None), ("all", None)):
        seen.append([as_numbers(batch) for batch in datamodule.scoring_dataloader(split, fold, 2)])
    seen.append([as_numbers(batch) for batch in datamodule.val_dataloader()])
    seen.append([as_numbers(batch) for batch in datamodule.predict_dataloader()])
    return seen


def as_numbers(batch) -> dict:
    parts = vars(batch) | vars(batch.inputs) | {"inputs": None}
    values = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in parts.items()}
    return {**values, "target": str(values["target"])}  # NaN equals NaN


def turn(row: dict) -> dict:
    """The same row with the other label, in whichever format it is."""
    if "chosen" in row:
        return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    return {**row, "label": 1 - row["label"]}


def as_chosen(row: dict) -> dict:
    texts = (row["response_a"], row["response_b"]) if row["label"] else (row["response_b"], row["response_a"])
    return {"prompt": row["prompt"], "chosen": texts[0], "rejected": texts[1], "id": row["id"]}


def without_label(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "label"}


@pytest.fixture
def rows(make_rows):
    """Labelled rows; some pairs come again with the same label, some with the other one."""
    rows = [{**row, "id": str(i)} for i, row in enumerate(make_rows(150))]
    return rows + rows[:5] + [turn(row) for row in rows[10:25]]


@pytest.mark.parametrize("change", [as_chosen, None], ids=["chosen and rejected", "a, b and label"])
def test_turning_every_pool_label_of_one_file_changes_nothing(load, write_jsonl, rows, change):
    rows = [change(row) for row in rows] if change else rows
    before = load(write_jsonl("a.jsonl", rows), **FRACTIONS)
    pool = {int(pair.source_id) for pair in before.lookup(before.pair_ids("pool"))}
    assert len(pool) > 50
    turned = [turn(row) if int(row["id"]) in pool else row for row in rows]
    after = load(write_jsonl("b.jsonl", turned), **FRACTIONS)
    assert everything_but_hidden_labels(after) == everything_but_hidden_labels(before)
    assert before.report.splits["seed"][0] > 20
    ids = before.pair_ids("pool")
    known, right = before.held_out_labels("pool").count_right(ids, torch.ones(len(ids)))
    assert after.held_out_labels("pool").count_right(ids, torch.ones(len(ids))) == (known, known - right)


def test_random_pool_labels_change_nothing_even_where_they_contradict_each_other(load, write_jsonl, rows):
    before = load(write_jsonl("a.jsonl", rows), **FRACTIONS)
    pool = {int(pair.source_id) for pair in before.lookup(before.pair_ids("pool"))}
    random = np.random.default_rng(0)
    noisy = [{**row, "label": int(random.integers(3)) / 2} if int(row["id"]) in pool else row for row in rows]
    after = load(write_jsonl("b.jsonl", noisy), **FRACTIONS)
    assert everything_but_hidden_labels(after) == everything_but_hidden_labels(before)


def test_turning_or_removing_every_label_of_a_pool_file_changes_nothing(load, write_jsonl, rows, make_rows):
    more = [{**row, "id": "p"} for row in make_rows(90, seed=1)] + rows[30:40]  # some pairs of the seed or the test set
    seen = []
    as_tie = lambda row: {**row, "label": "tie"}  # noqa: E731
    for i, change in enumerate((dict, turn, without_label, as_tie, lambda row: {**row, "label": None})):
        pool = write_jsonl(f"pool{i}.jsonl", [change(row) for row in more])
        seen.append(everything_but_hidden_labels(load(write_jsonl("a.jsonl", rows), pool_path=pool, **FRACTIONS)))
    assert all(one == seen[0] for one in seen)


def test_removing_every_pool_label_of_one_file_changes_nothing_but_who_says_that_it_is_the_pool(
    load, write_jsonl, rows, make_rows
):
    test = write_jsonl("test.jsonl", make_rows(20, seed=2))
    before = load(write_jsonl("a.jsonl", rows), test_path=test, **FRACTIONS)
    pool = {int(pair.source_id) for pair in before.lookup(before.pair_ids("pool"))}
    removed = [{**row, "label": None} if int(row["id"]) in pool else row for row in rows]
    after = load(write_jsonl("b.jsonl", removed), test_path=test, **FRACTIONS)
    assert everything_but_hidden_labels(after) == everything_but_hidden_labels(before)
    assert after.held_out_labels("pool").count_right(after.pair_ids("pool"), torch.ones(1)) == (0, 0)


def test_a_seed_label_is_seen(load, write_jsonl, rows):
    """The counterproof: the comparison above does notice a label that training uses."""
    before = load(write_jsonl("a.jsonl", rows), **FRACTIONS)
    seed = int(before.lookup(before.pair_ids("seed"))[0].source_id)
    turned = [turn(row) if int(row["id"]) == seed else row for row in rows]
    after = load(write_jsonl("b.jsonl", turned), **FRACTIONS)
    assert everything_but_hidden_labels(after) != everything_but_hidden_labels(before)


def test_no_array_of_the_module_holds_hidden_labels(load, write_jsonl, rows):
    """Whatever hangs on the module: no array or mapping pairs the pool with its labels."""
    datamodule = load(write_jsonl("a.jsonl", rows), **FRACTIONS)
    num_rows = len(datamodule.data.store)
    assert len(datamodule.pair_ids("seed")) < num_rows
    gc.collect()
    reachable, queue = set(), [datamodule]
    while queue:
        item = queue.pop()
        if id(item) in reachable or isinstance(item, type) or callable(item):
            continue
        reachable.add(id(item))
        assert not isinstance(item, HeldOutLabels)
        if isinstance(item, np.ndarray) and len(item) == num_rows:
            assert not (item.dtype == np.float32 and (item < 0).any()), "an array of all labels"
            assert item.tolist() != datamodule.data.store.read_labels().tolist()
        if isinstance(item, dict):
            queue += item.values()
        elif isinstance(item, (list, tuple, set)):
            queue += item
        elif type(item).__module__.startswith("ser_lightning"):
            queue += vars(item).values()


def test_truth_answers_with_counts():
    truth = HeldOutLabels(np.array([30, 10, 20]), np.array([1, 0, 1], dtype=np.int8))
    ids, labels = torch.tensor([10, 20, 30, 40]), torch.tensor([0, 0, 1, 1], dtype=torch.int8)
    assert truth.count_right(ids, labels) == (3, 2)
    assert truth.count_right(ids.flip(0), labels.flip(0).float()) == (3, 2)
    assert truth.count_right(ids[:0], labels[:0]) == (0, 0)
    assert truth.effective_labels(ids[:0], labels[:0], ids[:0]) == 0
    assert HeldOutLabels(np.array([], dtype=np.int64), np.array([], dtype=np.int8)).count_right(ids, labels) == (0, 0)
    assert [name for name in dir(truth) if not name.startswith("_")] == ["count_right", "effective_labels"]
    assert not hasattr(truth, "__dict__")


def test_truth_knows_what_the_file_knows(load, write_jsonl, rows):
    datamodule = load(write_jsonl("a.jsonl", rows), **FRACTIONS)
    for split in ("pool", "test"):
        ids = datamodule.pair_ids(split)
        labels = []
        for pair in datamodule.lookup(ids):
            row = rows[int(pair.source_id)]
            labels.append(int(row["label"] == (pair.response_a == row["response_a"])))
        contradictory = sum(10 <= int(pair.source_id) < 25 for pair in datamodule.lookup(ids))
        known = len(ids) - contradictory
        assert datamodule.held_out_labels(split).count_right(ids, torch.tensor(labels)) == (known, known)
        assert (split == "test") <= (contradictory == 0)


def test_hidden_ties_are_not_counted(load, write_jsonl, rows):
    before = load(write_jsonl("a.jsonl", rows), **FRACTIONS)
    pool = before.pair_ids("pool")
    names = {pair.source_id for pair in before.lookup(pool)[:30]}
    tied = [{**row, "label": "tie"} if row["id"] in names else row for row in rows]
    after = load(write_jsonl("b.jsonl", tied), **FRACTIONS)
    assert torch.equal(after.pair_ids("pool"), pool)
    known = before.held_out_labels("pool").count_right(pool[30:], torch.ones(len(pool) - 30))
    assert after.held_out_labels("pool").count_right(pool, torch.ones(len(pool))) == known
