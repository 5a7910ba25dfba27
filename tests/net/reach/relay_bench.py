"""A relay in memory, and peers with control connections to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import memory_stream_pair

from shoal.errors import ChannelClosed
from shoal.net.carriers.relay import Relay
from shoal.net.reach.circuits import RelayLimits
from shoal.net.reach.control import (
    Call,
    ControlLink,
)
from shoal.net.reach.openings import new_token
from shoal.net.reach.relay_session import RelayAddress, RelaySession
from shoal.testing.memory import MemoryPipe, pipe_pair
from shoal.types import PeerId

A, B, C, RELAY = PeerId("a"), PeerId("b"), PeerId("c"), PeerId("relay")
AT_A, AT_B = "/ip4/198.41.0.4/tcp/30001", "/ip4/193.0.14.129/tcp/30002"
SMALL = RelayLimits(
    sessions=4, sessions_per_peer=2, reservations=2, circuits=2, circuits_per_peer=2, calls_open=3
)


class Bench:
    """A relay, and peers with control connections to it."""

    def __init__(self, nursery: trio.Nursery, limits: RelayLimits) -> None:
        self.offered = True
        self.relay = Relay(lambda: self.offered, limits)
        self.nursery = nursery
        self.heard: dict[PeerId, list[Call]] = {}
        self.at_relay: dict[PeerId, MemoryPipe] = {}
        """The relay's end of each peer's newest connection."""
        self.answers: Callable[[RelaySession, Call], None] = lambda session, call: session.answer(
            call.call, ()
        )

    def raw(self, peer: PeerId, seen: str = AT_A) -> MemoryPipe:
        """Our end of a control connection, on which the test says what it likes."""
        ours, theirs = pipe_pair(peer, RELAY)
        theirs.peer, ours.peer = peer, RELAY
        self.at_relay[peer] = theirs
        self.nursery.start_soon(self.relay.serve, theirs, seen)
        return ours

    async def join(self, peer: PeerId, seen: str = AT_A) -> RelaySession:
        """A peer that answers the calls for it as ``answers`` does."""
        heard = self.heard.setdefault(peer, [])

        async def called(session: RelaySession, call: Call) -> None:
            heard.append(call)
            self.answers(session, call)

        session = RelaySession(ControlLink(self.raw(peer, seen)), RelayAddress(RELAY, "1.1.1.1", 1), called)
        self.nursery.start_soon(session.run)
        await session.wait_welcome()
        return session

    async def circuit(self, caller: RelaySession, peer: PeerId) -> tuple[trio.abc.HalfCloseableStream, ...]:
        """Both ends of a circuit that was granted and joined."""
        token = new_token()
        await caller.call(peer, "relay", token, (), "unknown")
        ends: list[trio.abc.HalfCloseableStream] = []
        for _ in range(2):
            end, at_relay = memory_stream_pair()
            self.nursery.start_soon(self.relay.join, token, at_relay)
            ends.append(end)
        return tuple(ends)


@asynccontextmanager
async def bench(limits: RelayLimits = SMALL) -> AsyncGenerator[Bench]:
    async with trio.open_nursery() as nursery:
        yield Bench(nursery, limits)
        nursery.cancel_scope.cancel()


async def exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        assert part
        data += bytes(part)
    return data


async def pumped(link: ControlLink) -> None:
    with pytest.raises(ChannelClosed):
        await link.pump()
