"""When a channel pings, and what its silence means."""

from __future__ import annotations

from shoal.net.moving.liveness import (
    DEAD_AFTER_S,
    LATE_IN_USE_S,
    LATE_S,
    PING_EVERY_S,
    USED_LATELY_S,
    Liveness,
)


def test_a_channel_in_use_is_pinged_more_often_and_missed_sooner() -> None:
    liveness = Liveness(0.0)
    liveness.used, liveness.heard = 100.0, 100.0
    assert liveness.ping_every_s(100.0) < PING_EVERY_S
    assert not liveness.is_late(100.0 + LATE_IN_USE_S)
    assert liveness.is_late(100.1 + LATE_IN_USE_S)
    liveness.heard = 100.0 + USED_LATELY_S
    assert liveness.ping_every_s(liveness.heard) == PING_EVERY_S
    assert not liveness.is_late(liveness.heard + LATE_S)
    assert liveness.is_late(liveness.heard + LATE_S + 0.1)


def test_what_our_own_loop_was_held_up_is_not_the_peers_silence() -> None:
    liveness = Liveness(0.0)
    liveness.used = -USED_LATELY_S
    assert liveness.is_late(LATE_S + 0.9)
    assert not liveness.is_late(LATE_S + 0.9, held_up_s=1.0)
    assert liveness.is_dead(DEAD_AFTER_S + 0.5)
    assert not liveness.is_dead(DEAD_AFTER_S + 0.5, held_up_s=1.0)
