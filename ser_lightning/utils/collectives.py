"""Sums over ranks, and tensors in shards, a part a rank; with one process everything stays as it is."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

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


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, a view: its part of one in shards, else all of it."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has, in shards where `like` of the same shape is; nothing is sent."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name as rank 0 is to save them, whole; all ranks must ask together.

    What lies in shards comes one by one to the CPU of rank 0, and to no other rank: none can hold it all on its device.
    Anything else stays as it is, on every rank.
    """
    found = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            found[name] = tensor
            continue
        full = tensor.full_tensor()
        if torch.distributed.get_rank() == 0:
            found[name] = full.cpu()
    return found
