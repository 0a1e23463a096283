"""The cache of sampling against transformers' own, to the bit."""

import gc
import weakref

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from ser_lightning.models.masks import PADDED_ATTENTION
from ser_lightning.models.policy import Policy
from ser_lightning.rl import rollout
from ser_lightning.rl.experience import measure
from ser_lightning.rl.kv_cache import can_select, sampling_cache
from ser_lightning.rl.rollout import Generator, Sampling, uniform_numbers
from tests.models.test_masks import KINDS, SIZES, WINDOW

GROUPS = [[9] * 5, [3, 8], [*range(5, 16)], [4, 5, 6]]
"""Prompts shorter and longer than a window."""
PROMPTS = [GROUPS[i] for i in (0, 1, 0, 2, 3, 2, 1)]
ROOM = 14
STOP = [*range(20, 26)]


def lm_of(kind, attention="sdpa"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]}))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.3)
    if attention:
        model.set_attn_implementation(attention)
    return model.eval()


def sampled(policy, prompts=PROMPTS):
    found = Generator(Sampling(ROOM), STOP, 0, 10_000).sample(
        policy, "policy", prompts, uniform_numbers((1,), len(prompts), ROOM)
    )
    return found, measure(policy, found, 1.0, 10_000)[0]


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *((kind, "eager" if kind == "gemma2" else "sdpa") for kind in KINDS),  # SDPA has no cap for its scores
        *((kind, PADDED_ATTENTION) for kind in ("llama", "mistral", "gemma3_text")),
        *(pytest.param(kind, "eager", marks=pytest.mark.slow) for kind in ("llama", "mistral", "gemma3_text")),
    ],
)
def test_tokens_and_log_probabilities_are_those_with_the_cache_of_transformers(kind, attention, monkeypatch):
    policy = Policy(lm_of(kind, attention), {}, has_critic=False)
    own, logps = sampled(policy)
    monkeypatch.setattr(rollout, "sampling_cache", lambda config, num_columns: DynamicCache(config=config))
    expected, expected_logps = sampled(policy)
    assert len(own.num_response_tokens.unique()) > 1  # some rows leave before others
    assert torch.equal(own.input_ids, expected.input_ids) and torch.equal(own.response_mask, expected.response_mask)
    assert torch.equal(logps, expected_logps)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_states_are_equal_to_the_bit_when_rows_leave_and_come(kind):
    body = lm_of(kind).get_decoder()
    caches = DynamicCache(config=body.config), sampling_cache(body.config, 20)
    steps = [torch.randint(3, 64, (3, n)) for n in (WINDOW - 2, 1, 1, 1, 1, 3, 1)]
    for number, ids in enumerate(steps):
        states = []
        for cache in caches:
            with torch.no_grad():
                states.append(body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state)
            if number in (1, 3, 4):
                cache.batch_select_indices(torch.tensor([2, 0, 0]))
        assert torch.equal(*states)


def test_what_came_before_is_not_copied():
    body = lm_of("llama").get_decoder()
    cache, places = sampling_cache(body.config, 9), set()
    for _ in range(9):
        with torch.no_grad():
            body(input_ids=torch.tensor([[5], [6]]), past_key_values=cache, use_cache=True)
        places.add(tuple(x.data_ptr() for layer in cache.layers for x in (layer.keys, layer.values)))
    assert len(places) == 1


def test_more_columns_than_were_thought_of_make_room_anew():
    body = lm_of("llama").get_decoder()
    small, large = sampling_cache(body.config, 2), sampling_cache(body.config, 50)
    for n in (2, 3, 1, 4):
        ids = torch.randint(3, 64, (2, n))
        with torch.no_grad():
            one, other = (
                body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state for cache in (small, large)
            )
        assert torch.equal(one, other)


def test_layers_of_other_kinds_are_those_of_transformers():
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2}
    config = AutoConfig.for_model("qwen3_next", **sizes, layer_types=["linear_attention", "full_attention"])
    plain, own = DynamicCache(config=config), sampling_cache(config, 9)
    assert type(own.layers[0]) is type(plain.layers[0]) and type(own.layers[1]) is not type(plain.layers[1])
    assert not can_select(own)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_the_memory_of_rows_that_leave_is_given_back_at_once(kind):
    model = lm_of(kind)
    cache = sampling_cache(model.config, 40)
    with torch.no_grad():
        model(torch.randint(3, 16, (8, 6)), past_key_values=cache, use_cache=True)
    rooms = [weakref.ref(view._base) for layer in cache.layers for view in (layer.keys, layer.values)]
    assert all(room().shape[0] == 8 for room in rooms)  # of all rows, for all columns
    cache.batch_select_indices(torch.tensor([1]))
    gc.collect()
    assert [room() for room in rooms] == [None] * len(rooms)
    assert all(layer.keys.shape[0] == 1 for layer in cache.layers)
