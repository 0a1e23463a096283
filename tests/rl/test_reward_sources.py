"""Judges by hand: a tiny reward run, its export and functions of this test."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from ser_lightning.__main__ import main
from ser_lightning.data import encode
from ser_lightning.data.encode import encode_candidates, encode_pairs
from ser_lightning.data.layouts import PADDED
from ser_lightning.errors import UserError
from ser_lightning.export.reward import export
from ser_lightning.modules.reward import RewardModule
from ser_lightning.records import PreferencePair
from ser_lightning.rl.reward_functions import FunctionReward, ModelReward, checked_scores
from ser_lightning.rl.reward_sources import load_reward, load_rewards
from ser_lightning.runs.reward_run import read_reward_run
from ser_lightning.training.scoring import evaluating
from tests.helpers import slow
from tests.pair_batches import PairRow, collate_pairs

QUESTIONS = ["What is 2 plus 2?", "Hm?", "What is 13 plus 13, and do not hurry, " * 3, "Why?", "What is 7 plus 8?"]
PROMPTS = [[{"role": "user", "content": question}] for question in QUESTIONS]
RESPONSES = ["It is 4.", "It is not clear what you mean.", "It is 26.", "No.", "It is 15."]


@pytest.fixture(scope="module")
def reward_run(tiny_model_dir, pairs_file, tmp_path_factory) -> Path:
    """Run folder of a calibrated reward model, with its export in `export`."""
    run = tmp_path_factory.mktemp("reward") / "run"
    flags = [
        *("--config", "rm.yaml", "--model.reading=last"),
        *(f"--model.backbone.path={tiny_model_dir}", "--model.backbone.train=full", f"--data.path={pairs_file}"),
        *("--data.max_length=64", "--data.pairs_per_step=8", "--data.seed_fraction=0.3"),
        *("--evolution.max_rounds=0", "--evolution.seed_epochs=1", "--evolution.folds=2"),
        *("--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"),
        *(f"--data.cache_dir={run.parent / 'cache'}", f"--run_dir={run}"),
    ]
    assert main(["fit", *flags]) == 0
    export(run, run / "export")
    return run


@pytest.fixture
def function(tmp_path, monkeypatch):
    """Makes `my_rewards.judge` out of a function; its dotted path."""

    def make(judge) -> str:
        monkeypatch.setitem(sys.modules, "my_rewards", SimpleNamespace(judge=judge))
        return "my_rewards.judge"

    return make


def lengths(prompts, responses):
    return [len(text) for text in responses]


def test_a_run_judges_as_the_reward_module_predicts(reward_run):
    run = read_reward_run(reward_run)
    module = RewardModule(run.backbone, reading="last")
    module.configure_model()
    module.reward_model.load_trainable_state(run.weights)
    pairs = [PreferencePair(i, p, r, r, None) for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))]
    encoded = encode_pairs(module.tokenizer, pairs, run.max_length)
    assert [pair.is_cut for pair in encoded] == [False, False, True, False, False]
    with evaluating(module):
        rows = [PairRow(i, pair.ids_a, pair.ids_b) for i, pair in enumerate(encoded)]
        raw = module.predict_step(collate_pairs(rows, module.tokenizer.pad_token_id)).reward_a
    rewards = load_reward(str(reward_run))(PROMPTS, RESPONSES)
    assert torch.allclose(rewards, (raw - run.zero) / run.temperature, rtol=1e-4, atol=1e-5)
    assert rewards.unique().numel() == 5 and rewards.dtype == torch.float32 and rewards.device.type == "cpu"
    assert run.zero != 0 and run.temperature != 1 and run.max_length == 64


def test_an_export_judges_as_plain_transformers_and_as_its_run(reward_run):
    folder = str(reward_run / "export")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    short = [0, 1, 3, 4]  # what needs no cut
    raw = []
    for i in short:
        turns = [*PROMPTS[i], {"role": "assistant", "content": RESPONSES[i]}]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        with torch.no_grad():
            raw.append(float(model(torch.tensor([ids])).logits))
    expected = [(r - model.config.reward_zero) / model.config.reward_temperature for r in raw]
    rewards = load_reward(folder)(PROMPTS, RESPONSES)
    assert rewards[short].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert torch.allclose(rewards, load_reward(str(reward_run))(PROMPTS, RESPONSES), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "flags",
    [(), ("--model.backbone.quantize=nf4",), *slow(("--model.reading=[mean@1]",), ("--model.reading=[last@1]",))],
)
def test_on_the_meta_device_every_source_has_the_weights_of_the_loaded_one_and_no_values(tiny_fit, flags):
    run = tiny_fit("--model.backbone.train=lora", *flags)
    for form in ("merged", "adapter"):
        export(run, Path(form), form)
    for source in ("run", "merged", "adapter"):
        found, loaded = (load_reward(source, device).reward_model for device in ("meta", "cpu"))
        names = [{n for n, _ in model.named_parameters()} for model in (found, loaded)]
        assert names[0] == names[1] and all(p.is_meta for p in found.parameters()), source
        kinds = [{n: p.shape for n, p in m.named_parameters() if p.is_floating_point()} for m in (found, loaded)]
        assert all(kinds[0][name] == shape for name, shape in kinds[1].items())
    Path("merged/model.safetensors").unlink()
    with pytest.raises(UserError, match="reward merged: got no classifier from the folder"):
        load_reward("merged", "meta")


def test_a_run_may_be_built_by_the_caller_who_keeps_its_gradients(reward_run):
    mine = torch.nn.Linear(1, 1)
    mine.layout, mine.forward = PADDED, lambda inputs: inputs.num_tokens.float()
    seen = []
    judge = load_reward(str(reward_run), build=lambda run: seen.append(run.zero) or mine)
    run = read_reward_run(reward_run)
    assert judge.reward_model is mine and mine.weight.requires_grad and seen == [run.zero]
    [encoded] = encode_candidates(judge.tokenizer, PROMPTS[:1], [RESPONSES[:1]], run.max_length)
    expected = (len(encoded.rows[0]) - run.zero) / run.temperature
    assert judge(PROMPTS[:1], RESPONSES[:1]).item() == pytest.approx(expected, rel=1e-5)
    unbuilt = load_rewards(str(reward_run), build=lambda run: None)
    assert torch.equal(unbuilt(PROMPTS, RESPONSES), load_reward(str(reward_run))(PROMPTS, RESPONSES))


def test_neither_budget_nor_order_nor_mode_matters(reward_run):
    judge = load_reward(str(reward_run))
    rewards = judge(PROMPTS, RESPONSES)
    order = [3, 0, 4, 2, 1]
    judge.tokens_per_batch = 1
    judge.reward_model.train()
    again = judge([PROMPTS[i] for i in order], [RESPONSES[i] for i in order])
    assert torch.allclose(again, rewards[order], rtol=1e-4, atol=1e-5)
    assert judge.reward_model.training
    assert judge([], []).shape == (0,)


def test_batches_keep_to_the_budget_one_row_a_response(tiny_tokenizer):
    shapes = []

    class RewardModel(torch.nn.Linear):
        layout = PADDED

        def forward(self, inputs):
            shapes.append(tuple(inputs.input_ids.shape))
            assert not self.training and not torch.is_grad_enabled()
            return inputs.num_tokens.float()

    judge = ModelReward(RewardModel(1, 1), tiny_tokenizer, 300, 0.0, 1.0, "lengths", tokens_per_batch=120)
    texts = ["w" * n for n in (1, 30, 2, 29, 3)]
    rewards = judge([[{"role": "user", "content": "Hi"}]] * 5, texts)
    overhead = len("<user>Hi") + len("<assistant>") + 3  # BOS and two EOS; one id a byte
    assert rewards.tolist() == [overhead + len(text) for text in texts]
    assert shapes == [(2, overhead + 30), (3, overhead + 3)]


def test_zero_and_temperature_are_those_of_the_judge(reward_run):
    judge = load_reward(str(reward_run))
    raw = ModelReward(judge.reward_model, judge.tokenizer, 64, 0.0, 1.0, "raw")(PROMPTS, RESPONSES)
    scaled = ModelReward(judge.reward_model, judge.tokenizer, 64, 2.0, 0.5, "scaled")(PROMPTS, RESPONSES)
    assert torch.allclose(scaled, (raw - 2.0) / 0.5, atol=1e-5)


def words_folder(folder: Path, num_labels: int = 1, template: bool = True, **config) -> Path:
    """A reward model with a word-level tokenizer and a template of its own."""
    words = "<pad> <unk> Q: A: What is 2 plus ? It 4 . No Why".split()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    if template:
        fast.chat_template = (
            "{% for m in messages %}{{ 'A: ' if m['role'] == 'assistant' else 'Q: ' }}{{ m['content'] }} {% endfor %}"
        )
    fast.save_pretrained(folder)
    settings = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=12,
        pad_token_id=0,
        num_labels=num_labels,
        **config,
    )
    LlamaForSequenceClassification(settings).save_pretrained(folder)
    return folder


def encoder_folder(folder: Path, **config) -> Path:
    """The same tokenizer with a BERT."""
    words_folder(folder)
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    scale = {"reward_zero": 0.5, "reward_temperature": 2.0}
    settings = BertConfig(**{**sizes, "intermediate_size": 32, "num_labels": 1, **scale, **config})
    BertForSequenceClassification(settings).save_pretrained(folder)
    return folder


def test_a_reward_model_reads_through_its_own_tokenizer():
    folder = words_folder(Path("words"), reward_zero=0.25, reward_temperature=2.0)
    judge = load_reward(str(folder))
    rewards = judge([[{"role": "user", "content": "What is 2 plus 2 ?"}]] * 2, ["It is 4 .", "No"])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    by_hand = [[2, 4, 5, 6, 7, 6, 8, 3, 9, 5, 10, 11], [2, 4, 5, 6, 7, 6, 8, 3, 12]]
    with torch.no_grad():
        raw = [float(model(torch.tensor([ids])).logits) for ids in by_hand]
    assert rewards.tolist() == pytest.approx([(r - 0.25) / 2 for r in raw], abs=1e-5)
    assert judge.max_length == 12  # the positions that the model has: its tokenizer names no limit
    asked_before = [{"role": "user", "content": "Why"}, {"role": "assistant", "content": "No"}]
    cut = judge([[*asked_before, {"role": "user", "content": "What is 2 plus 2 ?"}]], ["It is 4 ."])
    assert cut.item() == pytest.approx(rewards[0].item(), abs=1e-5)


def test_responses_are_encoded_and_cut_as_those_of_pairs(tiny_tokenizer):
    prompts = [
        [{"role": "user", "content": "x" * n}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
        for n in range(1, 90, 8)
    ]
    texts = ["w" * (n % 5) for n in range(len(prompts))]
    pairs = [PreferencePair(0, p, r, r, None) for p, r in zip(prompts, texts, strict=True)]
    encoded = encode_pairs(tiny_tokenizer, pairs, 70)
    found = encode_candidates(tiny_tokenizer, prompts, [[text] for text in texts], 70)
    assert [(one.rows, one.start) for one in found] == [([pair.ids_a], pair.start) for pair in encoded]
    assert {pair.is_cut for pair in encoded} == {True, False}


def test_a_response_that_does_not_fit_is_judged_by_its_front_and_counted(reward_run):
    folder = str(reward_run / "export")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fronts = [[{"role": "user", "content": ""}, {"role": "assistant", "content": "w" * n}] for n in range(64)]
    fitting = [ids for ids in tokenizer.apply_chat_template(fronts, return_dict=False) if len(ids) <= 64]
    with torch.no_grad():
        raw = float(model(torch.tensor([fitting[-1]])).logits)
    expected = (raw - model.config.reward_zero) / model.config.reward_temperature
    judge = load_rewards(folder)
    with pytest.warns(UserWarning, match=r"1 of 5 responses are longer than its max_length of 64 to.*write less"):
        rewards = judge(PROMPTS, [*RESPONSES[:4], "w" * 100])
    assert rewards[4].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert judge.num_cut == 1
    alone = load_reward(folder)
    alone.max_length = 2
    with pytest.raises(UserError, match=r"^reward .*: got a max_length of 2, in which not even an empty response fits"):
        alone(PROMPTS[:1], RESPONSES[:1])
    assert torch.allclose(judge(PROMPTS[:4], RESPONSES[:4]), rewards[:4], atol=1e-5) and judge.num_cut == 0


def test_of_a_response_of_megabytes_no_more_is_made_ids_than_its_front(reward_run, monkeypatch):
    judge, most = load_reward(str(reward_run / "export")), []
    render = encode.render_conversations

    def counted(tokenizer, conversations, *args):
        most.append(max(len(turns[-1]["content"]) for turns in conversations))
        return render(tokenizer, conversations, *args)

    monkeypatch.setattr(encode, "render_conversations", counted)
    with pytest.warns(UserWarning, match="judges them by what comes first"):
        found = judge.encode(PROMPTS[:2], ["It is 4.", "w" * 1_000_000], cut_long=True)
    expected = judge.encode(PROMPTS[:2], ["It is 4.", "w" * 1000], cut_long=True)
    assert found == expected and found.is_cut == [False, True]
    assert max(most) < 10_000
    # The tokenizer drops what it drops: of such a response the front fits, and all of it is read.
    judge.tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "")
    padded = judge.encode(PROMPTS[:1], ["It is" + " " * 10_000 + "4."], cut_long=True)
    assert padded == judge.encode(PROMPTS[:1], ["Itis4."], cut_long=True) and padded.is_cut == [False]


def test_a_prompt_that_the_template_refuses_is_one_line(reward_run):
    judge = load_reward(str(reward_run))
    judge.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}ok"
    )
    prompts = [PROMPTS[0], [{"role": "system", "content": "Be kind"}, *PROMPTS[0]]]
    refusal = "chat template refuses a prompt: got no system role for the roles system, user"
    with pytest.raises(UserError, match=f"^reward {reward_run}: {refusal}"):
        judge(prompts, RESPONSES[:2])


# Functions.


@pytest.mark.parametrize(
    "kind",
    [list, tuple, torch.tensor, lambda s: torch.tensor(s).double().numpy(), lambda s: list(map(torch.tensor, s))],
)
def test_a_function_may_return_any_sequence_of_numbers(function, kind):
    judge = load_reward(function(lambda prompts, responses: kind(lengths(prompts, responses))))
    scores = judge(PROMPTS, RESPONSES)
    assert scores.tolist() == [8, 30, 9, 3, 9] and scores.dtype == torch.float32


def test_a_function_gets_the_turns_and_cannot_change_them(function):
    def judge(prompts, responses):
        texts = [prompt[-1]["content"] + text for prompt, text in zip(prompts, responses, strict=True)]
        for prompt in prompts:
            prompt[-1]["content"] = "gone"
            prompt.append({"role": "assistant", "content": "gone"})
        responses.clear()
        return [len(text) for text in texts]

    before, responses = json.dumps(PROMPTS), list(RESPONSES)
    scores = load_reward(function(judge))(PROMPTS, responses)
    assert scores.tolist() == [len(q) + len(r) for q, r in zip(QUESTIONS, RESPONSES, strict=True)]
    assert json.dumps(PROMPTS) == before and responses == RESPONSES


def test_a_function_is_imported_from_a_module_on_the_path(tmp_path, monkeypatch):
    (tmp_path / "short_is_good.py").write_text(
        "def judge(prompts, responses):\n    return [-len(r) for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_reward("short_is_good.judge")(PROMPTS, RESPONSES).tolist() == [-8, -30, -9, -3, -9]


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ([1, 2, 3], "got 3 scores for 5 responses; return one each"),
        (torch.ones(5, 1), r"got scores of shape \(5, 1\); return shape \(5,\)"),
        (1.0, r"got scores of shape \(\); return shape \(5,\)"),
        (None, r"got NoneType \(RuntimeError: .*\) for 5 responses; return one number each"),
        (["good"] * 5, r"got list \(.*\) for 5 responses; return one number each"),
        ([[1.0], 2.0, 3.0, 4.0, 5.0], r"got list \(.*\) for 5 responses; return one number each"),
        ([1, float("nan"), 2, 3, float("nan")], r'got NaN for 2 of 5 responses, such as response 1 \("It is not clear'),
        ([1, 2, 3, float("-inf"), 4], r'got infinity for 1 of 5 responses, such as response 3 \("No\."\);'),
        ([1e39, 2, 3, 4, float("nan")], r"got NaN and infinity for 2 of 5 responses"),
    ],
)
def test_what_is_not_one_finite_number_each_is_one_line(function, scores, problem):
    judge = load_reward(function(lambda prompts, responses: scores))
    with pytest.raises(UserError, match=f"^reward my_rewards.judge: {problem}") as caught:
        judge(PROMPTS, RESPONSES)
    assert "\n" not in str(caught.value)


def test_the_text_in_a_message_is_short_and_on_one_line():
    with pytest.raises(UserError) as caught:
        checked_scores("f", [float("nan")], ["one\ntwo " + "x" * 100])
    assert f'response 0 ("one two {"x" * 32}");' in str(caught.value)


def test_rewards_of_a_model_are_checked_as_well(reward_run):
    judge = load_reward(str(reward_run))
    next(judge.reward_model.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match=f"reward {reward_run}: got NaN for 5 of 5 responses, such as response 0"):
        judge(PROMPTS, RESPONSES)


def test_an_exception_of_a_function_is_named_and_chained(function):
    def judge(prompts, responses):
        raise KeyError("score\nmore")

    with pytest.raises(UserError, match=r"^reward my_rewards.judge: got KeyError: .*score.* for 5 responses") as caught:
        load_reward(function(judge))(PROMPTS, RESPONSES)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(UserError, match=r"got ZeroDivisionError for 1 responses"):
        FunctionReward(lambda p, r: (_ for _ in ()).throw(ZeroDivisionError()), "f")([PROMPTS[0]], ["x"])


# Several sources.


def test_weights_add_up(function, reward_run):
    rewards = load_rewards({str(reward_run): 0.5, function(lengths): -2.0})
    alone = load_rewards(str(reward_run))(PROMPTS, RESPONSES)
    by_hand = [0.5 * r - 2.0 * len(text) for r, text in zip(alone.tolist(), RESPONSES, strict=True)]
    assert rewards(PROMPTS, RESPONSES).tolist() == pytest.approx(by_hand, rel=1e-5)
    assert rewards([], []).shape == (0,)


def test_problems_of_all_sources_come_at_once(function):
    sources = {"no/such/run": 1.0, "my_rewards.nothing": 1.0, function(lengths): float("nan"), "json.dumps": 0.0}
    with pytest.raises(UserError) as caught:
        load_rewards(sources)
    expected = [
        r"reward my_rewards.judge: got the weight nan; use",
        r"reward json.dumps: got the weight 0.0; use",
        r"reward no/such/run: got no such folder; give the run folder of a fit, a transformers folder",
        r"reward my_rewards.nothing: got neither a folder nor anything to import \(AttributeError",
    ]
    assert len(caught.value.problems) == 4
    assert all(re.match(one, got) for one, got in zip(expected, caught.value.problems, strict=True))
    with pytest.raises(UserError, match="reward: got no source; give the run folder"):
        load_rewards({})


# Sources that are none.


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("nowhere", "got no such folder; give the run folder of a fit"),
        ("./no.where", "got no such folder; give the run folder of a fit"),
        ("no_such_module.f", r"got neither a folder nor anything to import \(ModuleNotFoundError: .*PYTHONPATH"),
        ("json.no_such_function", r"got neither a folder nor anything to import \(AttributeError"),
        ("math.pi", "got a float, which cannot be called; give"),
        (
            "empty",
            "got a folder without config.yaml and rounds.csv, and without config.json or adapter_config.json; give",
        ),
    ],
)
def test_what_is_no_source_is_one_line(source, problem):
    Path("empty").mkdir()
    with pytest.raises(UserError, match=f"^reward {re.escape(source)}: {problem}") as caught:
        load_reward(source)
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_on_import_is_named(tmp_path, monkeypatch):
    (tmp_path / "fails_on_import.py").write_text("raise OSError('no key')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"reward fails_on_import.f: .*\(OSError: no key\)") as caught:
        load_reward("fails_on_import.f")
    assert isinstance(caught.value.__cause__.__cause__, OSError)


def edited_copy(folder: Path, **config) -> str:
    """The files of an exported model in `copy`, with other entries in `config.json`; None removes one."""
    copy = Path("copy")
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    entries = {**json.loads((copy / "config.json").read_text()), **config}
    (copy / "config.json").write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))
    return "copy"


def test_a_run_without_folds_has_no_scale(tiny_run):
    without_folds = [
        "--evolution.folds=0",
        "--evolution.rule=ser_lightning.PaperRule",
    ]
    assert main(["fit", *tiny_run, *without_folds, "--evolution.max_rounds=0", "--run_dir=run"]) == 0
    problem = "got the zero 0 and the temperature 1 of a fit without folds"
    with pytest.raises(UserError, match=f"^reward run: {problem}.*; fit it with folds 2 or more, or set allow_uncal"):
        load_reward("run")
    run = read_reward_run(Path("run"))
    assert (run.zero, run.temperature) == (0.0, 1.0)
    rewards = load_reward("run", allow_uncalibrated=True)(PROMPTS, RESPONSES)
    assert torch.equal(load_rewards("run", allow_uncalibrated=True)(PROMPTS, RESPONSES), rewards)
    export(Path("run"), Path("out"))
    with pytest.raises(UserError, match=f"^reward out: {problem}"):
        load_reward("out")


def test_a_classifier_of_somebody_else_has_no_scale(reward_run):
    scaled = load_reward(str(reward_run / "export"))
    folder = edited_copy(reward_run / "export", reward_temperature=None, reward_zero=None)
    with pytest.raises(UserError, match="^reward copy: got a config.json without reward_temperature"):
        load_reward(folder)
    raw = load_reward(folder, allow_uncalibrated=True)(PROMPTS, RESPONSES)
    expected = (raw - scaled.zero) / scaled.temperature
    assert torch.allclose(scaled(PROMPTS, RESPONSES), expected, rtol=1e-4, atol=1e-5)


def test_folders_that_hold_no_reward_model_are_one_line(tiny_model_dir, reward_run):
    with pytest.raises(UserError, match=r"^reward .*: got a model of 2 labels; need a classifier of one label"):
        load_reward(str(tiny_model_dir), allow_uncalibrated=True)
    damaged = {"reward_readings": ["mean@1"], "reward_header": [3], "reward_question": []}
    with pytest.raises(UserError, match="^reward eyes: config.json: got reward_readings for an encoder, which"):
        load_reward(str(encoder_folder(Path("eyes"), **damaged)))
    words = len(json.loads((Path("eyes") / "tokenizer.json").read_text())["model"]["vocab"])
    few = f"^reward few: backbone.path: got a tokenizer of {words} tokens for 5 embeddings; use its own$"
    with pytest.raises(UserError, match=few):
        load_reward(str(encoder_folder(Path("few"), vocab_size=5)))
    with pytest.raises(UserError, match="^reward three: got a model of 3 labels"):
        load_reward(str(words_folder(Path("three"), num_labels=3)))
    bare = words_folder(Path("bare"), template=False)
    with pytest.raises(UserError, match="^reward bare: got a tokenizer without a chat template; save the one"):
        load_reward(str(bare), allow_uncalibrated=True)
    copy = Path(edited_copy(reward_run / "export"))
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^reward copy: got no classifier from the folder \(OSError: .*; give"):
        load_reward("copy")
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((tiny_model_dir / name).read_bytes())
    one = {**json.loads((copy / "config.json").read_text()), "id2label": {"0": "reward"}, "reward_temperature": 2.0}
    (copy / "config.json").write_text(json.dumps(one))
    with pytest.raises(UserError, match=r"^reward copy: got no weights for score.weight; give a reward model that"):
        load_reward("copy")


def test_a_run_that_lacks_its_model_or_is_another_kind_is_one_line(reward_run):
    Path("run").mkdir()
    for name in ("config.yaml", "rounds.csv"):
        Path("run", name).write_bytes((reward_run / name).read_bytes())
    with pytest.raises(UserError, match=r"^reward run: run: run has no rounds/0/model.pt, its delivered model"):
        load_reward("run")
    Path("run/config.yaml").write_text("model:\n  init_args: {}\n")
    with pytest.raises(UserError, match=r"^reward run: run: run/config.yaml has no table model.init_args.backbone"):
        load_reward("run")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"reward_readings": ["first@1"]}, "config.json: reward_readings: got first@1"),
        ({"reward_readings": ["mean@7", "judge@2"]}, "config.json: reward_readings: got mean@7"),
        ({"reward_readings": "mean@1"}, "config.json: got damaged entries"),
        ({"reward_header": [1.5]}, "config.json: got damaged entries"),
        ({"reward_header": []}, "config.json: got no reward_header for mean@1, judge@2"),
        ({"reward_question": []}, "config.json: got no reward_question for mean@1, judge@2"),
        (
            {"reward_readings": ["mean@1", "judge@1", "judge@2"]},
            "saved weights do not fit the model: got score.weight of shape (1, 32), need (1, 48)",
        ),
    ],
)
def test_damaged_readings_of_a_folder_are_one_line(tiny_fit, change, problem):
    export(
        tiny_fit("--model.backbone.train=head", "--model.reading=[mean@1,judge@2]", "--evolution.max_rounds=0"),
        Path("out"),
    )
    folder = edited_copy(Path("out"), **change)
    with pytest.raises(UserError) as error:
        load_reward(folder)
    assert len(error.value.problems) == 1 and f"reward copy: {problem}" in error.value.problems[0]
