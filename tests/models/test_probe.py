"""Tiny models with the quirks of real ones; plain transformers says what is right."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
)

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.export.reward import export
from ser_lightning.models import probe
from ser_lightning.models.backbone import Backbone, LoraSettings, load_tokenizer
from ser_lightning.models.loading import prepare_body
from ser_lightning.models.probe import errors, num_positions, start_findings
from ser_lightning.models.tokens import closing_token, unknown_share
from ser_lightning.rl.rollout import stop_ids
from tests.helpers import plain_reward, problems_of, save_reward_model, slow
from tests.policy_runs import QUIET, generate_flags, sft_flags

TURNS = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}END{% endfor %}"


def make_model(folder, end="<end>", start="a:", special=("<pad>", "<eos>", "<end>"), kind="llama", head="", **config):
    """A language model whose tokenizer knows bytes and special tokens, the first of which is the pad token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *letters])}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(False, use_regex=False), decoders.ByteLevel()
    names = {"eos_token": "<eos>", "pad_token": special[0], "additional_special_tokens": list(special)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    turns = TURNS.replace("END", end)
    tokenizer.chat_template = head + turns + "{% if add_generation_prompt %}" + start + "{% endif %}"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": 256, "initializer_range": 0.2, "vocab_size": len(tokenizer)}
    sizes |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **config}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def findings(folder, use="reward", max_length=None, **settings):
    backbone = Backbone(str(folder), **settings)
    return {finding.check: finding for finding in start_findings(backbone, load_tokenizer(backbone), use, max_length)}


def reward_flags(folder, pairs, *flags):
    own = [f"--model.backbone.path={folder}", "--model.backbone.train=full", f"--data.path={pairs}"]
    small = ["--data.max_length=64", "--data.seed_fraction=0.3", "--evolution.max_rounds=0", "--evolution.folds=2"]
    return ["--config", "rm.yaml", "--model.reading=last", *own, *small, "--evolution.seed_epochs=1", *QUIET, *flags]


# The token that ends a turn.


def test_a_turn_that_does_not_end_with_eos_ends_responses_and_those_of_the_export(tmp_path, pairs_file):
    folder = make_model(tmp_path / "model")
    tokenizer = load_tokenizer(Backbone(folder))
    end, eos = tokenizer.convert_tokens_to_ids(["<end>", "<eos>"])
    assert closing_token(tokenizer) == end and stop_ids(eos, tokenizer, []) == sorted([end, eos])
    assert main(["fit", *sft_flags(folder, pairs_file), "--run_dir=run"]) == 0
    assert main(["export", "run", "--to=out"]) == 0
    lm, plain = AutoModelForCausalLM.from_pretrained("out"), AutoTokenizer.from_pretrained("out")
    assert lm.generation_config.eos_token_id == sorted([end, eos])
    assert lm.generation_config.pad_token_id == plain.pad_token_id
    prompt = plain.apply_chat_template(
        [{"role": "user", "content": "What is 2 plus 2?"}], add_generation_prompt=True, return_tensors="pt"
    )
    force = lambda ids, scores: scores.index_fill(1, torch.tensor([end]), 1e9 if ids.shape[1] > 40 else -1e9)  # noqa: E731
    made = lm.generate(**prompt, do_sample=False, max_new_tokens=60, logits_processor=[force])
    assert int(made[0, -1]) in (end, eos) and made.shape[1] <= 42


def test_sampled_responses_end_with_the_turn(tmp_path, pairs_file):
    folder = make_model(tmp_path / "model")
    lm = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<end>")
    with torch.no_grad():  # all states are one, and the head makes <end> of it, or "x"
        lm.model.norm.weight.fill_(1.0)
        lm.model.embed_tokens.weight.fill_(1.0)
        lm.lm_head.weight.fill_(-1.0)
        lm.lm_head.weight[[end, tokenizer.convert_tokens_to_ids("x")]] = 1.0
    lm.save_pretrained(folder)
    flags = generate_flags(folder, pairs_file)
    assert main(["predict", *flags, "--model.sampling.max_new_tokens=40", "--run_dir=run"]) == 0
    rows = [json.loads(line) for line in Path("run/pool.jsonl").read_text().splitlines()]
    lengths = [len(row[side]) for row in rows for side in ("response_a", "response_b")]
    assert rows and max(lengths) < 40 and {*"".join(r["response_a"] for r in rows)} == {"x"}


