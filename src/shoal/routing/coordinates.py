"""How far a peer is that nobody here has measured: network coordinates. Pure.

Each peer keeps a point and a height, so that the distance of two points with both heights is about their
round trip. After each round trip that it measures, a peer moves its point a little, the more the surer the
other is of its own (Vivaldi: Dabek, Cox, Kaashoek and Morris, 2004, sections 3.2 and 5.4; the constants are
theirs). The height is the way from a machine to the net, which every way of it takes.

It is a peer's own word where it is. So an estimate counts only until the way is measured, what nobody could
have is not read, one round trip moves nobody farther than it took, and one that is off by far more than usual
does not count: most tell the truth.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

DIMENSIONS = 3
UNIT_S = 1e-5
"""In which points and heights are announced."""
UNIT_ERROR = 1e-3
FARTHEST_S = 2.0
"""From the middle, along one axis: farther apart are no two peers on earth, even by satellite."""
MOST_ERROR = 1.5
LEAST_ERROR = 0.01
"""Nobody is surer than that, or others would follow it alone."""
LEAST_HEIGHT_S = 1e-5
SURE = 0.5
"""Peers that are less sure of where they are say nothing about a way."""
SHARE = 0.25
"""Of what an estimate was wrong by, and of how wrong they are as a rule, one round trip changes so much."""
REMEMBERED = 32
"""Round trips by which a peer knows how far its estimates usually are off."""
FEWEST = 8
"""So many it must have measured to tell."""
ODD = 6.0
"""Times as far from its estimate as usual that a round trip is which does not count."""
ODD_LEAST_S = 0.005
"""By which it must be wrong, then: ways are not the same all day."""


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where a peer is, in seconds, and how sure it is of that."""

    point: tuple[float, float, float] = (0.0, 0.0, 0.0)
    height_s: float = LEAST_HEIGHT_S
    error: float = MOST_ERROR
    """By how much its estimates are usually wrong, in shares of the round trip."""

    def announced(self) -> tuple[int, ...]:
        """As it is announced."""
        lengths = (round(value / UNIT_S) for value in (*self.point, self.height_s))
        return (*lengths, round(self.error / UNIT_ERROR))


def read_coordinates(announced: Sequence[int]) -> Coordinates | None:
    """What a peer says of where it is; ``None`` where it says nothing, or what cannot be."""
    if len(announced) != DIMENSIONS + 2:
        return None
    x, y, z, height_s = (value * UNIT_S for value in announced[:-1])
    error = announced[-1] * UNIT_ERROR
    if max(abs(x), abs(y), abs(z), abs(height_s)) > FARTHEST_S or height_s < 0 or error < 0:
        return None
    return Coordinates((x, y, z), max(height_s, LEAST_HEIGHT_S), min(max(error, LEAST_ERROR), MOST_ERROR))


def estimate_s(a: Coordinates, b: Coordinates) -> float:
    """The round trip between two peers, in seconds."""
    return math.dist(a.point, b.point) + a.height_s + b.height_s


def estimate_of(own: Coordinates, announced: Sequence[int]) -> float | None:
    """The round trip to a peer by what it announces; ``None`` where it, or we, do not know where it is."""
    if own.error > SURE:
        return None
    other = read_coordinates(announced)
    return estimate_s(own, other) if other is not None and other.error <= SURE else None


def move(own: Coordinates, other: Coordinates, rtt_s: float, chance: Random) -> Coordinates:
    """Where a peer is after it has measured the round trip to another.

    Args:
        chance: by which two who are at one point part.
    """
    if not 0 < rtt_s < 2 * FARTHEST_S:
        return own
    expected_s = estimate_s(own, other)
    weight = own.error / (own.error + other.error)
    wrong = min(1.0, abs(expected_s - rtt_s) / rtt_s)
    error = wrong * SHARE * weight + own.error * (1 - SHARE * weight)
    force_s = max(SHARE * weight * (rtt_s - expected_s), -rtt_s)  # whatever the other says
    ways = [a - b for a, b in zip(own.point, other.point, strict=True)]
    apart_s = math.hypot(*ways)
    if apart_s < LEAST_HEIGHT_S:
        ways = [chance.gauss(0, 1) for _ in range(DIMENSIONS)]
        apart_s = math.hypot(*ways)
        height_s = own.height_s
    else:
        share = min(1.0, (own.height_s + other.height_s) / apart_s)
        height_s = max(LEAST_HEIGHT_S, own.height_s + share * force_s)
    x, y, z = (_bounded(a + force_s * way / apart_s) for a, way in zip(own.point, ways, strict=True))
    return Coordinates((x, y, z), min(height_s, FARTHEST_S), min(max(error, LEAST_ERROR), MOST_ERROR))


def _bounded(value: float) -> float:
    return min(max(value, -FARTHEST_S), FARTHEST_S)


class Position:
    """Where one peer is, as it measures round trips to others."""

    def __init__(self) -> None:
        self.coordinates = Coordinates()
        self._wrong_s: deque[float] = deque(maxlen=REMEMBERED)

    def measured(self, other: Coordinates, rtt_s: float, chance: Random) -> None:
        """Move by a round trip, unless what the other says of itself is too far from it.

        When this peer's own way has changed, most round trips are: then they count again.
        """
        if not 0 < rtt_s < 2 * FARTHEST_S:
            return
        wrong_s = abs(estimate_s(self.coordinates, other) - rtt_s)
        usual_s = median(self._wrong_s) if len(self._wrong_s) >= FEWEST else math.inf
        self._wrong_s.append(wrong_s)
        if wrong_s <= max(ODD_LEAST_S, ODD * usual_s):
            self.coordinates = move(self.coordinates, other, rtt_s, chance)
