"""Integers modulo the prime 2^61 - 1, many at once: uint64 arrays of numbers below it.

What is multiplied in a block is small: 8 bits by 16, summed in 32. In this field such numbers keep their
difference, and a sum of products is 0 only if it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PRIME = (1 << 61) - 1

Elements = NDArray[np.uint64]
SignedIntegers = NDArray[Any]
"""Signed, of 8, 16 or 32 bits."""

_P = np.uint64(PRIME)
_ONE, _30, _31, _32, _61 = map(np.uint64, (1, 30, 31, 32, 61))
_LOW30, _LOW31, _LOW32 = (np.uint64((1 << bits) - 1) for bits in (30, 31, 32))

LIMB = 21
"""Bits of an element that are multiplied at a time in float64, which is exact below 2^53."""
LIMBS = 3
AT_ONCE = 1024
"""Rows of integers that are widened at a time."""


def add(a: Elements, b: Elements) -> Elements:
    """``a + b``."""
    return _reduced(a + b)


def subtract(a: Elements, b: Elements) -> Elements:
    """``a - b``."""
    return _reduced(a + (_P - b))


def multiply(a: Elements, b: Elements | np.uint64) -> Elements:
    """``a * b``, by halves of 30 and 31 bits: 2^61 is 1 here."""
    high_a, low_a, high_b, low_b = a >> _31, a & _LOW31, b >> _31, b & _LOW31
    middle = high_a * low_b + low_a * high_b
    high, low = (high_a * high_b) << _ONE, low_a * low_b
    return _reduced(_reduced(high) + _reduced((middle >> _30) + ((middle & _LOW30) << _31)) + _reduced(low))


def total(a: Elements) -> int:
    """The sum of all elements."""
    return (int((a & _LOW32).sum()) + (int((a >> _32).sum()) << 32)) % PRIME


def elements(values: SignedIntegers) -> Elements:
    """Signed integers as elements."""
    wide = values.astype(np.int64)
    return np.where(wide < 0, wide + PRIME, wide).astype(np.uint64)


def equality(point: list[int]) -> Elements:
    """The multilinear polynomials that are 1 at one corner each, at ``point``: ``2 ** len(point)`` elements.

    Args:
        point: its first number is the highest bit of a corner.
    """
    table = np.ones(1, np.uint64)
    for number in point:
        high = multiply(table, np.uint64(number))
        table = np.stack([subtract(table, high), high], axis=1).reshape(-1)
    return table


def combine(factors: Elements, rows: SignedIntegers) -> Elements:
    """The sum of ``factors[i] * rows[i]``, by column.

    Args:
        rows: ``[n, cols]`` integers of at most 16 bits; as many factors, or more.
    """
    found = np.zeros(rows.shape[1], np.uint64)
    for first in range(0, len(rows), AT_ONCE):
        part = rows[first : first + AT_ONCE].astype(np.float64)
        chosen = factors[first : first + len(part)]
        shifts = range(0, LIMB * LIMBS, LIMB)
        limbs = np.stack([(chosen >> np.uint64(s)) & np.uint64((1 << LIMB) - 1) for s in shifts])
        sums = elements(np.rint(limbs.astype(np.float64) @ part))
        for number, row in zip(shifts, sums, strict=True):
            found = add(found, multiply(row, np.uint64(1 << number)))
    return found


def _reduced(a: Elements) -> Elements:
    folded = (a & _P) + (a >> _61)
    return np.where(folded >= _P, folded - _P, folded)
