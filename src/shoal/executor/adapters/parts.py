"""Adapters on the kernels, and what all runners need to know of them.

The matrices of a model of Llama's shape are joined ones (``weights/llama_blocks.py``): an adapter's part of
one linear layer is added to some of the rows that the joined matrix gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, sizeof
from dataclasses import dataclass, field

import numpy as np

from shoal.errors import UsageError
from shoal.executor.arrays import Array, Floats, address, empty
from shoal.executor.kernels.structs import ADAPTABLE, AdaptedStruct
from shoal.executor.kernels.tiles import TILE
from shoal.executor.shape import LlamaShape
from shoal.models.adapters.adapter import Adapter, LowRank, other_model, span_blocks
from shoal.types import AdapterDigest, Span

LIST_NAME = "model.layers"


class AdapterNumbers:
    """Which adapters a runner has, counted from 1; 0 is none."""

    def __init__(self) -> None:
        self._digests: list[AdapterDigest] = []

    def take(self, adapters: Sequence[Adapter]) -> None:
        """Number these adapters."""
        self._digests = [adapter.digest for adapter in adapters]

    def of(self, adapter: AdapterDigest | None) -> int:
        """The number of an adapter.

        Raises:
            UsageError: it is not here.
        """
        if adapter is None:
            return 0
        if adapter not in self._digests:
            raise UsageError(f"the adapter {adapter[:23]}… is not loaded here")
        return self._digests.index(adapter) + 1


@dataclass(frozen=True, slots=True)
class LinearPart:
    """Where a linear layer lies in a joined matrix."""

    matrix: str
    """As ``LayerWeights`` calls it."""
    first: int
    """Its first row there."""
    rows: int
    cols: int


def llama_parts(shape: LlamaShape) -> dict[str, LinearPart]:
    """The linear layers of a block, by the name that the model gives them."""
    attended, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    parts = {
        "self_attn.o_proj": LinearPart("out", 0, shape.hidden, attended),
        "mlp.down_proj": LinearPart("down", 0, shape.hidden, shape.ffn),
    }
    if shape.merged:
        return parts | {
            "self_attn.qkv_proj": LinearPart("qkv", 0, attended + 2 * keys, shape.hidden),
            "mlp.gate_up_proj": LinearPart("gate_up", 0, 2 * shape.ffn, shape.hidden),
        }
    return parts | {
        "self_attn.q_proj": LinearPart("qkv", 0, attended, shape.hidden),
        "self_attn.k_proj": LinearPart("qkv", attended, keys, shape.hidden),
        "self_attn.v_proj": LinearPart("qkv", attended + keys, keys, shape.hidden),
        "mlp.gate_proj": LinearPart("gate_up", 0, shape.ffn, shape.hidden),
        "mlp.up_proj": LinearPart("gate_up", shape.ffn, shape.ffn, shape.hidden),
    }


def fit_llama(adapter: Adapter, shape: LlamaShape, span: Span) -> dict[int, list[tuple[LinearPart, LowRank]]]:
    """What an adapter has for the blocks of ``span``, by block.

    Raises:
        DigestMismatch: it changes what these blocks do not have, or have in another size.
    """
    parts = llama_parts(shape)
    found: dict[int, list[tuple[LinearPart, LowRank]]] = {}
    for index in span_blocks(adapter, span):
        for name, low in adapter.blocks[index].items():
            layer = f"{adapter.list_name}.{index}.{name}"
            part = parts.get(name) if adapter.list_name == LIST_NAME else None
            if part is None:
                raise other_model(adapter.name, "the model", layer, "is no linear layer")
            check_sizes(adapter.name, layer, low.sizes, (part.rows, part.cols))
            found.setdefault(index, []).append((part, low))
    return found


def check_sizes(adapter: str, layer: str, part: tuple[int, int], whole: tuple[int, int]) -> None:
    """Raises DigestMismatch: the layer has other outputs and inputs than the adapter's part of it."""
    if part != whole:
        why = f"is {whole[0]}×{whole[1]} and not {part[0]}×{part[1]}"
        raise other_model(adapter, "the model", layer, why)


@dataclass(eq=False)
class FusedAdapters:
    """Adapters as the kernels read them (native/adapter.h)."""

    bytes: int = 0
    """What they take in memory."""
    count: int = 0
    table: Array = field(default_factory=lambda: empty((0,), np.uint64))
    """Addresses of what each has for the span's layers."""
    _held: list[object] = field(default_factory=list[object])  # read by address

    @classmethod
    def of(cls, adapters: Sequence[Adapter], shape: LlamaShape, span: Span) -> FusedAdapters:
        """Raises as :func:`fit_llama`."""
        made = cls(count=len(adapters), table=empty((len(adapters),), np.uint64))
        for number, adapter in enumerate(adapters):
            layers = (AdaptedStruct * len(span))()
            for index, lows in fit_llama(adapter, shape, span).items():
                made._fill(layers[index - span.start], lows, adapter.scale)
            made._held.append(layers)
            made.bytes += sizeof(layers)
            made.table[number] = addressof(layers)
        return made

    def _fill(self, layer: AdaptedStruct, lows: Sequence[tuple[LinearPart, LowRank]], scale: float) -> None:
        for part, low in lows:
            which = ADAPTABLE.index(part.matrix)
            down, up = _aligned(low.down), _turned(low.up, scale)
            self._held += [down, up]
            self.bytes += down.nbytes + up.nbytes
            entry = layer.parts[which][layer.counts[which]]
            entry.down, entry.up = address(down), address(up)
            entry.rank, entry.cols, entry.first, entry.rows = low.rank, part.cols, part.first, part.rows
            entry.stride = up.shape[1]
            layer.counts[which] += 1


def _aligned(array: Floats) -> Floats:
    made = empty(array.shape)
    made[...] = array
    return made


def _turned(up: Floats, scale: float) -> Floats:
    """``[rank, rows]``, scaled, with zeros up to a multiple of what a vector holds."""
    rows, rank = up.shape
    made = empty((rank, -(-rows // TILE) * TILE))
    made[:, :rows] = up.T * np.float32(scale)
    made[:, rows:] = 0
    return made
