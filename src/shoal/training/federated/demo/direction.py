"""Which way all members go, by what all have sent. Every member finds the same bits, on any machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from shoal.training.federated.demo.coefficients import MOST_KEPT, Coefficients
from shoal.training.federated.demo.transform import CHUNK, chunk_count, joint_signs
from shoal.training.federated.means import HUGE_TIMES, UpdateVector
from shoal.types import PeerId

NORM_TIMES = 2
"""The most that a member's coefficients count, in norms of the median member."""
DECAY, KEPT = 0.9, 32
"""What a run by DeMo has if nobody says otherwise."""


class DemoTerms(Struct, frozen=True, array_like=True, gc=False):
    """What members of a run by DeMo have in common. Fields are added at the end, with a default."""

    rate: Annotated[float, Meta(gt=0, le=100)]
    """By how much a step moves each number, after the warm-up."""
    warmup: Annotated[int, Meta(ge=0, le=1 << 20)] = 10
    """Steps in which the rate rises; from then on it falls evenly, to 0 after the last round."""
    decay: Annotated[float, Meta(ge=0, lt=1)] = DECAY
    """Of the momentum, in each step."""
    kept: Annotated[int, Meta(ge=1, le=MOST_KEPT)] = KEPT
    """Coefficients of each chunk of 4,096 numbers that are sent."""

    def rate_of(self, round: int, rounds: int) -> float:
        """The rate of a round, from 0. The same bits everywhere: sums, products and quotients alone."""
        if round < self.warmup:
            return self.rate * (round + 1) / self.warmup
        return self.rate * (rounds - round) / max(1, rounds - self.warmup)


@dataclass(frozen=True, slots=True)
class JointDirection:
    """What the coefficients of all members come to."""

    signs: NDArray[np.int8]
    """``[size]``: -1, 0 or 1, the sign of the sum of their momenta."""
    left_out: Mapping[PeerId, str]
    """Whose coefficients do not count, and why."""

    def move(self, rate: float) -> UpdateVector:
        """What is added to the weights, float32 ``[size]``: against the gradients."""
        return np.float32(-rate) * self.signs.astype(np.float32)


def joint_direction(sent: Mapping[PeerId, Coefficients], size: int) -> JointDirection:
    """The direction by what members have sent.

    One whose norm is eight times that of the median member is left out: no honest one is. What others have
    beyond twice that norm does not count, so that none decides alone. Of an even number of members the lower
    median holds: else, of two, the louder one would be its own measure.

    Args:
        sent: by member, in an order that all members have.
    """
    norms = {peer: _norm(coefficients) for peer, coefficients in sent.items()}
    middle = median_low(norms.values()) if norms else 0.0
    left_out = {
        peer: f"the norm of its coefficients is {norm:.3g}, and that of the median member {middle:.3g}"
        for peer, norm in norms.items()
        if norm > HUGE_TIMES * middle
    }
    total = np.zeros((chunk_count(size), CHUNK), np.float64)
    rows = np.arange(len(total))[:, None]
    for peer, coefficients in sent.items():
        if peer not in left_out and norms[peer] > 0:
            share = min(1.0, NORM_TIMES * middle / norms[peer])
            scales = coefficients.scales.astype(np.float64)[:, None] * share
            total[rows, coefficients.places] += coefficients.values * scales  # each place once in a row
    return JointDirection(joint_signs(total).reshape(-1)[:size], left_out)


def _norm(coefficients: Coefficients) -> float:
    """Exact sums, so that the order in which a machine adds does not matter."""
    squares = (coefficients.values.astype(np.int64) ** 2).sum(axis=1)
    scales = coefficients.scales.astype(np.float64)
    return math.sqrt(math.fsum((scales * scales * squares).tolist()))
