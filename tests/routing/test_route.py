"""Which route a session takes: whole, best, with room; and what is said when there is none."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import Busy, NoCoverage
from shoal.routing.prices import HOP_S, JITTER, Candidate, price, within_price
from shoal.routing.route import Stage, choose_route, who_may
from shoal.routing.shortest_path import Prices, cheapest
from shoal.types import PeerId, Span


def offer(peer: str, start: int, end: int, **more) -> Candidate:
    return Candidate(PeerId(peer), Span(start, end), more.pop("tokens_free", 1000), **more)


def stages(route: list[Stage]) -> list[tuple[str, int, int]]:
    return [(s.peer, s.span.start, s.span.end) for s in route]


def peers(route: list[Stage]) -> list[str]:
    return [stage.peer for stage in route]


def test_spans_that_tile_the_model_are_the_route():
    route = choose_route([offer("c", 20, 30), offer("a", 0, 10), offer("b", 10, 20)], 30, 100)
    assert stages(route) == [("a", 0, 10), ("b", 10, 20), ("c", 20, 30)]


def test_overlapping_spans_are_cut_where_they_meet():
    route = choose_route([offer("a", 0, 20, step_s=0.02), offer("b", 10, 30, step_s=0.02)], 30, 100)
    assert peers(route) == ["a", "b"]
    assert route[0].span.end == route[1].span.start


def test_fewer_hops_are_cheaper_when_all_else_is_equal():
    slow = [offer("a", 0, 15, step_s=0.015), offer("b", 15, 30, step_s=0.015)]
    assert stages(choose_route([*slow, offer("whole", 0, 30, step_s=0.03)], 30, 1)) == [("whole", 0, 30)]


def test_a_slow_peer_is_avoided():
    route = choose_route([offer("slow", 0, 30, step_s=1.0), offer("fast", 0, 30, step_s=0.01)], 30, 1)
    assert peers(route) == ["fast"]


def test_a_far_peer_is_avoided():
    route = choose_route([offer("far", 0, 30, rtt_s=0.3), offer("near", 0, 30, rtt_s=0.001)], 30, 1)
    assert peers(route) == ["near"]


def test_a_peer_behind_a_thin_link_is_avoided():
    offers = [
        offer("thin", 0, 30, step_s=0.01, sending_s=0.05),
        offer("wide", 0, 30, step_s=0.02, sending_s=0.001),
    ]
    assert peers(choose_route(offers, 30, 1)) == ["wide"]
    # One whose link nobody has timed is taken for a usual one.
    assert peers(choose_route([offers[0], offer("new", 0, 30, step_s=0.02)], 30, 1)) == ["thin"]


def test_a_peer_at_which_steps_wait_is_avoided():
    offers = [offer("queue", 0, 30, step_s=0.01, wait_s=0.05), offer("free", 0, 30, step_s=0.02)]
    assert peers(choose_route(offers, 30, 1)) == ["free"]


def test_of_two_peers_alike_the_one_without_sessions_is_taken():
    offers = [offer("busy", 0, 30, step_s=0.02, sessions=4), offer("idle", 0, 30, step_s=0.02)]
    assert peers(choose_route(offers, 30, 1)) == ["idle"]


def test_a_peer_that_was_measured_by_nobody_is_taken_for_a_usual_one():
    offers = [offer("new", 0, 30), offer("slow", 0, 30, step_s=0.3), offer("fast", 0, 30, step_s=0.1)]
    assert peers(choose_route(offers, 30, 1)) == ["fast"]
    assert peers(choose_route(offers, 30, 1, avoid={PeerId("fast")})) == ["new"]


def test_a_peer_that_is_trusted_less_must_be_faster_for_it():
    offers = [offer("doubtful", 0, 30, step_s=0.02, trust=0.5), offer("known", 0, 30, step_s=0.03)]
    assert peers(choose_route(offers, 30, 1)) == ["known"]


def test_a_measured_way_between_two_peers_decides_which_two():
    """Both second halves are as far from us; one of them is in the same room as the first."""
    offers = [
        offer("first", 0, 15, rtt_s=0.1, rtts_s={PeerId("near"): 0.001, PeerId("far"): 0.2}),
        offer("far", 15, 30, rtt_s=0.1),
        offer("near", 15, 30, rtt_s=0.1),
    ]
    assert peers(choose_route(offers, 30, 1)) == ["first", "near"]


def test_a_peer_that_refused_is_avoided():
    offers = [offer("a", 0, 30, step_s=0.01), offer("b", 0, 30, step_s=0.02)]
    assert peers(choose_route(offers, 30, 1, avoid={PeerId("a")})) == ["b"]


def test_a_session_is_at_a_peer_once():
    """To leave the slow peer for the fast one and to come back would be the shortest."""
    offers = [
        offer("slow", 0, 30, step_s=0.3),
        offer("fast", 10, 20, step_s=0.01),
        offer("slower", 0, 30, step_s=0.33),
    ]
    assert stages(choose_route(offers, 30, 1)) == [("slow", 0, 10), ("fast", 10, 20), ("slower", 20, 30)]
    assert stages(choose_route(offers[:2], 30, 1)) == [("slow", 0, 30)]


def test_throughput_goes_round_the_peers_that_are_busy():
    offers = [
        offer("busy", 0, 30, step_s=0.02, rtt_s=0.001, tokens=1000, tokens_free=200),
        offer("idle", 0, 30, step_s=0.03, rtt_s=0.1, tokens=1000, tokens_free=1000),
    ]
    assert peers(choose_route(offers, 30, 1)) == ["busy"]
    assert peers(choose_route(offers, 30, 1, objective="throughput")) == ["idle"]


def test_cost_takes_the_fewest_hops_however_slow():
    offers = [
        offer("whole", 0, 30, step_s=3.0),
        offer("a", 0, 15, step_s=0.01),
        offer("b", 15, 30, step_s=0.01),
    ]
    assert peers(choose_route(offers, 30, 1)) == ["a", "b"]
    assert peers(choose_route(offers, 30, 1, objective="cost")) == ["whole"]


def test_where_a_pinned_peer_serves_a_block_no_other_is_asked():
    offers = [offer("a", 0, 30, step_s=0.01), offer("mine", 10, 20, step_s=1.0), offer("b", 15, 30)]
    route = choose_route(offers, 30, 1, pinned={PeerId("mine")})
    assert stages(route) == [("a", 0, 10), ("mine", 10, 20), ("b", 20, 30)]
    with pytest.raises(Busy):
        choose_route([*offers, offer("full", 0, 5, tokens_free=0)], 30, 5000, pinned={PeerId("full")})


def test_a_pinned_peer_in_the_middle_of_the_only_other_one_leaves_no_route():
    offers = [offer("a", 0, 30), offer("mine", 10, 20)]
    with pytest.raises(NoCoverage, match="asked twice"):
        choose_route(offers, 30, 1, pinned={PeerId("mine")})


def test_clients_do_not_all_choose_the_same_of_peers_alike():
    offers = [offer(f"p{i}", 0, 30, step_s=0.02) for i in range(10)]
    chosen = [peers(choose_route(offers, 30, 1, rng=Random(seed)))[0] for seed in range(300)]
    assert max(chosen.count(peer) for peer in set(chosen)) < 60
    assert peers(choose_route(offers, 30, 1, rng=Random(7))) == peers(
        choose_route(offers, 30, 1, rng=Random(7))
    )


def test_missing_blocks_are_named():
    with pytest.raises(NoCoverage) as caught:
        choose_route([offer("a", 0, 10), offer("b", 15, 20)], 30, 1)
    assert caught.value.missing == (Span(10, 15), Span(20, 30))
    assert "10:15" in caught.value.message


def test_a_swarm_of_nobody_lacks_every_block():
    with pytest.raises(NoCoverage) as caught:
        choose_route([], 30, 1)
    assert caught.value.missing == (Span(0, 30),)


def test_no_room_is_not_the_same_as_no_coverage():
    with pytest.raises(Busy) as caught:
        choose_route([offer("a", 0, 15), offer("b", 15, 30, tokens_free=64)], 30, 100)
    assert caught.value.tokens_free == 64


def test_a_span_beyond_the_model_is_ignored():
    with pytest.raises(NoCoverage):
        choose_route([offer("liar", 0, 40)], 30, 1)


# --- a route over a part of the model --------------------------------------------------------------------

INNER = Span(2, 28)


def test_a_route_covers_the_blocks_that_are_asked_for_and_no_others():
    offers = [offer("a", 0, 10), offer("b", 10, 20), offer("c", 20, 30)]
    assert stages(choose_route(offers, 30, 100, span=INNER)) == [("a", 2, 10), ("b", 10, 20), ("c", 20, 28)]
    assert stages(choose_route(offers, 30, 100, span=Span(10, 20))) == [("b", 10, 20)]


def test_blocks_that_the_client_runs_itself_need_nobody():
    offers = [offer("a", 2, 15), offer("b", 15, 28)]
    assert stages(choose_route(offers, 30, 100, span=INNER)) == [("a", 2, 15), ("b", 15, 28)]
    with pytest.raises(NoCoverage) as caught:
        choose_route(offers, 30, 100)
    assert caught.value.missing == (Span(0, 2), Span(28, 30))


def test_what_is_missing_or_full_of_the_blocks_asked_for_is_named():
    with pytest.raises(NoCoverage) as caught:
        choose_route([offer("a", 5, 10), offer("b", 15, 20)], 30, 100, span=INNER)
    assert caught.value.missing == (Span(2, 5), Span(10, 15), Span(20, 28))
    with pytest.raises(NoCoverage) as caught:
        choose_route([], 30, 100, span=INNER)
    assert caught.value.missing == (INNER,)
    with pytest.raises(Busy, match="2:15"):
        choose_route([offer("a", 0, 15, tokens_free=1), offer("b", 15, 30)], 30, 100, span=INNER)


def test_only_the_blocks_asked_for_count_in_the_price():
    """Two hops are cheaper for all the blocks; of the inner ones one peer has all."""
    offers = [
        offer("a", 0, 15, step_s=0.015),
        offer("b", 15, 30, step_s=0.015),
        offer("c", 2, 28, step_s=0.027),
    ]
    assert peers(choose_route(offers, 30, 1)) == ["a", "b"]
    assert peers(choose_route(offers, 30, 1, span=INNER)) == ["c"]


WORK = [0.1, 0.1, 0.1, 3.7]
"""A graph of which one segment takes nearly all the time."""


def test_segments_of_a_graph_cost_what_they_are_worth():
    slow = offer("slow", 0, 4, step_s=0.4)
    light = offer("light", 0, 3, step_s=0.02)  # at the same speed by segments, and slower by work
    heavy = offer("heavy", 3, 4, step_s=0.037)
    assert stages(choose_route([slow, light, heavy], 4, 1, segments=WORK)) == [
        ("light", 0, 3),
        ("heavy", 3, 4),
    ]
    # By their number a tenth of the whole span's time would be gone with each, and the slow one had three.
    quick = offer("quick", 0, 3, step_s=0.0004)
    whole = offer("whole", 0, 4, step_s=0.045)
    assert peers(choose_route([quick, whole, heavy], 4, 1)) == ["quick", "whole"]
    assert peers(choose_route([quick, whole, heavy], 4, 1, segments=WORK)) == ["quick", "heavy"]


def test_what_a_graphs_client_carries_does_not_go_between_peers():
    ways = {PeerId("far-b"): 0.0001}
    near = [offer("near-a", 0, 2, rtt_s=0.01), offer("near-b", 2, 4, rtt_s=0.01)]
    far = [offer("far-a", 0, 2, rtt_s=0.012, rtts_s=ways), offer("far-b", 2, 4, rtt_s=0.012)]
    assert peers(choose_route([*near, *far], 4, 1)) == ["far-a", "far-b"]
    assert peers(choose_route([*near, *far], 4, 1, segments=[1.0] * 4)) == ["near-a", "near-b"]


N = 6
spans = st.tuples(st.integers(0, N - 1), st.integers(1, N)).filter(lambda s: s[0] < s[1])
times = st.sampled_from([0.01, 0.02, 0.05, 0.4])
trips = st.sampled_from([None, 0.001, 0.01, 0.2])


@st.composite
def swarms(draw) -> list[Candidate]:
    count = draw(st.integers(1, 5))
    names = [PeerId(f"p{i}") for i in range(count)]
    ways = st.dictionaries(st.sampled_from(names), st.sampled_from([0.0001, 0.03, 0.5]), max_size=3)
    return [
        offer(
            name,
            *draw(spans),
            step_s=draw(times),
            rtt_s=draw(trips),
            rtts_s=draw(ways),
            wait_s=draw(st.sampled_from([0.0, 0.02])),
        )
        for name in names
    ]


@settings(max_examples=300, deadline=None)
@given(
    swarms(),
    st.sampled_from(["latency", "throughput", "cost"]),
    st.none() | st.lists(st.sampled_from([0.1, 1.0, 4.0]), min_size=N, max_size=N),
)
def test_no_other_route_is_cheaper(offers, objective, segments):
    prices = price(offers, objective, None, segments)
    everything = list(_all_routes(offers))
    try:
        found = choose_route(offers, N, 1, objective=objective, segments=segments)
    except NoCoverage:
        assert not everything
        return
    best = min(_cost(prices, route) for route in everything)
    assert _cost(prices, _numbered(found, offers)) == pytest.approx(best)
    assert len(set(peers(found))) == len(found)


@settings(max_examples=100, deadline=None)
@given(swarms(), spans)
def test_a_route_over_a_part_is_that_of_a_model_of_these_blocks_alone(offers, part):
    start, end = part
    span = Span(start, end)
    inner = [
        replace(o, span=Span(max(o.span.start, start) - start, min(o.span.end, end) - start), step_s=0.0)
        for o in offers
        if o.span.start < end and o.span.end > start
    ]
    offers = [replace(o, step_s=0.0) for o in offers]
    offers = [o for o in offers if o.span.start < end and o.span.end > start]
    try:
        expected = [
            (peer, first + start, last + start)
            for peer, first, last in stages(choose_route(inner, end - start, 1))
        ]
    except NoCoverage as error:
        with pytest.raises(NoCoverage) as caught:
            choose_route(offers, N, 1, span=span)
        assert caught.value.missing == tuple(Span(s.start + start, s.end + start) for s in error.missing)
        return
    assert stages(choose_route(offers, N, 1, span=span)) == expected


@settings(max_examples=100, deadline=None)
@given(swarms(), st.integers(0, 100))
def test_chance_makes_no_route_much_dearer(offers, seed):
    prices = price(offers, "latency", None)
    try:
        best, drawn = choose_route(offers, N, 1), choose_route(offers, N, 1, rng=Random(seed))
    except NoCoverage:
        return
    costs = [_cost(prices, _numbered(route, offers)) for route in (best, drawn)]
    assert costs[0] <= costs[1] * (1 + 1e-9)
    assert costs[1] <= costs[0] * (1 + JITTER)


def _numbered(route, offers):
    number = {o.peer: i for i, o in enumerate(offers)}
    return [(number[stage.peer], len(stage.span)) for stage in route]


def _all_routes(offers, start=0, used=()):
    """Every route, as peers with how many blocks each runs."""
    if start == N:
        yield []
        return
    for number, candidate in enumerate(offers):
        if start in candidate.span and number not in used:
            for end in range(start + 1, candidate.span.end + 1):
                for rest in _all_routes(offers, end, (*used, number)):
                    yield [(number, end - start), *rest]


def _cost(prices: Prices, route) -> float:
    """What a route costs, by walking it."""
    measured = {
        (b, e): s for b, e, s in zip(prices.ways.begin, prices.ways.end, prices.ways.seconds, strict=True)
    }
    ways = prices.near[route[0][0]] + prices.near[route[-1][0]]
    for (a, _), (b, _) in pairwise(route):
        ways += measured.get((a, b), prices.leg[a] + prices.leg[b])
    work = np.ones(N) if prices.work is None else prices.work
    ends = np.cumsum([blocks for _, blocks in route])
    return ways + sum(
        prices.stage[peer] + work[end - blocks : end].sum() * prices.block[peer]
        for (peer, blocks), end in zip(route, ends, strict=True)
    )


def a_large_swarm(seed: int, count: int, n_blocks: int, ways: int) -> list[Candidate]:
    rng = Random(seed)
    names = [PeerId(f"12D3KooW{i:044d}") for i in range(count)]
    offers: list[Candidate] = []
    for name in names:
        length = rng.randint(2, 40)
        start = rng.randint(0, n_blocks - length)
        offers.append(
            offer(
                name,
                start,
                start + length,
                step_s=length * rng.lognormvariate(-7, 0.7),
                rtt_s=rng.choice([None, rng.lognormvariate(-3.5, 1)]),
                sessions=rng.randint(0, 8),
                wait_s=rng.random() * 0.01,
                rtts_s={peer: rng.lognormvariate(-3.5, 1) for peer in rng.sample(names, ways)},
            )
        )
    return offers


@pytest.mark.parametrize("ways", [0, 8])
def test_a_thousand_peers_and_126_blocks_are_a_matter_of_milliseconds(ways):
    """20 ms on an idle machine; here five times as much, for one that is not."""
    offers = a_large_swarm(1, 1000, 126, ways)
    took = []
    for _ in range(5):
        begun = time.thread_time()
        route = choose_route(offers, 126, 100)
        took.append(time.thread_time() - begun)
    assert [s.span.start for s in route][1:] == [s.span.end for s in route][:-1]
    assert min(took) < 0.1


def test_a_search_without_end_is_cut_and_its_route_still_holds():
    """Each of many slow peers covers everything, and each of many fast ones a block of its own."""
    offers = [offer(f"s{i}", 0, 126, step_s=1.26 + i / 100) for i in range(300)]
    offers += [offer(f"f{i}", i, i + 1, step_s=0.0001) for i in range(0, 126, 2)]
    route = choose_route(offers, 126, 1)
    assert len(set(peers(route))) == len(route)
    assert route[0].span.start == 0
    assert route[-1].span.end == 126


def test_a_peer_alone_costs_its_hop_and_its_blocks():
    offers = [offer("a", 0, 4, step_s=0.04, rtt_s=0.01)]
    path = cheapest(price(offers, "latency", None), who_may(offers, Span(0, 4)))
    assert path is not None
    assert path.seconds == pytest.approx(0.01 + HOP_S + 0.04)
    assert np.isfinite(path.seconds)


def test_whoever_has_the_same_affinity_finds_the_same_of_several_that_are_alike():
    alike = [Candidate(PeerId(f"peer{number}"), Span(0, 4), 100) for number in range(8)]

    def found(offers, affinity):
        (stage,) = choose_route(offers, 4, 10, rng=Random(), affinity=affinity)
        return stage.peer

    chosen = {bytes([number]): found(alike, bytes([number])) for number in range(1, 60)}
    assert all(found(alike[::-1], affinity) == peer for affinity, peer in chosen.items())
    assert len(set(chosen.values())) == 8  # others find others
    # Whoever is gone is nobody's; the rest stay where they are.
    left = [offer for offer in alike if offer.peer != "peer3"]
    stay = {affinity: peer for affinity, peer in chosen.items() if peer != "peer3"}
    assert all(found(left, affinity) == peer for affinity, peer in stay.items())


def test_for_cost_money_comes_before_hops_and_hops_before_time():
    cheap = [offer("a", 0, 15, price=2), offer("b", 15, 30, price=2)]
    dear = offer("dear", 0, 30, price=3, step_s=0.001)
    assert peers(choose_route([*cheap, dear], 30, 1, objective="cost")) == ["a", "b"]
    free = [offer("slow", 0, 30, step_s=9.0), offer("c", 0, 15), offer("d", 15, 30)]
    assert peers(choose_route([*cheap, dear, *free], 30, 1, objective="cost")) == ["slow"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 1000), min_size=2, max_size=6))
def test_by_chance_nobody_pays_more(seed, prices):
    offers = [offer(f"p{i}", 0, 30, price=asked) for i, asked in enumerate(prices)]
    (chosen,) = choose_route(offers, 30, 1, objective="cost", rng=Random(seed))
    assert prices[int(chosen.peer[1:])] == min(prices)


def test_who_asks_more_than_may_be_paid_is_no_candidate():
    offers = [offer("free", 0, 30), offer("fair", 0, 30, price=5), offer("dear", 0, 30, price=6)]
    assert [one.peer for one in within_price(offers, 5)] == ["free", "fair"]
    assert [one.peer for one in within_price(offers, 0)] == ["free"]
