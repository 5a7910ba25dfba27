"""Circuits over a relay: what they join, and when they end."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from shoal.net.reach.openings import new_token
from tests.net.reach.relay_bench import SMALL, A, B, bench, exactly


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
