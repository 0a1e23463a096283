import json
import pickle
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from sklearn.linear_model import LogisticRegression
from transformers import LlamaConfig, LlamaForSequenceClassification
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.errors import UserError
from ser_lightning.models.readings import QUESTION, parse_readings
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.records import Features, PairBatch
from ser_lightning.training.features import (
    FeatureTable,
    body_key,
    cache_features,
    cached_keys,
    dtype_of,
    read_file,
    write_features,
)
from ser_lightning.training.reading_choice import candidate_sets, choose_readings
from ser_lightning.training.strategies import ShardStrategy
from tests.helpers import data, equal, evolution, module, trainer, weights


def cached(folder="cache"):
    return sorted(Path(folder).glob("*/features-*.bin"))


def evolve(model_dir, pairs, run, data_settings=None, reading="last", **settings):
    seed_everything(0, verbose=False)
    model, callback = module(model_dir, train="head", lr=0.05, reading=reading), evolution(**settings)
    batches = data(pairs, **(data_settings or {}))
    runner = trainer(run, callback)
    runner.fit(model, batches)
    return model, callback, batches, runner


@pytest.fixture
def body_calls(monkeypatch):
    """How many sequences the body has computed, so far."""
    calls = []
    states = RewardModel.states

    def counted(self, inputs, readings=None):
        calls.append(len(inputs.num_tokens))
        return states(self, inputs, readings)

    monkeypatch.setattr(RewardModel, "states", counted)
    return calls


@pytest.mark.parametrize("reading", ["last", ["mean@1", "judge", "last@1"]])
def test_the_head_is_the_one_that_scikit_learn_finds_on_plain_states(tiny_model_dir, pairs_file, reading):
    """Oracle: states of the untouched model, a conversation at a time, and logistic regression on differences."""
    model, _, batches, _ = evolve(tiny_model_dir, pairs_file, "run", {"max_length": 400}, reading=reading, max_rounds=0)
    plain = LlamaForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    plain_states = partial(states_by_hand, plain.model, model.tokenizer)
    kinds = ["last@2"] if reading == "last" else ["mean@1", "judge@1", "last@1"]
    differences = {}
    for split in ("seed", "pool"):
        for pair in batches.lookup(batches.pair_ids(split)):
            both = [
                plain_states([*pair.prompt, {"role": "assistant", "content": text}], kinds)
                for text in (pair.response_a, pair.response_b)
            ]
            differences[pair.pair_id] = both[0] - both[1]
    scale = torch.stack(list(differences.values())).square().mean(0).sqrt() * 16**0.5
    seed = batches.pair_ids("seed")
    x = torch.stack([differences[int(i)] for i in seed]) / scale
    oracle = LogisticRegression(C=1 / model.penalty, fit_intercept=False, tol=1e-10, solver="newton-cholesky")
    expected = oracle.fit(x.numpy(), batches.seed_labels(seed).numpy()).coef_ / scale.numpy()
    assert np.allclose(model.reward_model.model.score.weight.numpy(force=True), expected, rtol=1e-2, atol=1e-3)


def states_by_hand(body, tokenizer, turns, kinds):
    """(K * H,) states of one conversation, through all hidden states of one forward pass."""
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    start = len(tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False))
    asked = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        hidden = body(torch.tensor([asked]), output_hidden_states=True).hidden_states
        states = {1: body.norm(hidden[1])[0], 2: hidden[2][0]}
    places = {"last": slice(len(ids) - 1, len(ids)), "mean": slice(start, len(ids)), "judge": slice(-1, None)}
    return torch.cat([states[int(layer)][places[kind]].mean(0) for kind, layer in (k.split("@") for k in kinds)])


CANDIDATES = ["mean@1", "judge@1", "last@1", "last@2"]


