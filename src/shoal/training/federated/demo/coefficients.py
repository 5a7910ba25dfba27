"""The coefficients that a member sends in a step, as they travel.

Of each chunk: one float32, which is the scale of its values; their places, 2 bytes each, rising; and the
values, a byte each. All scales come first, then all places, then all values, little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.training.federated.demo.transform import CHUNK, chunk_count
from shoal.training.federated.means import UpdateVector

MOST_KEPT = 512
"""Coefficients of a chunk."""
LARGEST = 127
"""Of a value's byte."""


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
        return (
            self.scales.astype("<f4").tobytes() + self.places.astype("<u2").tobytes() + self.values.tobytes()
        )


def coefficient_bytes(size: int, kept: int) -> int:
    """Of the coefficients of a vector of ``size`` elements, ``kept`` of each chunk."""
    return chunk_count(size) * (4 + 3 * kept)


def largest_of(frequencies: UpdateVector, kept: int) -> Coefficients:
    """The ``kept`` largest of each chunk, rounded to a byte each.

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
    places = np.frombuffer(payload, "<u2", chunks * kept, 4 * chunks).astype(np.uint16).reshape(chunks, kept)
    values = np.frombuffer(payload, np.int8, chunks * kept, chunks * (4 + 2 * kept)).reshape(chunks, kept)
    if not np.isfinite(scales).all():
        return "it has NaN or infinite numbers"
    if (scales < 0).any():
        return "a scale of its values is below zero"
    if (places >= CHUNK).any() or (places[:, 1:] <= places[:, :-1]).any():
        return "the places of its coefficients do not rise, or are outside of a chunk"
    return Coefficients(scales, places, values)
