"""Packed rows, under FlexAttention on CUDA, against padded ones: the same scores and the same gradients."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from ser_lightning.data.layouts import PADDED
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.loading import prepare_body
from ser_lightning.models.masks import choose_layout
from ser_lightning.models.reward_model import RewardModel

SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 40
BY_LAYER = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
KINDS = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {**BY_LAYER, "use_sliding_window": True},
    "gemma3_text": BY_LAYER,
    "gpt_neox": {},
}
"""No window, one in all layers, one in some, one in some under another scaling, and no gate in the MLP."""


def model_of(kind, device):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]}, num_labels=1)
    for name in ("attention_dropout", "hidden_dropout"):
        setattr(config, name, 0.0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.1)  # far from 0, so that attention to the wrong place would show
    return model.to(device)


def pairs_of(number, seed):
    """Pairs of all lengths: prompts longer than a window, several blocks of a mask, pairs that share nothing."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, SIZES["vocab_size"], (length,), generator=generator).tolist()

    prompts = [draw(30, 160) if i % 4 else [] for i in range(number)]
    return [(prompt + draw(3, 70), prompt + draw(3, 70)) for prompt in prompts]


def scores_and_gradients(reward_model, layout, pairs, device):
    """(2B,) rewards, and all gradients of a loss that weighs each of them differently, as one vector."""
    reward_model.zero_grad()
    sequences = [a for a, _ in pairs] + [b for _, b in pairs]
    rewards = reward_model(layout.lay_out(sequences, [*range(len(pairs))] * 2, pad_token_id=0).to(device))
    (rewards * torch.linspace(-1, 1.5, len(rewards), device=device)).mean().backward()
    gradients = [p.grad.float().flatten() for p in reward_model.parameters() if p.grad is not None]
    return rewards.detach().float(), torch.cat(gradients)


def distance(found, expected):
    """Relative to the expected values as a whole."""
    return float((found - expected).norm() / expected.norm())


def pair_of_models(kind, device, adapt=lambda model: None, dtype=torch.float32):
    """The same model twice: as it reads padded rows, and with the attention that packed ones need."""
    padded = model_of(kind, device)
    packed = copy.deepcopy(padded)
    for model in (padded, packed):
        torch.manual_seed(1)
        adapt(model)
        model.to(dtype)
    layout = choose_layout("shared_prompt", packed, device, "layout")
    return RewardModel(padded).train(), RewardModel(packed, layout).train(), layout


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_they_agree(kind, device, record_property):
    padded, packed, layout = pair_of_models(kind, device)
    pairs = pairs_of(12, seed=0)
    expected, slope = scores_and_gradients(padded, PADDED, pairs, device)
    found, own_slope = scores_and_gradients(packed, layout, pairs, device)
    figures = {"scores": distance(found, expected), "gradients": distance(own_slope, slope)}
    record_property("relative_differences", figures)
    assert max(figures.values()) < 1e-4, figures


def test_with_adapters_and_checkpointing_they_agree(device, record_property):
    def adapt(model):
        prepare_body(model, Backbone("x", lora=LoraSettings(r=4, dropout=0.0), gradient_checkpointing=True))
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
        model.to(device)

    padded, packed, layout = pair_of_models("qwen2", device, adapt)
    pairs = pairs_of(12, seed=1)
    expected, slope = scores_and_gradients(padded, PADDED, pairs, device)
    found, own_slope = scores_and_gradients(packed, layout, pairs, device)
    assert len(slope) == len(own_slope) > 0
    figures = {"scores": distance(found, expected), "gradients": distance(own_slope, slope)}
    record_property("relative_differences", figures)
    assert max(figures.values()) < 1e-4, figures


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_they_are_as_near_to_float32_as_padded_rows_are(kind, device, record_property):
    """The yardstick is what rounding does to padded rows anyway, and how much their own scores move with the batch."""
    pairs = pairs_of(16, seed=2)
    exact = RewardModel(model_of(kind, device)).train()
    true_scores, true_slope = scores_and_gradients(exact, PADDED, pairs, device)
    padded, packed, layout = pair_of_models(kind, device, dtype=torch.bfloat16)
    expected, slope = scores_and_gradients(padded, PADDED, pairs, device)
    found, own_slope = scores_and_gradients(packed, layout, pairs, device)
    alone = torch.stack([scores_and_gradients(padded, PADDED, [pair], device)[0] for pair in pairs], dim=1).flatten()
    figures = {
        "padded to float32": {"scores": distance(expected, true_scores), "gradients": distance(slope, true_slope)},
        "packed to float32": {"scores": distance(found, true_scores), "gradients": distance(own_slope, true_slope)},
        "packed to padded": {"scores": distance(found, expected), "gradients": distance(own_slope, slope)},
        "padded alone to padded together": {"scores": distance(alone, expected)},
    }
    record_property("relative_differences", figures)
    for what in ("scores", "gradients"):
        assert figures["packed to float32"][what] < 1.5 * figures["padded to float32"][what] + 1e-3, figures


def test_a_windows_edge_counts(device):
    """Without it in the mask the scores would be others."""
    padded, packed, layout = pair_of_models("mistral", device)
    packed.body.config.sliding_window = None
    pairs = pairs_of(12, seed=0)
    expected, _ = scores_and_gradients(padded, PADDED, pairs, device)
    found, _ = scores_and_gradients(packed, layout, pairs, device)
    assert distance(found, expected) > 1e-2
