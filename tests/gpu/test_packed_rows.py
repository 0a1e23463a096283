"""Packed rows, under FlexAttention on CUDA, against padded ones: the same scores and the same gradients."""

import copy

import pytest
import torch

from ser_lightning.data.layouts import PADDED
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.loading import prepare_body
from ser_lightning.models.masks import choose_layout
from ser_lightning.models.reward_model import RewardModel
from tests.helpers import slow
from tests.small_decoders import KINDS, distance, model_of, pairs_of, scores_and_gradients


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


@pytest.mark.parametrize("kind", ["llama", *slow("mistral", "qwen2", "gemma3_text", "gpt_neox")])
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
