"""A relay: whom it gives a place, and which calls it hands on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import msgspec
import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from shoal.errors import ChannelClosed
from shoal.net.carriers.relay import RETURNS_WITHIN_S
from shoal.net.reach.circuits import RelayLimits
from shoal.net.reach.control import (
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
from shoal.testing.memory import pipe_pair
from shoal.types import PeerId
from tests.net.reach.relay_bench import AT_A, AT_B, RELAY, SMALL, A, B, C, bench, pumped


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
        nursery.start_soon(pumped, link)
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
        at.nursery.start_soon(pumped, link)
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


async def test_calls_outlast_a_connection_that_the_calleds_own_dial_anew_breaks(autojump_clock: MockClock):
    """From the same port, it ends the one that its router has forgotten, a moment before it asks again."""
    async with bench() as at:
        callers = [await at.join(A), await at.join(C, "/ip4/199.7.91.13/tcp/30003")]
        deaf = at.raw(B, AT_B)
        await deaf.send_all(_message(Reserve()))
        await trio.testing.wait_all_tasks_blocked()
        answers: list[CallAnswer] = []

        async def call(caller: RelaySession) -> None:
            answers.append(await caller.call(B, "relay", new_token(), (), "cone"))

        at.nursery.start_soon(call, callers[0])
        await trio.sleep(0.5)
        await at.at_relay[B].aclose()
        await trio.sleep(0.05)
        at.nursery.start_soon(call, callers[1])  # nor is it too late to call
        await trio.sleep(0.03)
        again = await at.join(B, AT_B)
        await again.reserve(1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(answers) == 2
        assert at.relay.circuits == 2
        assert len(at.heard[B]) == 2
        await trio.sleep(2 * RETURNS_WITHIN_S)
        assert at.relay.circuits == 2


async def test_calls_wait_so_long_for_who_does_not_come_back(autojump_clock: MockClock):
    async with bench() as at:
        caller = await at.join(A)
        deaf = at.raw(B, AT_B)
        await deaf.send_all(_message(Reserve()))
        await trio.testing.wait_all_tasks_blocked()
        refused: list[float] = []

        async def call() -> None:
            with pytest.raises(ChannelClosed, match="has left"):
                await caller.call(B, "relay", new_token(), (), "cone")
            refused.append(trio.current_time())

        at.nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        broke_at = trio.current_time()
        await at.at_relay[B].aclose()
        await trio.sleep(3 * RETURNS_WITHIN_S)
        assert [at - broke_at for at in refused] == [pytest.approx(RETURNS_WITHIN_S)]
        assert at.relay.circuits == 0
        with pytest.raises(ChannelClosed, match="holds no place"):  # where none waits, none begins to
            await caller.call(B, "relay", new_token(), (), "cone")


async def test_a_call_that_was_answered_is_not_handed_on_again(autojump_clock: MockClock):
    async with bench(replace(SMALL, sessions_per_peer=3)) as at:
        caller = await at.join(A)
        deaf = at.raw(B, AT_B)
        await deaf.send_all(_message(Reserve()))
        await trio.testing.wait_all_tasks_blocked()
        at.nursery.start_soon(caller.call, B, "meet", new_token(), (), "cone")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            again = await at.join(B, AT_B)
            await again.reserve(1)
            await trio.testing.wait_all_tasks_blocked()
        assert len(at.heard[B]) == 1


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
        nursery.start_soon(pumped, link)
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
