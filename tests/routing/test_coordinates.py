"""Peers that measure a few ways estimate all others; who lies about where it is misleads nobody for long."""

from __future__ import annotations

from math import dist
from random import Random
from statistics import median

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.routing.coordinates import (
    FARTHEST_S,
    LEAST_HEIGHT_S,
    MOST_ERROR,
    SURE,
    Coordinates,
    Position,
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


MIDDLE = Coordinates(error=0.0)
FAR = Coordinates((2.0, 2.0, 2.0), 2.0, 0.0)


def measured(rounds: int, liars: int = 0, lie: Coordinates = MIDDLE) -> list[Coordinates]:
    """Where all are, once each has measured so many ways; the first few say that they are elsewhere."""
    chance = Random(1)
    where = [Position() for _ in range(PEERS)]
    friends = [chance.sample([b for b in range(PEERS) if b != a], 8) for a in range(PEERS)]
    for _ in range(rounds):
        for peer in range(liars, PEERS):
            other = chance.choice(friends[peer])
            said = read_coordinates((lie if other < liars else where[other].coordinates).announced())
            assert said is not None
            way_s = rtt_s(peer, other) * chance.uniform(0.95, 1.15)
            where[peer].measured(said, way_s, chance)
    return [one.coordinates for one in where]


def wrong(where: list[Coordinates], first: int) -> list[float]:
    pairs = [(a, b) for a in range(first, PEERS) for b in range(first, a)]
    return [abs(estimate_s(where[a], where[b]) - rtt_s(a, b)) / rtt_s(a, b) for a, b in pairs]


def test_a_few_measured_ways_tell_of_the_others():
    found = wrong(measured(120), 0)
    assert median(found) < 0.2
    assert median(found) < median(wrong([Coordinates((0.05, 0.0, 0.0))] * PEERS, 0)) / 3


@pytest.mark.parametrize("lie", [MIDDLE, FAR])
def test_who_is_where_it_is_not_spoils_little(lie: Coordinates):
    liars = PEERS // 10
    where = measured(120, liars, lie)
    assert median(wrong(where, liars)) < 0.3
    assert sum(one.error <= SURE for one in where[liars:]) > 0.9 * (PEERS - liars)


NEAR = (0.02001, 0.0, 0.0)


@pytest.mark.parametrize("lie", [FAR, Coordinates(NEAR, 0.0, 0.0), Coordinates(NEAR, 2.0)])
def test_one_round_trip_moves_nobody_farther_than_it_took(lie: Coordinates):
    own, other = Coordinates((0.02, 0.0, 0.0), 0.01, 0.2), read_coordinates(lie.announced())
    assert other is not None
    there = move(own, other, 0.05, Random(1))
    assert dist(own.point, there.point) <= 0.05
    assert abs(there.height_s - own.height_s) <= 0.05
    assert there.error <= 1


def test_of_ten_neighbours_one_that_lies_moves_nobody_who_knows_where_it_is():
    chance, position = Random(2), Position()
    honest = [Coordinates((0.04 * (i % 3), 0.03 * (i % 2), 0.01 * i), 0.005, 0.1) for i in range(9)]
    true = Coordinates((0.05, 0.05, 0.05), 0.01)
    for number in range(400):
        other = FAR if number % 10 == 9 and number > 20 else chance.choice(honest)
        rtt_s = 0.05 if other is FAR else estimate_s(true, other) * chance.uniform(0.97, 1.05)
        position.measured(other, rtt_s, chance)
    found = [abs(estimate_s(position.coordinates, one) / estimate_s(true, one) - 1) for one in honest]
    assert max(found) < 0.15
    assert position.coordinates.error < 0.2


def test_who_has_moved_finds_its_place_again():
    """All others are then far from where they were expected: that is no lie."""
    chance, position = Random(3), Position()
    others = [Coordinates((0.04 * (i % 3), 0.03 * (i % 2), 0.01 * i), 0.005, 0.1) for i in range(9)]
    for place in (Coordinates((0.05, 0.05, 0.05)), Coordinates((0.4, 0.5, 0.3))):
        for _ in range(200):
            other = chance.choice(others)
            position.measured(other, estimate_s(place, other), chance)
    found = [estimate_s(position.coordinates, one) / estimate_s(place, one) - 1 for one in others]
    assert max(map(abs, found)) < 0.1


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
