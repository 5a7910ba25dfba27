"""A relay: whom it gives a place, which calls it hands on, what it joins, what it bears of the hostile."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import msgspec
import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from shoal.errors import ChannelClosed
from shoal.net.carriers.relay import Relay
from shoal.net.reach.circuits import RelayLimits
from shoal.net.reach.control import (
    MESSAGE_LIMIT,
    WAITING_LIMIT,
    Call,
    CallAnswer,
    ControlLink,
    RelayRefusal,
    Reserve,
    Reserved,
    Welcome,
)
from shoal.net.reach.openings import new_token
from shoal.net.reach.relay_session import DOUBTED_S, HEARD_LATELY_S, RelayAddress, RelaySession
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
        self.answers: Callable[[RelaySession, Call], None] = lambda session, call: session.answer(
            call.call, ()
        )

    def raw(self, peer: PeerId, seen: str = AT_A) -> MemoryPipe:
        """Our end of a control connection, on which the test says what it likes."""
        ours, theirs = pipe_pair(peer, RELAY)
        theirs.peer, ours.peer = peer, RELAY
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


async def test_a_peer_is_told_where_it_is_seen_and_may_hold_a_place():
    async with bench() as at:
        session = await at.join(A, AT_A)
        assert (session.seen, session.relays, session.reserved) == (AT_A, True, False)
        await session.reserve(1)
        assert session.reserved
        assert at.relay.reservations == 1


async def test_a_peer_that_is_no_relay_tells_where_others_are_seen_and_nothing_else():
    async with bench() as at:
        at.offered = False
        session = await at.join(A, AT_A)
        assert (session.seen, session.relays) == (AT_A, False)
        with pytest.raises(ChannelClosed, match="no relay"):
            await session.reserve(1)
        with pytest.raises(ChannelClosed):
            await session.call(B, "relay", new_token(), (), "unknown")


async def test_a_place_at_a_relay_that_says_nothing_more_is_given_up_soon(autojump_clock: MockClock):
    ours, theirs = pipe_pair(A, RELAY, depth=99)
    link = ControlLink(theirs)

    async def ignore(session: RelaySession, call: Call) -> None: ...

    async with trio.open_nursery() as nursery:
        session = RelaySession(ControlLink(ours), RelayAddress(RELAY, "1.1.1.1", 1), ignore)
        nursery.start_soon(session.run)
        nursery.start_soon(_pumped, link)
        nursery.start_soon(session.reserve, 1)
        await trio.testing.wait_all_tasks_blocked()
        link.send(Reserved())
        await trio.sleep(1)
        assert session.reserved
        await session.closed.wait()
        assert trio.current_time() < 20
        assert not session.reserved
        await link.aclose()


async def test_a_place_that_is_doubted_is_given_up_unless_the_relay_answers(autojump_clock: MockClock):
    async with bench() as at:
        answering = await at.join(A)
        await answering.reserve(1)
        spare = await at.join(B, AT_B)
        await trio.sleep(HEARD_LATELY_S + 0.1)
        for session in (answering, spare):
            session.doubt()
        await trio.sleep(DOUBTED_S + 0.1)
        assert answering.reserved
        assert spare.closed.is_set()  # nobody needs it

        mute = pipe_pair(A, RELAY, depth=99)
        link = ControlLink(mute[1])

        async def ignore(session: RelaySession, call: Call) -> None: ...

        silent = RelaySession(ControlLink(mute[0]), RelayAddress(RELAY, "1.1.1.1", 1), ignore)
        at.nursery.start_soon(silent.run)
        at.nursery.start_soon(_pumped, link)
        at.nursery.start_soon(silent.reserve, 1)
        await trio.testing.wait_all_tasks_blocked()
        link.send(Reserved())
        await trio.sleep(HEARD_LATELY_S + 0.1)
        silent.doubt()
        began = trio.current_time()
        await silent.closed.wait()
        assert trio.current_time() - began <= DOUBTED_S + 0.1
        await link.aclose()


async def test_a_call_that_the_called_did_not_hear_reaches_it_over_its_next_connection(
    autojump_clock: MockClock,
):
    """Its router has forgotten the one over which it holds its place, and neither end knows."""
    async with bench() as at:
        caller = await at.join(A)
        deaf = at.raw(B, AT_B)
        await deaf.send_all(_message(Reserve()))
        await trio.testing.wait_all_tasks_blocked()
        answers: list[CallAnswer] = []

        async def call() -> None:
            answers.append(await caller.call(B, "meet", new_token(), (), "cone"))

        at.nursery.start_soon(call)
        await trio.sleep(1)
        assert answers == []
        caller.doubt()  # some other peer does not answer: that must not end the call
        await trio.testing.wait_all_tasks_blocked()
        assert not caller.closed.is_set()
        again = await at.join(B, AT_B)
        await again.reserve(1)
        await trio.testing.wait_all_tasks_blocked()
        assert [answer.addresses for answer in answers] == [(AT_B,)]
        await deaf.aclose()


def _message(message: Reserve) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(2, "big") + body


async def test_a_relay_where_no_place_was_asked_for_gives_none_and_brings_no_calls():
    ours, theirs = pipe_pair(A, RELAY, depth=99)
    link, heard = ControlLink(theirs), list[Call]()

    async def hear(session: RelaySession, call: Call) -> None:
        heard.append(call)

    async with trio.open_nursery() as nursery:
        session = RelaySession(ControlLink(ours), RelayAddress(RELAY, "1.1.1.1", 1), hear)
        used_at = session.used_at
        nursery.start_soon(session.run)
        nursery.start_soon(_pumped, link)
        link.send(Welcome(AT_A, True))
        link.send(Reserved())
        link.send(Call(7, B, "meet", new_token(), (AT_B,), "none"))
        async for answer in link.messages():
            assert isinstance(answer, RelayRefusal)
            assert answer.call == 7
            break
        assert (heard, session.reserved, session.used_at) == ([], False, used_at)
        session.close()
        await session.closed.wait()
        await link.aclose()


async def test_a_call_is_handed_on_with_who_calls_and_where_both_are_seen():
    async with bench() as at:
        a, b = await at.join(A, AT_A), await at.join(B, AT_B)
        await b.reserve(1)
        token = new_token()
        answer = await a.call(B, "meet", token, (), "cone")
        assert answer.addresses == (AT_B,)
        (call,) = at.heard[B]
        assert (call.peer, call.kind, call.token, call.addresses, call.nat) == (
            A,
            "meet",
            token,
            (AT_A,),
            "cone",
        )


async def test_neither_side_can_have_the_other_dial_another_host():
    elsewhere = ("/ip4/8.8.8.8/tcp/53", "/ip4/10.0.0.1/tcp/22", "nonsense")
    async with bench() as at:
        at.answers = lambda session, call: session.answer(call.call, elsewhere)
        a, b = await at.join(A, AT_A), await at.join(B, AT_B)
        await b.reserve(1)
        other_port = "/ip4/198.41.0.4/tcp/7"
        answer = await a.call(B, "meet", new_token(), (*elsewhere, other_port), "cone")
        assert answer.addresses == (AT_B,)
        assert at.heard[B][0].addresses == (AT_A, other_port)


async def test_a_peer_with_both_ip_versions_is_met_in_either_and_keeps_its_place_over_either():
    six_a, six_b = "/ip6/2a10:20::a/tcp/30001", "/ip6/2a10:20::b/tcp/30002"
    async with bench() as at:
        caller, _ = await at.join(A, AT_A), await at.join(A, six_a)
        called, by_six = await at.join(B, AT_B), await at.join(B, six_b)
        await called.reserve(1)
        await by_six.reserve(1)
        answer = await caller.call(B, "meet", new_token(), (), "cone")
        assert set(answer.addresses) == {AT_B, six_b}
        assert set(at.heard[B][-1].addresses) == {AT_A, six_a}
        by_six.close()
        await trio.testing.wait_all_tasks_blocked()
        assert at.relay.reservations == 1
        answer = await caller.call(B, "meet", new_token(), (), "cone")
        assert answer.addresses == (AT_B,)


async def test_only_who_holds_a_place_can_be_called_and_never_oneself():
    async with bench() as at:
        a, b = await at.join(A), await at.join(B)
        with pytest.raises(ChannelClosed, match="holds no place"):
            await a.call(B, "relay", new_token(), (), "unknown")
        await a.reserve(1)
        with pytest.raises(ChannelClosed, match="oneself"):
            await a.call(A, "relay", new_token(), (), "unknown")
        b.close()


async def test_the_called_may_refuse_and_the_caller_hears_why():
    async with bench() as at:
        at.answers = lambda session, call: session.refuse(call.call, "not now")
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        with pytest.raises(ChannelClosed, match="not now"):
            await a.call(B, "meet", new_token(), (), "unknown")


async def test_a_refused_call_leaves_no_circuit_behind():
    async with bench() as at:
        at.answers = lambda session, call: session.refuse(call.call, "not now")
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        with pytest.raises(ChannelClosed, match="not now"):
            await a.call(B, "relay", new_token(), (), "unknown")
        assert at.relay.circuits == 0


@pytest.mark.parametrize("leaves", [A, B])
async def test_an_unanswered_call_leaves_no_circuit_behind_when_either_leaves(leaves: PeerId):
    async with bench() as at:
        at.answers = lambda session, call: None
        sessions = {A: await at.join(A), B: await at.join(B)}
        await sessions[B].reserve(1)
        token = new_token()

        async def call() -> None:
            with suppress(ChannelClosed):
                await sessions[A].call(B, "relay", token, (), "unknown")

        at.nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        end, at_relay = memory_stream_pair()
        at.nursery.start_soon(at.relay.join, token, at_relay)
        await trio.testing.wait_all_tasks_blocked()
        assert at.relay.circuits == 1
        sessions[leaves].close()
        with trio.fail_after(SMALL.join_s / 4):
            assert await end.receive_some(1) == b""
        assert at.relay.circuits == 0


async def test_the_keys_of_one_network_share_its_circuits():
    async with bench(
        replace(SMALL, sessions=9, circuits=9, circuits_per_peer=9, circuits_per_network=2)
    ) as at:
        b = await at.join(B, AT_B)
        await b.reserve(1)
        for number in range(2):
            caller = await at.join(PeerId(f"x{number}"), f"/ip4/198.41.0.{number}/tcp/1")
            await caller.call(B, "relay", new_token(), (), "unknown")
        crowd = await at.join(PeerId("x3"), "/ip4/198.41.0.9/tcp/1")
        with pytest.raises(ChannelClosed, match="network"):
            await crowd.call(B, "relay", new_token(), (), "unknown")


async def test_a_crowd_of_callers_does_not_have_the_called_hung_up_on():
    limits = replace(RelayLimits(), calls_open=99)
    async with bench(limits) as at:
        at.answers = lambda session, call: None
        b = await at.join(B, AT_B)
        await b.reserve(1)
        crowd = [await at.join(PeerId(f"x{n}"), f"/ip4/19{n}.41.0.1/tcp/1") for n in range(5)]
        refused: list[str] = []

        async def call(caller: RelaySession) -> None:
            try:
                await caller.call(B, "meet", new_token(), (), "unknown")
            except ChannelClosed as error:
                refused.append(error.message)

        for _ in range(24):
            for caller in crowd:
                at.nursery.start_soon(call, caller)
        await trio.testing.wait_all_tasks_blocked()
        assert b.reserved
        assert not b.closed.is_set()
        assert len(at.heard[B]) == limits.calls_waiting
        assert len(refused) == 5 * 24 - limits.calls_waiting
        for caller in crowd:
            caller.close()


async def test_a_call_ends_when_the_called_or_the_relay_leaves():
    async with bench() as at:
        at.answers = lambda session, call: session.close()
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        with pytest.raises(ChannelClosed, match="has left"):
            await a.call(B, "meet", new_token(), (), "unknown")
        assert at.relay.reservations == 0
        a.close()
        with pytest.raises(ChannelClosed):
            await a.call(B, "meet", new_token(), (), "unknown")


async def test_a_circuit_carries_bytes_both_ways_and_ends_with_its_ends():
    async with bench() as at:
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        one, other = await at.circuit(a, B)
        for source, sink in ((one, other), (other, one)):
            data = os.urandom(1 << 20)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.send_all, data)
                assert await exactly(sink, len(data)) == data
        assert at.relay.circuits == 1
        await one.send_eof()
        assert await other.receive_some(1) == b""
        await other.send_all(b"last words")
        assert await exactly(one, 10) == b"last words"
        await other.aclose()
        assert await one.receive_some(1) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert at.relay.circuits == 0
        assert at.relay.relayed == (2 << 20) + 10


async def test_a_token_that_nobody_was_granted_is_hung_up_on():
    async with bench() as at:
        end, at_relay = memory_stream_pair()
        at.nursery.start_soon(at.relay.join, new_token(), at_relay)
        assert await end.receive_some(1) == b""


async def test_a_circuit_of_which_one_end_does_not_come_is_given_up(autojump_clock: MockClock):
    async with bench() as at:
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        token = new_token()
        await a.call(B, "relay", token, (), "unknown")
        end, at_relay = memory_stream_pair()
        at.nursery.start_soon(at.relay.join, token, at_relay)
        start = trio.current_time()
        assert await end.receive_some(1) == b""
        assert trio.current_time() - start == pytest.approx(SMALL.join_s)
        assert at.relay.circuits == 0


async def test_a_circuit_that_never_closes_ends_once_nothing_goes_over_it(autojump_clock: MockClock):
    limits = replace(SMALL, idle_s=30)
    async with bench(limits) as at:
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        one, other = await at.circuit(a, B)
        for _ in range(3):
            await trio.sleep(20)
            await one.send_all(b"?")
            assert await exactly(other, 1) == b"?"
        start = trio.current_time()
        assert await other.receive_some(1) == b""
        assert trio.current_time() - start == pytest.approx(30)
        assert at.relay.circuits == 0


async def test_a_circuit_of_which_one_end_has_ended_does_not_wait_long_for_the_other(
    autojump_clock: MockClock,
):
    async with bench() as at:
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        one, other = await at.circuit(a, B)
        await one.aclose()
        assert await other.receive_some(1) == b""
        await trio.sleep(SMALL.ending_s + 1)
        assert at.relay.circuits == 0


async def test_a_circuit_has_so_much_time_and_so_many_bytes(autojump_clock: MockClock):
    limits = replace(SMALL, circuit_s=50, circuit_bytes=1000)
    async with bench(limits) as at:
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        one, other = await at.circuit(a, B)
        await one.send_all(bytes(1000))
        await exactly(other, 1000)
        await one.send_all(b"1")
        assert await other.receive_some(1) == b""
        one, other = await at.circuit(a, B)
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await one.send_all(b"?")
                await trio.sleep(1)
        assert 50 <= trio.current_time() - start <= 52
        assert at.relay.circuits == 0


async def test_an_end_that_does_not_read_ends_its_circuit(autojump_clock: MockClock):
    async with bench(replace(SMALL, idle_s=30)) as at:
        a, b = await at.join(A), await at.join(B)
        await b.reserve(1)
        token = new_token()
        await a.call(B, "relay", token, (), "unknown")
        writer, at_relay = memory_stream_pair()
        reader, slow = trio.testing.lockstep_stream_pair()  # a write ends once it is read
        at.nursery.start_soon(at.relay.join, token, at_relay)
        at.nursery.start_soon(at.relay.join, token, slow)
        await writer.send_all(b"unread")
        assert await writer.receive_some(1) == b""
        assert trio.current_time() == pytest.approx(30)
        await reader.aclose()


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


async def test_a_peer_has_so_many_connections_and_the_newest_holds_its_place():
    async with bench() as at:
        old, new = await at.join(A), await at.join(A)
        with pytest.raises(ChannelClosed):
            await at.join(A)
        await old.reserve(1)
        await new.reserve(1)
        assert at.relay.reservations == 1
        old.close()
        await trio.testing.wait_all_tasks_blocked()
        assert at.relay.reservations == 1
        caller = await at.join(B)
        await caller.call(A, "meet", new_token(), (), "unknown")


async def test_a_network_has_so_many_connections():
    async with bench(replace(SMALL, sessions=99, sessions_per_network=2)) as at:
        await at.join(A, "/ip4/9.9.9.1/tcp/1")
        await at.join(B, "/ip4/9.9.9.2/tcp/1")
        with pytest.raises(ChannelClosed):
            await at.join(C, "/ip4/9.9.9.3/tcp/1")
        await at.join(C, "/ip4/9.9.8.3/tcp/1")


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
        at.nursery.start_soon(_pumped, link)
        link.send(RelayRefusal(7, "an answer to a call that nobody made is nothing"))
        await trio.testing.wait_all_tasks_blocked()
        session = await at.join(B)
        await session.reserve(1)


async def _pumped(link: ControlLink) -> None:
    with pytest.raises(ChannelClosed):
        await link.pump()


async def test_a_called_that_does_not_read_is_hung_up_on_and_nobody_waits_for_it(autojump_clock: MockClock):
    async with bench(replace(SMALL, calls_open=999, calls_per_s=9999, calls_at_once=9999)) as at:
        deaf = at.raw(B)
        link = ControlLink(deaf)
        at.nursery.start_soon(_pumped, link)
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
