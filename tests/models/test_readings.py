"""Readings against plain transformers: one sequence at a time, all hidden states, and the mean by hand."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from ser_lightning.data.encode import encode_candidates
from ser_lightning.data.layouts import Layout
from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.loading import prepare_body
from ser_lightning.models.readings import (
    Reading,
    TurnTokens,
    drop_layers,
    layers_and_norm,
    parse_readings,
    read_states,
    turn_tokens,
)
from ser_lightning.models.reward_model import RewardModel
from tests.models.test_masks import KINDS, model_of

HEADER, QUESTION = (7, 8), (9, 10, 8)
STARTS = [5, 3, 5, 3]
READINGS = [Reading("last", 3), Reading("last", 2), Reading("mean", 2), Reading("mean", 3), Reading("judge", 1)]


def sequences():
    """Two pairs, prompts of 5 and 3 tokens, the first pair's responses begin alike and hold the header's first id."""
    first, second = [11, 12, 13, *HEADER], [20, *HEADER]
    return [first + [30, 7, 31, 32], second + [40], first + [30, 7, 33], second + [41, 42, 43, 44, 45, 46]], [
        0,
        1,
        0,
        1,
    ]


def naive_states(model, readings):
    """(R, K, H) by one forward pass for each sequence, with all hidden states of a body cut after each layer."""
    found = []
    body = getattr(model, model.base_model_prefix)
    norm = next(
        getattr(body, name) for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm") if hasattr(body, name)
    )
    for ids in sequences()[0]:
        start = next(i + 2 for i in reversed(range(len(ids))) if tuple(ids[i : i + 2]) == HEADER)
        row = torch.tensor([ids + list(QUESTION)])
        hidden = body(input_ids=row, output_hidden_states=True).hidden_states
        states = {layer: hidden[layer][0] if layer == 3 else norm(hidden[layer])[0] for layer in (1, 2, 3)}
        places = {"last": len(ids) - 1, "judge": len(ids) + 2, "mean": slice(start, len(ids))}
        found.append(torch.stack([states[r.layer][places[r.kind]].reshape(-1, 32).mean(0) for r in readings]))
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "layout", [Layout(), Layout(True), Layout(True, None, True, 8)], ids=["padded", "packed", "row"]
)
def test_readings_are_those_of_each_sequence_alone(kind, layout):
    model = model_of(kind).eval()
    rows, keys = sequences()
    layout = Layout(layout.shares_prompts, None, layout.is_one_row, layout.row_multiple, HEADER, QUESTION)
    inputs = layout.lay_out(rows, keys, 0, STARTS)
    with torch.no_grad():
        found = read_states(getattr(model, model.base_model_prefix), inputs, READINGS)
        expected = naive_states(model, READINGS)
    assert found.shape == (4, 5, 32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_gives_the_same_readings():
    model = model_of("llama").eval()
    rows, keys = sequences()
    inputs = Layout(header=HEADER, question=QUESTION).lay_out(rows, keys, 0, STARTS)
    width = inputs.input_ids.shape[1]
    shift = width - inputs.num_tokens
    left = type(inputs)(
        torch.stack([row.roll(int(n)) for row, n in zip(inputs.input_ids, shift, strict=True)]),
        torch.stack([row.roll(int(n)) for row, n in zip(inputs.attention_mask, shift, strict=True)]),
        inputs.response + torch.where(inputs.response >= 0, shift[:, None], 0),
    )
    assert not torch.equal(left.input_ids, inputs.input_ids)
    with torch.no_grad():
        torch.testing.assert_close(read_states(model.model, left, READINGS), read_states(model.model, inputs, READINGS))


def test_gradients_reach_the_adapters_through_every_reading_with_checkpointing_too():
    gradients = []
    for is_checkpointed in (False, True):
        model = model_of("qwen2")
        lora = LoraSettings(r=2, dropout=0.0, target_modules=["q_proj", "v_proj"])
        torch.manual_seed(0)
        prepare_body(model, Backbone("x", lora=lora, gradient_checkpointing=is_checkpointed))
        reward_model = RewardModel(model, Layout(True)).train()
        reward_model.read_at(READINGS[2:], TurnTokens(HEADER, QUESTION))
        torch.nn.init.ones_(reward_model.model.score.weight)
        rows, keys = sequences()
        reward_model(reward_model.layout.lay_out(rows, keys, 0, STARTS)).square().sum().backward()
        gradients.append({n: p.grad for n, p in reward_model.named_parameters() if p.requires_grad})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys() and all(
        g is not None and g.abs().sum() > 0 for n, g in plain.items() if "lora_B" in n
    )
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox"])
def test_a_body_without_its_unread_layers_gives_the_same_states(kind):
    model = model_of(kind).eval()
    rows, keys = sequences()
    inputs = Layout(header=HEADER).lay_out(rows, keys, 0, STARTS)
    readings = [Reading("last", 2), Reading("mean", 1)]
    body = getattr(model, model.base_model_prefix)
    with torch.no_grad():
        whole = read_states(body, inputs, readings)
        drop_layers(body, 2)
        torch.testing.assert_close(read_states(body, inputs, readings), whole, rtol=1e-5, atol=1e-5)
    assert model.config.get_text_config().num_hidden_layers == 2
    assert sum(isinstance(m, nn.ModuleList) and len(m) == 2 for m in body.modules()) == 1


def test_a_reading_without_a_layer_takes_the_usual_depth_and_problems_come_together():
    assert [str(r) for r in parse_readings(["last", "mean", "judge", "mean@1"], 24)] == [
        "last@24",
        "mean@12",
        "judge@16",
        "mean@1",
    ]
    assert [str(r) for r in parse_readings(["mean"], 1)] == ["mean@1"]
    with pytest.raises(UserError) as error:
        parse_readings(["first", "mean@25", "judge@0", "mean@", "last", "last@24", "mean@-1"], 24)
    assert [problem.split(";")[0] for problem in error.value.problems] == [
        "model.reading: got first",
        "model.reading: got mean@25",
        "model.reading: got judge@0",
        "model.reading: got mean@",
        "model.reading: got last@24 twice",
        "model.reading: got mean@-1",
    ]
    with pytest.raises(UserError, match="got no reading"):
        parse_readings([], 24)


def test_the_tokens_around_a_response_are_those_of_the_template(tiny_tokenizer):
    tokens = turn_tokens(tiny_tokenizer, [Reading("mean", 1), Reading("judge", 1)], "Good?")
    assert tiny_tokenizer.decode(list(tokens.header)).endswith("<assistant>")
    assert tiny_tokenizer.decode(list(tokens.question)) == "<user>Good?<eos><assistant>"
    prompt = [{"role": "user", "content": "Hi <assistant> there"}]
    [encoded] = encode_candidates(tiny_tokenizer, [prompt], [["Yes."]], 100)
    assert tiny_tokenizer.decode(encoded.rows[0][encoded.start :]) == "Yes.<eos>"
    ends_with_it = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
        " {{ m['content'] }}<eos>{% endif %}{% endfor %}"
    )
    in_turn = copy.deepcopy(tiny_tokenizer)
    in_turn.chat_template = ends_with_it
    tokens = turn_tokens(in_turn, [Reading("mean", 1), Reading("judge", 1)], "Good?")
    assert (in_turn.decode(tokens.header), in_turn.decode(tokens.question)) == (" [/INST] ", "[INST] Good? [/INST]")
    assert turn_tokens(tiny_tokenizer, [Reading("last", 1)]) == TurnTokens()
    assert turn_tokens(tiny_tokenizer, [Reading("mean", 1)]).question == ()


def test_a_model_whose_layers_are_not_known_is_read_at_the_last_one():
    model = AutoModel.from_config(AutoConfig.for_model("rwkv", hidden_size=16, num_hidden_layers=2, vocab_size=9))
    with pytest.raises(UserError, match=r"^model.reading: the layers of a rwkv are not known, .* use \[last\]$"):
        layers_and_norm(model)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "writes nothing fixed before a response"),
        (
            "{% if messages | length > 2 %}{{ raise_exception('two turns only') }}{% endif %}"
            "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}",
            "refuses a question after the response \\(two turns only\\)",
        ),
        (
            "{% for m in messages %}<{{ m['role'] }}>{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}"
            "{% endif %}{% endfor %}",
            "changes a response that a question follows",
        ),
        (
            "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if messages | length > 2 %}"
            "{{ messages[1]['content'] }}{% endif %}",
            "writes the question differently after each response",
        ),
    ],
)
def test_a_template_that_cannot_ask_is_refused(tiny_tokenizer, template, message):
    tokenizer = type(tiny_tokenizer)(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        turn_tokens(tokenizer, [Reading("judge", 1)])
