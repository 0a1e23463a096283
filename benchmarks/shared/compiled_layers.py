"""Decoder layers compiled one by one: fused elementwise operations, which take most of the time of LoRA on a CPU."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from ser_lightning.models.readings import layers_and_norm

ADAPTERS = (
    *("--trainer.precision=bf16-mixed", "--model.optimizer.init_args.lr=5.0e-4"),
    *("--model.backbone.lora.target_modules=[q_proj,v_proj]", "--model.backbone.lora.dropout=0"),
    *("--model.backbone.attn_implementation=eager", "--data.pairs_per_step=8", "--evolution.min_steps=40"),
    *("--data.tokens_per_batch=512", "--data.tokens_per_scoring_batch=512"),
    "--trainer.callbacks+=benchmarks.shared.compiled_layers.CompiledLayers",
)
"""Flags of a fit with LoRA that a CPU can pay for: compiled layers, eager attention over short rows, no dropout."""


class CompiledLayers(Callback):
    """Compiles each layer of the reward model's body when the fit starts. Inputs of any length share a compilation.

    Example:
        `--trainer.callbacks+=benchmarks.shared.compiled_layers.CompiledLayers`
    """

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Only `forward`, as readings hang hooks on the module, which a compiled module would not see come and go."""
        for layer in layers_and_norm(pl_module.reward_model.body)[0]:
            layer.forward = torch.compile(layer.forward, dynamic=True)
