"""Keys and values of every session on a device, in pages, and attention over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from shoal.executor.pages import PAGE
from shoal.executor.shape import LlamaShape
from shoal.types import Kv


class Vectors(Protocol):
    """The keys, or the values, of every token in every block: ``[blocks, slots, kv_heads, head_dim]``."""

    def put(self, block: int, slots: torch.Tensor, x: torch.Tensor) -> None:
        """Keep ``x``, ``[n, kv_heads, head_dim]``, in these slots."""
        ...

    def clear(self, slots: torch.Tensor) -> None:
        """Let these slots hold zeros in every block."""
        ...

    def pages(self, block: int, table: torch.Tensor) -> torch.Tensor:
        """What lies in the pages of ``table``, ``[sequences, pages]``.

        Returns:
            ``[sequences, kv_heads, tokens, head_dim]``
        """
        ...


class FloatVectors:
    """As they are computed."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._held = torch.zeros(shape, dtype=dtype, device=device)

    def put(self, block: int, slots: torch.Tensor, x: torch.Tensor) -> None:
        self._held.select(0, block).index_copy_(0, slots, x.to(self._held.dtype))

    def clear(self, slots: torch.Tensor) -> None:
        self._held.index_fill_(1, slots, 0)

    def pages(self, block: int, table: torch.Tensor) -> torch.Tensor:
        return _paged(self._held.select(0, block), table)


class Int8Vectors:
    """As 8-bit integers, each vector with a float32 scale."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._held = torch.zeros(shape, dtype=torch.int8, device=device)
        self._scales = torch.zeros((*shape[:3], 1), device=device)
        self._dtype = dtype

    def put(self, block: int, slots: torch.Tensor, x: torch.Tensor) -> None:
        scales = x.float().abs().amax(-1, keepdim=True) / 127
        values = torch.where(scales > 0, x / scales, 0.0).round().to(torch.int8)
        self._held.select(0, block).index_copy_(0, slots, values)
        self._scales.select(0, block).index_copy_(0, slots, scales)

    def clear(self, slots: torch.Tensor) -> None:
        self._held.index_fill_(1, slots, 0)
        self._scales.index_fill_(1, slots, 0)

    def pages(self, block: int, table: torch.Tensor) -> torch.Tensor:
        values = _paged(self._held.select(0, block), table) * _paged(self._scales.select(0, block), table)
        return values.to(self._dtype)


def _paged(held: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    found = held.unflatten(0, (-1, PAGE)).index_select(0, table.flatten())
    return found.view(len(table), -1, *held.shape[1:]).transpose(1, 2)


class DeviceKv:
    """Pages of all blocks of a span."""

    def __init__(
        self, shape: LlamaShape, blocks: int, pages: int, kv: Kv, dtype: torch.dtype, device: torch.device
    ) -> None:
        """
        Args:
            kv: ``auto`` keeps them in ``dtype``.
        """
        size = (blocks, pages * PAGE, shape.kv_heads, shape.head_dim)
        kind = Int8Vectors if kv == "int8" else FloatVectors
        self.keys: Vectors = kind(size, dtype, device)
        self.values: Vectors = kind(size, dtype, device)

    def clear(self, slots: torch.Tensor) -> None:
        """Let these slots hold zeros."""
        self.keys.clear(slots)
        self.values.clear(slots)


def kv_token_bytes(shape: LlamaShape, kv: Kv, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in one block."""
    vector = shape.head_dim + 4 if kv == "int8" else shape.head_dim * dtype.itemsize
    return 2 * shape.kv_heads * vector


@dataclass(frozen=True, slots=True)
class SeenPages:
    """What a group of sequences looks at, in blocks of one window."""

    start: int
    """The group's first row."""
    sequences: int
    rows: int
    """Of each sequence."""
    table: torch.Tensor
    mask: torch.Tensor
    """What each row sees, ``[sequences, 1, rows, tokens]``."""


def see_pages(
    start: int,
    rows: int,
    positions: torch.Tensor,
    ends: torch.Tensor,
    table: torch.Tensor,
    first: torch.Tensor,
    window: int,
) -> SeenPages:
    """Make the mask, on the device.

    Args:
        positions: of every row of the forward.
        ends: behind the last position that each of them sees.
        table, first: as :class:`shoal.executor.device.plan.PageView` has them.
        window: tokens that a token sees, itself included; 0: all before it.
    """
    sequences, pages = table.shape
    asking = positions.narrow(0, start, sequences * rows).view(sequences, rows, 1)
    cached = first.view(sequences, 1, 1) + torch.arange(pages * PAGE, device=table.device)
    mask = cached < ends.narrow(0, start, sequences * rows).view(sequences, rows, 1)
    if window:
        mask &= cached > asking - window
    return SeenPages(start, sequences, rows, table, mask.unsqueeze(1))


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of sequences with as many rows, whose heads share keys and values in groups.

    Heads that share them are queries beside each other, so that nothing is copied for each head.

    Args:
        queries: ``[sequences, rows, heads, dim]``.
        keys, values: ``[sequences, kv_heads, tokens, dim]``.
        mask: ``[sequences, 1, rows, tokens]``.

    Returns:
        ``[sequences, rows, heads · dim]``
    """
    sequences, rows, heads, dim = queries.shape
    kv_heads = keys.shape[1]
    grouped = queries.view(sequences, rows, kv_heads, heads // kv_heads, dim)
    if rows == 1:  # all of a group see the same
        out = _sdpa(grouped.squeeze(1), keys, values, mask, scale)
    else:
        each = [_sdpa(g.transpose(1, 2), keys, values, mask, scale) for g in grouped.unbind(3)]
        out = torch.stack(each, 3).transpose(1, 2)
    return out.reshape(sequences, rows, heads * dim)


def _sdpa(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    seen = mask.expand(-1, keys.shape[1], queries.shape[2], -1)
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=scale)