def test_auto_chooses_as_on_plain_states_of_the_seed(tiny_model_dir, pairs_file):
    model, _, batches, _ = evolve(tiny_model_dir, pairs_file, "run", {"max_length": 400}, reading="auto", max_rounds=0)
    plain = LlamaForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    seed = batches.pair_ids("seed")
    differences = []
    for pair in batches.lookup(seed):
        turns = ([*pair.prompt, {"role": "assistant", "content": text}] for text in (pair.response_a, pair.response_b))
        first, second = (states_by_hand(plain.model, model.tokenizer, both, CANDIDATES) for both in turns)
        differences.append((first - second).view(4, 16))
    sets = candidate_sets(2)
    candidates = parse_readings(CANDIDATES, 2)
    labels, group = batches.seed_labels(seed), batches.dialogues(seed).tolist()
    expected = choose_readings(torch.stack(differences), candidates, sets, labels, group)
    evidence = model.reading_state()["evidence"]
    assert [row["is_chosen"] for row in evidence] == [row is expected.chosen for row in expected.table]
    assert model.reading_state()["readings"] == [str(reading) for reading in expected.chosen.readings]
    for row, wanted in zip(evidence, expected.table, strict=True):
        assert row["advantage"] == pytest.approx(wanted.advantage, abs=1e-4)
        assert row["penalty"] == wanted.penalty and row["accuracy"] == wanted.accuracy
        assert row["log_loss"] == pytest.approx(wanted.log_loss, abs=1e-4)


def test_auto_computes_the_seed_at_full_depth_and_the_others_as_far_as_they_are_read(
    tiny_model_dir, pairs_file, monkeypatch
):
    computed, forward = Counter(), LlamaDecoderLayer.forward
    states = RewardModel.states

    def counted_layer(self, *args, **kwargs):
        computed["layers"] += 1
        return forward(self, *args, **kwargs)

    def counted(self, inputs, readings=None):
        before = computed["layers"]
        found = states(self, inputs, readings)
        computed[computed["layers"] - before] += len(inputs.num_tokens)
        return found

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted_layer)
    monkeypatch.setattr(RewardModel, "states", counted)
    model, _, batches, _ = evolve(tiny_model_dir, pairs_file, "run", reading="auto")
    assert model.reading_state()["readings"] == ["mean@1", "judge@1"] and model.reward_model.num_layers == 1
    num_seed = len(batches.pair_ids("seed"))
    assert {n: computed[n] for n in computed if n != "layers"} == {2: 2 * num_seed, 1: 2 * (80 - num_seed)}
    # Four candidates, and the state from which the language model would answer.
    assert sorted(file.stat().st_size for file in cached()) == [num_seed * 2 * 5 * 16 * 4, 80 * 2 * 2 * 16 * 4]


def test_auto_is_the_run_with_the_chosen_readings_and_computes_nothing_twice(tiny_model_dir, pairs_file, body_calls):
    """A second run, one that names what was chosen, and one that goes on find all that the first one computed."""
    first, callback, *_ = evolve(tiny_model_dir, pairs_file, "first", reading="auto")
    assert sum(body_calls) == 2 * 80 and len(cached()) == 2
    assert callback.state.rows[0].tokens == sum(row.tokens for row in callback.state.rows) > 0
    second, *_ = evolve(tiny_model_dir, pairs_file, "second", reading="auto")
    named, *_ = evolve(tiny_model_dir, pairs_file, "named", reading=first.reading_state()["readings"])
    for other in (second, named):
        assert equal(weights(first), weights(other)) and other.penalty == first.penalty
    broken = module(tiny_model_dir, train="head", reading="auto")
    seed_everything(0, verbose=False)
    trainer("broken", evolution(), max_epochs=4).fit(broken, data(pairs_file))
    resumed, seen = module(tiny_model_dir, train="head", reading="auto"), "broken/checkpoints/last.ckpt"
    trainer("broken", evolution()).fit(resumed, data(pairs_file), ckpt_path=seen)
    assert equal(weights(first), weights(resumed)) and resumed.reading_state() == first.reading_state()
    trainer("broken", evolution()).test(resumed, data(pairs_file), verbose=False)
    assert sum(body_calls) == 2 * 80 and len(cached()) == 2


def test_another_seed_is_read_anew_and_finds_all_pairs(tiny_model_dir, pairs_file, body_calls):
    evolve(tiny_model_dir, pairs_file, "one", reading="auto")
    _, _, batches, _ = evolve(tiny_model_dir, pairs_file, "two", {"split_seed": 1}, reading="auto")
    assert sum(body_calls) == 2 * 80 + 2 * len(batches.pair_ids("seed")) and len(cached()) == 3


