"""The cosine transform (DCT-II) of a vector in chunks of 4,096 numbers, each a square of 64 by 64.

Chunks are stretches of the flat vector, whose tensors follow one another by rows; the last is filled up with
zeros. Forward, and back at the member that sends, it is in float32. What members share must have the same
bits at all of them, whatever machine they have: :func:`joint_signs` computes with integers alone, which are
exact in float64 in any order of sums.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shoal.training.federated.means import UpdateVector

SIDE = 64
CHUNK = SIDE * SIDE
"""Numbers of a chunk."""
TABLE_BITS, VALUE_BITS = 12, 16
"""Of the cosines and of coefficients when they are integers. Two sums of 64 products then stay below 2⁵³."""
AT_ONCE = 1024
"""Chunks whose numbers are in memory in float64 together."""


def chunk_count(size: int) -> int:
    """Chunks of a vector of so many elements."""
    return -(-size // CHUNK)


def to_chunks(vector: UpdateVector) -> UpdateVector:
    """float32 ``[chunks, CHUNK]``, a copy."""
    found = np.zeros((chunk_count(vector.size), CHUNK), np.float32)
    found.reshape(-1)[: vector.size] = vector
    return found


def to_frequencies(chunks: UpdateVector) -> UpdateVector:
    """Coefficients of each chunk, float32 ``[chunks, CHUNK]``."""
    return _through(_orthonormal(), chunks)


def from_frequencies(coefficients: UpdateVector) -> UpdateVector:
    """The chunks again, float32 ``[chunks, CHUNK]``."""
    return _through(_orthonormal().T, coefficients)


def joint_signs(coefficients: NDArray[np.float64]) -> NDArray[np.int8]:
    """The signs of what coefficients come to, int8 ``[chunks, CHUNK]``; the same bits on every machine.

    Args:
        coefficients: float64 ``[chunks, CHUNK]``, finite. Those of a chunk count in steps of 2⁻¹⁶ of the
            largest of them.
    """
    table, found = _integers(), np.empty(coefficients.shape, np.int8)
    for start in range(0, len(coefficients), AT_ONCE):
        part = coefficients[start : start + AT_ONCE]
        _, exponents = np.frexp(np.abs(part).max(axis=1))
        rounded = np.rint(np.ldexp(part, (VALUE_BITS - exponents)[:, None])).reshape(-1, SIDE, SIDE)
        signs = np.sign(table.T @ rounded @ table)
        found[start : start + AT_ONCE] = signs.reshape(part.shape)
    return found


def _through(table: UpdateVector, chunks: UpdateVector) -> UpdateVector:
    """Both sides of each square through a table."""
    squares = chunks.reshape(-1, SIDE, SIDE)
    return (table @ squares @ table.T).astype(np.float32, copy=False).reshape(chunks.shape)


@cache
def _orthonormal() -> UpdateVector:
    """The table of the transform, float32 ``[frequency, place]``."""
    return (_cosines() * math.sqrt(2 / SIDE)).astype(np.float32)


@cache
def _integers() -> NDArray[np.float64]:
    """The same without its scale, in whole numbers. What the last digits of a cosine are changes none."""
    return np.rint(_cosines() * 2**TABLE_BITS)


def _cosines() -> NDArray[np.float64]:
    place = (2 * np.arange(SIDE) + 1) * np.pi / (2 * SIDE)
    found = np.cos(np.arange(SIDE)[:, None] * place[None, :])
    found[0] = math.sqrt(0.5)
    return found
