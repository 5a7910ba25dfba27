"""A hop is slow when it takes much longer than it promised, for long."""

from __future__ import annotations

from shoal.client.ring.hop_pace import STEPS, HopPace


def paced(promised_s, *took_s):
    pace = HopPace(promised_s)
    for seconds in took_s:
        pace.note(seconds)
    return pace


def test_a_hop_that_keeps_its_promise_is_not_slow():
    assert paced(0.02, *[0.03] * 100).slow is None


def test_a_hop_is_slow_when_many_steps_in_a_row_were():
    assert paced(0.02, *[0.05] * (STEPS - 1)).slow is None
    seen = paced(0.02, *[0.05] * STEPS).slow
    assert seen is not None
    assert (seen.step_s, seen.promised_s) == (0.05, 0.02)


def test_one_step_in_time_and_it_counts_anew():
    assert paced(0.02, *[0.05] * (STEPS - 1), 0.02, *[0.05] * (STEPS - 1)).slow is None


def test_without_a_promise_the_first_step_is_the_measure():
    assert paced(0.0, *[0.05] * 100).slow is None
    assert paced(0.0, 0.02, *[0.05] * STEPS).slow is not None


def test_where_no_other_is_better_it_is_looked_at_again_ever_later():
    pace = paced(0.02, *[0.05] * STEPS)
    pace.bear()
    assert pace.slow is None
    for _ in range(STEPS):
        pace.note(0.05)
    assert pace.slow is not None
