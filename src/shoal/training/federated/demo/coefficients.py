"""The coefficients that a member sends in a step, as they travel.

Of each chunk: one float32, which is the scale of its values; and for each coefficient 2 bytes, of which the
lower 12 bits are its place, rising, and the upper 4 its value, from -7 to 7. All scales come first,
little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.training.federated.demo.transform import CHUNK, chunk_count
from shoal.training.federated.means import UpdateVector

MOST_KEPT = 512
"""Coefficients of a chunk."""
LARGEST = 7
"""Of a value."""
PLACE_BITS = 12


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Some of the coefficients of each chunk."""

    scales: NDArray[np.float32]
    """``[chunks]``."""
    places: NDArray[np.uint16]
    """``[chunks, kept]``."""
    values: NDArray[np.int8]
    """``[chunks, kept]``; times the chunk's scale."""

    def dense(self) -> UpdateVector:
        """All coefficients, zero where none are, float32 ``[chunks, CHUNK]``."""
        found = np.zeros((len(self.scales), CHUNK), np.float32)
        np.put_along_axis(found, self.places.astype(np.int64), self.values * self.scales[:, None], axis=1)
        return found

    def payload(self) -> bytes:
        """As they travel."""
        values = (self.values.astype(np.uint16) & 15) << PLACE_BITS
        return self.scales.astype("<f4").tobytes() + (self.places | values).astype("<u2").tobytes()


def coefficient_bytes(size: int, kept: int) -> int:
    """Of the coefficients of a vector of ``size`` elements, ``kept`` of each chunk."""
    return chunk_count(size) * (4 + 2 * kept)


def largest_of(frequencies: UpdateVector, kept: int) -> Coefficients:
    """The ``kept`` largest of each chunk, rounded to whole steps of the chunk's scale.

    Args:
        frequencies: float32 ``[chunks, CHUNK]``.
    """
    found = np.argpartition(np.abs(frequencies), CHUNK - kept, axis=1)[:, CHUNK - kept :]
    places = np.sort(found, axis=1)
    values = np.take_along_axis(frequencies, places, axis=1)
    scales = (np.abs(values).max(axis=1) / LARGEST).astype(np.float32)
    steps = values / np.where(scales > 0, scales, 1)[:, None]
    rounded = np.clip(np.rint(steps), -LARGEST, LARGEST).astype(np.int8)
    return Coefficients(scales, places.astype(np.uint16), rounded)


def read_coefficients(payload: bytes, size: int, kept: int) -> Coefficients | str:
    """What a member has sent, or why it cannot be."""
    chunks, expected = chunk_count(size), coefficient_bytes(size, kept)
    if len(payload) != expected:
        return f"its coefficients have {len(payload)} bytes and not {expected}"
    scales = np.frombuffer(payload, "<f4", chunks).astype(np.float32)
    packed = np.frombuffer(payload, "<u2", chunks * kept, 4 * chunks).astype(np.uint16).reshape(chunks, kept)
    places, upper = packed & np.uint16(CHUNK - 1), (packed >> PLACE_BITS).astype(np.int8)
    values = np.where(upper > LARGEST, upper - np.int8(16), upper).astype(np.int8)
    if not np.isfinite(scales).all():
        return "it has NaN or infinite numbers"
    if (scales < 0).any():
        return "a scale of its values is below zero"
    if (places[:, 1:] <= places[:, :-1]).any():
        return "the places of its coefficients do not rise"
    return Coefficients(scales, places, values)