@pytest.mark.parametrize("reading", ["last", "auto"])
def test_states_that_do_not_fit_on_the_disk_are_one_line_before_they_are_computed(
    tiny_model_dir, pairs_file, body_calls, monkeypatch, reading
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"data.cache_dir: got .* the features take 0\.0 GB and 0\.0 GB are free"):
        evolve(tiny_model_dir, pairs_file, "run", reading=reading)
    assert not body_calls


def test_tokens_that_no_body_computed_are_not_counted(tiny_model_dir, pairs_file, body_calls):
    """Every pair once, by the run that finds no cache."""
    _, first, batches, _ = evolve(tiny_model_dir, pairs_file, "first_run", reading="auto")
    num_calls = len(body_calls)
    _, second, *_ = evolve(tiny_model_dir, pairs_file, "second_run", reading="auto")
    assert len(body_calls) == num_calls > 0
    all_tokens = int(batches.data.store.num_tokens.sum())
    assert [row.tokens for row in first.state.rows] == [all_tokens, *[0] * (len(first.state.rows) - 1)]
    assert {row.tokens for row in second.state.rows} == {0} and len(second.state.rows) > 1
    spent = json.loads(Path("first_run/rounds/0/cost.json").read_text())
    assert {part: one["tokens"] for part, one in spent.items() if one["tokens"]} == {"features": all_tokens}
    assert spent["features"]["seconds"] > 0
    assert sum(one["seconds"] for one in spent.values()) == pytest.approx(first.state.rows[0].seconds, abs=0.5)


def test_features_are_the_states_that_plain_transformers_pools(tiny_model_dir, pairs_file):
    """Oracle: the last hidden state of each conversation by itself, from the untouched model."""
    _, _, batches, runner = evolve(tiny_model_dir, pairs_file, "run", max_rounds=0)
    plain = LlamaForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    seen = 0
    for batch in batches.scoring_dataloader("all"):
        assert isinstance(batch.inputs, Features)
        ids = [batches.data.store.ids(row) for row in batches.data.rows_of(batch.pair_id.tolist())]
        for side in (0, 1):
            for i, both in enumerate(ids):
                expected = plain.model(torch.tensor(both[side][None], dtype=torch.int64)).last_hidden_state[0, -1]
                found = batch.inputs.hidden[side * batch.num_pairs + i]
                assert torch.allclose(found, expected, atol=1e-5)
                assert batch.inputs.num_tokens[side * batch.num_pairs + i] == len(both[side])
                seen += 1
    assert seen == 2 * len(batches.data.store) and runner.datamodule is batches


def test_the_body_computes_every_pair_once_and_in_a_second_run_none(tiny_model_dir, pairs_file, body_calls, caplog):
    evolve(tiny_model_dir, pairs_file, "one")
    assert sum(body_calls) == 2 * 80
    evolve(tiny_model_dir, pairs_file, "two", max_rounds=2)
    assert sum(body_calls) == 2 * 80
    assert len(cached()) == 1
    assert cached()[0].stat().st_size == 80 * 2 * 16 * 4


def test_a_body_that_is_spread_over_devices_says_why_it_goes_the_ordinary_way(caplog):
    with caplog.at_level("INFO"):
        assert cache_features(SimpleNamespace(strategy=ShardStrategy()), tiny_scorer(), None) == ""
    assert caplog.messages == [
        "Features: not cached, ShardStrategy spreads the body over devices; the body computes every pair in every round"
    ]


def test_a_damaged_cache_is_computed_again(tiny_model_dir, pairs_file, body_calls):
    whole, *_ = evolve(tiny_model_dir, pairs_file, "one")
    [file] = cached()
    content = file.read_bytes()
    file.write_bytes(content[:-7])
    again, *_ = evolve(tiny_model_dir, pairs_file, "two")
    assert sum(body_calls) == 4 * 80 and file.read_bytes() == content
    assert equal(weights(whole), weights(again))


