"""Sampled responses and the pool of pairs that they become."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

from ser_lightning.__main__ import main
from ser_lightning.callbacks.prediction_writers import SCHEMA, PoolWriter, _write_new, pair_up
from ser_lightning.datamodules.prompts import PromptDataModule
from ser_lightning.errors import UserError
from ser_lightning.modules.generate import GenerateModule
from ser_lightning.modules.sft import SFTModule
from ser_lightning.records import PromptBatch, Responses
from ser_lightning.rl.rollout import Sampling
from tests.helpers import data, slow, trainer
from tests.policy_runs import backbone, generate_flags, sft_flags


def generator(path, way="full", temperature=1.0, num_tokens=6, **kwargs):
    return GenerateModule(backbone(path, way), Sampling(num_tokens, temperature), **kwargs)


def prompts_of(path, **kwargs):
    return PromptDataModule(str(path), **{"max_length": 64, "cache_dir": "cache", **kwargs})


class Collects(Callback):
    def __init__(self):
        self.found = []

    def on_predict_batch_end(self, trainer, module, outputs, *args):
        self.found += outputs


def predicted(module, prompts, name):
    """Prompt id -> responses."""
    callback = Collects()
    trainer(name, callback).predict(module, prompts, return_predictions=False)
    found = {responses.prompt_id: responses for responses in callback.found}
    assert len(found) == len(callback.found)
    return found


def answers(path, pairs, name, seed=0, data_settings=None, **kwargs):
    """Prompt id -> responses, and the prompts."""
    seed_everything(seed, verbose=False)
    prompts = prompts_of(pairs, **(data_settings or {}))
    return predicted(generator(path, **kwargs), prompts, name), prompts


def test_auto_is_told_by_the_data_and_changes_no_response(tiny_model_dir, pairs_file, caplog):
    with caplog.at_level("INFO"):
        found, prompts = answers(tiny_model_dir, pairs_file, "auto", tokens_per_batch="auto")
    assert found == answers(tiny_model_dir, pairs_file, "usual")[0]
    assert f"Batches: auto is {prompts.consumer.auto_tokens[1]:,} tokens in sampling." in caplog.text
    sft = SFTModule(backbone(tiny_model_dir, "full"))
    assert not sft.wants_budgets and sft.models_beside == []


def rows_of(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def collected(writer, folder, found):
    """The writer's file of some responses, which come in two batches."""
    fake = SimpleNamespace(default_root_dir=str(folder), is_global_zero=True, predict_loop=SimpleNamespace())
    writer.setup(fake, None, "predict")
    for batch in (found[::2], found[1::2]):
        writer.on_predict_batch_end(fake, None, batch, None, 0)
    writer.on_predict_epoch_end(fake, None)
    return Path(folder, writer.path)


def answered(prompt_id, *texts, has_ended=True):
    turns = [{"role": "user", "content": f"Question {prompt_id}"}]
    return Responses(prompt_id, turns, list(texts), [has_ended] * len(texts))


@pytest.mark.parametrize(
    ("texts", "pairs"),
    [
        (["a", "b"], [("a", "b")]),
        (["a", "b", "c"], [("a", "b"), ("c", "a")]),
        (["a", "b", "c", "d"], [("a", "b"), ("c", "d")]),
        (["a", "a", "b", "a"], [("a", "b")]),
        (["a", "", "b", "c"], [("a", "b"), ("c", "a")]),
        (["a", "a"], []),
        (["", "a"], []),
        ([], []),
    ],
)
def test_pairs_by_hand(texts, pairs):
    assert pair_up(texts) == pairs


@pytest.mark.parametrize("num_texts", range(2, 9))
def test_every_response_is_in_a_pair_and_only_the_first_in_two(num_texts):
    texts = [f"answer {i}" for i in range(num_texts)]
    used = [text for pair in pair_up(texts) for text in pair]
    assert {text: used.count(text) for text in texts} == {
        text: 2 if i == 0 and num_texts % 2 else 1 for i, text in enumerate(texts)
    }


@pytest.mark.parametrize(
    "change", [{"val_prompts_per_batch": 7}, *slow({"val_prompts_per_batch": 1}, {"tokens_per_batch": 1})]
)
def test_a_prompt_gets_the_same_responses_in_any_batch(tiny_model_dir, pairs_file, change):
    usual, _ = answers(tiny_model_dir, pairs_file, "a", responses_per_prompt=3)
    budget = {key: change[key] for key in change if key == "tokens_per_batch"}
    of_data = {key: change[key] for key in change if key not in budget}
    other, _ = answers(tiny_model_dir, pairs_file, "b", responses_per_prompt=3, data_settings=of_data, **budget)
    assert len(usual) == 64 and usual == other
    assert all(len(found.texts) == len(found.has_ended) == 3 for found in usual.values())


