"""Pairs that arrive later: what was split stays, labelled ones join the seed, the others the pool."""

import itertools

import numpy as np
import pytest
import torch

from ser_lightning.datamodules import base as pair_files
from ser_lightning.datamodules.splitting import assign_folds
from ser_lightning.errors import UserError


def ids(datamodule, split, **fold):
    return set(datamodule.pair_ids(split, **fold).tolist())


def unlabelled(rows):
    return [{**row, "label": None} for row in rows]


@pytest.fixture
def two_files(write_jsonl, make_rows):
    """A file of 30 labelled pairs and one of 40 without a label, none of them in `path`."""
    labelled = write_jsonl("labelled.jsonl", make_rows(30, seed=1))
    return labelled, write_jsonl("unlabelled.jsonl", unlabelled(make_rows(40, seed=2)))


def test_old_splits_and_folds_stay_and_new_pairs_join_them(load, path, two_files):
    old = load(path, seed_fraction=0.4)
    for more in itertools.permutations(two_files):
        new = load(path, seed_fraction=0.4, new_data_path=list(more))
        assert ids(new, "test") == ids(old, "test")
        assert ids(new, "seed") > ids(old, "seed") and ids(new, "pool") > ids(old, "pool")
        assert len(ids(new, "seed") - ids(old, "seed")) == 30
        assert len(ids(new, "pool") - ids(old, "pool")) == 40
        folds = [ids(new, "seed", fold=k, num_folds=3) for k in range(3)]
        assert [fold & ids(old, "seed") for fold in folds] == [ids(old, "seed", fold=k, num_folds=3) for k in range(3)]
        assert set.union(*folds) == ids(new, "seed") and sum(map(len, folds)) == len(ids(new, "seed"))
        assert max(map(len, folds)) - min(map(len, folds)) <= 6  # a dialogue holds some three pairs


def test_their_texts_tokens_and_labels_are_those_of_their_file(load, path, write_jsonl, make_rows, by_id):
    rows = [{**row, "id": f"new {i}"} for i, row in enumerate(make_rows(30, seed=1))]
    new = load(path, seed_fraction=0.4, new_data_path=write_jsonl("more.jsonl", rows))
    alone = load(write_jsonl("more.jsonl", rows), seed_fraction=1.0, test_fraction=0.0)
    scored, expected = by_id(new.scoring_dataloader("seed")), by_id(alone.scoring_dataloader("seed"))
    assert {i: scored[i][:2] for i in expected} == {i: content[:2] for i, content in expected.items()}
    for pair in new.lookup(list(expected)):
        row = rows[int(pair.source_id.split()[1])]
        assert {pair.response_a, pair.response_b} == {row["response_a"], row["response_b"]}
        assert pair.label == (row["label"] == (pair.response_a == row["response_a"]))
    assert torch.equal(new.seed_labels(alone.pair_ids("seed")), alone.seed_labels(alone.pair_ids("seed")))


def test_a_label_for_a_pool_pair_takes_it_into_the_seed(load, path, write_jsonl, select):
    old = load(path, seed_fraction=0.4)
    asked = old.pair_ids("pool")[:5]
    answers = [
        {"prompt": p.prompt[0]["content"], "response_a": p.response_b, "response_b": p.response_a, "label": 1}
        for p in old.lookup(asked)
    ]
    new = load(path, seed_fraction=0.4, new_data_path=write_jsonl("answers.jsonl", answers))
    assert ids(new, "seed") - ids(old, "seed") == set(asked.tolist()) == ids(old, "pool") - ids(new, "pool")
    assert new.seed_labels(asked).tolist() == [0.0] * 5
    assert "of them, pairs that were in the pool" in new.report.table()
    old.accept(select(old.pair_ids("pool")[:10]))
    old.accept(select(old.pair_ids("pool")[3:8]), fold=1)
    new.load_state_dict(old.state_dict())
    assert new.accepted.pair_id.tolist() == old.pair_ids("pool")[5:10].tolist()
    assert new.fold_accepted[1].pair_id.tolist() == old.pair_ids("pool")[5:8].tolist()


