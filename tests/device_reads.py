"""Counts what would make the host wait for a GPU, on a CPU: every value that it fetches from a tensor."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

FETCHES = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "equal")
"""Kernels whose result, or the size of it, the host must know."""


class _Calls(TorchFunctionMode):
    """What a CPU does without a kernel: `tolist`, and copies to the CPU."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A device that is the CPU in tests alone comes as a `torch.device`.
        is_copy = func is torch.Tensor.to and any(isinstance(value, str) and value == "cpu" for value in args)
        if is_copy or func in (torch.Tensor.tolist, torch.Tensor.cpu):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Kernels(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        is_boolean = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        if name in FETCHES or is_boolean:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class DeviceReads:
    """A context in which reads are noted, by the name of what fetches; `found` has them in their order.

    NumPy arrays and `Tensor.numpy`, which a GPU's tensors refuse, are the host's own.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> "DeviceReads":
        self._stack = ExitStack()
        self._stack.enter_context(_Kernels(self.found))
        self._stack.enter_context(_Calls(self.found))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
