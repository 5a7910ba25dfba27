"""The blocks of a span on a device: what native/span.c computes, in torch's operations.

What goes from block to block is float32, and so are norms and rotary positions; the rows that enter a
product, and queries, keys and values, are bfloat16 unless the format is fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from shoal.executor.device.kv import DeviceKv, SeenPages, attend
from shoal.executor.device.products import DeviceMatrix, Products, place_matrix
from shoal.executor.rope import Rope
from shoal.executor.shape import ACTIVATIONS, NO_ROPE, LlamaShape
from shoal.executor.weights.llama_blocks import LayerWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLayer:
    """One block's weights, and what is its own."""

    qkv: DeviceMatrix
    out: DeviceMatrix
    gate_up: DeviceMatrix
    down: DeviceMatrix
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    after_attention: torch.Tensor | None = None
    after_mlp: torch.Tensor | None = None
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None
    window: int
    rope: int

    @property
    def bytes(self) -> int:
        """What it takes in the device's memory."""
        matrices = (self.qkv, self.out, self.gate_up, self.down)
        vectors = (self.attention_norm, self.mlp_norm, self.after_attention, self.after_mlp)
        heads = (self.query_norm, self.key_norm)
        return sum(m.bytes for m in matrices) + sum(v.nbytes for v in (*vectors, *heads) if v is not None)


def place_layer(
    weights: LayerWeights, shape: LlamaShape, block: int, device: torch.device, products: Products
) -> DeviceLayer:
    """Bring a block's weights to ``device``."""
    placed = {name: place_matrix(matrix, device, products) for name, matrix in weights.matrices.items()}
    norms = {name: torch.from_numpy(vector).to(device) for name, vector in weights.vectors.items()}
    return DeviceLayer(
        qkv=placed["qkv"],
        out=placed["out"],
        gate_up=placed["gate_up"],
        down=placed["down"],
        attention_norm=norms["attention_norm"],
        mlp_norm=norms["mlp_norm"],
        after_attention=norms.get("after_attention"),
        after_mlp=norms.get("after_mlp"),
        query_norm=norms.get("query_norm"),
        key_norm=norms.get("key_norm"),
        window=shape.windows[block],
        rope=shape.rope_of[block],
    )


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the blocks need to know of the rows of a forward, all of it on the device."""

    slots: torch.Tensor
    turns: Sequence[tuple[torch.Tensor, torch.Tensor]]
    """By rope, cosines and sines, ``[rows, 1, rotary / 2]``."""
    groups: Mapping[int, Sequence[SeenPages]]
    """By window."""


def turn_rows(
    positions: torch.Tensor, frequencies: torch.Tensor, rope: Rope
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, ``[rows, 1, rotary / 2]``, of the rows' positions: one, or one for each pair."""
    angles = (positions.float() * frequencies).unsqueeze(1)
    return angles.cos() * rope.scale, angles.sin() * rope.scale


def run_layer(
    layer: DeviceLayer,
    shape: LlamaShape,
    hidden: torch.Tensor,
    inputs: Inputs,
    kv: DeviceKv,
    number: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """One block, float32 ``[rows, hidden]`` in and out. Keys and values go into their slots.

    Args:
        number: of the block in the span.
        dtype: of queries, keys and values.
    """
    normed = _norm(hidden, layer.attention_norm, shape)
    queries, keys, values = _heads(layer, shape, layer.qkv.multiply(normed), inputs)
    kv.keys.put(number, inputs.slots, keys)
    kv.values.put(number, inputs.slots, values)
    queries = queries.to(dtype)
    seen: list[torch.Tensor] = []
    for group in inputs.groups[layer.window]:
        mine = queries.narrow(0, group.start, group.sequences * group.rows)
        paged = (kv.keys.pages(number, group.table), kv.values.pages(number, group.table))
        out = attend(mine.unflatten(0, (group.sequences, group.rows)), *paged, group.mask, shape.scale)
        seen.append(out.flatten(0, 1))
    attended = seen[0] if len(seen) == 1 else torch.cat(seen)
    hidden = hidden + _added(layer.out.multiply(attended.float()), layer.after_attention, shape)
    normed = _norm(hidden, layer.mlp_norm, shape)
    gate, up = layer.gate_up.multiply(normed).float().chunk(2, 1)
    gated = _activate(gate, shape) * up
    return hidden + _added(layer.down.multiply(gated), layer.after_mlp, shape)


def _heads(
    layer: DeviceLayer, shape: LlamaShape, qkv: torch.Tensor, inputs: Inputs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, ``[rows, heads, dim]``, normed and turned."""
    heads = qkv.float().unflatten(1, (-1, shape.head_dim))
    queries, keys, values = heads.split((shape.heads, shape.kv_heads, shape.kv_heads), 1)
    if layer.query_norm is not None:
        queries = _norm(queries, layer.query_norm, shape)
    if layer.key_norm is not None:
        keys = _norm(keys, layer.key_norm, shape)
    if layer.rope != NO_ROPE:
        cosines, sines = inputs.turns[layer.rope]
        queries, keys = (_turn(x, cosines, sines) for x in (queries, keys))
    return queries, keys, values


def _turn(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    half = cosines.shape[-1]
    a, b, rest = x.split((half, half, x.shape[-1] - 2 * half), -1)
    return torch.cat((a * cosines - b * sines, b * cosines + a * sines, rest), -1)


def _norm(x: torch.Tensor, weight: torch.Tensor, shape: LlamaShape) -> torch.Tensor:
    return functional.rms_norm(x, weight.shape, weight, shape.epsilon)


def _added(x: torch.Tensor, after: torch.Tensor | None, shape: LlamaShape) -> torch.Tensor:
    """What a block adds to the hidden states."""
    x = x.float() if after is None else _norm(x.float(), after, shape)
    return x if shape.residual == 1.0 else x * shape.residual


def _activate(x: torch.Tensor, shape: LlamaShape) -> torch.Tensor:
    silu = shape.activation == ACTIVATIONS["silu"]
    return functional.silu(x) if silu else functional.gelu(x, approximate="tanh")
