"""Updates as integers modulo 2⁶⁴, whose sums are exact whatever their order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.training.federated.means import UpdateVector

FixedPoint = NDArray[np.uint64]

FRACTION_BITS = 40
"""A radius is so many bits long: less is rounded away than by float32, and sums of thousands fit."""


def encode_fixed(values: UpdateVector, weight: float, radius: float) -> FixedPoint:
    """``weight`` times the values, in units of ``radius · 2⁻⁴⁰``; negative ones wrap round.

    Args:
        values: none larger than ``radius``, as after clipping.
        weight: up to 1.
    """
    scaled = np.rint(values.astype(np.float64) * (weight / radius * 2.0**FRACTION_BITS))
    return scaled.astype(np.int64).view(np.uint64)


def decode_fixed(sums: FixedPoint, weight: float, radius: float) -> UpdateVector:
    """The mean that a sum of such integers is, of members whose weights sum to ``weight``."""
    return (sums.view(np.int64) * (radius / weight * 2.0**-FRACTION_BITS)).astype(np.float32)
