"""Weights in groups, as they were published, for the kernels: not one of them changes."""

from __future__ import annotations

import numpy as np

from shoal.executor.arrays import Array, widen
from shoal.executor.kernels.c_kernels import Matrix, aligned
from shoal.executor.kernels.tiles import tile_groups, tile_weights
from shoal.models.checkpoint.grouped import GroupedWeights


def pack_groups(weights: GroupedWeights, bias: Array | None = None) -> Matrix:
    """As grouped4 or grouped8, by their bits; scales and minima as float16 where that loses nothing."""
    rows, cols = weights.values.shape
    scales, minima = _narrowest(weights.scales, weights.minima)
    return Matrix(
        "grouped4" if weights.bits == 4 else "grouped8",
        rows,
        cols,
        tile_weights(weights.values, weights.bits),
        tile_groups(scales),
        None if bias is None else aligned(widen(bias)),
        None if minima is None else tile_groups(minima),
        weights.zero,
    )


def _narrowest(scales: Array, minima: Array | None) -> tuple[Array, Array | None]:
    """Scales and minima as float16 where that loses nothing of either, else as they are."""
    if not all(_is_half(array) for array in (scales, minima) if array is not None):
        return scales, minima
    return scales.astype(np.float16), None if minima is None else minima.astype(np.float16)


def _is_half(array: Array) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(array.astype(np.float16).astype(np.float32), array))
