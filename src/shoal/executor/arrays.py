"""Arrays as the executor holds and hands them on: numpy's, aligned; and bfloat16, which numpy does not know.

Hidden states and logits are float32. A bfloat16 number is the upper half of a float32: such arrays are kept
as their bits, uint16.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

ALIGNMENT = 64
"""Bytes: a line of the cache, and the longest vector. Memory that the kernels read is aligned to it."""


def empty(shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
    """An aligned array of any content."""
    kind = np.dtype(dtype)
    held = np.empty(math.prod(shape) * kind.itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(tuple(shape), kind, held, -address(held) % ALIGNMENT)


def address(array: Array) -> int:
    """Where an array begins in memory; good for as long as somebody holds the array."""
    return array.ctypes.data


def join(parts: Sequence[Floats]) -> Floats:
    """Rows of several arrays, one below the other; of one array, itself."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def split(rows: Floats, lengths: Sequence[int]) -> list[Floats]:
    """What :func:`join` has put together, in its parts; they share its memory."""
    if len(lengths) == 1:
        return [rows]
    ends = list(itertools.accumulate(lengths))
    return [rows[end - n : end] for end, n in zip(ends, lengths, strict=True)]


def widen(array: Array) -> Floats:
    """Weights of any dtype as float32; uint16 are bfloat16's bits."""
    if array.dtype == np.uint16:
        return np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
    return array.astype(np.float32, copy=False)


def narrow(array: Array) -> npt.NDArray[np.uint16]:
    """Weights of any dtype as bfloat16's bits, rounded to the nearest, ties to even."""
    if array.dtype == np.uint16:
        return array
    wide = np.ascontiguousarray(widen(array))
    bits = wide.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    return np.where(np.isnan(wide), np.uint16(0x7FC0), rounded)
