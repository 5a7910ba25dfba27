"""Small numbers as published files pack them: integers of a few bits, and floats of four and eight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What a code of E2M1 stands for (OCP Microscaling Formats 1.0, table 5)."""


def unpack(words: NDArray[np.int32], bits: int, count: int) -> NDArray[np.uint8]:
    """The first ``count`` integers of each row of words ``[n, words]``, which begin at the lowest bits."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw[:, :count]
    if bits == 4:
        return nibbles(raw)[:, :count]
    single = np.unpackbits(raw, axis=1, bitorder="little", count=count * bits)
    places = np.uint8(1) << np.arange(bits, dtype=np.uint8)
    return single.reshape(len(raw), count, bits) @ places


def nibbles(raw: NDArray[np.uint8], *, high_first: bool = False) -> NDArray[np.uint8]:
    """Two integers of each byte ``[n, m]``, as ``[n, 2 * m]``."""
    found = np.empty((*raw.shape, 2), np.uint8)
    low, high = (1, 0) if high_first else (0, 1)
    np.bitwise_and(raw, 15, out=found[..., low])
    np.right_shift(raw, 4, out=found[..., high])
    return found.reshape(len(raw), -1)


def _float8(mantissa: int, bias: int) -> NDArray[np.float32]:
    """What each byte of a float with a sign, an exponent and ``mantissa`` bits stands for; no infinities."""
    byte = np.arange(256)
    exponent = (byte & 127) >> mantissa
    fraction = (byte & ((1 << mantissa) - 1)) / (1 << mantissa)
    size = np.where(exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias))
    return np.where(byte >= 128, -size, size).astype(np.float32)


FLOAT8: dict[str, NDArray[np.float32]] = {"F8_E4M3": _float8(3, 7), "F8_E5M2": _float8(2, 15)}
"""By safetensors' name (OCP 8-bit Floating Point 1.0). NaN and infinity are refused before."""
FLOAT8["F8_E4M3"][[127, 255]] = np.nan
FLOAT8["F8_E5M2"][[124, 252]] = np.inf, -np.inf
FLOAT8["F8_E5M2"][[125, 126, 127, 253, 254, 255]] = np.nan


def powers_of_two(exponents: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What bytes of E8M0 stand for; 255 is NaN."""
    found = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
    return np.where(exponents == 255, np.float32(np.nan), found).astype(np.float32)