def test_a_template_that_ends_a_turn_with_text_has_no_closing_token(tmp_path):
    folder = make_model(tmp_path, end="\n")
    assert closing_token(load_tokenizer(Backbone(folder))) is None
    found = findings(folder, "policy")["end of turn"]
    assert found.says == "note" and "a policy never learns to end; use a template that ends with '<eos>'" in found.text
    assert findings(folder, "reward")["end of turn"].says == "ok"


def test_behind_the_closing_token_there_may_be_a_line_break(tmp_path):
    tokenizer = load_tokenizer(Backbone(make_model(tmp_path, end="<end>\n")))
    assert closing_token(tokenizer) == tokenizer.convert_tokens_to_ids("<end>")


# The pad token.


def test_a_pad_that_ends_conversations_gives_way_and_the_export_scores_as_the_run(tmp_path, pairs_file):
    folder = make_model(tmp_path / "model", end="<eos>", special=("<eos>", "<end>"))
    assert load_tokenizer(Backbone(folder)).pad_token == "<end>"
    assert main(["fit", *reward_flags(folder, pairs_file), "--run_dir=run"]) == 0
    for dtype in ("float32", "bfloat16"):
        result = export(Path("run"), Path(dtype), dtype=dtype)
        assert result.num_reordered <= 2
    saved = torch.load("run/rounds/0/model.pt", weights_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    names = {name.removeprefix("model."): value for name, value in saved["weights"].items()}
    model.load_state_dict(names)
    plain, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained("float32"),
        AutoTokenizer.from_pretrained(folder),
    )
    conversation = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    ids = tokenizer.apply_chat_template(conversation, return_dict=False, return_tensors="pt")
    with torch.no_grad():
        at_eos = model.score(model.model(ids).last_hidden_state[0, -1])  # where our reward is read
        assert torch.allclose(plain.eval()(ids).logits[0], at_eos, atol=1e-5)
        assert not torch.allclose(model.score(model.model(ids).last_hidden_state[0, -2]), at_eos, atol=1e-3)


def test_a_pad_that_is_not_eos_gives_way_as_well(tmp_path):
    folder = make_model(tmp_path, special=("<end>", "<eos>", "<gap>"))
    assert AutoTokenizer.from_pretrained(folder).pad_token == "<end>"
    assert load_tokenizer(Backbone(folder)).pad_token in ("<eos>", "<gap>")


def test_without_any_spare_token_the_start_is_refused(tmp_path, pairs_file, capsys):
    folder = make_model(tmp_path / "model", end="<eos>", special=("<eos>",))
    for command in ("fit", "plan"):
        [line] = problems_of(capsys, command, *reward_flags(folder, pairs_file))
        assert "got '<eos>' as the pad token and as the end of every conversation" in line
    assert findings(folder, "policy")["pad"].says == "ok"  # nothing is read there
    assert not errors(findings(folder, template="paper").values())


