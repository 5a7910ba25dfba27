"""News spread in seconds, the dead are gone within one expiry, and a larger swarm costs nobody more."""

from __future__ import annotations

import trio

from shoal.net.network import PeerConnection
from shoal.testing.sim.clock import SimClock
from shoal.testing.sim.converge import converge
from shoal.testing.sim.peers import Peer, SimPeers

from .conftest import swarm_of

EXPIRY_S = 30.0


def known(peer: Peer) -> set[str]:
    return {a.peer for a in peer.member.alive()}


def everyone_knows_everyone(peers: SimPeers) -> bool:
    alive = {peer.peer for peer in peers.alive}
    return all(known(peer) == alive for peer in peers.alive)


def test_news_and_deaths_spread_and_traffic_stays_as_the_swarm_doubles():
    small, large = converge(14, seed=3, measured_s=30), converge(28, seed=3, measured_s=30)
    for found in (small, large):
        assert found.announced_95_s < 5
        assert found.crashed_gone_s < EXPIRY_S
        assert found.vanished_gone_s < EXPIRY_S
    assert large.sent_bytes_s < 1.2 * small.sent_bytes_s


async def test_a_peer_that_leaves_is_gone_at_once(clock: SimClock):
    async with swarm_of(20) as peers:
        leaver = peers.alive[5]
        await leaver.member.leave()
        await trio.sleep(2)
        assert not any(leaver.peer in known(peer) for peer in peers.alive)


async def test_both_halves_of_a_swarm_forget_each_other_and_meet_again(clock: SimClock):
    async with swarm_of(12) as peers:
        half = {peer.peer for peer in peers.alive[::2]}
        peers.internet.side = dict.fromkeys(half, 1)
        await trio.sleep(3 * EXPIRY_S)
        for peer in peers.alive:
            mine = {other.peer for other in peers.alive if (other.peer in half) == (peer.peer in half)}
            assert known(peer) == mine
        peers.internet.heal()
        await trio.sleep(EXPIRY_S)
        assert everyone_knows_everyone(peers)


async def test_a_peer_that_some_cannot_reach_stays_in_the_swarm(clock: SimClock):
    """It hears their suspicion from the others, and refutes it."""
    async with swarm_of(10) as peers:
        hidden = peers.alive[6].peer
        blind = [peer.peer for peer in peers.alive if peer.peer != hidden][:3]
        peers.internet.cut = {frozenset((hidden, other)) for other in blind}
        for _ in range(40):
            await trio.sleep(3)
            assert all(hidden in known(peer) for peer in peers.alive)


async def test_a_wall_clock_that_jumps_harms_nobody(clock: SimClock):
    async with swarm_of(8) as peers:
        for hours in (5, -7):
            peers.alive[3].clock.ahead_s = hours * 3600.0
            await trio.sleep(3 * EXPIRY_S)
            assert everyone_knows_everyone(peers)


async def test_a_machine_that_vanished_is_disconnected_from(clock: SimClock):
    async with swarm_of(12) as peers:
        victim = peers.alive[4]
        peers.kill(victim, silent=True)
        await trio.sleep(2 * EXPIRY_S)
        left: list[PeerConnection] = [c for peer in peers.alive for c in peer.network.connections()]
        assert victim.peer not in {connection.peer for connection in left}
