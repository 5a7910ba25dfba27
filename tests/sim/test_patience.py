"""A session over hops that are slow to reach, in simulated time."""

from __future__ import annotations

import random

import pytest
import trio

from shoal import config
from shoal.client.ring.recovery import OPEN_WITHIN_S
from shoal.client.sampling import Sampler, Sampling
from shoal.testing.sim import model
from shoal.testing.sim.clock import simulate
from shoal.testing.sim.internet import SimNetwork, SimPipe
from shoal.testing.sim.nodes import SimSwarm
from shoal.testing.sim.peers import SimPeers
from shoal.types import PeerAddress

GREEDY = Sampler(Sampling())


def test_after_a_loss_hops_that_are_slow_to_reach_have_more_time_with_each_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever cuts every dial off after the same time never reaches a machine that needs a little more."""
    settings = config.load({"resume_s": 60.0}, {"SHOAL_HOME": "/nonexistent"})
    text = list(range(10))
    open_pipe = SimNetwork.open_pipe

    async def open_slowly(network: SimNetwork, address: PeerAddress, *, deadline_s: float) -> SimPipe:
        await trio.sleep(1.2 * OPEN_WITHIN_S)
        return await open_pipe(network, address, deadline_s=deadline_s)

    async def main() -> tuple[int, float]:
        async with SimPeers.running(random.Random(1), loss=0.0) as peers:
            swarm = SimSwarm(peers, settings)
            for _ in range(12):
                await swarm.add_node()
            async with swarm.client() as client:
                client.script = model.script(text)
                async with client.session("simulated", tokens=64) as session:
                    await session.advance(text[:8], GREEDY)
                    monkeypatch.setattr(SimNetwork, "open_pipe", open_slowly)
                    peer = session.ring.route[1].address.peer
                    swarm.kill(next(node for node in swarm.nodes if node.peer.peer == peer), silent=False)
                    found = await session.advance(text[8:9], GREEDY)
                    return found.token, sum(reroute.gap_s for reroute in session.reroutes)

    token, gap_s = simulate(1, main)
    assert token == text[9]
    assert gap_s > OPEN_WITHIN_S
