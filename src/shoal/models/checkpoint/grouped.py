"""Weights as integers in groups: what published quantisations have in common, whoever wrote them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
Bits = Literal[4, 8]

SMALLEST_GROUP = 16
CHUNK = 32
"""The kernels take so many weights of a row at a time."""


def fits_groups(cols: int, group: int) -> bool:
    """Whether rows of ``cols`` weights can be held in groups of ``group``."""
    whole = group == SMALLEST_GROUP or (group > 0 and group % CHUNK == 0)
    return whole and cols % CHUNK == 0 and cols % group == 0


@dataclass(frozen=True, slots=True)
class Grouping:
    """How a matrix is held in groups, as far as its size goes."""

    bits: Bits
    group: int
    """Weights of a row that share a scale."""
    minima: bool
    """Whether there are minima beside the scales."""
    halves: bool
    """Whether both are exact in 16 bits."""

    @property
    def weight_bytes(self) -> float:
        """Bytes of a weight, with its share of the scale and the minimum."""
        return self.bits / 8 + (1 + self.minima) * (2 if self.halves else 4) / self.group


def join_groupings(parts: Sequence[Grouping]) -> Grouping:
    """How :func:`join_groups` puts matrices of these groupings together, if their zeros are the same."""
    return Grouping(
        max(part.bits for part in parts),
        math.gcd(*(part.group for part in parts)),
        any(part.minima for part in parts),
        all(part.halves for part in parts),
    )


@dataclass(frozen=True, slots=True)
class GroupedWeights:
    """A matrix ``[rows, cols]`` whose weights are ``scale * (value - zero) + minimum``, in float32.

    Raises:
        ValueError: the shapes do not fit each other, or the groups no kernel: see :func:`fits_groups`.
    """

    values: NDArray[np.int8]
    """``[rows, cols]``; of 4 bits 0 to 15."""
    scales: _Floats
    """``[rows, cols / group]``."""
    minima: _Floats | None
    """As the scales; ``None``: they are all 0."""
    bits: Bits
    zero: int = 0
    """The value that means 0 before the minimum; with 8 bits always 0."""

    def __post_init__(self) -> None:
        rows, cols = self.values.shape
        groups = self.scales.shape[1] if self.scales.ndim == 2 else 0
        if self.scales.shape != (rows, groups) or groups < 1 or cols % groups:
            raise ValueError(f"scales {self.scales.shape} for weights {self.values.shape}")
        if not fits_groups(cols, cols // groups):
            raise ValueError(f"rows of {cols} weights in groups of {cols // groups}")
        if self.minima is not None and self.minima.shape != self.scales.shape:
            raise ValueError(f"minima {self.minima.shape} beside scales {self.scales.shape}")
        if not 0 <= self.zero <= (15 if self.bits == 4 else 0):
            raise ValueError(f"a zero of {self.zero} with {self.bits} bits")

    @property
    def group(self) -> int:
        """Weights of a row that share a scale."""
        return self.values.shape[1] // self.scales.shape[1]

    def floats(self) -> _Floats:
        """What the weights are, float32 ``[rows, cols]``."""
        rows, cols = self.values.shape
        found = (self.values.astype(np.float32) - np.float32(self.zero)).reshape(rows, -1, self.group)
        found *= self.scales[:, :, None]
        if self.minima is not None:
            found += self.minima[:, :, None]
        return found.reshape(rows, cols)


def join_groups(parts: Sequence[GroupedWeights]) -> GroupedWeights:
    """Matrices of as many columns, one below the other, in groups that fit all and the most bits of any.

    No weight changes, if a scale has at most 20 significant bits, as those of all published formats have.

    Raises:
        ValueError: they do not have as many columns.
    """
    if len(parts) == 1:
        return parts[0]
    group = math.gcd(*(part.group for part in parts))
    bits: Bits = 8 if any(part.bits == 8 for part in parts) else 4
    zero = parts[0].zero if all((part.zero, part.bits) == (parts[0].zero, bits) for part in parts) else 0
    moved = [_with_zero(part, zero, bits) for part in parts]
    return GroupedWeights(
        np.concatenate([part.values for part in moved]),
        np.concatenate([np.repeat(part.scales, part.group // group, 1) for part in moved]),
        _join_minima(moved, group),
        bits,
        zero,
    )


def _with_zero(part: GroupedWeights, zero: int, bits: Bits) -> GroupedWeights:
    """The same weights in ``bits``, with another zero: 0, if theirs is another."""
    if part.zero == zero:
        return replace(part, bits=bits)
    if bits == 8:
        return replace(part, values=part.values - np.int8(part.zero), zero=0, bits=bits)
    lower = -np.float32(part.zero) * part.scales
    return replace(part, minima=lower if part.minima is None else part.minima + lower, zero=0)


def _join_minima(parts: Sequence[GroupedWeights], group: int) -> _Floats | None:
    if all(part.minima is None for part in parts):
        return None
    found = [np.zeros_like(part.scales) if part.minima is None else part.minima for part in parts]
    return np.concatenate(
        [np.repeat(minima, part.group // group, 1) for part, minima in zip(parts, found, strict=True)]
    )
