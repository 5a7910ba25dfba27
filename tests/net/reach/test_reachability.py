"""Which relays a peer behind a router tries: those that are there, however many are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from shoal.errors import ChannelClosed
from shoal.net.addresses import split_circuit, version_of
from shoal.net.dialable import LocalNetworks
from shoal.net.mapping.port_mapper import MappedPort, PortMapper
from shoal.net.reach.known_relays import PLACES
from shoal.net.reach.nat import Observation
from shoal.net.reach.reachability import (
    ASKED_AGAIN_S,
    ASKED_AT_ONCE,
    GIVEN_UP_AFTER,
    KNOWN_LIMIT,
    OPEN_FOR_S,
    Reachability,
    RelayOffer,
    encode_offer,
    open_versions,
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
    observations = tuple(Observation(f"8.8.{n}.8", "/ip4/20.0.1.1/tcp/1") for n in range(3))
    open = frozenset[int]()

    def __init__(self) -> None:
        self.changed = trio.Event()
        self.living: set[PeerId] = set()
        self.silent: set[PeerId] = set()
        """Those that nothing comes back from."""
        self.dialled = Counter[PeerId]()
        self.held: list[Session] = []

    def all(self) -> list[Session]:
        return self.held

    def places(self) -> set[PeerId]:
        return {session.address.peer for session in self.held if session.reserved}

    def lose(self, peer: PeerId) -> None:
        self.held = [session for session in self.held if session.address.peer != peer]
        self.changed.set()

    def nat_in(self, version: int) -> NatKind:
        return self.nat

    def seen_in(self, version: int) -> list[Observation]:
        return [one for one in self.observations if version_of(one.seen) == version]

    async def get(self, address: RelayAddress) -> Session:
        self.dialled[address.peer] += 1
        if address.peer in self.silent:
            await trio.sleep(5)
        if address.peer not in self.living:
            raise ChannelClosed("nobody answers")
        self.held.append(Session(address))
        return self.held[-1]


def relay(number: int) -> PeerId:
    return PeerId(f"relay{number}")


@asynccontextmanager
async def reachable(
    connected: Callable[[], list[PeerId]], elsewhere: Collection[PeerId] = ()
) -> AsyncGenerator[Sessions]:
    """A peer behind a router, all of whose connections say that they are relays, of one network but a few."""

    async def offer(peer: PeerId) -> bytes:
        host = "9.9.9.9" if peer in elsewhere else "8.8.8.8"
        return encode_offer(RelayOffer((f"/ip4/{host}/tcp/{int(peer[5:]) + 1}",), True))

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


async def test_relays_and_peers_that_are_silent_hold_up_no_other(autojump_clock: MockClock) -> None:
    everybody = [relay(number) for number in range(4)]

    async def offer(peer: PeerId) -> bytes:
        if peer == relay(3):
            await trio.sleep_forever()
        return encode_offer(RelayOffer((f"/ip4/8.8.8.8/tcp/{int(peer[5:]) + 1}",), True))

    sessions = Sessions()
    sessions.silent, sessions.living = {relay(0)}, {relay(1), relay(2)}
    reach = Reachability([HOME], cast("Any", sessions), offer, lambda: everybody, LocalNetworks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reach.run)
        with trio.fail_after(0.1):
            await reach.wait_changed()
        assert sessions.places()
        await trio.sleep(2.5)
        # What is silent was given a second; it does not count for a place any longer.
        assert sessions.places() == sessions.living
        # A place that is lost is noticed while they are still waited for.
        sessions.lose(relay(1))
        with trio.fail_after(0.1):
            await reach.wait_changed()
        await trio.sleep(2.5)
        assert sessions.places() == sessions.living
        await trio.sleep(60)
        assert len(sessions.held) == PLACES
        nursery.cancel_scope.cancel()


async def test_a_place_that_is_lost_is_taken_at_another_relay_first_and_there_again_at_once(
    autojump_clock: MockClock,
) -> None:
    connected = [relay(number) for number in range(3)]
    async with reachable(lambda: connected) as sessions:
        sessions.living = set(connected)
        await trio.sleep(5)
        lost, kept = sorted(sessions.places())
        sessions.lose(lost)
        await trio.sleep(0.1)
        other = ({*connected} - {lost, kept}).pop()
        assert sessions.places() == {kept, other}
        # Our router may have forgotten everybody: with no other relay there is nothing to wait for.
        sessions.living = {kept}
        sessions.lose(other)
        sessions.lose(kept)
        await trio.sleep(0.1)
        assert sessions.places() == {kept}


async def test_the_second_place_is_in_another_network(autojump_clock: MockClock) -> None:
    """Whatever takes a network away takes all its relays."""
    connected = [relay(number) for number in range(20)]
    async with reachable(lambda: connected, elsewhere=[relay(13)]) as sessions:
        sessions.living = set(connected)
        await trio.sleep(60)
        assert relay(13) in sessions.places()
        # The first two had been taken before it was known.
        assert len(sessions.places()) <= PLACES + 1


async def test_a_place_elsewhere_is_taken_beside_two_of_one_network_once_there_is_one(
    autojump_clock: MockClock,
) -> None:
    connected = [relay(0), relay(1)]
    async with reachable(lambda: connected, elsewhere=[relay(2), relay(3)]) as sessions:
        sessions.living = {relay(number) for number in range(4)}
        await trio.sleep(5)
        assert sessions.places() == {relay(0), relay(1)}
        connected += [relay(2), relay(3)]
        await trio.sleep(60)
        assert len(sessions.places()) == PLACES + 1
        sessions.lose(relay(0))
        await trio.sleep(60)
        assert len(sessions.places()) == PLACES


async def test_many_relays_of_one_network_push_out_no_other(autojump_clock: MockClock) -> None:
    connected = [relay(0)]
    async with reachable(lambda: connected, elsewhere=[relay(0)]) as sessions:
        sessions.living = {relay(0)}
        await trio.sleep(5)
        assert sessions.places() == {relay(0)}
        sessions.lose(relay(0))
        sessions.living.clear()
        connected[:] = [relay(number) for number in range(1, 2 * KNOWN_LIMIT)]
        await trio.sleep(2 * KNOWN_LIMIT / ASKED_AT_ONCE)
        sessions.living = {relay(0)}
        await trio.sleep(30)
        assert sessions.places() == {relay(0)}


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


async def test_a_peer_with_many_connections_asks_each_of_them_once_in_a_while(
    autojump_clock: MockClock,
) -> None:
    asked, under_way, most = Counter[PeerId](), 0, 0

    async def ask(peer: PeerId) -> bytes:
        nonlocal under_way, most
        asked[peer] += 1
        under_way += 1
        most = max(most, under_way)
        await trio.sleep(0.1)
        under_way -= 1
        return encode_offer(RelayOffer((), False))

    everybody = [relay(number) for number in range(300)]
    reach = Reachability(
        ["/ip4/192.168.1.2/tcp/1"], cast("Any", Sessions()), ask, lambda: everybody, LocalNetworks
    )
    with trio.move_on_after(0.9 * ASKED_AGAIN_S):
        await reach.run()
    assert set(asked) == set(everybody)
    assert set(asked.values()) == {1}
    assert most == ASKED_AT_ONCE


def at(*own: str, sessions: Sessions | None = None, forwarded: Sequence[str] = ()) -> Reachability:
    """A peer with these addresses of its own."""
    given = cast("Any", sessions or Sessions())
    return Reachability(own, given, cast("Any", None), lambda: [], LocalNetworks, forwarded)


HOME = "/ip4/192.168.1.2/tcp/1"
SERVER = "/ip4/20.0.9.9/tcp/1"
SIX = "/ip6/2a10:20::1/tcp/1"


@pytest.mark.parametrize(
    ("own", "versions"),
    [
        ([SERVER], {4}),
        ([SIX, SERVER], {4, 6}),  # nothing keeps strangers out in IPv4, so in IPv6 neither
        ([HOME], set()),
        ([SIX, HOME], set()),  # most homes have a firewall before their IPv6
        ([SIX], set()),
        (["/ip4/127.0.0.1/tcp/1"], {4, 6}),
        (["/ip6/::1/tcp/1"], {4, 6}),
    ],
)
def test_an_ipv6_address_alone_does_not_make_a_peer_public(own: list[str], versions: set[int]) -> None:
    assert open_versions(own) == versions


async def test_in_ipv6_a_peer_is_public_once_somebody_from_elsewhere_has_come_in() -> None:
    reach = at(SIX, HOME)
    # The last is a neighbour's behind the same firewall: providers give a home a /56.
    for host in ("20.0.1.1", "fd00::2", "::1", "", "2a10:20:0:0:7::2", "2a10:20:0:42::2"):
        reach.note_arrival(host)
        assert not reach.public
        assert reach.view().six == "closed"
    reach.note_arrival("2a10:21::7")
    assert reach.public
    assert reach.view().six == "open"
    assert reach.open_addresses() == (SIX,)
    private = at("/ip6/fd00::1/tcp/1", HOME)
    private.note_arrival("2a10:21::7")
    assert not private.public
    assert private.view().six == "none"


def test_an_address_that_a_router_leads_here_makes_a_peer_public_and_a_relay() -> None:
    """Rented machines and forwarded ports: the address is on no interface, and only the user knows."""
    reach = at(HOME, forwarded=[SERVER])
    assert reach.public
    assert reach.open_addresses()[0] == SERVER
    # Behind its private one, as what a router gives: others see whose network that is.
    assert reach.addresses() == (HOME, SERVER)
    assert reach.view().six == "none"
    assert at(SIX, HOME, forwarded=[SERVER]).view().six == "closed"


async def test_a_peer_that_is_public_in_one_ip_version_has_places_only_where_the_other_is(
    autojump_clock: MockClock,
) -> None:
    """So that IPv6-only peers reach it; relays of its own version would be of no use."""
    offers = {relay(0): ("/ip4/8.8.8.8/tcp/1",), relay(1): ("/ip6/2a10:20::2/tcp/1", "/ip4/8.8.4.4/tcp/1")}

    async def offer(peer: PeerId) -> bytes:
        return encode_offer(RelayOffer(offers[peer], True))

    sessions = Sessions()
    sessions.living = set(offers)
    reach = Reachability([SERVER], cast("Any", sessions), offer, lambda: list(offers), LocalNetworks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reach.run)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    # It has no IPv6 itself, so it goes there by IPv4 and says where others find the relay by IPv6.
    assert [(s.address.peer, s.address.host) for s in sessions.held] == [(relay(1), "8.8.4.4")]
    circuits = [a for a in reach.addresses() if a.endswith("p2p-circuit")]
    assert [split_circuit(a) for a in circuits] == [
        ("/ip4/8.8.4.4/tcp/1", relay(1)),
        ("/ip6/2a10:20::2/tcp/1", relay(1)),
    ]


async def test_in_ipv6_a_peer_is_public_no_longer_than_others_come_in(autojump_clock: MockClock) -> None:
    reach = at(SIX, HOME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reach.run)
        reach.note_arrival("2a10:21::7")
        await trio.sleep(OPEN_FOR_S - 10)
        # Who holds a place here stays: it does not come again.
        with reach.arrival("2a10:22::7"):
            await trio.sleep(3 * OPEN_FOR_S)
            assert reach.public
        await trio.sleep(OPEN_FOR_S - 10)
        assert reach.public
        await trio.sleep(20)
        assert not reach.public
        assert reach.view().six == "closed"
        reach.note_arrival("2a10:21::7")
        assert reach.public
        nursery.cancel_scope.cancel()


async def test_a_relay_that_we_have_dialled_ourselves_tells_nothing_of_our_firewall() -> None:
    sessions = Sessions()
    sessions.held.append(Session(RelayAddress(relay(0), "2a10:22::7", 1)))
    reach = at(SIX, HOME, sessions=sessions)
    with reach.arrival("2a10:22::7"):
        assert not reach.public
    with reach.arrival("2a10:23::7"):
        assert reach.public


async def test_a_mapped_port_is_announced_once_peers_outside_bear_out_its_address() -> None:
    """A router that lies would have us announce a stranger's address."""
    sessions = Sessions()
    sessions.observations = (Observation("8.8.8.8", "/ip4/20.0.1.1/tcp/31000"),)
    reach = at(HOME, sessions=sessions)
    reach.mapper = PortMapper(1, [])
    assert reach.addresses() == (HOME,)
    # Where only one has spoken, it and the router are two.
    reach.mapper.mapped = MappedPort("20.0.1.1", 9000)
    assert reach.addresses() == (HOME, "/ip4/20.0.1.1/tcp/9000")
    assert reach.view().mapped == "/ip4/20.0.1.1/tcp/9000"
    reach.mapper.mapped = MappedPort("20.0.2.2", 9000)
    assert reach.addresses() == (HOME,)
    assert reach.view().mapped == ""
    # One of several who sides with the router may be in league with it.
    sessions.observations += (Observation("9.9.9.9", "/ip4/20.0.2.2/tcp/31000"),)
    assert reach.addresses() == (HOME,)
    sessions.observations += (Observation("1.1.1.1", "/ip4/20.0.2.2/tcp/40000"),)
    assert reach.addresses() == (HOME, "/ip4/20.0.2.2/tcp/9000")
