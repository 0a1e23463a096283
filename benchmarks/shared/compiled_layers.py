"""Decoder layers compiled one by one: fused elementwise operations, which take most of the time of LoRA on a CPU."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from ser_lightning.models.readings import layers_and_norm


class CompiledLayers(Callback):
    """Compiles each layer of the reward model's body when the fit starts. Inputs of any length share a compilation.

    Example:
        `--trainer.callbacks+=benchmarks.shared.compiled_layers.CompiledLayers`
    """

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Only `forward`, as readings hang hooks on the module, which a compiled module would not see come and go."""
        for layer in layers_and_norm(pl_module.reward_model.body)[0]:
            layer.forward = torch.compile(layer.forward, dynamic=True)
