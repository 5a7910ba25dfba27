"""What the kernels compute, with torch alone: where they could not be built, and for comparison."""

from __future__ import annotations

import torch
from torch.nn import functional

from shoal.executor.arrays import Array
from shoal.executor.kernels.c_kernels import GROUP, Matrix, MatrixLayout, ThreadTeam, pack
from shoal.executor.kernels.tiles import QUAD, TILE, tiles_of
from shoal.models.checkpoint.grouped import CHUNK
from shoal.types import Format

ROWS_AT_ONCE = 512
"""Rows of weights widened at a time, whole tiles: bounds the memory of a forward."""
INT32_MAX = 2**31 - 1
BY_ROW: tuple[MatrixLayout, ...] = ("int8", "w8a8")
"""Layouts in which a row of weights has one scale, and sums are exact over all of its columns."""


def array_of(tensor: torch.Tensor) -> Array:
    """The same memory as an array; bfloat16 as its bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def tensor_of(array: Array) -> torch.Tensor:
    """The same memory as a tensor; uint16 are bfloat16's bits."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def pack_tensor(weights: torch.Tensor, format: Format) -> Matrix:
    """Weights ``[rows, cols]`` in ``format``; see :func:`shoal.executor.kernels.c_kernels.pack`."""
    return pack(array_of(weights), format)


def apply(team: ThreadTeam | None, matrix: Matrix, x: torch.Tensor) -> torch.Tensor:
    """``x @ weights.T + bias``, float32 ``[n, cols]`` to ``[n, rows]``: by the team, or with torch alone.

    Raises:
        OutOfResources: memory is short.
    """
    return linear(matrix, x) if team is None else tensor_of(team.linear(matrix, array_of(x)))


def linear(matrix: Matrix, x: torch.Tensor) -> torch.Tensor:
    """What :meth:`ThreadTeam.linear` gives; in int8 and w8a8 bit for bit, in others but for rounding."""
    if matrix.layout == "fp32":
        return functional.linear(x, tensor_of(matrix.weights), _bias(matrix))
    out = torch.empty((len(x), matrix.rows))
    quantised, x_scales = quantise(x, matrix.layout, matrix.cols) if matrix.layout in BY_ROW else (x, None)
    for at in range(0, matrix.rows, ROWS_AT_ONCE):
        part = slice(at, min(at + ROWS_AT_ONCE, matrix.rows))
        if x_scales is None:
            out[:, part] = x @ widen(matrix, part).T
        else:
            # Sums of products of integers are below 2³¹: float64 holds them exactly, in any order.
            sums = quantised.double() @ integers_of(matrix, part).double().T
            out[:, part] = sums.float() * (_row_scales(matrix)[part] * x_scales)
    bias = _bias(matrix)
    return out if bias is None else out + bias


def quantise(x: torch.Tensor, layout: MatrixLayout, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row of ``x`` ``[n, cols]`` as int32 and a float32 scale ``[n, 1]``, as native/quantise.c."""
    # A plain number would be divided otherwise; and one that is copied to a device is waited for.
    limit = torch.full((), float(activation_limit(layout, cols)), device=x.device)
    largest = x.abs().amax(1, keepdim=True)
    factor = limit / largest
    some = factor.isfinite()  # a row of nothing, or of next to nothing, is zeros
    to_int = factor.where(some, 0)
    return (x * to_int).round().to(torch.int32), (largest / limit).where(some, 0)


def activation_limit(layout: MatrixLayout, cols: int) -> int:
    """The largest integer that x may become, so that the products of a sum fit into 32 bits."""
    weight, terms = (127, cols) if layout in BY_ROW else (128, GROUP)
    return min(INT32_MAX // (weight * terms), 127 if layout == "w8a8" else 32767)


def integers_of(matrix: Matrix, rows: slice) -> torch.Tensor:
    """Rows of the weights of int8 or w8a8 before they are scaled, int8 ``[n, cols]``."""
    if matrix.layout == "int8":
        return tensor_of(matrix.weights[rows])
    first, end, _ = rows.indices(matrix.rows)
    tiles = slice(first // TILE, tiles_of(end))
    start = tiles.start * TILE
    return untile_quads(tensor_of(matrix.weights[tiles]))[first - start : end - start, : matrix.cols]


def widen(matrix: Matrix, rows: slice) -> torch.Tensor:
    """Rows of the weights as float32 ``[n, cols]``."""
    if matrix.layout in ("grouped4", "grouped8"):
        return _widen_groups(matrix, rows)
    if matrix.layout in BY_ROW:
        return integers_of(matrix, rows).float() * _row_scales(matrix)[rows, None]
    return tensor_of(matrix.weights[rows]).float()


def _widen_groups(matrix: Matrix, rows: slice) -> torch.Tensor:
    first, end, _ = rows.indices(matrix.rows)
    tiles = slice(first // TILE, tiles_of(end))
    part = slice(first - tiles.start * TILE, end - tiles.start * TILE)
    values = untile_weights(tensor_of(matrix.weights[tiles]), 4 if matrix.layout == "grouped4" else 8)[part]
    groups = values.view(len(values), -1, matrix.group).float() - matrix.zero
    groups *= untile_groups(_scales(matrix)[tiles])[part, :, None].float()
    if matrix.minima is not None:
        groups += untile_groups(tensor_of(matrix.minima)[tiles])[part, :, None].float()
    return groups.view(len(values), matrix.cols)


def untile_weights(tiles: torch.Tensor, bits: int) -> torch.Tensor:
    """The integers ``[rows, cols]`` of what :func:`shoal.executor.kernels.tiles.tile_weights` made.

    uint8 of 4 bits, int8 of 8; with those behind the last row.
    """
    shape = (*tiles.shape[:2], -1, CHUNK // 4, TILE, 2)
    halves = tiles.view(shape)
    if bits == 4:
        halves = torch.cat((halves & 15, halves >> 4), 2)
    values = halves.permute(0, 4, 1, 2, 3, 5).reshape(len(tiles) * TILE, -1)
    return values if bits == 4 else values.view(torch.int8)


def untile_quads(tiles: torch.Tensor) -> torch.Tensor:
    """What :func:`shoal.executor.kernels.tiles.tile_quads` made, ``[rows, cols]`` with the zeros behind."""
    return tiles.transpose(1, 2).reshape(len(tiles) * TILE, tiles.shape[1] * QUAD)


def untile_groups(tiles: torch.Tensor) -> torch.Tensor:
    """The same for scales or minima: ``[rows, groups]``."""
    return tiles.transpose(1, 2).reshape(len(tiles) * TILE, -1)


def _scales(matrix: Matrix) -> torch.Tensor:
    if matrix.scales is None:
        raise ValueError(f"a matrix in {matrix.layout} without scales")
    return tensor_of(matrix.scales)


def _row_scales(matrix: Matrix) -> torch.Tensor:
    """``[rows]``, of int8 or w8a8."""
    return _scales(matrix).reshape(-1)[: matrix.rows]


def _bias(matrix: Matrix) -> torch.Tensor | None:
    return None if matrix.bias is None else tensor_of(matrix.bias)
