"""Sums over ranks; with one process everything stays as it is."""

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def _has_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's tensor, any shape; each rank must have one of the same shape."""
    if not _has_ranks():
        return values
    is_nccl = torch.distributed.get_backend() == "nccl"  # which takes nothing on the CPU
    total = values.cuda() if is_nccl and not values.is_cuda else values.clone()
    torch.distributed.all_reduce(total)
    return total.to(values.device)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the sum of every rank's gradients in place; a rank without a share of the step adds 0."""
    if not _has_ranks():
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        torch.distributed.all_reduce(p.grad)


def gather_over_ranks(value: T) -> list[T]:
    """Every rank's value, in the order of the ranks, on all of them."""
    if not _has_ranks():
        return [value]
    values: list[T] = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
