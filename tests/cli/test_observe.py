"""`shoal ping`: which peer is meant, how far it is, over which carrier."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from shoal.cli.status.observe import choose, ping_one
from shoal.cli.status.status import pings_table
from shoal.errors import UsageError
from shoal.net.channel import Channel
from shoal.swarm.announcement import Announcement
from shoal.swarm.names import name_of
from shoal.testing.memory import MemoryNetwork, World
from shoal.wire.messages import Message


def announcement(peer: str) -> Announcement:
    return Announcement(peer, 1, 0.0, 30.0, (f"/memory/{peer}",), (), None)


async def ignore(channel: Channel, message: Message, payload: bytes) -> None: ...


@asynccontextmanager
async def answering(network: MemoryNetwork) -> AsyncGenerator[None]:
    async def take() -> None:
        async for pipe in network.accept_pipes():
            nursery.start_soon(Channel(pipe).run, ignore)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        yield
        nursery.cancel_scope.cancel()


async def test_a_peer_that_answers_has_a_round_trip_and_a_carrier() -> None:
    world = World()
    ours, theirs = world.network(), world.network()
    async with answering(theirs):
        pinged = await ping_one(ours, announcement(theirs.peer))
    assert (pinged.peer, pinged.carrier, pinged.way, pinged.error) == (theirs.peer, "memory", "lan", "")
    assert pinged.rtt_ms is not None
    assert 0 <= pinged.rtt_ms < 1000


async def test_a_peer_that_cannot_be_reached_says_why() -> None:
    world = World()
    ours, theirs = world.network(), world.network()
    world.kill(theirs.peer)
    pinged = await ping_one(ours, announcement(theirs.peer))
    assert (pinged.carrier, pinged.way, pinged.rtt_ms) == ("", "none", None)
    assert "cannot be reached" in pinged.error
    assert pings_table([pinged]).row_count == 1


async def test_a_peer_that_says_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    ours, theirs = world.network(), world.network()
    pinged = await ping_one(ours, announcement(theirs.peer))
    assert (pinged.carrier, pinged.rtt_ms) == ("memory", None)
    assert pinged.error


def test_a_peer_is_meant_by_its_name_or_by_the_end_of_its_id() -> None:
    alive = [announcement("12D3aaa"), announcement("12D3bba")]
    assert [a.peer for a in choose(alive, None)] == ["12D3aaa", "12D3bba"]
    assert [a.peer for a in choose(alive, "bba")] == ["12D3bba"]
    assert [a.peer for a in choose(alive, name_of("12D3bba"))] == ["12D3bba"]
    with pytest.raises(UsageError, match="there are 2 peers named"):
        choose(alive, "a")
    with pytest.raises(UsageError, match="there is no peer named"):
        choose(alive, "x")
