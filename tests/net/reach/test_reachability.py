"""Which relays a peer behind a router tries: those that are there, however many are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import trio
from trio.testing import MockClock

from shoal.errors import ChannelClosed
from shoal.net.dialable import LocalNetworks
from shoal.net.mapping.port_mapper import MappedPort, PortMapper
from shoal.net.reach.nat import Observation
from shoal.net.reach.reachability import (
    GIVEN_UP_AFTER,
    PLACES,
    Reachability,
    RelayOffer,
    encode_offer,
)
from shoal.net.reach.relay_session import RelayAddress
from shoal.types import NatKind, PeerId


class Session:
    """A place at a relay."""

    def __init__(self, address: RelayAddress) -> None:
        self.address = address
        self.reserved = False

    async def reserve(self, deadline_s: float) -> None:
        self.reserved = True


class Sessions:
    """Sessions with those relays that live; who else is dialled is counted."""

    nat: NatKind = "unknown"
    believed = None
    observations = tuple(Observation(f"8.8.{n}.8", "") for n in range(3))

    def __init__(self) -> None:
        self.living: set[PeerId] = set()
        self.dialled = Counter[PeerId]()
        self.held: list[Session] = []

    def all(self) -> list[Session]:
        return self.held

    async def get(self, address: RelayAddress) -> Session:
        self.dialled[address.peer] += 1
        if address.peer not in self.living:
            raise ChannelClosed("nobody answers")
        self.held.append(Session(address))
        return self.held[-1]


def relay(number: int) -> PeerId:
    return PeerId(f"relay{number}")


@asynccontextmanager
async def reachable(connected: Callable[[], list[PeerId]]) -> AsyncGenerator[Sessions]:
    """A peer behind a router, all of whose connections say that they are relays."""

    async def offer(peer: PeerId) -> bytes:
        return encode_offer(RelayOffer((f"/ip4/8.8.8.8/tcp/{int(peer[5:]) + 1}",), True))

    ask: Callable[[PeerId], Awaitable[bytes]] = offer
    sessions = Sessions()
    reach = Reachability(["/ip4/192.168.1.2/tcp/1"], cast("Any", sessions), ask, connected, LocalNetworks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reach.run)
        yield sessions
        nursery.cancel_scope.cancel()


async def test_relays_that_are_gone_keep_nobody_from_those_that_live(autojump_clock: MockClock) -> None:
    everybody = [relay(number) for number in range(40)]
    async with reachable(lambda: everybody) as sessions:
        sessions.living = {relay(38), relay(39)}
        await trio.sleep(120)  # one at a time once the first of the two is found
        assert {session.address.peer for session in sessions.held if session.reserved} == sessions.living
        assert len(sessions.held) == PLACES


async def test_a_relay_that_fails_rests_ever_longer_and_is_forgotten(autojump_clock: MockClock) -> None:
    connected = [relay(0)]
    async with reachable(lambda: connected) as sessions:
        await trio.sleep(1)
        connected.clear()
        await trio.sleep(3600)
        assert sessions.dialled[relay(0)] == GIVEN_UP_AFTER
        connected.append(relay(0))
        sessions.living = {relay(0)}
        await trio.sleep(60)
        assert [session.address.peer for session in sessions.held] == [relay(0)]


async def test_a_mapped_port_is_announced_once_somebody_outside_has_seen_us_there() -> None:
    """A router that lies would have us announce a stranger's address."""
    sessions = Sessions()
    sessions.observations = (Observation("8.8.8.8", "/ip4/20.0.1.1/tcp/31000"),)
    own = ["/ip4/192.168.1.2/tcp/1"]
    reach = Reachability(own, cast("Any", sessions), cast("Any", None), lambda: [], LocalNetworks)
    reach.mapper = PortMapper(1, [])
    assert reach.addresses() == tuple(own)
    reach.mapper.mapped = MappedPort("20.0.1.1", 9000)
    assert reach.addresses() == (*own, "/ip4/20.0.1.1/tcp/9000")
    assert reach.view().mapped == "/ip4/20.0.1.1/tcp/9000"
    reach.mapper.mapped = MappedPort("20.0.2.2", 9000)
    assert reach.addresses() == tuple(own)
    assert reach.view().mapped == ""