def test_pairs_that_arrive_add_a_part_and_leave_the_first_one(tiny_model_dir, pairs_file, tmp_path, body_calls):
    lines = pairs_file.read_text().splitlines(keepends=True)
    (tmp_path / "first.jsonl").write_text("".join(lines[:60]))
    (tmp_path / "more.jsonl").write_text("".join(lines[60:]))
    evolve(tiny_model_dir, tmp_path / "first.jsonl", "one")
    assert sum(body_calls) == 2 * 60
    more = {"new_data_path": str(tmp_path / "more.jsonl")}
    _, _, batches, _ = evolve(tiny_model_dir, tmp_path / "first.jsonl", "two", more)
    assert sum(body_calls) == 2 * 80 and len(cached()) == 2
    batch = next(iter(batches.scoring_dataloader("all")))
    assert isinstance(batch.inputs, Features) and batch.num_pairs == 80


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_body_that_is_trained_is_not_cached(tiny_model_dir, pairs_file, train):
    seed_everything(0, verbose=False)
    trainer("run", max_epochs=1).fit(module(tiny_model_dir, train=train), data(pairs_file))
    assert not cached()


def test_another_module_on_the_same_data_gets_its_tokens(tiny_model_dir, pairs_file):
    _, _, batches, _ = evolve(tiny_model_dir, pairs_file, "run")
    other = module(tiny_model_dir, train="lora")
    trainer("other").test(other, batches, verbose=False)
    batch = next(iter(batches.test_dataloader()))
    assert isinstance(batch, PairBatch) and not isinstance(batch.inputs, Features)


def test_an_encoder_says_why_it_goes_the_ordinary_way(encoder_dir, pairs_file, caplog):
    with pytest.raises(UserError, match=r"^model.reading: got mean for an encoder, which pools by itself; use last$"):
        evolve(encoder_dir, pairs_file, "other", reading="mean")
    with caplog.at_level("INFO"):
        model, *_ = evolve(encoder_dir, pairs_file, "run", max_rounds=0)
    assert "Features: not cached, this model pools its states in its head" in caplog.text
    assert not cached()


