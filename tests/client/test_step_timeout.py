"""How long a step is waited for, before a hop is held to keep it."""

from __future__ import annotations

from shoal.client.ring.step_timeout import AT_WORK_S, LOOK_S, UNKNOWN_S, StepTimeout
from shoal.wire.session import Stuck

LINK = Stuck((0, 1))
AT_WORK = Stuck((1,), at_work=True)


def test_a_step_is_looked_for_when_it_takes_much_longer_than_it_should():
    assert StepTimeout(0.01, 100.0).look_at == 100.0 + LOOK_S
    assert StepTimeout(None, 100.0).look_at == 100.0 + LOOK_S
    assert StepTimeout(2.0, 100.0).look_at == 108.0


def test_one_look_is_not_enough_since_the_step_may_have_been_on_its_way():
    timeout = StepTimeout(0.01, 0.0)
    assert not timeout.over(LINK, 0.5, 0.01)
    assert not timeout.over(Stuck((2,)), 0.75, 0.01)
    assert timeout.over(Stuck((2,)), 1.0, 0.01)


def test_hops_that_reply_slowly_are_asked_more_seldom():
    timeout = StepTimeout(0.01, 0.0)
    timeout.over(LINK, 0.5, 0.4)
    assert timeout.look_at == 4.5


def test_a_hop_at_work_has_several_times_what_the_step_should_take():
    quick, slow = StepTimeout(0.01, 0.0), StepTimeout(1.0, 0.0)
    assert not quick.over(AT_WORK, AT_WORK_S - 0.1, 0.01)
    assert quick.over(AT_WORK, AT_WORK_S, 0.01)
    assert not slow.over(AT_WORK, 7.9, 0.01)
    assert slow.over(AT_WORK, 8.0, 0.01)


def test_where_nobody_has_measured_a_step_a_hop_at_work_has_a_fixed_time():
    timeout = StepTimeout(None, 0.0)
    assert not timeout.over(AT_WORK, UNKNOWN_S - 0.1, 0.01)
    assert timeout.over(AT_WORK, UNKNOWN_S, 0.01)
