"""Liger's kernels for norms and MLPs: the scores and gradients of the model's own."""

import copy
import sys

import pytest
import torch

from ser_lightning.data.layouts import PADDED
from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.loading import prepare_body, use_liger_kernels
from ser_lightning.models.masks import choose_layout
from ser_lightning.models.reward_model import RewardModel
from tests.helpers import slow
from tests.small_decoders import distance, model_of, pairs_of, scores_and_gradients


def with_adapters(model, device):
    torch.manual_seed(1)
    prepare_body(model, Backbone("x", lora=LoraSettings(r=4, dropout=0.0)))
    return model.to(device)


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", *slow("mistral", "qwen2"), "gemma3_text"])
def test_scores_and_gradients_stay(kind, train, device, record_property, caplog):
    if device == "cuda":
        pytest.importorskip("liger_kernel")
    own = model_of(kind, device)
    fused = copy.deepcopy(own)
    if train == "lora":
        own, fused = with_adapters(own, device), with_adapters(fused, device)
    classes = dict(vars(sys.modules[type(own.model).__module__])) if train == "full" else {}
    with caplog.at_level("INFO"):
        use_liger_kernels(fused, device)
    assert ("needs a CUDA GPU" in caplog.text) == (device == "cpu")
    assert all(vars(sys.modules[type(own.model).__module__])[name] is value for name, value in classes.items())
    fused_names = {m._get_name() for m in fused.modules()}
    assert any(name.startswith("Liger") for name in fused_names) == (device == "cuda")
    pairs = pairs_of(12, seed=0)
    expected, slope = scores_and_gradients(RewardModel(own).train(), PADDED, pairs, device)
    layout = choose_layout("shared_prompt", fused, device, "layout")
    found, own_slope = scores_and_gradients(RewardModel(fused, layout).train(), layout, pairs, device)
    figures = {"scores": distance(found, expected), "gradients": distance(own_slope, slope)}
    record_property("relative_differences", figures)
    assert max(figures.values()) < 1e-4, figures


def test_a_model_without_such_kernels_is_refused_on_a_gpu(device):
    model = model_of("gpt_neox", device)
    if device == "cpu":
        use_liger_kernels(model, device)
        return
    pytest.importorskip("liger_kernel")
    with pytest.raises(UserError, match="no kernels for a gpt_neox"):
        use_liger_kernels(model, device)
