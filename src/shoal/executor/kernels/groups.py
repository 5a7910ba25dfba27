"""Weights in groups, as they were published, for the kernels: not one of them changes."""

from __future__ import annotations

import numpy as np

from shoal.executor.arrays import Array, widen
from shoal.executor.kernels.c_kernels import Matrix, aligned, join_nibbles
from shoal.models.checkpoint.grouped import GroupedWeights


def pack_groups(weights: GroupedWeights, bias: Array | None = None) -> Matrix:
    """As grouped4 or grouped8, by their bits; scales and minima as float16 where that loses nothing."""
    rows, cols = weights.values.shape
    is_short = weights.bits == 4
    scales, minima = _narrowest(weights.scales, weights.minima)
    return Matrix(
        "grouped4" if is_short else "grouped8",
        rows,
        cols,
        aligned(join_nibbles(weights.values.view(np.uint8)) if is_short else weights.values),
        aligned(scales),
        None if bias is None else aligned(widen(bias)),
        None if minima is None else aligned(minima),
        weights.zero,
    )


def _narrowest(scales: Array, minima: Array | None) -> tuple[Array, Array | None]:
    if not all(_is_half(array) for array in (scales, minima) if array is not None):
        return scales, minima
    return scales.astype(np.float16), None if minima is None else minima.astype(np.float16)


def _is_half(array: Array) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(array.astype(np.float16).astype(np.float32), array))
