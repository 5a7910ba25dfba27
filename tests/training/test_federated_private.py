"""What an update with noise shows: as much as the accountant says, and no more than it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shoal.training.federated.means import norm, update_fault
from shoal.training.federated.private import noisy_radius, noisy_update, spent_epsilon


@pytest.mark.parametrize(
    ("multiplier", "rounds", "delta", "expected"),
    [
        (1.0, 1, 1e-5, 4.3771781000249295),
        (4.0, 10, 1e-5, 3.3414094718592047),
        (8.0, 10, 1e-5, 1.5346798051068289),
        (20.0, 50, 1e-6, 1.5436304659798377),
    ],
)
def test_epsilon_is_what_dp_accounting_says(multiplier, rounds, delta, expected):
    """By PLDAccountant of dp-accounting 0.6, composed of GaussianDpEvent(multiplier) for each round, whose
    multiplier is of a distance of 1; ours is of the radius, and updates are up to two of them apart.
    """
    assert spent_epsilon(2 * multiplier, rounds, delta) == pytest.approx(expected, rel=2e-4)


def test_more_rounds_show_more_and_more_noise_shows_less():
    spent = [spent_epsilon(10.0, rounds) for rounds in range(6)]
    assert spent[0] == 0
    assert spent == sorted(set(spent))
    noises = (1e-3, 0.1, 1, 10, 1e6)
    assert sorted((spent_epsilon(noise, 5) for noise in noises), reverse=True) == [
        spent_epsilon(noise, 5) for noise in noises
    ]
    assert spent_epsilon(0, 1) == math.inf


def test_noise_has_its_deviation_and_is_another_each_time():
    update = np.full(20_000, 1.0, np.float32)
    first, second = noisy_update(update, 5.0, 2.0), noisy_update(update, 5.0, 2.0)
    clipped = 5.0 / norm(update)
    assert float(np.std(first)) == pytest.approx(10.0, rel=0.05)
    assert float(np.mean(first)) == pytest.approx(clipped, abs=0.4)
    assert float(np.std(first - second)) == pytest.approx(math.sqrt(2) * 10, rel=0.05)
    assert update_fault(first, first.size, noisy_radius(5.0, 2.0, first.size)) == ""
