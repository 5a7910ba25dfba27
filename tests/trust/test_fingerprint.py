"""Fingerprints of rows: small, the same for the same rows, near for near ones, and far for others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.trust.fingerprint import (
    POINTS,
    PRIME,
    FingerprintDistance,
    WindowRows,
    fingerprint_distance,
    take_fingerprint,
)

CHANCE = np.random.default_rng(1)
WIDTH = 576
ROWS = CHANCE.standard_normal((32, WIDTH)).astype(np.float32)
SAME = FingerprintDistance(POINTS, 0, 0.0, 0.0)


def bfloat16(rows: WindowRows) -> WindowRows:
    """Rounded to where bfloat16 ends."""
    return (rows.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)


def apart(theirs: WindowRows, ours: WindowRows = ROWS) -> FingerprintDistance:
    return fingerprint_distance(take_fingerprint(theirs), ours)


def test_it_takes_258_bytes_and_is_of_the_same_rows_the_same() -> None:
    made = take_fingerprint(ROWS)
    assert len(made.coefficients) == POINTS and max(made.coefficients) < PRIME <= 1 << 16
    assert made.modulus <= PRIME
    assert take_fingerprint(ROWS.copy()) == made
    assert apart(ROWS) == SAME


def test_rows_that_were_rounded_by_another_machine_are_near() -> None:
    for theirs in (bfloat16(ROWS), ROWS * (1 + 1e-3 * CHANCE.standard_normal(ROWS.shape)).astype(np.float32)):
        found = apart(theirs)
        assert found.exponents <= 2 and found.mean < 1 and found.median <= 1


def test_rows_of_another_precision_are_further_away() -> None:
    scale = np.abs(ROWS).max(axis=1, keepdims=True) / 7
    four_bits = (np.round(ROWS / scale) * scale).astype(np.float32)
    near, far = apart(bfloat16(ROWS)), apart(four_bits)
    assert far.exponents > 20 > near.exponents
    assert far.mean > 3 * near.mean


@pytest.mark.parametrize("other", ["others", "moved", "turned round", "nothing"])
def test_rows_that_are_others_are_far(other: str) -> None:
    theirs = {
        "others": CHANCE.standard_normal(ROWS.shape).astype(np.float32),
        "moved": np.roll(ROWS, 1, axis=1),
        "turned round": -ROWS,
        "nothing": np.zeros_like(ROWS),
    }[other]
    assert apart(theirs).exponents > 100


def test_one_large_element_that_was_changed_is_seen_and_a_small_one_is_not() -> None:
    large, small = ROWS.copy(), ROWS.copy()
    large[np.unravel_index(np.abs(ROWS).argmax(), ROWS.shape)] *= -1
    small[np.unravel_index(np.abs(ROWS).argmin(), ROWS.shape)] = 0
    assert apart(large).exponents == 1
    assert apart(small) == SAME


def test_a_window_with_fewer_elements_has_fewer_points() -> None:
    assert apart(ROWS[:1, :50], ROWS[:1, :50]).points == 50
    assert apart(ROWS[:1, :1], ROWS[:1, :1]) == FingerprintDistance(1, 0, 0.0, 0.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 8), st.integers(1, 9000))
def test_rows_of_any_width_go_through_all_their_points(seed: int, rows: int, width: int) -> None:
    chance = np.random.default_rng(seed)
    found = (chance.standard_normal((rows, width)) * 10 ** chance.uniform(-3, 3)).astype(np.float32)
    distance = apart(found, found)
    assert (distance.exponents, distance.mean) == (0, 0.0)


def test_of_two_the_worse_is_told() -> None:
    one, other = FingerprintDistance(128, 3, 0.5, 0.0), FingerprintDistance(100, 1, 2.0, 1.0)
    assert one.worse(other) == FingerprintDistance(128, 3, 2.0, 1.0)
