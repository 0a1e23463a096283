"""Bytes of tensors that are alive at one time, counted on a CPU operation by operation."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakMemory(TorchDispatchMode):
    """In this context every tensor that an operation makes is counted from then until nobody holds it.

    Args:
        weights: what is there already and does not count.

    Attributes:
        peak: the most bytes at one time.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {p.untyped_storage()._cdata for p in weights}
        self._now = self.peak = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._known:
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)

        def gone() -> None:
            self._known.discard(key)
            self._now -= size

        weakref.finalize(storage, gone)
