"""Peers that measure a few ways estimate all others; who lies about where it is misleads nobody for long."""

from __future__ import annotations

from random import Random
from statistics import median

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from shoal.routing.coordinates import (
    FARTHEST_S,
    LEAST_HEIGHT_S,
    MOST_ERROR,
    Coordinates,
    estimate_s,
    move,
    read_coordinates,
)
from shoal.swarm.announcement import candidate
from shoal.testing.sim.peers import a_served
from shoal.testing.sim.scale.plan import ScalePlan
from shoal.testing.sim.scale.population import make_population
from shoal.types import PeerId, Span

PEER = PeerId("p")
PEERS = 150
POPULATION = make_population(ScalePlan(nodes=PEERS, crowd=0, hostile=0.0))


def rtt_s(a: int, b: int) -> float:
    return 2 * float(POPULATION.way_s(a, b))


def measured(rounds: int, liars: int = 0) -> list[Coordinates]:
    """Where all are, once each has measured so many ways; the first few say that they are in the middle."""
    chance = Random(1)
    where = [Coordinates() for _ in range(PEERS)]
    lie = Coordinates(error=0.0)
    friends = [chance.sample([b for b in range(PEERS) if b != a], 8) for a in range(PEERS)]
    for _ in range(rounds):
        for peer in range(liars, PEERS):
            other = chance.choice(friends[peer])
            said = read_coordinates((lie if other < liars else where[other]).announced())
            assert said is not None
            way_s = rtt_s(peer, other) * chance.uniform(0.95, 1.15)
            where[peer] = move(where[peer], said, way_s, chance)
    return where


def wrong(where: list[Coordinates], first: int) -> list[float]:
    pairs = [(a, b) for a in range(first, PEERS) for b in range(first, a)]
    return [abs(estimate_s(where[a], where[b]) - rtt_s(a, b)) / rtt_s(a, b) for a, b in pairs]


def test_a_few_measured_ways_tell_of_the_others():
    found = wrong(measured(120), 0)
    assert median(found) < 0.2
    assert median(found) < median(wrong([Coordinates((0.05, 0.0, 0.0))] * PEERS, 0)) / 3


def test_who_is_where_it_is_not_spoils_little():
    assert median(wrong(measured(120, liars=PEERS // 10), PEERS // 10)) < 0.3


def test_what_is_announced_is_read_again():
    where = measured(10)[5]
    read = read_coordinates(where.announced())
    assert read is not None
    assert abs(estimate_s(read, where) - 2 * where.height_s) < 1e-4


WORDS = st.lists(st.integers(-(1 << 63), 1 << 63), max_size=7)


@given(WORDS, WORDS, st.floats(allow_nan=True, allow_infinity=True))
def test_whatever_others_say_a_peer_stays_on_the_map(mine, theirs, way_s):
    own, other = read_coordinates(mine) or Coordinates(), read_coordinates(theirs)
    if other is not None:
        there = move(own, other, way_s, Random(1))
        assert max(map(abs, there.point)) <= FARTHEST_S
        assert LEAST_HEIGHT_S <= there.height_s <= FARTHEST_S
        assert 0 < there.error <= MOST_ERROR
        assert 0 < estimate_s(there, other) < 10 * FARTHEST_S


def test_what_cannot_be_is_not_read():
    assert read_coordinates(()) is None
    assert read_coordinates((1, 2, 3, 4)) is None
    assert read_coordinates((1, 2, 3, -1, 10)) is None
    assert read_coordinates((10**9, 2, 3, 1, 10)) is None


def test_a_way_that_was_measured_counts_and_else_what_coordinates_tell():
    where = measured(120)
    here, there = where[3], where[4]
    served = msgspec.structs.replace(a_served(Span(0, 8)), coordinates=there.announced())
    assert candidate(PEER, served, 0.5, here).rtt_s == 0.5
    told = candidate(PEER, served, None, here).rtt_s
    assert told is not None
    assert abs(told - estimate_s(here, there)) < 1e-4
    assert candidate(PEER, served, None, Coordinates()).rtt_s is None  # it does not know where it is itself
    assert candidate(PEER, a_served(Span(0, 8)), None, here).rtt_s is None
