"""Responses to imitate: the chosen ones of the seed and no other, and of each conversation the response alone."""

import copy
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from ser_lightning.datamodules import responses as responses_module
from ser_lightning.datamodules.responses import ResponseDataModule
from ser_lightning.errors import UserError
from ser_lightning.records import ResponseBatch
from tests.policy_runs import loaded, sft

BOS, EOS = "<bos>", "<eos>"


@pytest.fixture
def load_responses(load):
    return partial(load, kind=ResponseDataModule)


def mask_of(batch) -> torch.Tensor:
    """(B, T) bool, True = what the loss counts."""
    mask = torch.zeros_like(batch.inputs.input_ids, dtype=torch.bool)
    mask.view(-1)[batch.response_places] = True
    return mask


def contents(tokenizer, batches) -> list[tuple[str, str]]:
    """What the model reads and what the loss counts, row by row, as text."""
    found = []
    for batch in batches:
        inputs = batch.inputs
        assert inputs.input_ids.shape == inputs.attention_mask.shape
        for ids, real, mask in zip(inputs.input_ids, inputs.attention_mask.bool(), mask_of(batch), strict=True):
            assert bool((real[1:] <= real[:-1]).all())  # padded on the right
            found.append((tokenizer.decode(ids[real]), tokenizer.decode(ids[mask])))
    return found


def steps(tokenizer, *datamodules) -> list[tuple[list[tuple[str, str]], int]]:
    """For each step the responses of all ranks, sorted and without fillers, and the tokens that it is divided by."""
    found = []
    for ranks in zip(*(datamodule.train_dataloader() for datamodule in datamodules), strict=True):
        batches = [batch for rank in ranks for batch in rank]
        [num_tokens] = {batch.num_step_tokens for batch in batches}
        found.append((sorted(row for row in contents(tokenizer, batches) if row[1]), num_tokens))
    return found


def texts_of(tokenizer, datamodule) -> list[tuple[str, str]]:
    return sorted(row for step, _ in steps(tokenizer, datamodule) for row in step)


def chosen_text(row: dict) -> tuple[str, str]:
    """A row of `make_rows` as `contents` gives it."""
    response = row["response_a"] if row["label"] else row["response_b"]
    return f"{BOS}<user>{row['prompt']}{EOS}<assistant>{response}{EOS}", response + EOS


def turn(row: dict) -> dict:
    return {**row, "label": 1 - row["label"]}


def test_the_mask_is_true_from_the_first_token_of_the_response_to_its_end(load_responses, write_jsonl, tiny_tokenizer):
    path = write_jsonl("a.jsonl", [{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}])
    datamodule = load_responses(path, seed_fraction=1.0, test_fraction=0.0)
    [[batch]] = datamodule.train_dataloader()
    letters = {letter: tiny_tokenizer.encode(letter)[0] for letter in "<>aeinrstuHYs"}
    start = [1, *(letters[c] for c in "<user>Hi"), 2, *(letters[c] for c in "<assistant>")]
    assert batch.inputs.input_ids.tolist() == [[*start, letters["Y"], letters["e"], letters["s"], 2]]
    assert mask_of(batch).tolist() == [[False] * len(start) + [True] * 4]
    assert batch.num_step_tokens == 4


def test_prompt_and_response_that_begin_alike_do_not_shift_the_mask(load_responses, write_jsonl, tiny_tokenizer):
    rows = [{"prompt": "Yes", "chosen": "<assistant>Yes or", "rejected": "<assistant>Yes or no"}]
    datamodule = load_responses(write_jsonl("a.jsonl", rows), seed_fraction=1.0, test_fraction=0.0)
    [(_, counted)] = texts_of(tiny_tokenizer, datamodule)
    assert counted == f"<assistant>Yes or{EOS}"


