"""Our sessions with relays: so many, and none that is of no use keeps another out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from shoal.errors import ChannelClosed
from shoal.net.carriers.relay import Relay
from shoal.net.reach.control import Call
from shoal.net.reach.relay_session import RelayAddress, RelaySession
from shoal.net.reach.sessions import SESSIONS_LIMIT, RelaySessions
from shoal.testing.memory import MemoryPipe, pipe_pair
from shoal.types import PeerId

ME = PeerId("me")


class Carrier:
    """Dials relays that there are as many of as anybody wants."""

    ends: tuple[tuple[str, int], ...] = ()
    peer = ME
    mute = False
    """Whether relays say nothing."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.dialled: list[tuple[str, int]] = []

    async def dial_control(self, host: str, port: int, relay: PeerId, local: object) -> MemoryPipe:
        self.dialled.append((host, port))
        ours, theirs = pipe_pair(ME, relay)
        cast("Any", ours).local_port = 0
        if self.mute:
            return ours
        self._nursery.start_soon(Relay(lambda: True).serve, theirs, "/ip4/198.41.0.4/tcp/1")
        return ours


@asynccontextmanager
async def sessions() -> AsyncGenerator[RelaySessions]:
    async def ignore(session: RelaySession, call: Call) -> None: ...

    async with trio.open_nursery() as nursery:
        found = RelaySessions(cast("Any", Carrier(nursery)), ignore)
        await nursery.start(found.run)
        yield found
        nursery.cancel_scope.cancel()


def relay(number: int) -> RelayAddress:
    return RelayAddress(PeerId(f"relay{number}"), "198.41.0.5", 1)


async def test_a_full_table_gives_up_the_session_that_was_used_least_lately(
    autojump_clock: MockClock,
) -> None:
    async with sessions() as ours:
        held = await ours.get(relay(0))
        await held.reserve(1)
        for number in range(1, SESSIONS_LIMIT):
            await trio.sleep(0.01)
            await ours.get(relay(number))
        again = await ours.get(relay(1))
        newest = await ours.get(relay(99))
        await trio.testing.wait_all_tasks_blocked()
        peers = {session.address.peer for session in ours.all()}
        assert len(peers) == SESSIONS_LIMIT
        assert relay(2).peer not in peers
        assert {s.address.peer for s in (held, again, newest)} <= peers
        assert held.reserved


async def test_places_that_are_held_are_not_given_up(autojump_clock: MockClock) -> None:
    async with sessions() as ours:
        for number in range(SESSIONS_LIMIT):
            session = await ours.get(relay(number))
            await session.reserve(1)
        with pytest.raises(ChannelClosed, match="no more relays"):
            await ours.get(relay(99))


async def test_a_session_of_its_own_port_ends_with_who_wanted_it(autojump_clock: MockClock) -> None:
    """A meeting that another way has outrun: nobody else would find it, and it would hold its port."""
    async with sessions() as ours:
        carrier = cast("Any", ours)._carrier
        carrier.ends, carrier.mute = (("127.0.0.1", 1),), True
        with trio.move_on_after(1):
            await ours.get_fresh(relay(0))
        await trio.testing.wait_all_tasks_blocked()
        assert ours.all() == []


async def test_ourselves_we_dial_on_this_machine_where_a_router_leads_our_address_here(
    autojump_clock: MockClock,
) -> None:
    """Few routers lead back what comes from behind them; who holds a place here is called all the same."""
    public = "/ip4/20.0.9.9/tcp/9000"
    async with sessions() as ours:
        carrier = cast("Any", ours)._carrier
        carrier.ends, ours.forwarded = (("0.0.0.0", 4002),), frozenset({public})
        session = await ours.get(RelayAddress(ME, "20.0.9.9", 9000))
        await ours.get(relay(1))
        assert carrier.dialled == [("127.0.0.1", 4002), ("198.41.0.5", 1)]
        # A meeting is where the router is, and that is where we are seen.
        assert session.address.host == "20.0.9.9"
        assert ours.led_to_us(ME, "/ip4/127.0.0.1/tcp/31000") == public
        assert ours.led_to_us(relay(1).peer, "/ip4/198.41.0.5/tcp/31000") == "/ip4/198.41.0.5/tcp/31000"
