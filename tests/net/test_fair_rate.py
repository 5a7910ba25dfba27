"""So much work a second for others, and nobody's flood is anybody else's delay."""

from __future__ import annotations

from shoal.net.fair_rate import FairRate


def done(rate: FairRate, who: str, count: int, now: float) -> int:
    return sum(rate.take(who, now) for _ in range(count))


def test_after_a_rest_much_is_done_at_once_and_then_so_much_a_second() -> None:
    rate = FairRate(10, 50)
    assert done(rate, "a", 1000, 0.0) <= 50 + 5
    assert sum(done(rate, "a", 1000, float(second)) for second in range(1, 11)) <= 10 * 10


def test_who_is_under_the_fair_share_is_served_though_another_floods() -> None:
    rate = FairRate(10, 50)
    done(rate, "flood", 1000, 0.0)
    for second in range(1, 20):
        done(rate, "flood", 1000, second + 0.0)
        assert done(rate, "honest", 2, second + 0.5) == 2


def test_many_that_flood_together_cause_no_more_than_twice_the_work() -> None:
    rate = FairRate(10, 50)
    seconds = 100
    done_in_all = sum(
        done(rate, f"flood{number}", 100, second + number / 100)
        for second in range(seconds)
        for number in range(30)
    )
    assert done_in_all <= 50 + 2 * 10 * seconds