def test_a_template_without_generation_prompt_counts_all_behind_the_prompt(load_responses, write_jsonl, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.partition("{% if add_generation_prompt %}")[0]
    path = write_jsonl("a.jsonl", [{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}])
    datamodule = load_responses(path, seed_fraction=1.0, test_fraction=0.0, tokenizer=tokenizer)
    assert texts_of(tokenizer, datamodule) == [(f"{BOS}<user>Hi{EOS}<assistant>Yes{EOS}", f"<assistant>Yes{EOS}")]


@pytest.mark.parametrize("max_length", [30, 40, 60])
def test_a_prompt_that_is_cut_does_not_shift_the_mask(load_responses, write_jsonl, tiny_tokenizer, max_length):
    turns = [
        {"role": "user", "content": "first question"},
        {"role": "assistant", "content": "first answer"},
        {"role": "user", "content": "abcdefghijklmnopqrstuvwxyz"},
    ]
    path = write_jsonl("a.jsonl", [{"prompt": turns, "chosen": "Yes", "rejected": "No way"}])
    datamodule = load_responses(path, seed_fraction=1.0, test_fraction=0.0, max_length=max_length)
    [(whole, counted)] = texts_of(tiny_tokenizer, datamodule)
    assert whole.startswith(f"{BOS}<user>") and whole.endswith(f"z{EOS}<assistant>Yes{EOS}")
    assert "first question" not in whole
    assert counted == f"Yes{EOS}"


def test_an_epoch_is_the_chosen_responses_of_the_seed_once(
    load, load_responses, write_jsonl, make_rows, tiny_tokenizer
):
    rows = [{**row, "id": str(i)} for i, row in enumerate(make_rows(90))]
    arguments = {"seed_fraction": 0.4, "val_fraction": 0.2}
    path = write_jsonl("pairs.jsonl", rows)
    datamodule, other = load_responses(path, **arguments), load(path, **arguments)
    seed = [rows[int(pair.source_id)] for pair in other.lookup(other.pair_ids("seed"))]
    assert len(seed) > 15
    assert texts_of(tiny_tokenizer, datamodule) == sorted(map(chosen_text, seed))


def test_the_splits_are_those_of_the_reward_model(load, load_responses, path, write_jsonl, make_rows):
    files = [write_jsonl(f"{seed}.jsonl", make_rows(30, seed)) for seed in (1, 2)]
    extra = {"pool_path": files[0], "test_path": files[1]}
    for arguments in ({}, {"split_seed": 3, "seed_fraction": 0.5, "val_fraction": 0.3}, extra):
        datamodule, other = load_responses(path, **arguments), load(path, **arguments)
        assert datamodule.data.fingerprint == other.data.fingerprint
        assert datamodule.report == other.report


@pytest.mark.parametrize("in_own_file", [False, True])
def test_labels_of_pool_and_test_set_change_nothing_and_one_of_the_seed_does(
    load, load_responses, write_jsonl, make_rows, tiny_tokenizer, in_own_file
):
    rows = [{**row, "id": str(i)} for i, row in enumerate(make_rows(120))]
    pool = make_rows(30, seed=1)
    arguments = {"seed_fraction": 0.4, "val_fraction": 0.2}

    def seen(name, rows, pool):
        more = {"pool_path": write_jsonl(f"pool-{name}", pool)} if in_own_file else {}
        datamodule = load_responses(write_jsonl(name, rows), responses_per_step=5, **arguments, **more)
        return steps(tiny_tokenizer, datamodule), contents(tiny_tokenizer, datamodule.val_dataloader())

    path = write_jsonl("a.jsonl", rows)
    other = load(path, **arguments, **({"pool_path": write_jsonl("b.jsonl", pool)} if in_own_file else {}))
    splits = ("pool", "test", "seed")
    ids = {split: {pair.source_id for pair in other.lookup(other.pair_ids(split))} for split in splits}
    before = seen("c.jsonl", rows, pool)
    hidden = ids["pool"] | ids["test"]
    turned = [turn(row) if row["id"] in hidden else row for row in rows]
    assert turned != rows
    assert seen("d.jsonl", turned, [turn(row) for row in pool]) == before
    one = min(ids["seed"])
    assert seen("e.jsonl", [turn(row) if row["id"] == one else row for row in rows], pool) != before


@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_response_that_was_chosen_twice_counts_once(load_responses, write_jsonl, tiny_tokenizer, monkeypatch, chunk):
    monkeypatch.setattr(responses_module, "_CHUNK", chunk)
    rows = [{"prompt": "Hi", "chosen": "Yes", "rejected": f"No {i}"} for i in range(5)]
    rows += [{"prompt": "Ho", "chosen": "Yes", "rejected": "No"}, {"prompt": "Hi", "chosen": "Maybe", "rejected": "No"}]
    datamodule = load_responses(write_jsonl("a.jsonl", rows), seed_fraction=1.0, test_fraction=0.0)
    found = texts_of(tiny_tokenizer, datamodule)
    assert [counted for _, counted in found] == [f"Maybe{EOS}", f"Yes{EOS}", f"Yes{EOS}"]
    assert len(set(found)) == len(datamodule.responses) == 3


# Steps.


@pytest.mark.parametrize("budget", [1, 300, 100_000])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_neither_ranks_nor_token_budget_change_a_step(load_responses, path, tiny_tokenizer, world_size, budget):
    def found(world_size, budget):
        arguments = {"seed_fraction": 0.5, "responses_per_step": 7, "tokens_per_batch": budget}
        ranks = [load_responses(path, rank, world_size, epoch=2, **arguments) for rank in range(world_size)]
        for batch in (batch for datamodule in ranks for step in datamodule.train_dataloader() for batch in step):
            assert batch.inputs.input_ids.numel() <= budget or len(batch.inputs.input_ids) == 1
        return steps(tiny_tokenizer, *ranks)

    whole = found(1, 4096)
    assert found(world_size, budget) == whole
    sizes = [len(rows) for rows, _ in whole]
    assert set(sizes[:-1]) == {7} and 0 < sizes[-1] <= 7
    for rows, num_tokens in whole:  # one token a byte, and one for the end
        assert num_tokens == sum(len(counted) - len(EOS) + 1 for _, counted in rows)


def test_a_rank_without_a_response_gets_one_of_which_nothing_counts(load_responses, path):
    loaded = [load_responses(path, rank, 3, responses_per_step=2) for rank in range(3)]
    [busy], [idle] = (datamodule.train_dataloader().dataset[0] for datamodule in (loaded[0], loaded[2]))
    assert torch.equal(idle.inputs.input_ids, busy.inputs.input_ids)
    assert len(busy.response_places) and not len(idle.response_places)
    assert idle.num_step_tokens == busy.num_step_tokens > 0


def test_a_resumed_run_sees_the_epoch_that_it_would_have_seen(load_responses, path, tiny_tokenizer):
    def epoch(number, **arguments):
        datamodule = load_responses(path, epoch=number, seed_fraction=0.5, responses_per_step=4, **arguments)
        torch.rand(3)  # the global generator has no part in it
        return steps(tiny_tokenizer, datamodule)

    running = load_responses(path, seed_fraction=0.5, responses_per_step=4)
    for number in range(3):
        running.trainer.current_epoch = number
        assert steps(tiny_tokenizer, running) == epoch(number)
    assert epoch(0) != epoch(1) != epoch(2)
    assert sorted(row for step, _ in epoch(0) for row in step) == sorted(row for step, _ in epoch(1) for row in step)
    assert epoch(1, num_workers=1) == epoch(1)


# Validation and errors.


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_held_out_response_is_validated_once(
    load, load_responses, write_jsonl, make_rows, tiny_tokenizer, world_size
):
    rows = [{**row, "id": str(i)} for i, row in enumerate(make_rows(90))]
    path = write_jsonl("pairs.jsonl", rows)
    arguments = {"seed_fraction": 0.6, "val_fraction": 0.3, "tokens_per_batch": 300}
    ranks = [load_responses(path, rank, world_size, **arguments) for rank in range(world_size)]
    loaders = [list(datamodule.val_dataloader()) for datamodule in ranks]
    assert len({len(batches) for batches in loaders}) == 1
    batches = [batch for loader in loaders for batch in loader]
    assert all(isinstance(batch, ResponseBatch) for batch in batches)
    other = load(path, **arguments)
    held_out = [rows[int(pair.source_id)] for pair in other.lookup(other.pair_ids("val"))]
    assert len(held_out) > 5
    found = [row for row in contents(tiny_tokenizer, batches) if row[1]]
    assert sorted(found) == sorted(map(chosen_text, held_out))
    assert {batch.num_step_tokens for batch in batches} == {sum(len(batch.response_places) for batch in batches)}
    assert not set(found) & set(texts_of(tiny_tokenizer, ranks[0]))


def test_without_validation_pairs_fit_validates_nothing_and_validate_says_so(load_responses, path):
    datamodule = load_responses(path)
    assert datamodule.val_dataloader() == []
    datamodule.trainer.state.fn = "validate"
    with pytest.raises(UserError, match="set data.val_fraction above 0"):
        datamodule.val_dataloader()


def test_a_seed_without_a_pair_stops_training_only(load_responses, write_jsonl, make_rows):
    path = write_jsonl("a.jsonl", [{**row, "label": None} for row in make_rows(9)])
    assert load_responses(path, stage="validate").report.splits["pool"][0] == 9
    with pytest.raises(UserError, match="seed: got no labelled pair, so no response to imitate; raise"):
        load_responses(path, stage="fit")


def test_impossible_arguments_are_all_named_at_once():
    with pytest.raises(UserError) as error:
        ResponseDataModule(columns={"question": "prompt"}, responses_per_step=0, tokens_per_batch=0, num_workers=-1)
    starts = [problem.partition(":")[0] for problem in error.value.problems]
    assert starts == ["columns", "responses_per_step", "tokens_per_batch", "num_workers"]


class Probe(pl.LightningModule):
    """Notes how many response tokens each stage gives it."""

    def __init__(self, tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.automatic_optimization = False
        self.num_train = self.num_val = 0

    def training_step(self, step, batch_idx):
        self.num_train += sum(len(batch.response_places) for batch in step)

    def validation_step(self, batch, batch_idx):
        self.num_val += len(batch.response_places)

    def configure_optimizers(self):
        return None


def test_a_real_trainer_gets_whole_splits(path, tiny_tokenizer, tmp_path):
    datamodule = ResponseDataModule(path, seed_fraction=0.5, val_fraction=0.3, num_workers=0)
    probe = Probe(tiny_tokenizer)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
        reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    trainer.fit(probe, datamodule=datamodule)
    assert probe.num_train == 2 * int(datamodule.responses.num_response_tokens.sum()) > 0
    assert probe.num_val == 2 * datamodule.val_dataloader().dataset.num_tokens > 0


def test_neither_response_of_a_tie_is_imitated(load_responses, write_jsonl, make_rows):
    rows = make_rows(30)
    tied = [{**row, "label": "tie"} if i % 2 else row for i, row in enumerate(rows)]
    whole = {"seed_fraction": 1.0, "test_fraction": 0.0}
    data = load_responses(write_jsonl("tied.jsonl", tied), **whole)
    alone = load_responses(write_jsonl("alone.jsonl", rows[::2]), **whole)
    imitated = [set(one.data.store.pair_id[one.responses.rows].tolist()) for one in (data, alone)]
    assert imitated[0] == imitated[1] and len(imitated[0]) == len(data.responses) == 15


def test_auto_is_what_fits_beside_the_policy(load_responses, path, tiny_model_dir, monkeypatch, caplog):
    datamodule = load_responses(path, tokens_per_batch="auto")
    datamodule.trainer = None
    with caplog.at_level("INFO"):
        assert datamodule._budget() == 1536
    assert caplog.messages[-1] == "Batches: auto is 1,536 tokens."
    module, found = loaded(sft(tiny_model_dir)), []
    for gib in (1.0, 1.05, 40):
        monkeypatch.setattr(responses_module, "device_bytes", lambda device, gib=gib: ("GPU", int(gib * 2**30)))
        strategy = SimpleNamespace(root_device=torch.device("cuda"))
        datamodule.trainer = SimpleNamespace(strategy=strategy, precision="32-true", lightning_module=module)
        datamodule._auto_budget = None
        found.append(datamodule._budget())
    assert found[0] == 1024 < found[1] < found[2] == 65536
    assert load_responses(path, tokens_per_batch=77)._budget() == 77
