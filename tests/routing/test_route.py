"""Which route a session takes: whole, cheapest, with room; and what is said when there is none."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import Busy, NoCoverage
from shoal.routing.route import Candidate, Stage, choose_route
from shoal.types import PeerId, Span


def offer(peer: str, start: int, end: int, **more) -> Candidate:
    return Candidate(PeerId(peer), Span(start, end), more.pop("tokens_free", 1000), **more)


def stages(route: list[Stage]) -> list[tuple[str, int, int]]:
    return [(s.peer, s.span.start, s.span.end) for s in route]


def test_spans_that_tile_the_model_are_the_route():
    route = choose_route([offer("c", 20, 30), offer("a", 0, 10), offer("b", 10, 20)], 30, 100)
    assert stages(route) == [("a", 0, 10), ("b", 10, 20), ("c", 20, 30)]


def test_overlapping_spans_are_cut_where_they_meet():
    route = choose_route([offer("a", 0, 20, step_s=0.02), offer("b", 10, 30, step_s=0.02)], 30, 100)
    assert [s.peer for s in route] == ["a", "b"]
    assert route[0].span.end == route[1].span.start


def test_fewer_hops_are_cheaper_when_all_else_is_equal():
    slow = [offer("a", 0, 15, step_s=0.015), offer("b", 15, 30, step_s=0.015)]
    assert stages(choose_route([*slow, offer("whole", 0, 30, step_s=0.03)], 30, 1)) == [("whole", 0, 30)]


def test_a_slow_peer_is_avoided():
    route = choose_route([offer("slow", 0, 30, step_s=1.0), offer("fast", 0, 30, step_s=0.01)], 30, 1)
    assert route[0].peer == "fast"


def test_a_far_peer_is_avoided():
    route = choose_route([offer("far", 0, 30, rtt_s=0.3), offer("near", 0, 30, rtt_s=0.001)], 30, 1)
    assert route[0].peer == "near"


def test_a_peer_that_refused_is_avoided():
    offers = [offer("a", 0, 30, step_s=0.01), offer("b", 0, 30, step_s=0.02)]
    assert choose_route(offers, 30, 1, avoid={PeerId("a")})[0].peer == "b"


def test_missing_blocks_are_named():
    with pytest.raises(NoCoverage) as caught:
        choose_route([offer("a", 0, 10), offer("b", 15, 20)], 30, 1)
    assert caught.value.missing == (Span(10, 15), Span(20, 30))
    assert "10:15" in caught.value.message


def test_no_room_is_not_the_same_as_no_coverage():
    with pytest.raises(Busy) as caught:
        choose_route([offer("a", 0, 15), offer("b", 15, 30, tokens_free=64)], 30, 100)
    assert caught.value.tokens_free == 64


def test_a_span_beyond_the_model_is_ignored():
    with pytest.raises(NoCoverage):
        choose_route([offer("liar", 0, 40)], 30, 1)


spans = st.tuples(st.integers(0, 5), st.integers(1, 6)).filter(lambda s: s[0] < s[1])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(spans, st.sampled_from([0.01, 0.02, 0.05]), st.sampled_from([None, 0.01])), max_size=5)
)
def test_no_other_route_is_cheaper(drawn):
    offers = [offer(f"p{i}", *span, step_s=step, rtt_s=rtt) for i, (span, step, rtt) in enumerate(drawn)]
    everything = _all_routes(offers, 6)
    try:
        found = choose_route(offers, 6, 1)
    except NoCoverage:
        assert not everything
        return
    by_peer = {o.peer: o for o in offers}
    cost = sum(by_peer[s.peer].cost(len(s.span)) for s in found)
    assert cost == pytest.approx(min(everything))


def _all_routes(offers, n_blocks) -> list[float]:
    """The cost of every route, by trying out who runs each block."""
    costs = []
    for owners in product(range(len(offers)), repeat=n_blocks):
        if all(block in offers[owner].span for block, owner in enumerate(owners)):
            cost, begin = 0.0, 0
            for block in range(1, n_blocks + 1):
                if block == n_blocks or owners[block] != owners[begin]:
                    cost += offers[owners[begin]].cost(block - begin)
                    begin = block
            costs.append(cost)
    return costs
