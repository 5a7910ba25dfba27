"""What pings and long messages tell of a link."""

from __future__ import annotations

import pytest

from shoal.net.link_speed import ENOUGH, LATE_SHARE, TIMED_BYTES, LinkSpeed

MB = 1 << 20


def timed(speed: LinkSpeed, size: int, began: float, took_s: float) -> None:
    """A message of ``size`` bytes goes over the link in ``took_s`` seconds."""
    assert speed.may_time(size)
    speed.sent_behind(1, size, began)
    speed.pong(1, began + took_s)


def known(speed: LinkSpeed, size: int, took_s: float) -> None:
    """As many messages of ``size`` bytes as it takes to know the link, each in ``took_s`` seconds."""
    for began in range(ENOUGH):
        timed(speed, size, 100.0 * began, took_s)


def test_nothing_is_known_before_a_pong():
    speed = LinkSpeed()
    speed.pinged(1, 0.0)
    speed.sent_behind(2, MB, 0.0)
    assert (speed.rtt_s, speed.bytes_s) == (None, None)


def test_a_pong_tells_the_round_trip_of_the_last_ping_alone():
    speed = LinkSpeed()
    speed.pinged(1, 10.0)
    speed.pinged(2, 11.0)
    speed.pong(1, 11.5)
    assert speed.rtt_s is None
    speed.pong(2, 11.5)
    assert speed.rtt_s == 0.5
    assert speed.bytes_s is None


def test_a_long_message_tells_the_speed_less_the_round_trip():
    speed = LinkSpeed()
    speed.pinged(7, 0.0)
    speed.pong(7, 0.5)
    known(speed, MB, 1.5)
    assert speed.bytes_s == pytest.approx(MB)


def test_a_round_trip_that_was_longer_than_the_message_took_leaves_a_tenth_of_the_time():
    speed = LinkSpeed()
    speed.pinged(7, 0.0)
    speed.pong(7, 5.0)
    known(speed, MB, 1.0)
    assert speed.bytes_s == pytest.approx(10 * MB)


def test_a_faster_measurement_counts_in_full_and_a_slower_one_in_part():
    speed = LinkSpeed()
    known(speed, MB, 1.0)
    timed(speed, MB, 2.0, 0.5)
    assert speed.bytes_s == pytest.approx(2 * MB)
    timed(speed, MB, 4.0, 1.0)
    assert speed.bytes_s == pytest.approx((1 - LATE_SHARE) * 2 * MB + LATE_SHARE * MB)


def test_one_late_pong_makes_no_link_slow():
    speed = LinkSpeed()
    timed(speed, MB, 0.0, 5.0)
    assert speed.bytes_s is None
    for began in range(1, ENOUGH):
        timed(speed, MB, 10.0 * began, 0.01)
    assert speed.bytes_s == pytest.approx(100 * MB)


def test_short_messages_are_not_timed_nor_two_at_a_time():
    speed = LinkSpeed()
    assert not speed.may_time(TIMED_BYTES - 1)
    assert speed.may_time(TIMED_BYTES)
    speed.sent_behind(1, MB, 0.0)
    assert not speed.may_time(MB)
    speed.pong(1, 1.0)
    assert speed.may_time(MB)


def test_a_pong_that_answers_nothing_tells_nothing():
    speed = LinkSpeed()
    for _ in range(ENOUGH - 1):
        timed(speed, MB, 0.0, 2.0)
    speed.sent_behind(1, MB, 0.0)
    for nonce in (0, 2, (1 << 62) + 1):
        speed.pong(nonce, 1.0)
    assert (speed.rtt_s, speed.bytes_s) == (None, None)
    speed.pong(1, 2.0)
    speed.pong(1, 3.0)  # a second time
    assert speed.bytes_s == pytest.approx(MB / 2)
