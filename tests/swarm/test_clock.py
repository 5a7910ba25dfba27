"""The swarm's time: this machine's, unless most neighbours say otherwise."""

from __future__ import annotations

import math

from shoal.swarm.clock import TELLERS, Clock


def clock(ahead: float) -> Clock:
    return Clock(steady=lambda: 5.0, wall=lambda: 1000.0 + ahead)


def test_alone_or_with_two_others_our_own_clock_counts():
    ours = clock(3600.0)
    for peer in ("a", "b"):
        ours.heard(peer, 1000.0)
    assert ours.wall() == 4600.0


def test_most_neighbours_put_a_wrong_clock_right():
    ours = clock(3600.0)
    for peer in ("a", "b", "c"):
        ours.heard(peer, 1000.0)
    assert ours.wall() == 1000.0
    assert ours.wrong_by_s == 3600.0
    assert ours.own == 4600.0


def test_a_small_difference_is_left_alone():
    ours = clock(4.0)
    for peer in ("a", "b", "c"):
        ours.heard(peer, 1000.0)
    assert ours.wall() == 1004.0


def test_some_liars_change_nothing():
    ours = clock(0.0)
    for number in range(TELLERS):
        ours.heard(str(number), 9e9 if number % 2 else 1000.0)
    assert ours.wall() == 1000.0


def test_times_that_are_no_numbers_are_not_heard():
    ours = clock(0.0)
    for peer in ("a", "b", "c"):
        ours.heard(peer, math.nan)
    assert ours.wall() == 1000.0


def test_who_spoke_last_counts_and_their_number_is_bounded():
    ours = clock(0.0)
    for number in range(100):
        ours.heard(str(number), 1000.0)
    for number in range(TELLERS):
        ours.heard(f"later {number}", 8000.0)
    assert ours.wall() == 8000.0
