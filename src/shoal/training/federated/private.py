"""Differential privacy of a member's updates: clipped, with Gaussian noise, and what that comes to.

The member does it itself before anybody sees the update, so whoever it sends it to need not be believed.
Two sets of data that differ in anything at all give clipped updates at most ``2 · radius`` apart. The
noise of some rounds has the effect of one round with less (the updates together are one Gaussian), so
epsilon is exact here, by the formula of Balle and Wang ("Improving the Gaussian Mechanism for
Differential Privacy", 2018, theorem 8), and no bound of it. Accountants of libraries are for samples of
the data that are drawn anew in each step, of which there are none here; and ``dp-accounting`` cannot be
installed beside the ``attrs`` that other libraries of ours need.
"""

from __future__ import annotations

import math
import secrets

import numpy as np

from shoal.training.federated.means import UpdateVector, clip_norm

DELTA = 1e-5
"""The chance with which more may be told than epsilon says."""
MOST_EPSILON = 1e6


def noisy_update(update: UpdateVector, radius: float, noise: float) -> UpdateVector:
    """The update, clipped to ``radius``, with noise of a deviation of ``noise · radius`` in each number."""
    chance = np.random.default_rng(secrets.randbits(256))
    drawn = chance.normal(0.0, noise * radius, update.size)
    return (clip_norm(update, radius).astype(np.float64) + drawn).astype(np.float32)


def noisy_radius(radius: float, noise: float, size: int) -> float:
    """The norm that updates with noise may have: of the update, and of what the noise is expected to add."""
    return radius * (1 + noise * math.sqrt(size))


def spent_epsilon(noise: float, rounds: int, delta: float = DELTA) -> float:
    """How much a member's data have shown after some rounds, to all who saw its updates.

    Args:
        noise: deviation in ``radius``; 0: infinite epsilon.
        rounds: in which it has sent an update; 0: nothing is spent.
    """
    if rounds == 0:
        return 0.0
    if noise <= 0:
        return math.inf
    apart = 2 * math.sqrt(rounds) / noise  # of the means, in deviations
    if _delta(apart, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _delta(apart, high) > delta:
        low, high = high, 2 * high
        if high > MOST_EPSILON:
            return math.inf
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(apart, middle) > delta else (low, middle)
    return high


def _delta(apart: float, epsilon: float) -> float:
    """The least delta that goes with epsilon, of two Gaussians of deviation 1 so far apart."""
    first = _log_tail(epsilon / apart - apart / 2)
    second = epsilon + _log_tail(epsilon / apart + apart / 2)
    return math.exp(first) - math.exp(second) if second < first else 0.0


def _log_tail(x: float) -> float:
    """The logarithm of the chance that a normal number is above ``x``."""
    if x < 30:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    # Mills' ratio; from 30 on to more digits than a float has use for here.
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(-1 / (x * x))
