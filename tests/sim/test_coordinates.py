"""Members that look after a few neighbours know how far all others are."""

from __future__ import annotations

from statistics import median

import trio
from msgspec import structs

from shoal.routing.coordinates import Coordinates, estimate_of
from shoal.swarm.announcement import Served
from shoal.testing.sim.clock import SimClock
from shoal.testing.sim.peers import Peer, a_served
from shoal.types import Span

from .conftest import swarm_of


def says_where_it_is(peer: Peer) -> None:
    def served() -> Served:
        return structs.replace(a_served(Span(0, 8)), coordinates=peer.member.coordinates.announced())

    peer.member.served = served


async def test_members_estimate_the_ways_to_others(clock: SimClock):
    async with swarm_of(8) as peers:
        for peer in peers.alive:
            says_where_it_is(peer)
        await trio.sleep(80)
        wrong: list[float] = []
        for peer in peers.alive:
            assert peer.member.coordinates != Coordinates()
            for other in peers.alive:
                said = peer.member.directory.get(other.peer)
                if other is peer or said is None or said.served is None:
                    continue
                told = estimate_of(peer.member.coordinates, said.served.coordinates)
                rtt_s = 2 * peers.internet.latency_s(peer.peer, other.peer)
                if told is not None:
                    wrong.append(abs(told - rtt_s) / rtt_s)
        assert len(wrong) > 30
        assert median(wrong) < 0.35