def test_a_prompt_gets_the_same_responses_in_any_order_and_company(tiny_model_dir, pairs_file):
    usual, prompts = answers(tiny_model_dir, pairs_file, "run")
    some = prompts.train_prompts[20:5:-3]
    seed_everything(0, verbose=False)
    module = generator(tiny_model_dir)
    module.trainer = trainer("other")
    module.configure_model()
    found = module.predict_step(PromptBatch(some, list(range(len(some))), len(some), 3))
    assert found == [usual[prompt.prompt_id] for prompt in some]
    assert module.predict_step(PromptBatch([], [], 5, 0)) == []


def test_the_seed_and_the_temperature_choose_the_responses(tiny_model_dir, pairs_file):
    usual, _ = answers(tiny_model_dir, pairs_file, "a")
    again, _ = answers(tiny_model_dir, pairs_file, "b")
    seeded, _ = answers(tiny_model_dir, pairs_file, "c", seed=1)
    cold, _ = answers(tiny_model_dir, pairs_file, "d", temperature=1e-4)
    assert usual == again
    assert sum(usual[i].texts != seeded[i].texts for i in usual) > 50
    assert sum(len(set(found.texts)) == 1 for found in cold.values()) > 60  # almost greedy
    assert sum(len(set(found.texts)) == 1 for found in usual.values()) < 10


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_prompts_of_the_split_are_answered_once_each(tiny_model_dir, pairs_file, split):
    found, prompts = answers(tiny_model_dir, pairs_file, "run", data_settings={"predict_split": split})
    expected = prompts.train_prompts if split == "train" else prompts.val_prompts
    assert sorted(found) == [prompt.prompt_id for prompt in expected]
    assert all(found[prompt.prompt_id].turns == prompt.turns for prompt in expected)


def test_a_run_answers_with_what_it_has_learnt(tiny_model_dir, pairs_file):
    """Which is that answers begin with `It is`: the untrained model answers with any bytes."""
    flags = sft_flags(tiny_model_dir, pairs_file)
    assert main(["fit", *flags, "--trainer.max_epochs=20", "--model.optimizer.init_args.lr=0.02", "--run_dir=run"]) == 0
    learnt, _ = answers("run", pairs_file, "a", num_tokens=2)
    bare, _ = answers(tiny_model_dir, pairs_file, "b", num_tokens=2)
    first, of_bare = (
        sum(text[:1] == "I" for found in by_prompt.values() for text in found.texts) for by_prompt in (learnt, bare)
    )
    assert first > 100 and of_bare < 20  # of 128


@pytest.mark.parametrize("num_responses", [2, 3, 4])
def test_the_pool_is_one_that_a_reward_model_takes(tiny_model_dir, pairs_file, tiny_tokenizer, num_responses, capsys):
    flags = [*generate_flags(tiny_model_dir, pairs_file), f"--model.responses_per_prompt={num_responses}"]
    assert main(["predict", *flags, "--run_dir=run"]) == 0
    rows = rows_of("run/pool.jsonl")
    assert f"{len(rows)} pairs: run/pool.jsonl" in capsys.readouterr().out
    assert not list(Path("run").glob("*.parquet"))
    pairs = data(pairs_file, pool_path="run/pool.jsonl")
    pairs.tokenizer = tiny_tokenizer
    pairs.prepare_data()
    pairs.setup("fit")
    pool = pairs.lookup(pairs.pair_ids("pool"))
    assert len(pool) == len(rows) >= 64 * (num_responses // 2) - 5
    assert all(pair.label is None for pair in pool)
    assert {(p.prompt[0]["content"], *sorted([p.response_a, p.response_b])) for p in pool} == {
        (row["prompt"][0]["content"], *sorted([row["response_a"], row["response_b"]])) for row in rows
    }
    assert len(pairs.pair_ids("seed")) + len(pairs.pair_ids("test")) == 80  # no prompt of the test set was answered


def test_the_command_line_trains_a_reward_model_on_it(tiny_model_dir, pairs_file, tiny_run):
    assert main(["predict", *generate_flags(tiny_model_dir, pairs_file), "--run_dir=run"]) == 0
    assert main(["fit", *tiny_run, "--data.pool_path=run/pool.jsonl", "--run_dir=rm"]) == 0
    scored = Path("rm/rounds.csv").read_text().splitlines()[1].split(",")[1]
    assert int(scored) == len(rows_of("run/pool.jsonl"))


def test_the_file_is_in_the_order_of_the_prompts_and_counts_what_is_alike(tmp_path, capsys):
    found = [answered(9, "é", "\u2028", "c"), answered(4, "a", "a"), answered(7, "x", "y", has_ended=False)]
    file = collected(PoolWriter("mine.jsonl"), tmp_path, found)
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]] == [
        {"prompt": found[2].turns, "response_a": "x", "response_b": "y"},
        {"prompt": found[0].turns, "response_a": "é", "response_b": "\u2028"},
        {"prompt": found[0].turns, "response_a": "c", "response_b": "é"},
    ]
    said = capsys.readouterr().out
    assert said.startswith(f"3 pairs: {file}; 1 prompts without two different responses; 2 responses were cut off")


