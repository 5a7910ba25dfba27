"""What a relay bears of the many and the hostile."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from shoal.errors import ChannelClosed
from shoal.net.reach.control import (
    MESSAGE_LIMIT,
    RENEW_S,
    WAITING_LIMIT,
    CallAnswer,
    ControlLink,
    RelayRefusal,
    Reserve,
)
from shoal.net.reach.openings import new_token
from shoal.net.reach.relay_session import RelaySession
from shoal.types import PeerId
from tests.net.reach.relay_bench import AT_B, SMALL, A, B, C, bench, pumped
from tests.net.reach.test_relay import _message


async def test_a_relay_has_room_for_so_many_connections_and_places():
    async with bench() as at:
        first = [await at.join(PeerId(f"p{n}"), f"/ip4/{n + 1}.1.1.1/tcp/1") for n in range(4)]
        with pytest.raises(ChannelClosed):
            await at.join(PeerId("late"), "/ip4/9.1.1.1/tcp/1")
        await first[0].reserve(1)
        await first[1].reserve(1)
        with pytest.raises(ChannelClosed, match="all places are taken"):
            await first[2].reserve(1)
        first[0].close()
        await trio.testing.wait_all_tasks_blocked()
        await first[2].reserve(1)
        await at.join(PeerId("late"), "/ip4/9.1.1.1/tcp/1")


async def test_the_newest_connection_of_a_peer_holds_its_place():
    async with bench() as at:
        old, new = await at.join(A), await at.join(A)
        await old.reserve(1)
        await new.reserve(1)
        assert at.relay.reservations == 1
        old.close()
        await trio.testing.wait_all_tasks_blocked()
        assert at.relay.reservations == 1
        caller = await at.join(B)
        await caller.call(A, "meet", new_token(), (), "unknown")


async def test_a_peer_has_so_many_connections_and_the_one_that_was_silent_longest_makes_room(
    autojump_clock: MockClock,
):
    """Its router has forgotten that one, which would lie here for a minute and keep the peer out."""
    async with bench() as at:
        alive, caller = await at.join(A), await at.join(B, AT_B)
        await alive.reserve(1)
        await trio.sleep(1)
        deaf = at.raw(A)
        await deaf.send_all(_message(Reserve()))
        await trio.testing.wait_all_tasks_blocked()
        answers: list[CallAnswer] = []

        async def call() -> None:
            answers.append(await caller.call(A, "meet", new_token(), (), "unknown"))

        at.nursery.start_soon(call)
        await trio.sleep(RENEW_S)
        again = await at.join(A)
        assert not alive.closed.is_set()
        with pytest.raises(ChannelClosed):
            await deaf.send_all(_message(Reserve()))
        await again.reserve(1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(answers) == 1, "what it did not hear is handed on to it"
        assert at.relay.reservations == 1


async def test_a_network_has_so_many_connections():
    async with bench(replace(SMALL, sessions=99, sessions_per_network=2)) as at:
        await at.join(A, "/ip4/9.9.9.1/tcp/1")
        await at.join(B, "/ip4/9.9.9.2/tcp/1")
        with pytest.raises(ChannelClosed):
            await at.join(C, "/ip4/9.9.9.3/tcp/1")
        await at.join(C, "/ip4/9.9.8.3/tcp/1")


async def test_a_network_full_of_keys_keeps_no_other_one_out(autojump_clock: MockClock):
    limits = replace(SMALL, sessions=4, sessions_per_network=3, reservations=3)
    async with bench(limits) as at:
        crowd: list[RelaySession] = []
        for number in range(3):
            crowd.append(await at.join(PeerId(f"x{number}"), f"/ip4/9.9.9.{number}/tcp/1"))
            await trio.sleep(1)
        for session in crowd[:2]:
            await session.reserve(1)
        first = await at.join(A, "/ip4/1.1.1.1/tcp/1")
        second = await at.join(B, "/ip4/2.2.2.2/tcp/1")
        await trio.testing.wait_all_tasks_blocked()
        # The one without a place.
        assert [session.closed.is_set() for session in crowd] == [False, False, True]
        await first.reserve(1)
        await second.reserve(1)
        await trio.testing.wait_all_tasks_blocked()
        assert [session.closed.is_set() for session in crowd] == [False, True, True]
        assert at.relay.reservations == 3
        third = await at.join(C, "/ip4/3.3.3.3/tcp/1")
        with pytest.raises(ChannelClosed, match="all places are taken"):  # each network has one
            await third.reserve(1)


async def test_calls_that_nobody_answers_are_bounded(autojump_clock: MockClock):
    async with bench() as at:
        at.answers = lambda session, call: None
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        refused: list[str] = []

        async def call() -> None:
            with trio.move_on_after(5):
                try:
                    await a.call(B, "meet", new_token(), (), "unknown")
                except ChannelClosed as error:
                    refused.append(error.message)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(call)
        assert len(at.heard[B]) == SMALL.calls_open
        assert len(refused) == 20 - SMALL.calls_open
        await trio.sleep(SMALL.join_s)
        await call()
        assert len(at.heard[B]) == SMALL.calls_open + 1


async def test_a_flood_of_calls_reaches_the_called_no_faster_than_the_rate(autojump_clock: MockClock):
    limits = replace(SMALL, calls_per_s=2, calls_at_once=4, calls_open=99)
    async with bench(limits) as at:
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        for _ in range(60):
            with suppress(ChannelClosed):
                await a.call(B, "meet", new_token(), (), "unknown")
        assert 1 <= len(at.heard[B]) <= 10


async def test_more_circuits_than_a_peer_may_have_are_refused():
    async with bench() as at:
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        await at.circuit(a, B)
        await at.circuit(a, B)
        with pytest.raises(ChannelClosed, match="circuit"):
            await a.call(B, "relay", new_token(), (), "unknown")


@pytest.mark.parametrize(
    "said",
    [
        struct.pack(">H", MESSAGE_LIMIT + 1),
        struct.pack(">H", 3) + b"abc",
        struct.pack(">H", 0),
        struct.pack(">H", 10) + b"\x95\xa7welcome",
    ],
    ids=["too long", "no message", "empty", "cut"],
)
async def test_who_says_what_is_no_message_is_hung_up_on(said: bytes, autojump_clock: MockClock):
    async with bench() as at:
        good = await at.join(B)
        await good.reserve(1)
        pipe = at.raw(A)
        await pipe.send_all(said)
        while await pipe.receive_some():
            pass
        assert good.reserved


async def test_a_message_that_only_relays_say_is_no_message_of_a_peer():
    async with bench() as at:
        pipe = at.raw(A)
        link = ControlLink(pipe)
        at.nursery.start_soon(pumped, link)
        link.send(RelayRefusal(7, "an answer to a call that nobody made is nothing"))
        await trio.testing.wait_all_tasks_blocked()
        session = await at.join(B)
        await session.reserve(1)


async def test_a_called_that_does_not_read_is_hung_up_on_and_nobody_waits_for_it(autojump_clock: MockClock):
    async with bench(replace(SMALL, calls_open=999, calls_per_s=9999, calls_at_once=9999)) as at:
        deaf = at.raw(B)
        link = ControlLink(deaf)
        at.nursery.start_soon(pumped, link)
        link.send(Reserve())
        await trio.testing.wait_all_tasks_blocked()
        caller = await at.join(A)
        refused = 0

        async def call() -> None:
            nonlocal refused
            with trio.move_on_after(60):
                try:
                    await caller.call(B, "meet", new_token(), (), "unknown")
                except ChannelClosed:
                    refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(WAITING_LIMIT // 2):
                nursery.start_soon(call)
        assert refused == WAITING_LIMIT // 2
        assert at.relay.reservations == 0
