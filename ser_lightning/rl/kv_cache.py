"""Keys and values of what was read, in memory for all that will be read."""

from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


def sampling_cache(config: PretrainedConfig, num_columns: int) -> DynamicCache:
    """transformers' `DynamicCache`, where a new token is written behind the others and these are not copied.

    A mask, a window and what attention gets are those of `DynamicCache`, to the bit. transformers' `StaticCache` is no
    way to sample here: attention runs over all of its columns from the first token on, a window is moved in memory with
    each token, and no row can leave it. Layers of other kinds, such as linear attention, stay as transformers has them.

    Args:
        num_columns: tokens of the longest row at its end, prompt and response.
    """
    cache = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = _Layer(num_columns)
        elif type(layer) is DynamicSlidingWindowLayer:
            cache.layers[i] = _WindowLayer(num_columns, sliding_window=layer.sliding_window)
    return cache


def can_select(cache: Cache) -> bool:
    """Whether rows can be taken out of a cache, or repeated."""
    return all(hasattr(layer, "batch_select_indices") for layer in cache.layers)


class _Columns:
    """Keys or values in memory for a number of columns."""

    def __init__(self, num_columns: int) -> None:
        self._num_columns = num_columns
        self._room: Tensor | None = None

    def append(self, before: Tensor, new: Tensor) -> Tensor:
        """`torch.cat([before, new], dim=-2)` as a view.

        Args:
            before: (R, heads, columns, size) what this gave the last time, without some of its first columns or whole;
                or anything else, which is copied. Empty at the start.
            new: (R, heads, more columns, size).
        """
        rows, heads, num_new, size = new.shape
        num_before, start = before.shape[-2] if before.numel() else 0, 0
        room = self._room
        if room is not None and before.untyped_storage().data_ptr() == room.untyped_storage().data_ptr():
            start = before.storage_offset() // size
        else:
            room = None
        if room is None or start + num_before + num_new > room.shape[-2]:
            start, num_columns = 0, max(self._num_columns, num_before + num_new)
            self._room = room = new.new_empty(rows, heads, num_columns, size)
            if num_before:
                room[:, :, :num_before] = before
        end = start + num_before
        room[:, :, end : end + num_new] = new
        return room[:, :, start : end + num_new]


class _InPlace:
    """Mixed into a layer of transformers: its keys and values are views of memory for all columns."""

    keys: Tensor
    values: Tensor

    def __init__(self, num_columns: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._num_columns = num_columns
        self._forget()

    def _forget(self) -> None:
        self._of_keys, self._of_values = _Columns(self._num_columns), _Columns(self._num_columns)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, with those of new tokens at the end."""
        if not self.is_initialized:  # type: ignore[attr-defined]
            self.lazy_initialization(keys, values)  # type: ignore[attr-defined]
        return self._of_keys.append(self.keys, keys), self._of_values.append(self.values, values)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows. The memory of all of them is given back now, not when the layer reads its next token."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._forget()


class _Layer(_InPlace, DynamicLayer):
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self.append(key_states, value_states)
        return self.keys, self.values


class _WindowLayer(_InPlace, DynamicSlidingWindowLayer):
    """Attention gets the columns of the window; those before it stay in memory, which is made for all columns."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self.append(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        self.keys, self.values = (x[:, :, -self.sliding_window + 1 :, :] for x in (keys, values))
        return keys, values
