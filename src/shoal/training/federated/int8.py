"""Updates of a byte for each number: blocks of 256 with a scale in common.

A block is its scale, a float32, times integers from -127 to 127. All scales come first, little-endian.
"""

from __future__ import annotations

import numpy as np

from shoal.training.federated.means import UpdateVector

SCALED_TOGETHER = 256
"""Numbers with one scale."""
LARGEST = 127
STRETCHED = 1.07
"""By how much rounding may lengthen a vector: half a step in each of 256 numbers, of 254 in the largest."""


def int8_bytes(size: int) -> int:
    """Of a vector of so many elements."""
    return size + 4 * -(-size // SCALED_TOGETHER)


def pack_int8(values: UpdateVector) -> bytes:
    """The vector as it travels. NaN and infinite numbers make their block NaN at whoever reads it."""
    blocks = -(-values.size // SCALED_TOGETHER)
    padded = np.zeros((blocks, SCALED_TOGETHER), np.float32)
    padded.reshape(-1)[: values.size] = values
    largest = np.abs(padded).max(axis=1, initial=0)
    scales = np.where(np.isfinite(largest), largest / np.float32(LARGEST), np.float32(np.nan))
    used = np.where(scales > 0, scales, np.float32(1))[:, None]  # also in the place of NaN
    steps = np.nan_to_num(np.rint(padded / used))
    rounded = np.clip(steps, -LARGEST, LARGEST).astype(np.int8).reshape(-1)[: values.size]
    return scales.astype("<f4").tobytes() + rounded.tobytes()


def unpack_int8(payload: bytes, size: int) -> UpdateVector:
    """float32 ``[size]``; of a payload that is none of that size, none: an empty vector."""
    if len(payload) != int8_bytes(size):
        return np.zeros(0, np.float32)
    blocks = -(-size // SCALED_TOGETHER)
    scales = np.frombuffer(payload, "<f4", blocks).astype(np.float32)
    steps = np.frombuffer(payload, np.int8, size, 4 * blocks).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return (np.repeat(scales, SCALED_TOGETHER)[:size] * steps).astype(np.float32)
