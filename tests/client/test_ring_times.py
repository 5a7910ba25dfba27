"""What is known of a step's time: how long it should take, and where it went."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from shoal.client.ring.hop_pace import HopPace
from shoal.client.ring.ring_times import ROW_BYTES, WAY_BYTES_S, RingTimes
from shoal.metrics.trace import Trace
from shoal.routing.prices import HOP_S
from shoal.routing.replace import PREFILL
from shoal.types import SessionId, Span
from shoal.wire.messages import HopTime
from shoal.wire.session import Issued

WIDTH = 1000
ONE = Issued(1, 0, 1, 1)


def ring(
    *promised_s: float, rtt_s: float = 0.01, bytes_s: float | None = None
) -> tuple[RingTimes, list[Any], Trace]:
    """The times of a ring of hops that promised so much, its hops, and what is traced."""
    hops = [
        SimpleNamespace(pace=HopPace(s), channel=SimpleNamespace(rtt_s=rtt_s, bytes_s=bytes_s))
        for s in promised_s
    ]
    route = [
        SimpleNamespace(address=SimpleNamespace(peer=f"p{i}"), span=Span(i, i + 1)) for i in range(len(hops))
    ]
    places, trace = SimpleNamespace(hops=hops, route=route), Trace()
    return RingTimes(cast(Any, places), SessionId(bytes(16)), trace, WIDTH, 4), hops, trace


def test_a_step_should_take_its_way_and_what_the_hops_promised():
    times, _, _ = ring(0.1, 0.2)
    sent_s = 2 * WIDTH * ROW_BYTES / WAY_BYTES_S
    assert times.expected_s(ONE) == pytest.approx(2 * 0.01 + sent_s + 0.3 * (1 + 1 / PREFILL))


def test_a_way_that_is_known_as_thin_takes_longer_and_one_that_is_known_as_fast_tells_nothing_of_the_others():
    thin, fast, unknown = (ring(0.1, bytes_s=rate)[0].expected_s(ONE) or 0.0 for rate in (1e4, 1e9, None))
    assert thin == pytest.approx(unknown + WIDTH * ROW_BYTES * (1 / 1e4 - 1 / WAY_BYTES_S))
    assert fast == unknown


def test_no_way_of_ours_need_be_known():
    times, hops, _ = ring(0.1)
    expected = times.expected_s(ONE)
    hops[0].channel = None
    assert times.expected_s(ONE) == pytest.approx((expected or 0.0) - 0.01)


def test_more_tokens_should_take_longer():
    times, _, _ = ring(0.1, 0.2)
    longer = times.expected_s(Issued(1, 0, 100, 1))
    assert longer is not None and longer > 5 * (times.expected_s(ONE) or 0.0)


def test_nothing_is_expected_where_a_hop_was_never_measured_or_no_step_is_under_way():
    assert ring(0.1, 0.0)[0].expected_s(ONE) is None
    assert ring(0.1, 0.1)[0].expected_s(None) is None


def test_a_hop_is_as_fast_as_it_says_and_what_nobody_explains_is_shared():
    times, hops, trace = ring(0.1, 0.1)
    said = [HopTime(0, 40_000, 10_000), HopTime(1, 100_000, 0)]
    for number in range(1, 17):
        step = Issued(number, number, 1, 1)
        times.sent(step, 10.0 * number)
        times.returned(step, said, 10.0 * number + 0.37 + 2 * HOP_S)
    # 0.05 s and 0.1 s said, 0.02 s on the way, 0.2 s that nobody explains
    assert [hop.pace.usual_s for hop in hops] == [pytest.approx(0.15), pytest.approx(0.2)]
    assert trace.steps[-1].hops[1].peer == "p1"


def test_only_decode_steps_tell_how_fast_a_hop_decodes_but_all_are_traced():
    times, hops, trace = ring(0.1)
    for number in range(1, 17):
        times.sent(Issued(number, 0, 64, 1), 0.0)
        times.returned(Issued(number, 0, 64, 1), [HopTime(0, 9_000_000, 0)], 9.0)
    assert hops[0].pace.usual_s is None
    assert len(trace.steps) == 16


def test_the_word_of_a_hop_that_is_not_there_counts_for_nothing():
    times, hops, trace = ring(0.1, rtt_s=0.0)
    for number in range(1, 17):
        times.sent(Issued(number, 0, 1, 1), 0.0)
        times.returned(Issued(number, 0, 1, 1), [HopTime(7, 5_000_000, 0)], 0.1 + HOP_S)
    assert hops[0].pace.usual_s == pytest.approx(0.1)
    assert trace.steps[-1].hops == ()
