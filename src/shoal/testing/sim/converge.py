"""How fast news and deaths become known, and what it costs each peer, for swarms of several sizes."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import trio

from shoal.swarm import gossip_rate
from shoal.testing.sim.clock import simulate
from shoal.testing.sim.peers import Peer, SimPeers
from shoal.types import PeerId

LOOK_S = 0.05
"""How often everybody's directory is looked into."""
SHARE = 0.95
ANNOUNCED_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Convergence:
    """What was seen with ``nodes`` nodes. Times are simulated seconds, bytes a second and node."""

    nodes: int
    announced_95_s: float
    """Until a newcomer's announcement is with 95% of all."""
    announced_all_s: float
    crashed_gone_s: float
    """Until nobody has a peer any more whose process died."""
    vanished_gone_s: float
    """The same, for one whose machine vanished without a word."""
    expiry_s: float
    sent_bytes_s: float
    """Sent by a node each second when nothing happens, at the mean."""
    sent_bytes_s_most: float
    received_bytes_s: float
    by_kind: dict[str, float]
    connections: float
    """Connections of a node, at the mean."""

    @property
    def good(self) -> bool:
        """Whether news and deaths spread as fast as they must."""
        return self.announced_95_s <= ANNOUNCED_WITHIN_S and (
            max(self.crashed_gone_s, self.vanished_gone_s) <= self.expiry_s
        )

    def shown(self) -> dict[str, Any]:
        """Rounded, for people and JSON."""
        rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return rounded | {"by_kind": {kind: round(bytes_s) for kind, bytes_s in sorted(self.by_kind.items())}}


def converge(nodes: int, seed: int, measured_s: float = 120.0) -> Convergence:
    """Simulate a swarm of ``nodes`` nodes and measure it."""
    return simulate(seed, _converge, nodes, seed, measured_s)


async def _converge(nodes: int, seed: int, measured_s: float) -> Convergence:
    async with SimPeers.running(random.Random(seed)) as peers:
        for _ in range(nodes):
            await peers.join()
        # Until everyone speaks as rarely as suits a swarm of this size, and what was said before is over.
        await trio.sleep(gossip_rate.refresh_s(peers.announce_s, nodes) * 2)
        idle = await _idle(peers, measured_s)
        newcomer = await peers.join()
        some, everyone = await _until(peers, newcomer.peer, SHARE), await _until(peers, newcomer.peer, 1.0)
        await trio.sleep(peers.expiry_s)
        crashed = await _death(peers, silent=False)
        vanished = await _death(peers, silent=True)
        networks = [peer.network for peer in peers.alive]
        connections = statistics.mean(len(network.connections()) for network in networks)
        return Convergence(
            nodes, some, everyone, crashed, vanished, peers.expiry_s, *idle, connections=connections
        )


async def _idle(peers: SimPeers, seconds: float) -> tuple[float, float, float, dict[str, float]]:
    """Bytes a second: sent at the mean and at most, received, sent by kind."""
    networks = [peer.network for peer in peers.alive]
    for network in networks:
        network.sent.clear()
        network.received.clear()
    await trio.sleep(seconds)
    sent = [network.sent.total() / seconds for network in networks]
    received = statistics.mean(network.received.total() / seconds for network in networks)
    kinds = sorted({kind for network in networks for kind in network.sent})
    by_kind = {kind: statistics.mean(network.sent[kind] / seconds for network in networks) for kind in kinds}
    return statistics.mean(sent), max(sent), received, by_kind


async def _death(peers: SimPeers, *, silent: bool) -> float:
    """Seconds until a peer that dies is gone from every directory."""
    victim = peers.chance.choice(peers.alive[1:])
    peers.kill(victim, silent=silent)
    return await _wait(lambda: not any(_knows(other, victim.peer) for other in peers.alive))


async def _until(peers: SimPeers, peer: PeerId, share: float) -> float:
    """Seconds until ``share`` of all know ``peer``, counted from when it joined."""
    others = [other for other in peers.alive if other.peer != peer]
    joined = next(other.joined_at for other in peers.alive if other.peer == peer)
    await _wait(lambda: sum(_knows(other, peer) for other in others) >= share * len(others))
    return trio.current_time() - joined


async def _wait(reached: Callable[[], bool], most_s: float = 300.0) -> float:
    began = trio.current_time()
    while not reached() and trio.current_time() - began < most_s:  # noqa: ASYNC110  what is looked at has no event
        await trio.sleep(LOOK_S)
    return trio.current_time() - began


def _knows(peer: Peer, other: PeerId) -> bool:
    return any(a.peer == other for a in peer.member.alive())
