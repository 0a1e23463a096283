"""Prompts: whose they are, in which step they come, and that those of the test set are never trained on."""

import itertools
import json
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoTokenizer

from ser_lightning.data.encode import encode_prompts
from ser_lightning.data.formats import prompt_hash
from ser_lightning.datamodules import prompts as prompts_module
from ser_lightning.datamodules.prompts import PromptDataModule, distinct_prompts
from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone
from ser_lightning.modules.ppo import PPOModule
from ser_lightning.records import Prompt, PromptBatch
from ser_lightning.rl.experience import PPOSettings
from ser_lightning.rl.policy_math import FixedKL
from ser_lightning.rl.rollout import Sampling
from ser_lightning.synthetic.world import WORLD_LM_PATH, generate_pairs, gold_scores


@pytest.fixture
def load_prompts(load):
    return partial(load, kind=PromptDataModule)


def asked(*texts: str) -> list[dict]:
    """One user turn after another, each answered but the last."""
    turns = []
    for text in texts:
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "Well."}]
    return turns[:-1]


def texts(prompts) -> list[str]:
    return [prompt.turns[-1]["content"] for prompt in prompts]


def prompts_of(datamodule, split) -> set[str]:
    """Prompts of a `PreferenceDataModule`'s split."""
    return {pair.prompt[-1]["content"] for pair in datamodule.lookup(datamodule.pair_ids(split))}


# Encoding.


def test_prompts_are_encoded_as_the_template_does(tiny_tokenizer):
    world = AutoTokenizer.from_pretrained(WORLD_LM_PATH)
    dialogues = [asked("Hi"), asked("one", "two"), asked("Is it so?", "Why?", "How?")]
    for tokenizer in (tiny_tokenizer, world):
        plain = [
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
            for turns in dialogues
        ]
        assert encode_prompts(tokenizer, dialogues, 200) == plain
    assert tiny_tokenizer.decode(encode_prompts(tiny_tokenizer, [asked("Hi")], 200)[0]) == (
        "<bos><user>Hi<eos><assistant>"
    )


def test_a_long_prompt_loses_its_oldest_turns_then_the_front_of_the_last_one(tiny_tokenizer):
    def encoded(turns, max_length):
        [ids] = encode_prompts(tiny_tokenizer, [turns], max_length)
        assert len(ids) <= max_length
        return tiny_tokenizer.decode(ids)

    system = [{"role": "system", "content": "Be kind"}]
    dialogue = [*system, *asked("one", "two", "three")]
    kept = "<bos><system>Be kind<eos><user>three<eos><assistant>"
    length = len(kept) - len("<bos>") - 2 * len("<eos>") + 3
    assert encoded(dialogue, length) == kept
    assert encoded(dialogue, length - 2) == kept.replace("three", "ree")
    assert encoded(dialogue, length - 5) == kept.replace("three", "")
    with pytest.raises(UserError, match=f"got more than {length - 6} tokens even in the shortest form"):
        encode_prompts(tiny_tokenizer, [asked("Hi"), dialogue], length - 6)


def test_a_template_with_a_clock_gets_the_fixed_date_and_one_that_refuses_a_role_says_so(tiny_tokenizer):
    world = AutoTokenizer.from_pretrained(WORLD_LM_PATH)
    with pytest.raises(UserError, match="chat template refuses a prompt: got .* for the roles system, user; use turns"):
        encode_prompts(world, [asked("Hi"), [{"role": "system", "content": "Be kind"}, *asked("Hi")]], 200)
    world.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}"
    assert world.decode(encode_prompts(world, [asked("Hi")], 200)[0]).startswith("26 Jul 2024")


# Whose prompts.


def test_prompts_of_seed_and_pool_are_trained_on_and_those_of_the_test_split_held_out(load, load_prompts, path):
    arguments = {"seed_fraction": 0.4, "val_fraction": 0.3}
    datamodule, other = load_prompts(path, **arguments), load(path, **arguments)
    assert datamodule.data.fingerprint == other.data.fingerprint
    assert set(texts(datamodule.train_prompts)) == prompts_of(other, "seed") | prompts_of(other, "pool")
    assert set(texts(datamodule.val_prompts)) == prompts_of(other, "test")
    for prompts in (datamodule.train_prompts, datamodule.val_prompts):
        ids = [prompt.prompt_id for prompt in prompts]
        assert ids == sorted(set(ids)) == [prompt_hash(prompt.turns) for prompt in prompts]
    few = load_prompts(path, num_val_prompts=3, **arguments)
    assert few.val_prompts == datamodule.val_prompts[:3] and len(datamodule.val_prompts) > 3
    assert few.train_prompts == datamodule.train_prompts


