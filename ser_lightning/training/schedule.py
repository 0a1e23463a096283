"""The configured optimisers, and their learning-rate schedule over a known number of steps."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.distributed.tensor import DTensor

from ser_lightning.errors import UserError

Decay = Literal["linear", "none"]


def lr_factor(step: int, num_steps: float, warmup_share: float, decay: Decay) -> float:
    """Share of the peak learning rate at a step: warm-up, then `decay`.

    Args:
        num_steps: of the whole schedule, such as `Trainer.estimated_stepping_batches`, which may be infinite.
        warmup_share: share of the steps over which the rate rises from 0.
        decay: `linear` falls to 0 at the end and stays there, `none` stays at the peak.

    Raises:
        UserError: the schedule needs an end and has none.
    """
    if decay == "none" and warmup_share == 0:
        return 1.0
    if math.isinf(num_steps):
        raise UserError(
            "trainer.max_epochs: got -1 without max_steps, so the learning rate has no end to fall to; give one of the "
            "two, or model.lr_decay none with model.warmup_share 0"
        )
    num_warmup = int(warmup_share * num_steps)
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    if decay == "none":
        return 1.0
    return max(0.0, num_steps - step) / max(1, num_steps - num_warmup)


def make_optimizer(make: OptimizerCallable, parameters: list[Any], name: str) -> torch.optim.Optimizer:
    """The injected optimiser, its peak learning rate noted; `UserError` for arguments that it refuses."""
    try:
        optimizer = make(parameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: got arguments that it refuses ({error}); mend its init_args") from error
    fuse(optimizer)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        if is_mixed(group["params"]) and group.get("foreach") is None and not group.get("fused"):
            group["foreach"] = False
    return optimizer


def peak_rate(make: OptimizerCallable) -> float | None:
    """The learning rate that an injected optimiser begins with; None where it has none or refuses its arguments."""
    try:
        rate = make([torch.nn.Parameter(torch.zeros(1))]).param_groups[0].get("lr")
    except (TypeError, ValueError):
        return None  # `make_optimizer` says so
    return None if rate is None else float(rate)


def is_mixed(parameters: list[Any]) -> bool:
    """Whether there are sharded tensors beside whole ones, such as a head.

    PyTorch's kernels for many tensors at once, its default on CUDA, refuse that. Groups of their own would change the
    optimiser's state, and with it what another number of devices can go on from.
    """
    return len({isinstance(p, DTensor) for p in parameters}) > 1


def fuse(optimizer: torch.optim.Optimizer, device: str = "cuda") -> None:
    """Use the fused kernel of Adam, which PyTorch does not by default, where the user has chosen none.

    Args:
        optimizer: changed in place if it is PyTorch's Adam or AdamW.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        if group["fused"] is None and group["foreach"] is None and not group["differentiable"]:
            group["fused"] = (
                all(p.device.type == device and not isinstance(p, DTensor) for p in group["params"]) or None
            )
