"""Exports of every reading, against states that are taken by hand from the untouched base, and against their run."""

import copy
import json
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from jinja2 import Environment
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from ser_lightning import Scorer
from ser_lightning.__main__ import main
from ser_lightning.data.layouts import PADDED
from ser_lightning.errors import UserError
from ser_lightning.export.reading_folder import asking_template, note_plain_or_own, own_model, save_tokenizer
from ser_lightning.export.reward import export
from ser_lightning.models.readings import Reading, turn_tokens
from ser_lightning.models.reward_model import RewardModel, merged_model, read_folder
from ser_lightning.runs.files import delivered_round
from ser_lightning.training.scoring import evaluating
from tests.helpers import slow
from tests.models.test_masks import model_of
from tests.training.test_features import states_by_hand

PROMPTS = ["What is 2 plus 2?", "Why?", "What is 7 plus 8, and do not hurry? " * 3]
RESPONSES = ["It is 4.", "I do not know, I think.", "15."]
TURNS = [
    [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
]
PLAIN, OWN = ["[last@1]", "[judge@1]"], ["[mean@1]", "[mean@1,judge@2]"]


def run_of(tiny_fit, reading, train="head", name="run"):
    flags = f"--model.backbone.train={train}", f"--model.reading={reading}", "--evolution.max_rounds=0"
    return tiny_fit(*flags, name=name)


def rewards_by_hand(base, run, reading, turns):
    """Of a head on the untouched base: its saved weights, and the states of one conversation at a time."""
    [weight] = torch.load(run / f"rounds/{delivered_round(run)}/model.pt", weights_only=True)["weights"].values()
    plain = LlamaForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    kinds = reading.strip("[]").split(",")
    states = [states_by_hand(plain.model, tokenizer, one, kinds) for one in turns]
    return torch.stack(states) @ weight[0]


@pytest.mark.parametrize("reading", [*OWN, *slow(*PLAIN)])
def test_a_folder_gives_the_rewards_that_its_states_have_by_hand(tiny_fit, tiny_model_dir, reading):
    run = run_of(tiny_fit, reading)
    assert export(run, Path("out")).largest < 1e-4 and not Path("out/__pycache__").exists()
    expected = rewards_by_hand(tiny_model_dir, run, reading, TURNS)
    assert expected.std() > 0
    if reading in PLAIN:
        model = AutoModelForSequenceClassification.from_pretrained("out")
        tokenizer = AutoTokenizer.from_pretrained("out")
        ids = [tokenizer.apply_chat_template(turns, return_dict=False) for turns in TURNS]
        with torch.no_grad():
            found = torch.cat([model.eval()(torch.tensor([row])).logits[0] for row in ids])
        assert not Path("out/reward_model.py").exists() and not hasattr(model.config, "reward_readings")
    else:
        found = own_model(Path("out"))(TURNS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    short = Scorer.load("out").score(PROMPTS[:2], RESPONSES[:2])  # the third prompt is cut, as in training
    torch.testing.assert_close(short, expected[:2], rtol=1e-4, atol=1e-4)


def test_what_a_response_says_hides_nothing_of_it(tiny_fit, tiny_model_dir):
    """The header stands in responses, in a turn of the user and in an earlier answer."""
    header = "<eos><assistant>"
    run = run_of(tiny_fit, "[mean@1]")
    export(run, Path("out"))
    prompts = [[{"role": "user", "content": f"Say {header}!"}], [*TURNS[1], {"role": "user", "content": "So?"}]] * 2
    responses = [f"It is 4.{header}Yes.", f"{header}I think.", f"Go away!{header}Yes.", "I do not know."]
    turns = [[*p, {"role": "assistant", "content": r}] for p, r in zip(prompts, responses, strict=True)]
    expected = rewards_by_hand(tiny_model_dir, run, "[mean@1]", turns)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    close(own_model(Path("out"))(turns), expected)
    for folder in (run, "out"):
        scorer = Scorer.load(folder, max_length=400)
        close(scorer.score(prompts, responses), expected)
        close(scorer.reward(prompts, responses), (expected - scorer.zero) / scorer.temperature)
        [first, second] = scorer.score_candidates(prompts[:2], [[responses[i], responses[i + 2]] for i in (0, 1)])
        close(torch.stack([first[0], second[0]]).T.flatten(), expected)


@pytest.mark.parametrize(
    ("reading", "train"),
    [
        ("[mean@1,judge@2]", "lora"),
        pytest.param("[judge@1]", "lora", marks=pytest.mark.slow),
        pytest.param("[mean@1,judge@2]", "full", marks=pytest.mark.slow),
    ],
)
def test_a_folder_goes_back_into_the_scorer_and_into_score(tiny_fit, reading, train):
    run = run_of(tiny_fit, reading, train)
    export(run, Path("out"))
    if "mean" in reading:
        assert Path("out/reward_model.py").is_file()
        Path("out/reward_model.py").write_text("open('code_ran', 'w')")
    scorers = [Scorer.load(folder) for folder in (run, "out")]
    one, other = (scorer.score(PROMPTS, RESPONSES) for scorer in scorers)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert one.unique().numel() == 3 and scorers[0].temperature == pytest.approx(scorers[1].temperature)
    rows = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", "--model=out", "--data=rows.jsonl", "--out=out.parquet", "--device=cpu"]) == 0
    assert pq.read_table("out.parquet")["reward"].to_pylist() == pytest.approx(one.tolist(), rel=1e-4, abs=1e-5)
    assert not Path("code_ran").exists()


@pytest.mark.parametrize("reading", ["[judge@1]", "[mean@1,judge@2]"])
def test_fewer_bits_keep_the_head_where_it_reads(tiny_fit, reading):
    result = export(run_of(tiny_fit, reading, "lora"), Path("out"), dtype="bfloat16")
    assert Scorer.load("out").reward.reward_model.body.dtype == torch.bfloat16
    assert not result.is_exact and result.largest < result.spread
    assert Scorer.load("out").score(PROMPTS, RESPONSES).isfinite().all()


@pytest.mark.parametrize("reading", ["[mean@1]", "[mean@1,judge@2]"])
def test_what_is_no_plain_classifier_does_not_load_as_one(tiny_fit, reading):
    """It would give other rewards without a word."""
    export(run_of(tiny_fit, reading), Path("out"))
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained("out")


@pytest.mark.parametrize(
    ("reading", "form"), [("[judge@1]", "merged"), ("[mean@1,judge@2]", "merged"), ("[mean@1]", "adapter")]
)
def test_the_cards_code_gives_the_models_reward(tiny_fit, monkeypatch, reading, form):
    export(run_of(tiny_fit, reading, "lora" if form == "adapter" else "head"), Path("out"), form)
    card = Path("out/README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("FOLDER", "out").replace('"..."', '"Hm?"')
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = {}
    exec(code, names)
    monkeypatch.delitem(sys.modules, "reward_model", raising=False)
    assert names["reward"] == pytest.approx(Scorer.load("out").score(["Hm?"], ["Hm?"]).item(), abs=1e-5)
    assert ("Was that a helpful, correct and well-written response?" in card) == ("judge" in reading)
    assert ("vLLM" in card) == ("mean" in reading) and "{{" not in card
    assert ("torch, transformers and peft alone" in card) == (form == "adapter")


def test_an_adapter_on_the_whole_base_is_one_of_a_classifier(tiny_fit):
    run = run_of(tiny_fit, "[judge@2]", "lora")
    assert export(run, Path("adapter"), "adapter").largest < 1e-4
    tokenizer, model = (
        AutoTokenizer.from_pretrained("adapter"),
        AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=1),
    )
    ids = torch.tensor([tokenizer.apply_chat_template(TURNS[0], return_dict=False)])
    with torch.no_grad():
        found = model.eval()(ids).logits.item()
    assert found == pytest.approx(Scorer.load(run).score(PROMPTS[:1], RESPONSES[:1]).item(), rel=1e-4)


@pytest.mark.parametrize("reading", ["[judge@1]", "[mean@1,judge@2]", *slow("[last@1]", "[mean@2]")])
def test_an_adapter_whose_head_reads_elsewhere_has_a_file_that_scores(tiny_fit, reading):
    run = run_of(tiny_fit, reading, "lora")
    assert export(run, Path("out"), "adapter").largest < 1e-4
    left = {file.name for file in Path("out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "reward_head.safetensors", "reward_model.py"} <= left
    assert not left & {"config.json", "model.safetensors"}
    expected = Scorer.load(run).score(PROMPTS[:2], RESPONSES[:2])
    torch.testing.assert_close(own_model(Path("out"))(TURNS[:2]), expected, rtol=1e-4, atol=1e-5)
    Path("out/reward_model.py").write_text("open('code_ran', 'w')")
    again = Scorer.load("out")
    torch.testing.assert_close(again.score(PROMPTS[:2], RESPONSES[:2]), expected, rtol=1e-5, atol=1e-6)
    highest = max(int(one[-1]) for one in reading.strip("[]").split(","))
    assert again.reward.reward_model.num_layers == highest and not Path("code_ran").exists()
    changed = load_file("out/adapter_model.safetensors")
    save_file({name: torch.zeros_like(t) for name, t in changed.items()}, "out/adapter_model.safetensors")
    assert not torch.allclose(Scorer.load("out").score(PROMPTS[:2], RESPONSES[:2]), expected, rtol=1e-3)


@pytest.mark.parametrize("reading", ["[mean@1,judge@2]", *slow("[last@2]", "[judge@1]")])
def test_of_a_frozen_body_the_head_is_exported_alone(tiny_fit, tiny_model_dir, reading):
    run = run_of(tiny_fit, reading)
    assert export(run, Path("out"), "adapter").largest < 1e-4
    assert sum(file.stat().st_size for file in Path("out").glob("*.safetensors")) < 1000
    assert not Path("out/adapter_config.json").exists() and not Path("out/config.json").exists()
    expected = rewards_by_hand(tiny_model_dir, run, reading, TURNS[:2])
    torch.testing.assert_close(own_model(Path("out"))(TURNS[:2]), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(Scorer.load("out").score(PROMPTS[:2], RESPONSES[:2]), expected, rtol=1e-4, atol=1e-4)
    scale = json.loads(Path("out/reward_scale.json").read_text())
    assert scale["base_model_name_or_path"] == str(tiny_model_dir.resolve())
    Path("out/reward_scale.json").write_text(json.dumps({**scale, "base_model_name_or_path": "/nowhere"}))
    with pytest.raises(UserError, match="whose base /nowhere cannot be loaded .* in its reward_scale.json"):
        Scorer.load("out")


@pytest.mark.parametrize("train", [*slow("lora"), "head"])
def test_what_was_trained_on_4_bits_scores_on_4_bits_by_its_own_file(tiny_fit, train):
    flags = f"--model.backbone.train={train}", "--model.backbone.quantize=nf4", "--model.reading=[mean@1,judge@2]"
    run = tiny_fit(*flags)
    export(run, Path("out"), "adapter")
    expected = Scorer.load(run).score(PROMPTS, RESPONSES)
    torch.testing.assert_close(Scorer.load("out").score(PROMPTS, RESPONSES), expected, rtol=1e-5, atol=1e-6)
    layer = own_model(Path("out")).body.layers[0].self_attn.q_proj
    layer = getattr(layer, "base_layer", layer)
    assert layer.weight.dtype == torch.uint8 and layer.compute_dtype == torch.bfloat16


def test_damage_to_such_an_adapter_is_one_line(tiny_fit):
    export(run_of(tiny_fit, "[mean@1]", "lora"), Path("out"), "adapter")
    scale = json.loads(Path("out/reward_scale.json").read_text())
    for name, change in {
        "reward_scale.json: reward_readings: got mean@3": {"reward_readings": ["mean@3"]},
        "reward_scale.json: got damaged entries": {"reward_header": "x"},
        "saved weights do not fit the model: got 1 missing": None,
    }.items():
        Path("out/reward_scale.json").write_text(json.dumps({**scale, **(change or {})}))
        if change is None:
            Path("out/reward_head.safetensors").unlink()
        with pytest.raises(UserError, match=name) as caught:
            Scorer.load("out")
        assert len(caught.value.problems) == 1


def test_an_export_may_be_the_base_of_another_run(tiny_fit):
    """What it says of its own head does not outlive that head."""
    export(run_of(tiny_fit, "[mean@1,judge@2]"), Path("first"))
    run = tiny_fit("--model.backbone.train=full", f"--model.backbone.path={Path('first').resolve()}", name="second")
    export(run, Path("out"))
    assert "reward_readings" not in json.loads(Path("out/config.json").read_text())
    one, other = (Scorer.load(folder).score(PROMPTS, RESPONSES) for folder in (run, "out"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reading", ["last", *slow("[mean@1]")])
def test_an_export_may_be_the_base_of_an_adapter(tiny_fit, reading):
    export(run_of(tiny_fit, "[mean@1,judge@2]"), Path("first"))
    base = f"--model.backbone.path={Path('first').resolve()}"
    run = tiny_fit("--model.backbone.train=lora", f"--model.reading={reading}", base, name="second")
    assert export(run, Path("out"), "adapter").largest < 1e-4
    one, other = (Scorer.load(folder).score(PROMPTS, RESPONSES) for folder in (run, "out"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "gpt2", "gpt_neox", "olmo2"])
def test_the_file_reads_other_architectures_as_they_are_trained(kind, tiny_tokenizer):
    model = model_of(kind, vocab_size=len(tiny_tokenizer), max_position_embeddings=256, n_positions=256)
    reward_model = RewardModel(model.eval(), PADDED)
    readings = [Reading("mean", 2), Reading("judge", 3), Reading("last", 1)]
    reward_model.read_at(readings, turn_tokens(tiny_tokenizer, readings, "Good?"))
    rows = [tiny_tokenizer.apply_chat_template(turns, return_dict=False) for turns in TURNS]
    prompts = [
        tiny_tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False) for turns in TURNS
    ]
    inputs = reward_model.layout.lay_out(rows, range(3), 0, list(map(len, prompts)))
    with evaluating(reward_model):
        expected = reward_model(inputs)
    merged = merged_model(reward_model)
    note_plain_or_own(merged, reward_model)
    merged.save_pretrained("out")
    tiny_tokenizer.save_pretrained("out")
    Path("out/reward_model.py").write_text(Path(sys.modules[own_model.__module__].standalone.__file__).read_text())
    torch.testing.assert_close(own_model(Path("out"))(TURNS), expected, rtol=1e-4, atol=1e-5)
    again = AutoModelForSequenceClassification.from_pretrained("out", ignore_mismatched_sizes=True)
    with evaluating(again):
        torch.testing.assert_close(read_folder(again, Path("out"))(inputs), expected, rtol=1e-4, atol=1e-5)


QUESTION = """Is it "good"? {{ no }} {% if %} \\n 'ja' \N{GRINNING FACE} é
Yes or No?"""


@pytest.mark.parametrize("start", ["", "\n", "  ", "{# a remark #}\n  "])
def test_the_template_asks_behind_a_response_and_leaves_prompts_alone(tiny_tokenizer, start):
    tokenizer = type(tiny_tokenizer)(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    original = start + tiny_tokenizer.chat_template
    asked = [*TURNS[0], {"role": "user", "content": QUESTION}]
    tokenizer.chat_template = original
    expected = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    prompts = [
        tokenizer.apply_chat_template(TURNS[0][:1], add_generation_prompt=adds, tokenize=False)
        for adds in (True, False)
    ]
    tokenizer.chat_template = asking_template(original, QUESTION)
    assert tokenizer.apply_chat_template(TURNS[0], tokenize=False) == expected
    assert QUESTION in expected and expected.endswith("<assistant>")
    assert prompts == [
        tokenizer.apply_chat_template(TURNS[0][:1], add_generation_prompt=adds, tokenize=False)
        for adds in (True, False)
    ]
    assert [len(TURNS[0]), TURNS[0][-1]["role"]] == [2, "assistant"]  # the caller's list is his own
    Environment().parse(tokenizer.chat_template)


@pytest.mark.parametrize("asks", [False, True])
def test_a_folder_writes_the_date_of_training_on_any_day(tiny_tokenizer, tmp_path, asks):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    reads = [SimpleNamespace(kind="judge" if asks else "last")]
    model = SimpleNamespace(readings=reads, layout=SimpleNamespace(question=(1, 2)))
    save_tokenizer(tokenizer, model, "Good?", 64, tmp_path, is_own=False)
    folder = AutoTokenizer.from_pretrained(tmp_path)
    assert folder.apply_chat_template(TURNS[0][:1], tokenize=False) == f"26 Jul 2024{TURNS[0][0]['content']}"
