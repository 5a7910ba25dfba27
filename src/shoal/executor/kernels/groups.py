"""Weights in groups, as they were published, for the kernels: not one of them changes."""

from __future__ import annotations

from shoal.executor.arrays import Array, widen
from shoal.executor.kernels.c_kernels import Matrix, aligned
from shoal.executor.kernels.tiles import narrowest, tile_groups, tile_weights
from shoal.models.checkpoint.grouped import GroupedWeights


def pack_groups(weights: GroupedWeights, bias: Array | None = None) -> Matrix:
    """As grouped4 or grouped8, by their bits; scales and minima as float16 where that loses nothing."""
    rows, cols = weights.values.shape
    scales, minima = narrowest(weights.scales, weights.minima)
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
