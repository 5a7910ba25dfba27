"""Prompts over links of 20 Mbit/s, in simulated time: the link is never idle."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio

from shoal import config
from shoal.client.ring.prefill import LinkWidth
from shoal.client.sampling import Sampler, Sampling
from shoal.net import link_speed
from shoal.testing.sim import engine, model
from shoal.testing.sim.clock import simulate
from shoal.testing.sim.engine import SimEngine, StepCost
from shoal.testing.sim.internet import Internet, SimNetwork
from shoal.testing.sim.nodes import SimSwarm
from shoal.testing.sim.peers import SimPeers
from shoal.types import PeerId

PROMPT = 4000
WIDTH = 576
"""Of SmolLM2-135M; the simulated model's rows are 2 wide."""
RATE = 20e6 / 8
SCALE = WIDTH / model.WIDTH / 2
"""Bytes of a row in bfloat16, for each byte that is sent of the simulated one."""
HEADER = 200
"""Bytes of a step beside its rows."""


def test_a_prompt_of_4000_tokens_takes_no_longer_than_its_bytes_on_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    carry = Internet.carry

    def carry_wide(world: Internet, sender: SimNetwork, to: PeerId, size: int, kind: str) -> float:
        rows = max(0, size - HEADER) if kind == "pipes" else 0
        return carry(world, sender, to, size + round((SCALE - 1) * rows), kind)

    monkeypatch.setattr(Internet, "carry", carry_wide)
    monkeypatch.setattr(link_speed, "TIMED_BYTES", 512)
    monkeypatch.setattr(engine, "KV_TOKENS", 1 << 16)
    make = SimEngine.__init__

    def make_int8(made: SimEngine, *options: Any) -> None:
        make(made, *options)
        made.format = "int8"  # as in fp32 prompts are cut in the same places everywhere

    monkeypatch.setattr(SimEngine, "__init__", make_int8)
    exact = config.load({"wire": "float32"}, {"SHOAL_HOME": "/nonexistent"})
    chance = random.Random(3)
    text = [chance.randrange(model.VOCAB) for _ in range(PROMPT + 1)]

    async def main() -> list[tuple[float, LinkWidth]]:
        async with SimPeers.running(random.Random(1), loss=0.0) as peers:
            peers.internet.way_s = 0.01
            swarm = SimSwarm(peers, exact, cost=StepCost(0.002, 0.0002))
            for _ in range(3):
                await swarm.add_node()
            async with swarm.client() as client:
                client.script = model.script(text)
                seen: list[tuple[float, LinkWidth]] = []
                for _ in range(3):
                    async with client.session("simulated", tokens=PROMPT + 8) as session:
                        width, began = session.ring.width, trio.current_time()
                        found = await session.advance(text[:PROMPT], Sampler(Sampling()))
                        seen.append((trio.current_time() - began, width))
                    assert found.token == text[-1]
                return seen

    (first_s, unknown), *_, (last_s, thin) = simulate(1, main)
    assert (unknown, thin) == ("unknown", "thin")
    sending_s = PROMPT * WIDTH * 2 / RATE
    assert first_s < 1.15 * sending_s, "the first pieces are small, as the link may be thin"
    assert last_s < 1.05 * sending_s