def test_prompts_carry_the_ids_up_to_where_the_response_begins(load_prompts, path, tiny_tokenizer):
    datamodule = load_prompts(path)
    for prompt in datamodule.train_prompts + datamodule.val_prompts:
        assert tiny_tokenizer.decode(prompt.ids) == f"<bos><user>{prompt.turns[0]['content']}<eos><assistant>"


def test_no_label_changes_a_prompt(load_prompts, write_jsonl, make_rows):
    rows, pool = make_rows(90), make_rows(30, seed=1)
    found = []
    for name, change in (("a", dict), ("b", lambda row: {**row, "label": 1 - row["label"]})):
        more = write_jsonl(f"pool-{name}.jsonl", [change(row) for row in pool])
        datamodule = load_prompts(write_jsonl(f"{name}.jsonl", [change(row) for row in rows]), pool_path=more)
        found.append((datamodule.train_prompts, datamodule.val_prompts, list(datamodule.train_dataloader())))
    assert found[0] == found[1]


def test_prompts_of_other_files_join_unless_the_test_split_has_their_dialogue(load_prompts, write_jsonl, path):
    before = load_prompts(path)
    held_out, known = before.val_prompts[0].turns[0]["content"], before.train_prompts[0].turns[0]["content"]
    rows = [
        {"prompt": "  Something  new "},
        {"prompt": asked("One", "Two"), "label": "nobody reads this"},
        {"prompt": "Human: Three\n\nAssistant:"},
        {"prompt": held_out.upper()},
        {"prompt": asked(held_out, "And then?")},
        {"prompt": f" {known}"},
        {"prompt": " "},
        {"prompt": "something new"},
    ]
    new = {"  Something  new ", "Two", "Three"}
    for name, column in (("a", "prompt"), ("b", "question")):
        files = [
            write_jsonl(f"{name}{i}.jsonl", [{column: r["prompt"]} for r in part])
            for i, part in enumerate((rows[:3], rows[3:]))
        ]
        after = load_prompts(path, prompt_path=files, columns={"prompt": "question"} if name == "b" else None)
        assert len(after.train_prompts) == len(before.train_prompts) + 3
        assert {t for t in texts(after.train_prompts) if t in new} == new
        assert after.val_prompts == before.val_prompts
        assert not {p.prompt_id for p in after.train_prompts} & {p.prompt_id for p in after.val_prompts}


def test_a_prompt_is_not_trained_on_where_the_test_split_continues_it(load_prompts, write_jsonl, make_rows):
    test = [{"prompt": asked("First", "Second"), "chosen": "Yes", "rejected": "No"}]
    arguments = {
        "test_path": write_jsonl("t.jsonl", test),
        "prompt_path": write_jsonl("p.jsonl", [{"prompt": "first"}]),
    }
    datamodule = load_prompts(write_jsonl("a.jsonl", make_rows(9)), **arguments)
    assert texts(datamodule.val_prompts) == ["Second"]
    assert "first" not in texts(datamodule.train_prompts)


def test_of_prompts_that_differ_in_white_space_the_same_one_stays_whatever_the_order():
    prompts = [asked(text) for text in ("Hi you", "hi  you", "HI you", "Other")]
    kept = [distinct_prompts(order) for order in itertools.permutations(prompts)]
    assert all(list(one.items()) == list(kept[0].items()) for one in kept)
    assert len(kept[0]) == 2 and list(kept[0]) == sorted(kept[0])
    assert min(json.dumps(prompt) for prompt in prompts[:3]) == json.dumps(kept[0][prompt_hash(prompts[0])])