@pytest.fixture
def encoder_dir(tiny_tokenizer, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def tiny_scorer(seed=0, dtype=torch.float32, **settings):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_labels": 1, "pad_token_id": 0}
    model = LlamaForSequenceClassification(LlamaConfig(**{**sizes, **settings})).to(dtype)
    model.model.requires_grad_(False)
    return RewardModel(model)


def test_the_key_knows_weights_settings_number_format_and_precision_but_not_the_head():
    usual = body_key(tiny_scorer(), "32-true")
    other_head = tiny_scorer()
    torch.nn.init.ones_(other_head.model.score.weight)
    assert body_key(other_head, "32-true") == usual
    one_weight = tiny_scorer()
    one_weight.body.layers[0].mlp.up_proj.weight.data[3, 4] += 1e-3
    others = [
        body_key(one_weight, "32-true"),
        body_key(tiny_scorer(rms_norm_eps=1e-3), "32-true"),
        body_key(tiny_scorer(dtype=torch.bfloat16), "32-true"),
        body_key(tiny_scorer(), "bf16-mixed"),
    ]
    assert len({usual, *others}) == 5
    assert [dtype_of(key) for key in (usual, others[2])] == [torch.float32, torch.bfloat16]


def test_a_frozen_body_never_draws_dropout():
    reward_model = tiny_scorer(attention_dropout=0.5).train()
    assert reward_model.training and reward_model.model.score.training and not reward_model.body.training
    full = tiny_scorer()
    full.model.requires_grad_(True)
    assert RewardModel(full.model).train().body.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_come_back_from_their_rows_in_any_order(tmp_path, dtype):
    """Two parts; in the first one a pair fills two rows, and comes twice."""
    ids = [torch.tensor([7, 3, 7, 9]), torch.tensor([4])]
    hidden = {i: torch.randn(2, 1, 5).to(dtype) for i in (3, 4, 7, 9)}
    files = [tmp_path / "0.bin", tmp_path / "1.bin"]
    first = [(torch.tensor([9, 7]), torch.stack([hidden[9], hidden[7]])), (torch.tensor([3, 9]), None)]
    first[1] = (first[1][0], torch.stack([hidden[3], hidden[9]]))
    write_features(files[0], first, ids[0], (2, 1, 5), dtype)
    write_features(files[1], [(torch.tensor([4]), hidden[4][None])], ids[1], (2, 1, 5), dtype)
    table = FeatureTable(files, np.array([0, 4, 5]), dtype)
    rows = np.array([4, 0, 2, 1, 3])
    found = table.read(rows, np.arange(10).reshape(5, 2)[rows])
    expected = [hidden[i] for i in (4, 7, 7, 3, 9)]
    assert torch.equal(found.hidden, torch.stack([e[0] for e in expected] + [e[1] for e in expected]))
    assert found.num_tokens.tolist() == [8, 0, 4, 2, 6, 9, 1, 5, 3, 7]
    found.hidden.zero_()
    assert torch.equal(
        FeatureTable(files, np.array([0, 4, 5]), dtype).read(rows, np.zeros((5, 2))).hidden[1], hidden[7][0]
    )


def test_a_part_without_pairs_and_a_worker_of_its_own_change_nothing(tmp_path):
    """Files are mapped anew where a table is unpickled."""
    hidden = torch.randn(2, 2, 1, 5)
    files = [tmp_path / "0.bin", tmp_path / "1.bin"]
    write_features(files[0], [], torch.tensor([], dtype=torch.int64), (2, 1, 5), torch.float32)
    write_features(files[1], [(torch.arange(2), hidden)], torch.arange(2), (2, 1, 5), torch.float32)
    table = FeatureTable(files, np.array([0, 0, 2]), torch.float32).scaled_by(np.arange(2))
    copy = pickle.loads(pickle.dumps(table))
    assert torch.equal(table.states(np.array([1, 0])), hidden.flip(0)) and torch.equal(copy.scale, table.scale)
    assert torch.equal(copy.states(np.array([1, 0])), hidden.flip(0))
    assert read_file(files[0], 0, (2, 1, 5), torch.bfloat16).shape == (0, 2, 1, 5)


def test_a_pair_that_never_comes_leaves_no_file(tmp_path):
    states = [(torch.tensor([1]), torch.zeros(1, 2, 3))]
    with pytest.raises(RuntimeError, match="1 of 2 pairs were not computed"):
        write_features(tmp_path / "f.bin", states, torch.tensor([1, 2]), (2, 3), torch.float32)
    assert not list(tmp_path.iterdir())


def test_no_label_comes_near_the_cache(tiny_model_dir, pairs_file, tmp_path):
    """The same pairs with the labels turned round: the same file."""
    turned = tmp_path / "turned.jsonl"
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    turned.write_text("".join(json.dumps({**r, "chosen": r["rejected"], "rejected": r["chosen"]}) + "\n" for r in rows))
    for name, file in (("a", pairs_file), ("b", turned)):
        evolve(tiny_model_dir, file, name, {"cache_dir": name}, max_rounds=0)
    [one], [other] = cached("a"), cached("b")
    assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_a_data_module_alone_knows_no_features(pairs_file, tiny_tokenizer):
    batches = PreferenceDataModule(str(pairs_file), seed_fraction=0.3, max_length=64, cache_dir="cache")
    batches.tokenizer = tiny_tokenizer
    batches.prepare_data()
    batches.setup()
    assert not isinstance(next(iter(batches.train_dataloader()))[0].inputs, Features)


@pytest.mark.slow
def test_damaged_features_are_computed_again(tiny_model_dir, pairs_file, body_calls):
    evolve(tiny_model_dir, pairs_file, "whole")
    whole, calls = [file.read_bytes() for file in cached()], sum(body_calls)
    assert whole and calls
    changes = {"zeros": lambda c: bytes(len(c)), "turned": lambda c: c[::-1], "cut": lambda c: c[:-4]}
    for times, (damage, change) in enumerate({**changes, "empty": lambda c: b""}.items(), start=2):
        for file in cached():
            file.write_bytes(change(file.read_bytes()))
        evolve(tiny_model_dir, pairs_file, damage)
        assert [file.read_bytes() for file in cached()] == whole and sum(body_calls) == times * calls, damage
    evolve(tiny_model_dir, pairs_file, "again")
    assert sum(body_calls) == times * calls


def test_keys_of_cached_states_are_told_from_the_other_files_beside_them(tmp_path):
    for name in (
        "features-0b-float32.bin",
        "features-0a-bfloat16.bin",
        "features-comparisons-0c.bin",  # of a pairwise judge
        "features-0d.bin",  # of an earlier version
        "features-0a-bfloat16.bin.sha256",
        "texts.arrow",
    ):
        (tmp_path / name).touch()
    assert cached_keys(tmp_path) == ["0a-bfloat16", "0b-float32"]
    assert [dtype_of(key) for key in cached_keys(tmp_path)] == [torch.bfloat16, torch.float32]
