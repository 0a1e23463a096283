"""An optimiser step over micro-batches, as the reward model and supervised fine-tuning make it."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import get_args

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ser_lightning.errors import UserError
from ser_lightning.training.schedule import Decay
from ser_lightning.utils.collectives import own_part, sum_over_ranks


def training_problems(lr_decay: Decay, warmup_share: float, max_grad_norm: float) -> list[str]:
    """Problems of the settings of a training, one line each."""
    found = []
    if lr_decay not in get_args(Decay):
        found.append(f"model.lr_decay: got {lr_decay!r}; use {' or '.join(get_args(Decay))}")
    if not 0 <= warmup_share < 1:
        found.append(f"model.warmup_share: got {warmup_share}; need a share in [0, 1)")
    if not max_grad_norm > 0:
        found.append(f"model.max_grad_norm: got {max_grad_norm}; need a positive number")
    return found


def synchronised(module: LightningModule, is_last: bool) -> AbstractContextManager:
    """Ranks exchange gradients in the backward pass of the last micro-batch of a step only.

    Gradients of sharded weights are exchanged in each: otherwise every rank would hold those of the whole body.
    """
    model = module.trainer.strategy.model
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not is_last else nullcontext()


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down so that their total norm is at most `max_norm`.

    Args:
        parameters: whole ones, whose gradients are equal on every rank, and sharded ones.

    Returns:
        (), the total norm before, over all weights of all ranks.
    """
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [own_part(g) for g in gradients if isinstance(g, DTensor)]
    if not parts:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    wholes = [g for g in gradients if not isinstance(g, DTensor)]
    norm = (sum_over_ranks(_sum_of_squares(parts)) + _sum_of_squares(wholes)).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_ has it
    for gradient in [*wholes, *parts]:
        gradient.mul_(scale)
    return norm


def _sum_of_squares(tensors: list[Tensor]) -> Tensor:
    """(), float32."""
    return torch.stack([torch.linalg.vector_norm(t, dtype=torch.float32) for t in tensors]).square().sum()


def update(
    module: LightningModule, parameters: list[nn.Parameter], max_grad_norm: float, figures: list[Tensor], batch_idx: int
) -> list[float]:
    """Clip, check and step.

    The norm and the figures come to the host together: the one time in a step that it waits for the device.

    Args:
        figures: scalars of the step, the loss first.

    Returns:
        The figures as numbers.

    Raises:
        UserError: if the gradients are not finite.
    """
    norm = clip_gradients(parameters, max_grad_norm)
    *values, norm_value = torch.stack([value.double() for value in (*figures, norm)]).tolist()
    if not math.isfinite(norm_value):  # of the gradients of all ranks, so all of them stop here
        raise UserError(
            f"train/loss: got {values[0]}, gradient norm {norm_value}, epoch {module.current_epoch}, step {batch_idx}; "
            "lower model.optimizer.init_args.lr, or look for the cause with --config debug/anomaly.yaml"
        )
    optimizer = module.optimizers()
    optimizer.step()
    optimizer.zero_grad()
    return values


def log_on_host(module: LightningModule, name: str, value: float, batch_size: int) -> None:
    """Log a figure of a step that is on the host already.

    As a number it would be moved to the device, and fetched from there by the progress bar and by every logger.
    """
    module.log(name, torch.tensor(value), prog_bar=True, batch_size=batch_size, on_step=True)