def test_nothing_is_said_of_alike_prompts_where_there_are_none(tmp_path, capsys):
    file = collected(PoolWriter(), tmp_path, [answered(1, "a", "b")])
    assert capsys.readouterr().out.startswith(f"1 pairs: {file}; 0 responses were cut off")


def test_no_pair_at_all_is_one_line_and_no_file(tmp_path):
    with pytest.raises(UserError, match=r"^pool: got no pair from 2 prompts, .*; raise model\.sampling\.temperature"):
        collected(PoolWriter(), tmp_path, [answered(1, "a", "a"), answered(2, "", "b")])
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_refused_before_anything_is_sampled(tiny_model_dir, pairs_file, capsys, monkeypatch):
    Path("pool.jsonl").write_text("years of work")
    monkeypatch.setattr(GenerateModule, "predict_step", lambda *_: pytest.fail("sampled"))
    writer = [
        "--trainer.callbacks+=ser_lightning.PoolWriter",
        "--trainer.callbacks.path=../pool.jsonl",
    ]
    assert main(["predict", *generate_flags(tiny_model_dir, pairs_file), *writer, "--run_dir=run"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said == ["error: pool: got run/../pool.jsonl, which exists; move it away, or give another --run_dir"]
    assert Path("pool.jsonl").read_text() == "years of work"


def test_predictions_that_another_run_has_written_meanwhile_stay(tmp_path):
    path = tmp_path / "predictions.parquet"
    path.write_text("another's")
    with pytest.raises(UserError, match="predictions: got .*parquet, which another run has just written; give another"):
        _write_new(path, SCHEMA.empty_table())
    assert path.read_text() == "another's" and len([*tmp_path.iterdir()]) == 1


def test_a_second_predict_in_one_call_starts_afresh(tmp_path):
    writer = PoolWriter()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert len(collected(writer, tmp_path / name, [answered(1, "a", "b")]).read_text().splitlines()) == 1


def test_wrong_settings_come_all_at_once(tiny_model_dir):
    with pytest.raises(UserError) as error:
        generator(tiny_model_dir, temperature=0.0, num_tokens=0, responses_per_prompt=1, tokens_per_batch=0)
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        *("sampling.max_new_tokens", "sampling.temperature", "model.responses_per_prompt", "model.tokens_per_batch")
    ]


def test_no_room_for_a_full_response_is_one_line(tiny_model_dir, pairs_file, capsys, monkeypatch):
    monkeypatch.setattr(GenerateModule, "predict_step", lambda *_: pytest.fail("sampled"))
    flags = [*generate_flags(tiny_model_dir, pairs_file), "--model.sampling.max_new_tokens=500", "--run_dir=run"]
    assert main(["predict", *flags]) == 2
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: sampling.max_new_tokens: got 500 after prompts of up to ")
    assert "512 positions" in said


def test_stop_tokens_end_a_response(tiny_model_dir, pairs_file):
    usual, _ = answers(tiny_model_dir, pairs_file, "a", num_tokens=12)
    letter = max("etaoinshrdlu", key=lambda c: sum(c in text for found in usual.values() for text in found.texts))
    seed_everything(0, verbose=False)
    module = GenerateModule(backbone(tiny_model_dir), Sampling(12, stop=[letter]))
    stopped = predicted(module, prompts_of(pairs_file), "b")
    texts = [(t, s) for i in usual for t, s in zip(usual[i].texts, stopped[i].texts, strict=True)]
    assert all(letter not in s for _, s in texts) and any(letter in t for t, _ in texts)
    counts = [sum(sum(found.has_ended) for found in by_prompt.values()) for by_prompt in (usual, stopped)]
    assert counts[0] < counts[1] < 128
