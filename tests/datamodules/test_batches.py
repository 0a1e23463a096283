"""Training steps: what an epoch trains on depends on state and epoch, and on no layout of files or processes."""

import threading

import pytest
import torch
from torch.utils.data import Dataset

from ser_lightning.datamodules.batches import make_loader
from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.datamodules.prompts import PromptDataModule
from ser_lightning.datamodules.responses import ResponseDataModule
from ser_lightning.errors import UserError


def test_an_epoch_is_the_seed_and_the_accepted_pairs_once_with_their_labels(datamodule, step_contents):
    contents = {k: v for step in step_contents(datamodule) for k, v in step.items()}
    seed, accepted = datamodule.pair_ids("seed"), datamodule.accepted
    assert sorted(contents) == sorted([*seed.tolist(), *accepted.pair_id.tolist()])
    targets = torch.tensor([contents[i][2] for i in seed.tolist()])
    assert torch.equal(targets, datamodule.seed_labels(seed))
    assert [contents[i][2] for i in accepted.pair_id.tolist()] == accepted.label.tolist()
    assert {content[3] for content in contents.values()} == {1.0}


def test_steps_have_the_size_asked_for(datamodule, step_contents):
    num_pairs = len(datamodule.pair_ids("seed")) + 20
    sizes = [len(step) for step in step_contents(datamodule)]
    assert sizes[:-1] == [16] * (num_pairs // 16)
    assert sum(sizes) == num_pairs
    assert datamodule.num_train_pairs == sum(sizes) and len(sizes) == len(datamodule.train_dataloader())


@pytest.mark.parametrize("budget", [1, 500, 100_000])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_neither_ranks_nor_token_budget_change_a_step(load, path, step_contents, world_size, budget, select):
    def ranks(world_size, budget):
        loaded = [load(path, rank, world_size, epoch=2, tokens_per_batch=budget) for rank in range(world_size)]
        for datamodule in loaded:
            datamodule.accept(select(datamodule.pair_ids("pool")[:9]))
            datamodule.begin_phase(1, fold=0)
        return loaded

    assert step_contents(*ranks(world_size, budget)) == step_contents(*ranks(1, 4096))


def test_micro_batches_keep_to_the_budget_and_are_sorted_by_length(load, path):
    datamodule = load(path, tokens_per_batch=500, pairs_per_step=40)
    steps = list(datamodule.train_dataloader())
    assert max(len(step) for step in steps) > 1
    assert all(batch.inputs.input_ids.numel() <= 500 for step in steps for batch in step)
    for step in steps:
        lengths = [batch.inputs.input_ids.shape[1] for batch in step]
        assert lengths == sorted(lengths, reverse=True)


def test_a_rank_without_a_pair_gets_one_that_weighs_nothing(load, path):
    loaded = [load(path, rank, 3, pairs_per_step=2) for rank in range(3)]
    [idle] = loaded[2].train_dataloader().dataset[0]
    busy = [batch for dm in loaded[:2] for batch in dm.train_dataloader().dataset[0]]
    assert idle.weight.tolist() == [0.0] and [batch.weight.tolist() for batch in busy] == [[1.0], [1.0]]
    assert {batch.num_step_pairs for batch in [idle, *busy]} == {2}
    assert idle.pair_id.tolist() in [batch.pair_id.tolist() for batch in busy]


def test_order_is_new_in_every_epoch_round_fold_and_seed_and_the_same_when_asked_again(load, path):
    def order(epoch=0, round=0, fold=None, **arguments):
        datamodule = load(path, epoch=epoch, seed_fraction=0.5, pairs_per_step=4, **arguments)
        datamodule.begin_phase(round, fold, 8)
        torch.rand(3)  # the global generator has no part in it
        return [i for step in datamodule.train_dataloader() for batch in step for i in batch.pair_id.tolist()]

    first = order()
    assert order() == first
    others = [order(epoch=1), order(round=1), order(fold=0), order(fold=1), order(split_seed=1)]
    assert len({tuple(one) for one in [first, *others]}) == 6
    assert sorted(others[0]) == sorted(others[1]) == sorted(first) != sorted(others[-1])


def test_loading_draws_nothing_from_the_global_generator(datamodule):
    before = torch.get_rng_state()
    list(datamodule.train_dataloader())
    list(datamodule.scoring_dataloader("pool"))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_yield_the_same_batches(load, path, step_contents):
    datamodule = load(path, num_workers=1)
    assert datamodule.train_dataloader().num_workers == 1
    assert step_contents(datamodule) == step_contents(load(path))


# Neither file order, nor the order of columns, nor the file's name.


def test_order_of_rows_and_of_columns_in_the_file_changes_nothing(load, write_jsonl, make_rows, step_contents, by_id):
    rows = make_rows(60)
    turned = [
        {**row, "response_a": row["response_b"], "response_b": row["response_a"], "label": 1 - row["label"]}
        for row in reversed(rows)
    ]
    first, second = (load(write_jsonl(name, r)) for name, r in (("one.jsonl", rows), ("two.jsonl", turned)))
    assert step_contents(first) == step_contents(second)
    assert str(list(first.scoring_dataloader("pool"))) == str(list(second.scoring_dataloader("pool")))
    assert by_id(first.test_dataloader()) == by_id(second.test_dataloader())
    assert first.data.fingerprint == second.data.fingerprint


# Phases.


def test_a_fold_phase_leaves_out_what_the_fold_scores(datamodule, step_contents, by_id):
    seed, scored = set(datamodule.pair_ids("seed").tolist()), []
    for fold in range(4):
        datamodule.begin_phase(1, fold, num_folds=4)
        trained = {i for step in step_contents(datamodule) for i in step}
        scored.append(set(by_id(datamodule.scoring_dataloader("seed", fold, 4))))
        assert scored[-1] == seed - trained == set(datamodule.pair_ids("seed", fold, 4).tolist())
        assert trained - seed == set()  # what was accepted for the phase that leaves nothing out is not for this one
        prompts = [
            {p.prompt[0]["content"] for p in datamodule.lookup(list(ids))} for ids in (scored[-1], seed - scored[-1])
        ]
        assert not prompts[0] & prompts[1]
    assert set.union(*scored) == seed
    assert sum(map(len, scored)) == len(seed)


def test_each_fold_has_accepted_labels_of_its_own(datamodule, step_contents, select):
    seed, pool = set(datamodule.pair_ids("seed").tolist()), datamodule.pair_ids("pool")
    own = {None: pool[:3], 0: pool[3:5], 1: pool[5:9]}
    for fold, ids in own.items():
        datamodule.accept(select(ids, [1] * len(ids)), fold=fold)
    state = datamodule.state_dict()
    datamodule.accept(select(pool[9:10], [0]), fold=1)
    datamodule.load_state_dict(state)
    for fold, ids in own.items():
        datamodule.begin_phase(1, fold, num_folds=2)
        trained = {i for step in step_contents(datamodule) for i in step}
        assert trained - seed == set(ids.tolist())


def test_accepted_labels_are_trained_on_beside_those_of_the_seed(datamodule, step_contents, select):
    pool, seed = datamodule.pair_ids("pool")[:3], datamodule.pair_ids("seed")
    datamodule.accept(select(pool, [1, 0, 1]))
    datamodule.begin_phase(1)
    contents = {k: v for step in step_contents(datamodule) for k, v in step.items()}
    assert [contents[i][2] for i in pool.tolist()] == [1, 0, 1]
    assert [contents[i][2] for i in seed.tolist()] == datamodule.seed_labels(seed).tolist()
    assert {content[3] for content in contents.values()} == {1.0}


def test_impossible_phases_are_refused(datamodule):
    with pytest.raises(ValueError, match="fold: got 3 of 3"):
        datamodule.begin_phase(0, fold=3)
    with pytest.raises(UserError, match=r"folds: got 1000 of a seed with \d+ dialogues; use fewer folds"):
        datamodule.scoring_dataloader("seed", 0, 1000)
    with pytest.raises(ValueError, match="only the seed has folds"):
        datamodule.scoring_dataloader("pool", 0)


# Accepted labels.


def test_a_new_selection_replaces_the_old_one(datamodule, select):
    ids = datamodule.pair_ids("pool")[30:33]
    datamodule.accept(select(ids.flip(0), [1, 0, 0], round=4))
    assert datamodule.accepted.pair_id.tolist() == ids.tolist()
    assert datamodule.accepted.label.tolist() == [0, 0, 1]
    assert (datamodule.accepted.round, datamodule.accepted.status) == (4, 1)


@pytest.mark.parametrize("split", ["seed", "test"])
def test_only_pool_pairs_can_be_accepted(datamodule, split, select):
    ids = torch.cat([datamodule.pair_ids("pool")[:2], datamodule.pair_ids(split)[:1]])
    with pytest.raises(ValueError, match="1 of 3 pairs are not in the pool"):
        datamodule.accept(select(ids))


def test_labels_must_be_labels_and_pairs_come_once(datamodule, select):
    ids = datamodule.pair_ids("pool")[:2]
    for wrong in (select(ids, [0, 2]), select(ids[[0, 0]])):
        with pytest.raises(ValueError, match="needs each pair once, with the label 0 or 1"):
            datamodule.accept(wrong)


class Items(Dataset):
    """Numbers, each announced when it is made; 3 is bad."""

    def __init__(self):
        self.made = [threading.Event() for _ in range(6)]

    def __len__(self):
        return len(self.made)

    def __getitem__(self, index):
        if index == 3:
            raise UserError("item 3 is bad")
        self.made[index].set()
        return index


def test_the_loader_makes_the_next_item_while_one_is_in_use_and_no_more_than_that():
    items = Items()
    loader = iter(make_loader(items, 0))
    assert next(loader) == 0
    assert items.made[1].wait(10)
    assert not items.made[2].is_set()
    assert next(loader) == 1 and items.made[2].wait(10)


def test_an_error_in_the_loader_comes_in_its_turn_and_a_loader_can_be_left():
    seen = []
    with pytest.raises(UserError, match="item 3 is bad"):
        seen.extend(item for item in make_loader(Items(), 0) if seen.append(item))
    assert seen == [0, 1, 2]
    for item in make_loader(Items(), 0):
        if item == 1:
            break
    assert len(make_loader(Items(), 0)) == 6


def test_a_loop_over_steps_or_batches_ends(load, path):
    """Python goes on to the next number until there is an IndexError."""
    for kind in (PreferenceDataModule, ResponseDataModule, PromptDataModule):
        steps = load(path, kind=kind).train_dataloader().dataset
        assert len([*steps]) == len(steps) > 0
    for loader in (load(path).scoring_dataloader("pool"), load(path, kind=PromptDataModule).predict_dataloader()):
        assert len([*loader.dataset]) == len(loader.dataset) > 0
