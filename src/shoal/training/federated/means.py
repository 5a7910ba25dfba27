"""Means of members' updates, also where some of them are not honest.

An update is what local steps have added to the adapter. Each rule is computed for each part of the vector by
itself, by the part's owner. What no honest member sends is left out before, and said why; the norm of all
others is clipped. So a single member moves the mean by no more than its share of the norm that is allowed:

- ``mean``: weighted by examples (FedAvg: McMahan et al., 2017), the weight of a member being bounded;
- ``trimmed``: without the largest and smallest quarter of each coordinate (Yin et al., 2018);
- ``median``: of each coordinate (the same);
- ``clipping``: centered clipping (Karimireddy et al., 2021), from the median on.

The last three do not weigh by examples: a number that a member says of itself must not decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median_low
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shoal.errors import UsageError

UpdateVector = NDArray[np.float32]

MeanRule = Literal["mean", "trimmed", "median", "clipping"]
MEAN_RULES: tuple[MeanRule, ...] = ("mean", "trimmed", "median", "clipping")

TRIMMED_SHARE = 0.25
"""Of the members, at each end of a coordinate."""
WEIGHT_TIMES = 4
"""The most that a member weighs, in weights of the median member."""
HUGE_TIMES = 8
"""An update longer than so many times the norm that is allowed is left out: no honest one is."""
CENTERED_STEPS = 3
ROUNDING = 1.001
"""What float32 may add to a norm."""


def mean_rule(name: str) -> MeanRule:
    """A rule by its name. Raises UsageError: there is none."""
    for rule in MEAN_RULES:
        if rule == name:
            return rule
    raise UsageError(f"there is no mean {name!r}", check=f"name one of: {', '.join(MEAN_RULES)}")


def norm(values: UpdateVector) -> float:
    """The Euclidean norm, infinite where it is too large for a float."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.linalg.norm(values.astype(np.float64)))


def part_radius(radius: float, part: int, size: int) -> float:
    """The norm that a part of the update may have, where all of it may have ``radius``."""
    return radius * math.sqrt(part / size) if size else 0.0


def update_fault(values: UpdateVector, size: int, radius: float) -> str:
    """Why an update, or a part of one, is left out; empty where it is not.

    Args:
        size: elements that it should have.
        radius: the norm that it may have.
    """
    if values.shape != (size,):
        return f"it has {values.size} numbers and not {size}"
    if not np.isfinite(values).all():
        return "it has NaN or infinite numbers"
    if (length := norm(values)) > HUGE_TIMES * radius:
        return f"its norm is {length:.3g}, and {radius:.3g} is allowed"
    return ""


def clip_norm(values: UpdateVector, radius: float) -> UpdateVector:
    """The same direction, with a norm of ``radius`` at most."""
    length = norm(values)
    return values if length <= radius else (values * np.float32(radius / length)).astype(np.float32)


def bounded_weights(examples: Sequence[int]) -> list[float]:
    """Weights by numbers of examples, none more than ``WEIGHT_TIMES`` times the median; they sum to 1.

    Of an even number the lower median: else, of two, one that says much would be its own measure.
    """
    most = WEIGHT_TIMES * max(1, median_low(examples))
    bounded = [min(max(1, count), most) for count in examples]
    return [weight / sum(bounded) for weight in bounded]


def robust_mean(
    rule: MeanRule, updates: Sequence[UpdateVector], examples: Sequence[int], radius: float
) -> UpdateVector:
    """What the updates come to, float32 as long as each of them; clipped to ``radius`` before.

    Args:
        updates: at least one; all without a fault.
        examples: that each was learnt from; counts for ``mean`` alone.
    """
    stacked = np.stack([clip_norm(update, radius) for update in updates]).astype(np.float64)
    match rule:
        case "mean":
            found = np.asarray(bounded_weights(examples)) @ stacked
        case "trimmed":
            cut = trimmed(len(updates))
            found = np.sort(stacked, axis=0)[cut : len(updates) - cut].mean(axis=0)
        case "median":
            found = np.median(stacked, axis=0)
        case "clipping":
            found = _centered(stacked)
    return found.astype(np.float32)


def trimmed(members: int) -> int:
    """How many are left out at each end of a coordinate."""
    return min(math.floor(TRIMMED_SHARE * members), (members - 1) // 2)


def _centered(stacked: NDArray[np.float64]) -> NDArray[np.float64]:
    """From the median, towards each update, but no farther than most of them are."""
    center = np.median(stacked, axis=0)
    for _ in range(CENTERED_STEPS):
        away = stacked - center
        lengths = np.linalg.norm(away, axis=1)
        allowed = float(np.median(lengths))
        shares = np.minimum(1.0, allowed / np.maximum(lengths, 1e-30))
        center = center + (shares[:, None] * away).mean(axis=0)
    return center


def mean_fault(values: UpdateVector, size: int, radius: float) -> str:
    """Why what an owner says its part comes to cannot be; empty where it can.

    Of updates no longer than ``radius``, no rule makes more than √2 times it: each coordinate of a median, or
    of a mean without a quarter at each end, is at most the root of twice the mean of its squares.
    """
    if values.shape != (size,):
        return f"its mean has {values.size} numbers and not {size}"
    if not np.isfinite(values).all():
        return "its mean has NaN or infinite numbers"
    if (length := norm(values)) > ROUNDING * math.sqrt(2) * radius:
        return f"its mean has a norm of {length:.3g}, and no mean of updates of {radius:.3g} has"
    return ""
