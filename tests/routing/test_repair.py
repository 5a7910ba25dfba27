"""What takes the place of lost hops in the middle of a session."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shoal.errors import Busy, NoCoverage
from shoal.routing.repair import choose_repair
from shoal.routing.route import Stage
from shoal.types import PeerId, Span
from tests.routing.test_route import offer, stages


def a_route(*parts: tuple[str, int, int]) -> list[Stage]:
    return [Stage(PeerId(peer), Span(start, end)) for peer, start, end in parts]


ROUTE = a_route(("a", 0, 10), ("b", 10, 20), ("c", 20, 30))
LOST_B = {"avoid": {PeerId("b")}}


def repaired(offers, route, lost, tokens=100, **options):
    found = choose_repair(offers, route, lost, tokens, **options)
    return [(first, last, stages(new)) for first, last, new in found]


def test_a_lost_hop_is_replaced_and_the_others_are_kept():
    offers = [offer("b", 10, 20), offer("spare", 5, 25), offer("c", 20, 30)]
    assert repaired(offers, ROUTE, {1}, **LOST_B) == [(1, 1, [("spare", 10, 20)])]


def test_its_blocks_may_go_to_more_than_one_peer():
    offers = [offer("left", 8, 14), offer("right", 14, 22)]
    assert repaired(offers, ROUTE, {1}, **LOST_B) == [(1, 1, [("left", 10, 14), ("right", 14, 20)])]


def test_neighbours_that_are_lost_together_are_replaced_together():
    offers = [offer("whole", 0, 30), offer("x", 10, 20), offer("y", 20, 30)]
    assert repaired(offers, ROUTE, [2, 1]) == [(1, 2, [("whole", 10, 30)])]


def test_hops_lost_apart_are_replaced_apart():
    offers = [offer("x", 0, 10), offer("y", 20, 30)]
    assert repaired(offers, ROUTE, {0, 2}) == [(0, 0, [("x", 0, 10)]), (2, 2, [("y", 20, 30)])]


def test_a_peer_that_could_take_both_takes_the_one_that_nobody_else_can():
    offers = [offer("both", 0, 30, step_s=0.001), offer("first", 0, 10, step_s=1.0)]
    found = repaired(offers, ROUTE, {0, 2})
    assert found == [(0, 0, [("first", 0, 10)]), (2, 2, [("both", 20, 30)])]


def test_a_route_over_a_part_of_the_model_is_repaired_within_that_part():
    route = a_route(("a", 2, 10), ("b", 10, 20), ("c", 20, 28))
    offers = [offer("spare", 0, 30), offer("tail", 15, 30)]
    assert repaired(offers, route, {0}) == [(0, 0, [("spare", 2, 10)])]
    assert repaired(offers, route, {1}) == [(1, 1, [("spare", 10, 20)])]
    assert repaired(offers, route, {2}) in ([(2, 2, [("spare", 20, 28)])], [(2, 2, [("tail", 20, 28)])])
    assert repaired(offers, route, {0, 2}) == [(0, 0, [("spare", 2, 10)]), (2, 2, [("tail", 20, 28)])]
    with pytest.raises(NoCoverage) as caught:
        choose_repair([offer("near", 4, 30)], route, {0}, 100)
    assert caught.value.missing == (Span(2, 4),)


def test_a_peer_that_is_kept_takes_no_more():
    with pytest.raises(NoCoverage) as caught:
        choose_repair([offer("a", 0, 30), offer("c", 5, 30)], ROUTE, {1}, 100, **LOST_B)
    assert caught.value.missing == (Span(10, 20),)


def test_what_lies_near_the_kept_hops_is_preferred():
    ways = {PeerId("a"): 0.001, PeerId("c"): 0.001}
    offers = [
        offer("far", 10, 20, rtt_s=0.05),
        offer("beside", 10, 20, rtt_s=0.05, rtts_s=ways),
        offer("a", 0, 10, rtt_s=0.05),
        offer("c", 20, 30, rtt_s=0.05),
    ]
    assert repaired(offers, ROUTE, {1}, **LOST_B) == [(1, 1, [("beside", 10, 20)])]


def test_kept_hops_need_no_room_that_they_have_given_us_already():
    offers = [offer("a", 0, 10, tokens_free=0), offer("spare", 10, 20)]
    assert repaired(offers, ROUTE, {1}, **LOST_B) == [(1, 1, [("spare", 10, 20)])]


def test_the_whole_route_may_be_lost():
    assert repaired([offer("whole", 0, 30)], ROUTE, {0, 1, 2}) == [(0, 2, [("whole", 0, 30)])]


def test_the_lost_blocks_that_nobody_serves_are_named_alone():
    with pytest.raises(NoCoverage) as caught:
        choose_repair([offer("b", 10, 20), offer("half", 10, 15)], ROUTE, {1}, 100, **LOST_B)
    assert caught.value.missing == (Span(15, 20),)


def test_one_peer_for_two_places_is_told_from_none():
    with pytest.raises(NoCoverage, match="asked twice") as caught:
        choose_repair([offer("both", 0, 30)], ROUTE, {0, 2}, 100)
    assert caught.value.missing == (Span(0, 10), Span(20, 30))


def test_a_replica_without_room_is_busy():
    with pytest.raises(Busy) as caught:
        choose_repair([offer("full", 10, 20, tokens_free=10)], ROUTE, {1}, 100, **LOST_B)
    assert caught.value.tokens_free == 10


cuts = st.lists(st.integers(1, 5), max_size=3, unique=True).map(lambda c: [0, *sorted(c), 6])
offered = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)).filter(lambda s: s[0] < s[1]), max_size=5)


@settings(max_examples=200, deadline=None)
@given(cuts, st.data(), offered)
def test_whatever_can_be_repaired_is(cuts, data, drawn):
    """Each lost block goes to a peer that serves it, none to a peer in two places; else there is an error."""
    route = a_route(*((f"r{i}", start, end) for i, (start, end) in enumerate(pairwise(cuts))))
    lost = data.draw(st.sets(st.integers(0, len(route) - 1), min_size=1))
    offers = [offer(f"p{i}", *span, step_s=0.01 * (i + 1)) for i, span in enumerate(drawn)]
    blocks = [b for i in sorted(lost) for b in range(route[i].span.start, route[i].span.end)]
    assume(len(offers) ** len(blocks) < 20_000)
    possible = any(
        _once(owners, blocks, offers) for owners in product(range(len(offers)), repeat=len(blocks))
    )
    try:
        found = choose_repair(offers, route, lost, 1)
    except NoCoverage:
        assert not possible
        return
    assert possible
    taken = [s for _, _, new in found for s in new]
    assert [b for s in taken for b in range(s.span.start, s.span.end)] == blocks
    assert len({s.peer for s in taken}) == len(taken)


def _once(owners, blocks, offers) -> bool:
    if any(block not in offers[owner].span for owner, block in zip(owners, blocks, strict=True)):
        return False
    runs = [
        owner
        for i, owner in enumerate(owners)
        if i == 0 or owners[i - 1] != owner or blocks[i] != blocks[i - 1] + 1
    ]
    return len(set(runs)) == len(runs)
