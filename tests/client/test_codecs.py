"""How hidden states travel over a real swarm: exact where it was promised, smaller where the link is slow."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.client.sampling import Sampler, Sampling
from shoal.node.hop import Hop
from shoal.testing.swarm import memory_swarm

from .conftest import PROMPT, THIRDS

LONG = [token % 290 for token in range(5, 205)]
"""A prompt long enough to time a link by."""
SLOW = 1e5


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def taken(monkeypatch):
    """What every hop took, in order: its place in the route, the codec and the rows."""
    steps = []
    take = Hop.take

    def noted(hop, step, payload):
        steps.append((hop.opened.hop, step.hidden.codec, step.hidden.rows))
        take(hop, step, payload)

    monkeypatch.setattr(Hop, "take", noted)
    return steps


async def decoded(session, prompt, count):
    """``count`` tokens, greedily."""
    sampler = Sampler(Sampling())
    chosen = [(await session.advance(prompt, sampler)).token]
    while len(chosen) < count:
        chosen.append((await session.advance(chosen[-1:], sampler)).token)
    return chosen


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
async def test_a_pinned_codec_is_taken_by_the_client_and_every_hop(home, checkpoint, taken, codec):
    async with (
        memory_swarm(home, checkpoint, THIRDS, format="bf16", wire=codec) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        await decoded(session, PROMPT, 3)
    assert {hop for hop, _, _ in taken} == {0, 1, 2}
    assert {found for _, found, _ in taken} == {codec}


@pytest.mark.parametrize(("codec", "within"), [("bfloat16", 0.02), ("int8", 0.05)])
async def test_a_codec_costs_little(home, checkpoint, whole, codec, within):
    async with (
        memory_swarm(home, checkpoint, THIRDS, format="fp32", wire=codec) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        found, expected = await session.step(PROMPT), whole.step(PROMPT)
    assert not np.array_equal(found, expected)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < within


async def test_over_a_fast_link_everything_travels_exact(home, checkpoint, taken):
    async with (
        memory_swarm(home, checkpoint, THIRDS, format="bf16", prefill_chunk=200) as swarm,
        swarm.client.session(str(checkpoint), tokens=256) as session,
    ):
        await decoded(session, LONG, 5)
    assert {codec for _, codec, _ in taken} == {"float32"}


async def test_over_a_slow_link_every_hop_comes_to_send_less(home, checkpoint, taken):
    async with memory_swarm(home, checkpoint, THIRDS, format="bf16", prefill_chunk=200) as swarm:
        swarm.world.bytes_s = SLOW
        async with swarm.client.session(str(checkpoint), tokens=256) as session:
            await decoded(session, LONG, 6)
    for place in range(3):
        codecs = [codec for hop, codec, _ in taken if hop == place]
        assert codecs[0] == "float32", "before the link was timed"
        assert codecs[-1] in ("bfloat16", "int8")


async def test_fp32_gives_the_tokens_of_the_whole_model_over_a_slow_link_too(home, checkpoint, taken, whole):
    async with memory_swarm(home, checkpoint, THIRDS, format="fp32") as swarm:
        swarm.world.bytes_s = SLOW * 5
        async with swarm.client.session(str(checkpoint), tokens=256) as session:
            found = await decoded(session, LONG, 6)
    assert found == whole.greedy(LONG, 6)
    assert {codec for _, codec, _ in taken} == {"float32"}
