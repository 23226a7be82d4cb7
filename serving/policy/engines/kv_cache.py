"""The KV cache: keys and values of many growing rows.

Transformers' own DynamicCache copies everything at every token (measured: 60 % of a decoding step of a small policy); this
one writes each token in place and grows by blocks. Rows are left-padded, so all of them end at the same column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicLayer

_BLOCK = 32
_Filled = tuple[torch.Tensor, torch.Tensor]
_Change = Callable[[Sequence[_Filled]], _Filled]


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer: buffers [rows, heads, capacity, size], of which the first `used` columns are filled."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, self.used = self.used, self.used + key_states.shape[-2]
        if not self.is_initialized or self.used > self.keys.shape[-2]:
            self._grow(key_states, value_states, start)
        self.keys[:, :, start : self.used] = key_states
        self.values[:, :, start : self.used] = value_states
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def _grow(self, keys: torch.Tensor, values: torch.Tensor, filled: int) -> None:
        capacity = -(-self.used // _BLOCK) * _BLOCK + _BLOCK
        rows, heads, _, size = keys.shape
        grown = keys.new_empty(rows, heads, capacity, size), values.new_empty(rows, heads, capacity, values.shape[-1])
        if filled:
            grown[0][:, :, :filled], grown[1][:, :, :filled] = self.keys[:, :, :filled], self.values[:, :, :filled]
        self.keys, self.values = grown
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def get_seq_length(self) -> int:
        return self.used

    def filled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [rows, heads, used, size]."""
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def share(self, other: GrowingLayer, columns: int) -> None:
        """Hold the first columns of another layer. They fill the capacity, so what is appended goes into buffers of its own."""
        self.keys, self.values = other.keys[:, :, :columns], other.values[:, :, :columns]
        self.dtype, self.device, self.is_initialized, self.used = other.dtype, other.device, True, columns

    def fill(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Replace the content by these keys and values."""
        self.used, self.is_initialized = 0, False
        self.update(keys, values)


def make_cache(layers: int) -> Cache:
    return Cache(layers=[GrowingLayer() for _ in range(layers)])


def freeze(cache: Cache, columns: int) -> Cache:
    """Return the first columns of a cache as they are now, without copying them; the cache may grow on, both may."""
    frozen = make_cache(len(cache.layers))
    for layer, source in zip(_layers(frozen), _layers(cache), strict=True):
        layer.share(source, columns)
    return frozen


def select_rows(cache: Cache, rows: torch.Tensor) -> Cache:
    """Return a new cache of these rows [k], in this order; rows may repeat."""
    return _map_layers([cache], lambda filled: (filled[0][0][rows], filled[0][1][rows]))


def gather_columns(cache: Cache, columns: torch.Tensor) -> Cache:
    """Return a new cache whose row r has columns `columns[r]` ([rows, kept]) of `cache`."""
    return _map_layers([cache], lambda filled: (_gather(filled[0][0], columns), _gather(filled[0][1], columns)))


def join_rows(caches: Sequence[Cache]) -> Cache:
    """Return one cache of all rows, the shorter caches padded on the left (the padding must be masked)."""
    longest = max(cache.get_seq_length() for cache in caches)

    def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(part, (0, 0, longest - part.shape[-2], 0)) for part in parts])

    return _map_layers(caches, lambda filled: (join([keys for keys, _ in filled]), join([values for _, values in filled])))


def _gather(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    rows, heads, _, size = states.shape
    return states.gather(2, columns[:, None, :, None].expand(rows, heads, columns.shape[1], size))


def _map_layers(caches: Sequence[Cache], change: _Change) -> Cache:
    changed = make_cache(len(caches[0].layers))
    for index, layer in enumerate(_layers(changed)):
        layer.fill(*change([_layers(cache)[index].filled() for cache in caches]))
    return changed


def _layers(cache: Cache) -> list[GrowingLayer]:
    return cast("list[GrowingLayer]", cache.layers)