def test_what_is_there_already_leaks_or_contradicts_itself_is_dropped_and_counted(load, path, write_jsonl, make_rows):
    old = load(path, seed_fraction=0.4)
    (known,) = old.lookup(old.pair_ids("seed")[:1])
    (pooled,) = old.lookup(old.pair_ids("pool")[:1])
    (tested,) = old.lookup(old.pair_ids("test")[:1])
    question = tested.prompt[0]["content"]

    def row(pair, label):
        return {"prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b, "label": label}

    turns = [{"role": "user", "content": question.upper()}, {"role": "assistant", "content": "a tree"}]
    later = [*turns, {"role": "user", "content": "and then?"}]
    rows = [row(known, 1 - known.label), row(pooled, None)]
    rows += [{"prompt": question, "response_a": "x", "response_b": "y", "label": 1}]
    rows += [{"prompt": later, "response_a": "x", "response_b": "y", "label": None}]
    rows += [{"prompt": "new", "response_a": "x", "response_b": "y", "label": label} for label in (0, 1)]
    new = load(path, seed_fraction=0.4, new_data_path=write_jsonl("more.jsonl", rows))
    assert {s: ids(new, s) for s in ("seed", "pool", "test")} == {s: ids(old, s) for s in ("seed", "pool", "test")}
    counts = {name: n for name, n in new.report.between.items() if name.startswith("arrived") and n}
    assert counts == {"arrived_repeat": 2, "arrived_leak": 2, "arrived_contradiction": 1}
    assert new.seed_labels(torch.tensor([known.pair_id])).item() == known.label


def test_only_what_arrived_is_encoded(load, path, two_files, monkeypatch):
    load(path)
    written = []
    build = pair_files.build_store
    monkeypatch.setattr(pair_files, "build_store", lambda folder, *rest: (written.append(folder), build(folder, *rest)))
    load(path, new_data_path=two_files[0])
    assert len(written) == 1
    load(path, new_data_path=list(two_files))
    assert len(written) == 2


def test_a_checkpoint_knows_what_has_come_since(load, path, two_files):
    first, second = two_files
    states = [load(path, new_data_path=more).state_dict() for more in ([], [first], [first, second])]
    new = load(path, new_data_path=[first, second])
    expected = [(30, 40), (0, 40), (0, 0)]
    for state, numbers in zip(states, expected, strict=True):
        new.load_state_dict(state)
        assert (len(new.pair_ids("arrived_seed")), len(new.pair_ids("arrived_pool"))) == numbers
    assert not ids(new, "all") - ids(new, "seed") - ids(new, "pool") - ids(new, "test")
    with pytest.raises(UserError, match="new files go to new_data_path"):
        load(path, new_data_path=second).load_state_dict(states[1])


def test_worker_processes_read_all_parts(load, path, two_files, by_id):
    one = load(path, new_data_path=list(two_files), tokens_per_scoring_batch=2000)
    two = load(path, new_data_path=list(two_files), tokens_per_scoring_batch=2000, num_workers=1)
    contents = [by_id(datamodule.scoring_dataloader("pool")) for datamodule in (one, two)]
    assert {i: c[:2] for i, c in contents[0].items()} == {i: c[:2] for i, c in contents[1].items()}


def test_new_pairs_of_known_dialogues_go_to_their_fold():
    earlier = np.array([5, 5, 6, 7, 8]), np.array([0, 0, 1, 2, 2])
    assert assign_folds(np.array([6, 5, 7]), 3, 0, earlier).tolist() == [1, 0, 2]
    assert assign_folds(np.array([9, 9]), 3, 0, earlier).tolist() == [1, 1]  # the smallest fold
    both = np.array([5, 5]), np.array([2, 1])  # an arrival has joined two dialogues
    assert assign_folds(np.array([5]), 3, 0, both).tolist() == [1]


def test_the_synthetic_world_cannot_arrive_twice(load, path):
    with pytest.raises(UserError, match="new_data_path: got synthetic"):
        load(path, new_data_path="synthetic")


def test_a_tie_for_a_pool_pair_takes_it_out_of_the_pool_and_into_training(load, path, write_jsonl, step_contents):
    old = load(path, seed_fraction=0.4)
    asked = old.pair_ids("pool")[:5]
    answers = [
        {"prompt": p.prompt[0]["content"], "response_a": p.response_a, "response_b": p.response_b, "label": "tie"}
        for p in old.lookup(asked)
    ]
    first = write_jsonl("answers.jsonl", answers)
    again = write_jsonl("again.jsonl", [{**answers[0], "label": 1}])  # the first label stays
    new = load(path, seed_fraction=0.4, new_data_path=[first, again])
    assert ids(new, "pool") == ids(old, "pool") - set(asked.tolist())
    assert (ids(new, "seed"), ids(new, "ties")) == (ids(old, "seed"), set(asked.tolist()))
    trained = {i: content for step in step_contents(new) for i, content in step.items()}
    assert set(trained) == ids(new, "seed") | ids(new, "ties")
    assert {trained[i][2] for i in asked.tolist()} == {0.5}
    counts = {name: new.report.between[f"arrived_{name}"] for name in ("seed", "tie", "moved", "repeat")}
    assert counts == {"seed": 5, "tie": 5, "moved": 5, "repeat": 1}
    assert new.data.fingerprint != load(path, seed_fraction=0.4, new_data_path=again).data.fingerprint