def test_a_foreign_model_is_read_where_plain_transformers_reads_it(tmp_path):
    make_model(tmp_path / "lm", end="<eos>", special=("<eos>", "<end>"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lm")
    save_reward_model(tmp_path / "rm", tokenizer, 64)
    Path("rows.jsonl").write_text(json.dumps({"prompt": "Why?", "response": "So."}) + "\n")
    flags = [f"--model={tmp_path / 'rm'}", "--data=rows.jsonl", "--out=out.jsonl", "--device=cpu"]
    assert main(["score", *flags]) == 0
    found = json.loads(Path("out.jsonl").read_text())
    reward, num_tokens = plain_reward(tmp_path / "rm", "Why?", "So.")
    assert found["reward"] == pytest.approx(reward, abs=1e-5) and found["tokens"] == num_tokens


# The generation prompt.


def test_a_generation_prompt_that_no_turn_begins_with_is_refused_by_sft_alone(tmp_path, pairs_file, capsys):
    folder = make_model(tmp_path / "model", end="<eos>", start="a:<think>\n")
    [line] = problems_of(capsys, "fit", *sft_flags(folder, pairs_file))
    assert r"got a generation prompt that ends in '<think>\n', with which no turn of a conversation begins" in line
    assert findings(folder, "policy")["generation prompt"].says == "note"
    assert "generation prompt" not in findings(folder, "reward")
    good = make_model(tmp_path / "good", end="<eos>")
    assert findings(good, "sft")["generation prompt"].says == "ok"


def test_a_generation_prompt_that_ends_in_the_first_token_of_a_response_is_told_of(tmp_path):
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(turns + "{% if add_generation_prompt %}assistant: {% endif %}")
    found = findings("world_lm", "sft", template=str(tmp_path / "own.jinja"))["generation prompt"]  # "Ġ", and then "ĠS"
    text = "its last tokens join the first of a response to other tokens; let it end without white space"
    assert (found.says, found.text) == ("note", f"backbone.template: {text}")


# Empty turns.


def test_a_template_that_refuses_empty_turns_cuts_all_the_same(tmp_path, capsys):
    head = "{% for m in messages if not m.content %}{{ raise_exception('empty') }}{% endfor %}"
    folder = make_model(tmp_path / "model", head=head)
    assert findings(folder)["empty turns"].text == "the template refuses an empty prompt and an empty response"
    rows = [{"prompt": f"{n} " + "and so on " * 20, "chosen": "ok ok.", "rejected": f"no {n}"} for n in range(80)]
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["fit", *reward_flags(folder, "long.jsonl"), "--run_dir=run"]) == 0
    assert export(Path("run"), Path("out")).num_reordered == 0
    save_reward_model(tmp_path / "rm", AutoTokenizer.from_pretrained(folder), 64)
    flags = generate_flags(folder, "long.jsonl")[2:]
    judge = f"--model.reward_model={tmp_path / 'rm'}"
    ppo = ["--config", "ppo.yaml", *flags, judge, "--model.judge=null", "--model.allow_uncalibrated=true"]
    [line] = problems_of(capsys, "fit", *ppo)
    assert "its chat template refuses an empty response, which a policy may give" in line


# The tokenizer.


@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2", "t5", *slow("roberta", "mpnet", "llama", "gemma")])
def test_a_model_without_its_tokenizer_is_refused(kind, tmp_path, capsys, pairs_file):
    config = AutoConfig.for_model(kind)
    config.save_pretrained(tmp_path / "model")
    for command in ("fit", "plan"):
        [line] = problems_of(capsys, command, *reward_flags(tmp_path / "model", pairs_file))
        assert "tokenizer: got" in line or "no tokenizer could be loaded" in line
    shutil.copytree(tmp_path / "model", "rm")
    config.num_labels = 1
    config.save_pretrained("rm")
    data = ["--data", pairs_file, "--out", "out.csv"]
    assert "tokenizer" in problems_of(capsys, "score", "--model", "rm", *data)[0]


def word_tokenizer(words, unk):
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[EOS]", *([unk] if unk else []), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk or "missing"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unk, pad_token="[PAD]", eos_token="[EOS]")


def test_the_share_of_unknown_characters_is_that_of_the_words_that_are_not_there(tiny_tokenizer):
    tokenizer = word_tokenizer(["good", "tea"], "[UNK]")
    assert unknown_share(tokenizer, ["good tea", "bad  tea"]) == (3 / 13, "b")
    assert unknown_share(tokenizer, ["tea", " "]) == (0.0, "")
    assert unknown_share(tiny_tokenizer, ["Ça va? 漢字 🙂"]) == (0.0, "")
    letters = Tokenizer(models.BPE({"a": 0, "b": 1}, []))  # leaves out what it does not know
    assert unknown_share(PreTrainedTokenizerFast(tokenizer_object=letters), ["abc", "cab"]) == (2 / 6, "c")
    slow_one = ByT5Tokenizer()
    slow_one.unk_token = "b"
    assert unknown_share(slow_one, ["abc", "a"]) == (1 / 4, "")


def test_data_that_the_tokenizer_hardly_knows_is_told_of(tmp_path, tiny_model_dir, pairs_file, tiny_run, capsys):
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    tokenizer = word_tokenizer([*"What is plus It I think . ? ,".split(), *map(str, range(40))], "[UNK]")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} [EOS] {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.warns(
        UserWarning, match=r"data: \d+% of the characters of the first 1\d\d texts, such as '\d', are unkn"
    ):
        assert main(["plan", *tiny_run, f"--model.backbone.path={tmp_path / 'model'}"]) == 0
    save_reward_model(tmp_path / "rm", tokenizer, 64)
    with pytest.warns(UserWarning, match=r"reward .*rm: \d+% of the characters"):
        assert main(["score", f"--model={tmp_path / 'rm'}", f"--data={pairs_file}", "--out=out.csv"]) == 0


# Positions.

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.mark.parametrize("kind", ["gpt2", "bert", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert", "opt"])
def test_a_table_of_positions_ends_where_plain_transformers_does(kind):
    sizes = {**SIZES, "max_position_embeddings": 24, "pad_token_id": 1, "dim": 32, "hidden_dim": 64, "n_heads": 4}
    config = AutoConfig.for_model(kind, **sizes, word_embed_proj_dim=32)
    limit, body = num_positions(config), AutoModel.from_config(config).eval()
    ids = torch.full((1, limit), 7)
    body(input_ids=ids, attention_mask=torch.ones_like(ids))
    ids = torch.full((1, limit + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        body(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_rotary_positions_end_where_the_model_was_trained_to_and_others_never():
    llama = {**SIZES, "max_position_embeddings": 64}
    assert num_positions(AutoConfig.for_model("llama", **llama)) == 64
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    assert num_positions(AutoConfig.for_model("llama", **llama, rope_parameters=yarn)) == 256
    assert num_positions(AutoConfig.for_model("bloom", hidden_size=32, n_layer=2, n_head=4)) is None
    relative = {"relative_attention": True, "position_biased_input": False, "max_position_embeddings": 64}
    assert num_positions(AutoConfig.for_model("deberta-v2", **{**SIZES, **relative})) is None


@pytest.mark.parametrize(("kind", "usable"), [("gpt2", 40), ("llama", 40), ("roberta", 39)])
def test_fit_and_plan_say_the_same_line(kind, usable, tmp_path, pairs_file, capsys):
    folder = make_model(tmp_path / "model", kind=kind, max_position_embeddings=40)
    line = f"data.max_length: got {usable + 1} for a model of {usable} positions; use at most that"
    flags = reward_flags(folder, pairs_file, f"--data.max_length={usable + 1}")
    assert problems_of(capsys, "fit", *flags) == problems_of(capsys, "plan", *flags) == [line]
    assert not Path("runs").exists()
    assert not errors(findings(folder, max_length=usable).values())


def test_scoring_a_roberta_leaves_its_offset_free(tmp_path, tiny_tokenizer, capsys):
    folder, own = tmp_path / "rm", copy.deepcopy(tiny_tokenizer)
    sizes = {**SIZES, "vocab_size": len(own), "pad_token_id": 0, "max_position_embeddings": 34, "num_labels": 1}
    config = AutoConfig.for_model("roberta", **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    own.save_pretrained(folder)
    Path("rows.jsonl").write_text(json.dumps({"prompt": "Why? " * 20, "response": "So."}) + "\n")
    flags = ["score", f"--model={folder}", "--data=rows.jsonl", "--out=out.jsonl", "--device=cpu"]
    assert main(flags) == 0 and json.loads(Path("out.jsonl").read_text())["tokens"] == 33
    [line] = problems_of(capsys, *flags, "--overwrite", "--max_length=34")
    assert "max_length: got 34 for a model of 33 positions; use at most that" in line


# Adapters.


@pytest.mark.parametrize(
    ("targets", "missing"),
    [
        (["q_proj", "q_porj"], "q_porj"),
        pytest.param(["query_key_value"], "query_key_value", marks=pytest.mark.slow),
        pytest.param(r".*\.fc\d", r".*\.fc\d", marks=pytest.mark.slow),
    ],
)
def test_layers_that_the_model_lacks_are_named_before_anything_is_read(
    tiny_model_dir, pairs_file, capsys, targets, missing
):
    flags = reward_flags(tiny_model_dir, pairs_file, "--model.backbone.train=lora")
    flags += [f"--model.backbone.lora.target_modules={targets}"]
    for command in ("fit", "plan"):
        [line] = problems_of(capsys, command, *flags)
        assert f"target_modules: got {missing}, which no layer that can have an adapter is called; there are " in line
        assert "k_proj" in line and "norm" not in line
    assert findings(tiny_model_dir, lora=LoraSettings(target_modules="q_proj"))["adapters"].text.endswith("[q_proj]")
    [line] = problems_of(capsys, "fit", *sft_flags(tiny_model_dir, pairs_file, "lora"), flags[-1])
    assert f"target_modules: got {missing}," in line


def test_targets_that_are_there_get_adapters_in_peft_as_well(tiny_model_dir):
    for targets in (["q_proj", "mlp.up_proj"], r"layers\.0\..*proj", "all-linear"):
        lora = LoraSettings(target_modules=targets)
        assert not errors(findings(tiny_model_dir, lora=lora).values())
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        prepare_body(model, Backbone(str(tiny_model_dir), lora=lora))
        assert any("lora_A" in name for name, _ in model.named_parameters())
    with pytest.raises(UserError, match="^backbone.lora.target_modules: .*Norm.* is not supported"):
        prepare_body(model, Backbone(str(tiny_model_dir), lora=LoraSettings(target_modules=["norm"])))


# All at once.


def test_all_problems_of_a_config_are_reported_at_once(tmp_path, capsys):
    folder = make_model(tmp_path / "model", max_position_embeddings=40)
    wrong = ["--model.backbone.train=lora", "--model.backbone.lora.target_modules=[foo]", "--data.path=nowhere.jsonl"]
    flags = reward_flags(folder, "nowhere.jsonl", *wrong)
    for command in ("fit", "plan"):
        lines = problems_of(capsys, command, *flags)
        assert len(lines) == 3
        assert all(any(part in line for line in lines) for part in ("nowhere.jsonl", "64 for a model of 40", "got foo"))
    lines = problems_of(capsys, "fit", *flags, "--data.seed_fraction=3", "--evolution.folds=-1")
    assert len(lines) == 4 and sum("64 for a model of 40" in line or "got foo" in line for line in lines) == 2


# The learning rate.


@pytest.mark.parametrize(
    ("large", "settings", "rate", "noted"),
    [
        (1, {"train": "full"}, 5e-4, True),
        (1, {"train": "full"}, 1e-4, False),
        (1, {"train": "lora"}, 5e-4, False),
        (1, {"train": "head"}, 5e-4, False),
        (10**9, {"train": "full"}, 5e-4, False),
    ],
)
def test_a_rate_for_small_models_is_noted_where_all_weights_of_a_large_one_are_trained(
    tmp_path, monkeypatch, large, settings, rate, noted
):
    monkeypatch.setattr(probe, "LARGE", large)
    backbone = Backbone(make_model(tmp_path / "model"), **settings)
    found = start_findings(backbone, load_tokenizer(backbone), "reward", learning_rate=rate)
    assert noted == any(finding.check == "learning rate" and finding.says == "note" for finding in found)


@pytest.mark.parametrize("command", ["rm.yaml", "sft.yaml"])
def test_the_rate_is_the_one_of_the_config(tmp_path, monkeypatch, pairs_file, command):
    """A stranger's model in place of the bundled one, and nothing else: the run says what is wrong with that."""
    monkeypatch.setattr(probe, "LARGE", 1)
    folder = make_model(tmp_path / "model")
    flags = reward_flags(folder, pairs_file) if command == "rm.yaml" else sft_flags(folder, pairs_file)
    rate = "0.0005" if command == "rm.yaml" else "0.01"
    with pytest.warns(UserWarning, match=rf"model.optimizer.lr: got {rate} to train a model of [\d,]+ weights in full"):
        main(["fit", *flags, "--trainer.max_epochs=1", "--run_dir=run"])
