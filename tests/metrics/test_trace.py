"""Where the time of a step went."""

from __future__ import annotations

from functools import partial

import pytest

from shoal.metrics.trace import REROUTES_KEPT, STEPS_KEPT, HopTrace, RerouteTrace, Trace, hop_step, ring_step

HOPS = [HopTrace("a", "0:3", 4.0, 1.0), HopTrace("b", "3:6", 3.0, 0.0)]


def test_what_no_hop_accounts_for_is_the_networks() -> None:
    step = ring_step(1.0, b"\xab" * 16, 7, 20, 1, 0.0095, HOPS)
    assert (step.total_ms, step.network_ms) == (9.5, 1.5)
    assert step.way_ms == pytest.approx(0.5)  # one of three ways
    assert step.session == "abababab"


def test_a_hop_whose_clock_says_more_than_ours_leaves_nothing_for_the_network() -> None:
    assert ring_step(1.0, bytes(16), 1, 0, 1, 0.001, HOPS).network_ms == 0.0


def test_a_node_knows_of_its_own_hop_alone() -> None:
    step = hop_step(1.0, bytes(16), 1, 0, 5, HOPS[0])
    assert (step.total_ms, step.network_ms, step.hops) == (5.0, None, (HOPS[0],))


def test_only_the_newest_are_kept() -> None:
    trace = Trace()
    for number in range(STEPS_KEPT + 5):
        trace.step(partial(hop_step, 1.0, bytes(16), number, 0, 1, HOPS[0]))
        trace.reroute(RerouteTrace(float(number), "00", 0.5, ("a",), "resend"))
    assert [step.number for step in trace.steps] == list(range(5, STEPS_KEPT + 5))
    assert len(trace.reroutes) == REROUTES_KEPT