def test_long_prompts_are_cut_and_counted(load_prompts, write_jsonl, path, tiny_tokenizer, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(prompts_module, "rank_zero_info", said.append)
    whole = load_prompts(path)
    assert said == [f"Prompts: {len(whole.train_prompts)} to train on, {len(whole.val_prompts)} held out"]
    long = write_jsonl("p.jsonl", [{"prompt": "x" * 300}, {"prompt": "y" * 400}, {"prompt": asked("z" * 300, "short")}])
    cut = load_prompts(path, prompt_path=long, max_prompt_length=100)
    assert said[1] == f"Prompts: {len(whole.train_prompts) + 3} to train on, {len(whole.val_prompts)} held out; 3 cut"
    ids = {prompt.turns[-1]["content"]: prompt.ids for prompt in cut.train_prompts}
    room = 100 - len(ids["short"]) + len("short")
    assert tiny_tokenizer.decode(ids["short"]) == "<bos><user>short<eos><assistant>"
    assert tiny_tokenizer.decode(ids["x" * 300]) == f"<bos><user>{'x' * room}<eos><assistant>"
    assert max(map(len, ids.values())) == 100


# Steps.


def all_steps(datamodules, num_epochs) -> list[list[Prompt]]:
    """The prompts of each step in the order of their positions, over all ranks."""
    found = []
    for epoch in range(num_epochs):
        for datamodule in datamodules:
            datamodule.trainer.current_epoch = epoch
        for batches in zip(*(datamodule.train_dataloader() for datamodule in datamodules), strict=True):
            assert all(isinstance(batch, PromptBatch) for batch in batches)
            assert {batch.step for batch in batches} == {len(found)}
            placed = {p: prompt for b in batches for p, prompt in zip(b.positions, b.prompts, strict=True)}
            assert sorted(placed) == list(range(batches[0].num_step_prompts))
            assert sum(len(batch.prompts) for batch in batches) == len(placed)
            found.append([placed[position] for position in sorted(placed)])
    return found


@pytest.mark.parametrize("prompts_per_step", [4, 7, 100])
def test_steps_are_pieces_of_an_endless_row_in_which_each_pass_holds_every_prompt_once(
    load_prompts, path, prompts_per_step
):
    datamodule = load_prompts(path, prompts_per_step=prompts_per_step, steps_per_epoch=5)
    steps = all_steps([datamodule], 4)
    assert [len(step) for step in steps] == [prompts_per_step] * 20
    row = [prompt.prompt_id for step in steps for prompt in step]
    num_prompts = len(datamodule.train_prompts)
    passes = [row[i : i + num_prompts] for i in range(0, len(row) - num_prompts + 1, num_prompts)]
    assert len(passes) > 1
    assert all(sorted(one) == [prompt.prompt_id for prompt in datamodule.train_prompts] for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_a_step(load_prompts, path, world_size):
    alone = all_steps([load_prompts(path, prompts_per_step=7)], 2)
    ranks = [load_prompts(path, rank, world_size, prompts_per_step=7) for rank in range(world_size)]
    assert all_steps(ranks, 2) == alone
    assert ranks[-1].train_dataloader().dataset[0].positions == list(range(7))[world_size - 1 :: world_size]


def test_a_resumed_run_sees_the_steps_that_it_would_have_seen(load_prompts, path):
    running = load_prompts(path)
    for epoch in range(3):
        running.trainer.current_epoch = epoch
        torch.rand(3)  # the global generator has no part in it
        assert list(load_prompts(path, epoch=epoch).train_dataloader()) == list(running.train_dataloader())
    assert list(load_prompts(path, epoch=2, num_workers=1).train_dataloader()) == list(running.train_dataloader())
    one_long_epoch = load_prompts(path, steps_per_epoch=15)
    assert list(one_long_epoch.train_dataloader())[10:] == list(running.train_dataloader())
    other = load_prompts(path, epoch=2, split_seed=1)
    assert texts(next(iter(other.train_dataloader())).prompts) != texts(next(iter(running.train_dataloader())).prompts)


def test_order_of_rows_in_the_file_changes_nothing(load_prompts, write_jsonl, make_rows):
    rows = make_rows(60)
    found = [load_prompts(write_jsonl(f"{i}.jsonl", part)) for i, part in enumerate((rows, rows[::-1]))]
    assert list(found[0].train_dataloader()) == list(found[1].train_dataloader())
    assert found[0].val_prompts == found[1].val_prompts


# Validation and prediction.


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["val", "predict train", "predict val"])
def test_every_prompt_comes_once_in_equally_many_batches_a_rank(load_prompts, path, world_size, kind):
    arguments = {"val_prompts_per_batch": 3, "num_val_prompts": 7, "predict_split": kind.split()[-1]}
    ranks = [load_prompts(path, rank, world_size, **arguments) for rank in range(world_size)]
    loaders = [list(d.val_dataloader() if kind == "val" else d.predict_dataloader()) for d in ranks]
    assert len({len(batches) for batches in loaders}) == 1
    expected = ranks[0].train_prompts if kind == "predict train" else ranks[0].val_prompts
    found: dict[int, Prompt] = {}
    for batch in (batch for batches in loaders for batch in batches):
        assert len(batch.prompts) == len(batch.positions) <= 3
        assert (batch.step, batch.num_step_prompts) == (0, len(expected))
        assert not found.keys() & set(batch.positions)
        found.update(zip(batch.positions, batch.prompts, strict=True))
    assert [found[position] for position in range(len(expected))] == expected and len(found) == len(expected)
    if world_size == 8 and kind != "predict train":
        assert loaders[7] == [PromptBatch([], [], 7, 0)]


class Probe(pl.LightningModule):
    """Notes the prompts that each stage gives it."""

    def __init__(self, tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.automatic_optimization = False
        self.seen: dict[str, list[int]] = {"fit": [], "val": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["fit"] += [prompt.prompt_id for prompt in batch.prompts]

    def validation_step(self, batch, batch_idx):
        self.seen["val"] += [prompt.prompt_id for prompt in batch.prompts]

    def predict_step(self, batch, batch_idx):
        self.seen["predict"] += [prompt.prompt_id for prompt in batch.prompts]
        return []

    def configure_optimizers(self):
        return None


def test_a_real_trainer_gets_the_prompts(load_prompts, path, tiny_tokenizer, tmp_path):
    datamodule = PromptDataModule(path, prompts_per_step=4, steps_per_epoch=3)
    probe = Probe(tiny_tokenizer)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
        reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    trainer.fit(probe, datamodule=datamodule)
    pretended = load_prompts(path, prompts_per_step=4, steps_per_epoch=3)
    steps = all_steps([pretended], 2)
    assert probe.seen["fit"] == [prompt.prompt_id for step in steps for prompt in step]
    assert probe.seen["val"] == 2 * [prompt.prompt_id for prompt in pretended.val_prompts]
    trainer.predict(probe, datamodule=datamodule)
    assert probe.seen["predict"] == [prompt.prompt_id for prompt in pretended.train_prompts]


# Errors.


def test_nothing_to_train_on_or_to_hold_out_is_said_in_a_line_each(load_prompts, write_jsonl, make_rows, path):
    with pytest.raises(UserError, match="test: got no prompts to hold out; set data.test_path or data.test_fraction"):
        load_prompts(path, test_fraction=0.0)
    rows = make_rows(9)
    same = write_jsonl("a.jsonl", rows)
    with pytest.raises(UserError) as error:
        load_prompts(same, test_path=write_jsonl("b.jsonl", [*rows, *make_rows(3, seed=1)]))
    assert error.value.problems == [
        "prompts: got none to train on outside the test set; give data.prompt_path, or more pairs in data.path"
    ]
    with pytest.raises(UserError, match="prompts_per_step: got 2 for 3 devices"):
        load_prompts(path, 0, 3, prompts_per_step=2).train_dataloader()


def test_rows_without_a_prompt_are_all_named_at_once(load_prompts, write_jsonl, path):
    rows = [{"prompt": "Hi"}, {"question": "Hi"}, {"prompt": 3}, {"prompt": [{"role": "user"}]}]
    with pytest.raises(UserError) as error:
        load_prompts(path, prompt_path=write_jsonl("p.jsonl", rows))
    starts = [problem.partition("p.jsonl, ")[2] for problem in error.value.problems]
    assert starts == [
        "line 2: got the columns question; name the prompt with columns: {prompt: ...}",
        "line 3: got a int ('3') in prompt; use text, or turns with role and content",
        "line 4: got no content in turn 1 of prompt; use text, or turns with role and content",
    ]
    with pytest.raises(UserError, match="nowhere.jsonl: got no such file"):
        load_prompts(path, prompt_path="nowhere.jsonl")


def test_ten_rows_without_a_prompt_are_enough(load_prompts, write_jsonl, path):
    rows = [{chr(ord("A") + i): "x"} for i in range(26)]
    with pytest.raises(UserError) as error:
        load_prompts(path, prompt_path=write_jsonl("p.jsonl", rows))
    assert [line.partition(": ")[0].rpartition(", ")[2] for line in error.value.problems] == [
        f"line {i}" for i in range(1, 11)
    ]


def test_impossible_arguments_are_all_named_at_once():
    names = ["max_prompt_length", "prompts_per_step", "steps_per_epoch", "num_val_prompts", "val_prompts_per_batch"]
    with pytest.raises(UserError) as error:
        PromptDataModule(**dict.fromkeys(names, 0))
    assert [problem.partition(":")[0] for problem in error.value.problems] == names


# The gold judge.


def test_gold_scores_are_those_of_the_synthetic_pairs():
    pairs = list(generate_pairs(20, seed=5))
    prompts = [[*asked("Something else"), {"role": "assistant", "content": "No."}, *asked(p.prompt)] for p in pairs]
    assert gold_scores(prompts, [p.response_a for p in pairs]) == [p.gold_a for p in pairs]
    with pytest.raises(ValueError, match="shorter"):
        gold_scores(prompts, [])


def ppo(model_dir, of_training, of_sampling) -> PPOModule:
    settings = FixedKL(0.1), Sampling(8), PPOSettings()
    module = PPOModule(
        *(Backbone(str(model_dir)), "ser_lightning.gold_scores", *settings),
        **{"tokens_per_batch": of_training, "tokens_per_sampling_batch": of_sampling},
    )  # fmt: skip
    module.configure_model()
    return module


def on_cuda(datamodule, model, monkeypatch, num_bytes):
    """As if a trainer ran both on a GPU of this size."""
    monkeypatch.setattr(prompts_module, "device_bytes", lambda device: ("GPU", num_bytes))
    strategy, state = SimpleNamespace(root_device=torch.device("cuda")), SimpleNamespace(fn="fit")
    datamodule.trainer = SimpleNamespace(strategy=strategy, precision="32-true", state=state, lightning_module=model)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (("auto", "auto"), "Batches: auto is {:,} tokens in training and {:,} tokens in sampling."),
        ((512, "auto"), "Batches: auto is {1:,} tokens in sampling."),
        (("auto", 512), "Batches: auto is {0:,} tokens in training."),
    ],
)
def test_auto_is_what_fits_beside_all_models_and_is_told_to_the_module(
    tiny_model_dir, settings, line, monkeypatch, caplog
):
    model, datamodule = ppo(tiny_model_dir, *settings), PromptDataModule()
    assert model.wants_budgets
    with caplog.at_level("INFO"):
        datamodule._set_budgets(model)
    assert model.auto_tokens == (1536, 16384) and not model.wants_budgets
    sizes = []
    for gib in (1.01, 1.05, 40):
        on_cuda(datamodule, model, monkeypatch, int(gib * 2**30))
        model.auto_tokens = None
        with caplog.at_level("INFO"):
            datamodule._check([])
        sizes.append(model.auto_tokens)
        assert caplog.messages[-1] == line.format(*model.auto_tokens)
        assert [model._tokens(i) for i in (0, 1)] == [
            given if given == 512 else auto for given, auto in zip(settings, model.auto_tokens, strict=True)
        ]
    assert sizes[0] < sizes[1] < sizes[2] == (65536, 65536)


def test_numbers_stay_what_they_are(tiny_model_dir):
    model = ppo(tiny_model_dir, 100, 200)
    assert not model.wants_budgets and [model._tokens(i) for i in (0, 1)] == [100, 200]
    with pytest.raises(RuntimeError, match="comes from the data module"):
        ppo(tiny_model_dir, "auto", 200)._tokens(0)
