"""Adapters on a device: rows of sessions with one adapter are taken together, and theirs is added to what the
base's product has given for all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch

from shoal.executor.adapters.parts import LinearPart, fit_llama
from shoal.executor.device.blocks import DeviceLayer
from shoal.executor.device.products import DeviceMatrix
from shoal.executor.runner import SessionRows
from shoal.executor.shape import LlamaShape
from shoal.models.adapters.adapter import Adapter
from shoal.types import Span


@dataclass(frozen=True, slots=True)
class PlacedLowRank:
    """An adapter's part of one linear layer, on the device."""

    down: torch.Tensor
    up: torch.Tensor
    part: LinearPart


@dataclass(frozen=True, slots=True)
class DeviceAdapter:
    """An adapter on the device."""

    scale: float
    blocks: Mapping[int, Mapping[str, Sequence[PlacedLowRank]]]
    """By block, and by the name of a joined matrix."""
    bytes: int


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """Rows of a forward that have one adapter."""

    adapter: DeviceAdapter
    rows: torch.Tensor
    """Their numbers."""


def place_adapter(adapter: Adapter, shape: LlamaShape, span: Span, device: torch.device) -> DeviceAdapter:
    """Bring an adapter's part of a span to ``device``. Raises as :func:`fit_llama`."""
    blocks: dict[int, dict[str, list[PlacedLowRank]]] = {}
    for index, lows in fit_llama(adapter, shape, span).items():
        for part, low in lows:
            down, up = (torch.from_numpy(half).to(device) for half in (low.down, low.up))
            blocks.setdefault(index, {}).setdefault(part.matrix, []).append(PlacedLowRank(down, up, part))
    return DeviceAdapter(adapter.scale, blocks, adapter.span_bytes(span))


def adapted_rows(
    adapters: Sequence[DeviceAdapter], batch: Sequence[SessionRows], device: torch.device
) -> list[AdaptedRows]:
    """Which rows of a batch have which adapter; none of a batch without."""
    if not any(rows.state.adapter for rows in batch):
        return []
    ends = list(accumulate(len(rows.hidden) for rows in batch))
    numbers: dict[int, list[np.ndarray[tuple[int], np.dtype[np.int64]]]] = {}
    for rows, end in zip(batch, ends, strict=True):
        if rows.state.adapter:
            mine = np.arange(end - len(rows.hidden), end, dtype=np.int64)
            numbers.setdefault(rows.state.adapter, []).append(mine)
    return [
        AdaptedRows(adapters[number - 1], torch.from_numpy(np.concatenate(mine)).to(device))
        for number, mine in numbers.items()
    ]


class AdaptedMatrix:
    """A matrix of the base, to whose product adapters are added."""

    def __init__(
        self, base: DeviceMatrix, adapted: Sequence[tuple[AdaptedRows, Sequence[PlacedLowRank]]]
    ) -> None:
        self.rows, self.cols, self.device, self.bytes = base.rows, base.cols, base.device, base.bytes
        self._base, self._adapted = base, adapted

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """As :meth:`DeviceMatrix.multiply`, in float32."""
        out = self._base.multiply(x).float()
        for group, lows in self._adapted:
            mine = x.index_select(0, group.rows).float()
            for low in lows:
                added = (mine @ low.down.T @ low.up.T) * group.adapter.scale
                out.narrow(1, low.part.first, low.part.rows).index_add_(0, group.rows, added)
        return out


def with_adapters(layer: DeviceLayer, adapted: Sequence[AdaptedRows], block: int) -> DeviceLayer:
    """A block's weights for one forward of rows of which some have adapters."""
    if not adapted:
        return layer
    made: dict[str, DeviceMatrix] = {}
    for name in ("qkv", "out", "gate_up", "down"):
        mine = [(group, group.adapter.blocks.get(block, {}).get(name, ())) for group in adapted]
        if any(lows for _, lows in mine):
            made[name] = AdaptedMatrix(getattr(layer, name), mine)
    return replace(layer, **made) if made else layer  # pyright: ignore[reportArgumentType]
