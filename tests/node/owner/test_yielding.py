"""When a node gives way: to what, after how long, and when it comes back."""

from __future__ import annotations

import pytest

from shoal.node.owner.yielding import BUSY, BUSY_S, QUIET, QUIET_S, SMOOTH_S, OtherUse, YieldState, decide

LOOK_S = 2.0
FADES_S = 3 * SMOOTH_S
"""By when what was before counts no more."""
IDLE, BUSY_CPU = OtherUse(0.02), OtherUse(0.9)


def after(seconds: float, use: OtherUse, state: YieldState, now: float = 0.0) -> tuple[YieldState, float]:
    """The state once the machine has been used like this for so long, with a look every two seconds."""
    until = now + seconds
    while now <= until:
        state = decide(state, use, now)
        now += LOOK_S
    return state, now


def test_a_node_that_is_left_alone_gives_way_to_nothing() -> None:
    assert after(3600, IDLE, YieldState())[0] == YieldState()


def test_it_gives_way_to_programs_that_take_the_cpu_and_says_so() -> None:
    state, _ = after(BUSY_S, BUSY_CPU, YieldState())
    assert state == YieldState("other programs take 90% of the CPU", since=BUSY_S)


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (OtherUse(BUSY), "other programs take 25% of the CPU"),
        (OtherUse(0.0, gpu=0.6), "other programs take 60% of the GPU"),
        (OtherUse(0.0, on_battery=True), "it runs on battery"),
        (OtherUse(0.9, gpu=0.9, on_battery=True), "it runs on battery"),
        (OtherUse(BUSY - 0.01, gpu=BUSY - 0.01), ""),
        (OtherUse(0.0, gpu=None), ""),
    ],
)
def test_each_kind_of_use_counts_from_a_quarter_on_and_a_battery_always(use: OtherUse, why: str) -> None:
    assert after(60, use, YieldState())[0].why == why


def test_a_short_burst_is_no_reason() -> None:
    state, now = after(BUSY_S - LOOK_S, BUSY_CPU, YieldState())
    state, now = after(LOOK_S, IDLE, state, now)
    state, _ = after(BUSY_S - LOOK_S, BUSY_CPU, state, now)
    assert not state.yielding


def test_it_comes_back_once_the_machine_has_been_quiet_for_a_while() -> None:
    state, now = after(60, BUSY_CPU, YieldState())
    state, now = after(QUIET_S - LOOK_S, IDLE, state, now)
    assert state.yielding
    back, _ = after(LOOK_S + FADES_S, IDLE, state, now)
    assert not back.yielding


def test_what_runs_for_a_moment_does_not_make_it_wait_anew() -> None:
    state, now = after(60, BUSY_CPU, YieldState())
    for _ in range(8):
        state, now = after(LOOK_S, OtherUse(QUIET / 2), state, now)
        state, now = after(0.0, OtherUse(1.3 * QUIET), state, now)
    assert not state.yielding


def test_a_pause_in_the_use_of_the_machine_does_not_bring_it_back() -> None:
    state, now = after(60, BUSY_CPU, YieldState())
    for _ in range(20):
        state, now = after(QUIET_S - LOOK_S, IDLE, state, now)
        state, now = after(LOOK_S, BUSY_CPU, state, now)
    assert state.yielding


def test_what_would_not_make_it_give_way_keeps_it_there_until_it_is_less_than_half() -> None:
    state, now = after(60, OtherUse((BUSY + QUIET) / 2), YieldState())
    assert not state.yielding
    state, now = after(60, BUSY_CPU, state, now)
    state, now = after(600, OtherUse((BUSY + QUIET) / 2), state, now)
    assert state.yielding
    assert not after(QUIET_S + FADES_S, OtherUse(QUIET - 0.01), state, now)[0].yielding


def test_why_it_gives_way_is_what_holds_now() -> None:
    state, now = after(60, BUSY_CPU, YieldState())
    state, now = after(FADES_S, OtherUse(0.0, on_battery=True), state, now)
    assert (state.why, state.since) == ("it runs on battery", BUSY_S)
    state, _ = after(QUIET_S - LOOK_S, IDLE, state, now)
    assert state.why == "it runs on battery"


def test_use_that_goes_up_and_down_around_the_threshold_makes_it_turn_once() -> None:
    state, turns = YieldState(), 0
    for look in range(500):
        use = OtherUse(BUSY + (0.05 if look % 7 < 4 else -0.05))
        following = decide(state, use, LOOK_S * look)
        turns += following.yielding != state.yielding
        state = following
    assert turns == 1
