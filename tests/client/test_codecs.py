"""How hidden states travel over a real swarm: exact where it was promised, smaller where the link is slow."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from shoal.client.sampling import Sampler, Sampling
from shoal.errors import OutdatedPeer
from shoal.net.channel import Channel
from shoal.net.link_speed import ENOUGH
from shoal.node.hop import Hop
from shoal.routing.reputation import PROVEN
from shoal.types import Codec
from shoal.wire.messages import NEWEST_VERSION

from .conftest import PROMPT, THIRDS, Whole, memory_swarm

LONG = [token % 290 for token in range(5, 205)]
"""A prompt long enough to time a link by."""
SLOW = 4e5


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


@pytest.mark.parametrize("codec", get_args(Codec))
async def test_a_pinned_codec_is_taken_by_the_client_and_every_hop(home, checkpoint, taken, codec):
    async with (
        memory_swarm(home, checkpoint, THIRDS, format="bf16", wire=codec) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        await decoded(session, PROMPT, 3)
    assert {hop for hop, _, _ in taken} == {0, 1, 2}
    assert {found for _, found, _ in taken} == {codec}


@pytest.mark.parametrize(("codec", "within"), [("bfloat16", 0.02), ("int8", 0.1), ("int6", 0.2)])
async def test_a_codec_costs_little(home, checkpoint, codec, within):
    """The blocks of so small a model, whose weights are large, add to what is rounded before them."""
    async with (
        memory_swarm(home, checkpoint, THIRDS, format="fp32", wire=codec) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        found, expected = await session.step(PROMPT), Whole(checkpoint).step(PROMPT)
    assert not np.array_equal(found, expected)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < within


async def test_over_a_fast_link_everything_travels_exact(home, checkpoint, taken):
    async with (
        memory_swarm(home, checkpoint, THIRDS, format="bf16", wire="auto", prefill_chunk=200) as swarm,
        swarm.client.session(str(checkpoint), tokens=256) as session,
    ):
        await decoded(session, LONG, 5)
    assert {codec for _, codec, _ in taken} == {"float32"}


async def test_hops_have_a_say_in_it_once_they_have_answered_and_none_where_everything_is_exact(
    home, checkpoint, taken
):
    """A stranger's word must not round the numbers of everybody's answers."""
    async with memory_swarm(home, checkpoint, THIRDS, format="bf16", wire="int8") as swarm:
        client = await swarm.add_client(wire="auto")
        for expected in ("float32", "int8"):
            taken.clear()
            async with client.session(str(checkpoint), tokens=64) as session:
                await decoded(session, PROMPT, PROVEN)
            assert {codec for _, codec, _ in taken} == {expected}
    async with memory_swarm(home, checkpoint, THIRDS, format="fp32", wire="int8") as swarm:
        client = await swarm.add_client(wire="auto")
        for _ in range(2):
            taken.clear()
            async with client.session(str(checkpoint), tokens=64) as session:
                await decoded(session, PROMPT, PROVEN)
            assert {codec for _, codec, _ in taken} == {"float32"}


@pytest.fixture
def steps_of_no_time(monkeypatch):
    """On a busy machine steps and pings take so long that no link is slow beside them."""
    monkeypatch.setattr("shoal.wire.codec.EXACT_SHARE", 0.0)
    monkeypatch.setattr("shoal.wire.codec.UNNOTICED_US", 0.0)
    monkeypatch.setattr("shoal.wire.codec.ROUNDED_SHARE", 0.0)
    monkeypatch.setattr("shoal.wire.codec.THIN_SHARE", 0.0)


async def learn_the_links(swarm, checkpoint):
    """Sessions with long prompts, until every channel between the hops is known to be slow."""
    for _ in range(ENOUGH):
        async with swarm.client.session(str(checkpoint), tokens=256) as session:
            await decoded(session, LONG, 2)


@pytest.mark.usefixtures("steps_of_no_time")
async def test_sessions_over_links_that_are_known_as_slow_send_less_on_every_way(home, checkpoint, taken):
    async with memory_swarm(home, checkpoint, THIRDS, format="bf16", wire="auto", prefill_chunk=200) as swarm:
        swarm.world.bytes_s = SLOW
        await learn_the_links(swarm, checkpoint)
        assert {codec for _, codec, _ in taken} == {"float32"}, "before the links were known"
        taken.clear()
        async with swarm.client.session(str(checkpoint), tokens=256) as session:
            await decoded(session, LONG, 3)
            assert session.ring.codec == "int6"
    assert {codec for _, codec, _ in taken} == {"int6"}
    assert {hop for hop, _, _ in taken} == {0, 1, 2}


@pytest.fixture
def outdated(monkeypatch):
    """Peers with whom everybody speaks the version before int6, as with an older release."""
    peers = set()
    version = property(
        lambda channel: 8 if channel.peer in peers else NEWEST_VERSION, lambda channel, spoken: None
    )
    # Each channel has its own once its peer has said hello; this stands before it.
    monkeypatch.setattr(Channel, "version", version, raising=False)
    return peers


async def test_what_links_ask_for_is_asked_of_nobody_who_does_not_know_it(home, checkpoint, taken, outdated):
    async with memory_swarm(home, checkpoint, THIRDS, format="bf16", wire="int6") as swarm:
        client = await swarm.add_client(wire="auto")
        async with client.session(str(checkpoint), tokens=64) as session:
            await decoded(session, PROMPT, PROVEN)  # so that the hops have a say
        for others, expected in (
            (set(), "int6"),
            ({swarm.networks[1].peer}, "int8"),
            ({client.network.peer}, "int8"),
        ):
            outdated.clear()
            outdated.update(others)
            taken.clear()
            async with client.session(str(checkpoint), tokens=64) as session:
                await decoded(session, PROMPT, 3)
            assert {codec for _, codec, _ in taken} == {expected}


async def test_a_session_in_int6_goes_over_nobody_who_does_not_know_it_and_no_other_takes_a_lost_hops_place(
    home, checkpoint, taken, outdated
):
    middle = THIRDS[1]
    async with memory_swarm(home, checkpoint, [*THIRDS, middle, middle], format="bf16", wire="int6") as swarm:
        peers = [network.peer for network in swarm.networks]
        outdated.add(peers[3])
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            whole = await decoded(session, PROMPT, 6)
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            found = await decoded(session, PROMPT, 3)
            lost = session.ring.route[1].address.peer
            swarm.kill(peers.index(lost))
            while len(found) < 6:
                found.append((await session.advance(found[-1:], Sampler(Sampling()))).token)
            assert (found, len(session.reroutes)) == (whole, 1)
            assert session.ring.route[1].address.peer in set(peers) - {lost, peers[3]}
        outdated.update(peers)
        with pytest.raises(OutdatedPeer, match="does not know hidden states in int6"):
            async with swarm.client.session(str(checkpoint), tokens=64) as session:
                await decoded(session, PROMPT, 1)
    assert {codec for _, codec, _ in taken} == {"int6"}


@pytest.mark.usefixtures("steps_of_no_time")
@pytest.mark.parametrize("whole_route", [False, True])
async def test_a_session_keeps_its_codec_whatever_is_learnt_of_links_and_whoever_is_lost(
    home, checkpoint, taken, whole_route
):
    """Others find out that the links are slow, a hop dies, and the bits of the answer stay the same."""
    options = {"format": "bf16", "wire": "auto", "prefill_chunk": 200}
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS], **options) as swarm:
        swarm.world.bytes_s = SLOW
        async with swarm.client.session(str(checkpoint), tokens=256) as session:
            undisturbed = await decoded(session, LONG, 8)
        async with swarm.client.session(str(checkpoint), tokens=256) as session:
            found = await decoded(session, LONG, 3)
            await learn_the_links(swarm, checkpoint)
            await learn_the_links(swarm, checkpoint)
            victims = session.ring.route[:] if whole_route else session.ring.route[1:2]
            for hop in victims:
                swarm.kill(next(i for i, n in enumerate(swarm.networks) if n.peer == hop.address.peer))
            sampler = Sampler(Sampling())
            while len(found) < 8:
                found.append((await session.advance(found[-1:], sampler)).token)
            assert session.reroutes
            assert session.ring.codec == "float32"
        assert found == undisturbed


async def test_fp32_gives_the_tokens_of_the_whole_model_over_a_slow_link_too(home, checkpoint, taken):
    async with memory_swarm(home, checkpoint, THIRDS, format="fp32", wire="auto") as swarm:
        swarm.world.bytes_s = SLOW
        async with swarm.client.session(str(checkpoint), tokens=256) as session:
            found = await decoded(session, LONG, 6)
    assert found == Whole(checkpoint).greedy(LONG, 6)
    assert {codec for _, codec, _ in taken} == {"float32"}
