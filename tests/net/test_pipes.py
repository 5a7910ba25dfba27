"""Pipes between two peers: over which carrier, what they carry, how they end."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from shoal.errors import ChannelClosed, RemoteProtocolError
from shoal.net.carriers.dialer import DIRECT_SHARE
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.channel import Channel
from shoal.net.host import Libp2pNetwork
from shoal.net.identity import Identity
from shoal.net.network import Pipe
from shoal.types import PeerAddress
from shoal.wire.messages import Close, Message, Step
from shoal.wire.payload import hidden_states
from tests.net.conftest import SECRET, bootstrap, networks, only, opened

BIG = os.urandom(3 << 20)
BOTH = pytest.mark.parametrize("kind", ["direct", "libp2p"])
BOTH_SWARMS = pytest.mark.parametrize("secret", [None, SECRET], ids=["public", "private"])


async def accepted(network: Libp2pNetwork) -> Pipe:
    with trio.fail_after(25):
        async for pipe in network.accept_pipes():
            return pipe
    raise AssertionError


@asynccontextmanager
async def piped(kind: str, secret: bytes | None = None) -> AsyncGenerator[tuple[Pipe, Pipe]]:
    """Both ends of a pipe of one carrier: the dialler's, the listener's."""
    async with networks(secret, secret) as (a, b):
        mine = await b.open_pipe(only(a.address, kind), deadline_s=5)
        yield mine, await accepted(a)


async def exactly(pipe: Pipe, size: int) -> bytes:
    data = b""
    with trio.fail_after(20):
        while len(data) < size:
            part = await pipe.receive_some()
            assert part
            data += part
    return data


@BOTH
@BOTH_SWARMS
async def test_bytes_arrive_whole_and_in_order_both_ways(kind: str, secret: bytes | None):
    async with piped(kind, secret) as (mine, theirs):
        assert mine.carrier == theirs.carrier == {"direct": "direct", "libp2p": "libp2p-stream"}[kind]
        for sender, receiver in ((mine, theirs), (theirs, mine)):
            await sender.send_all(b"small")
            assert await exactly(receiver, 5) == b"small"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send_all, memoryview(BIG))
                assert await exactly(receiver, len(BIG)) == BIG


@BOTH
async def test_each_end_knows_who_the_other_is(kind: str):
    async with networks(None, None) as (a, b):
        mine = await b.open_pipe(only(a.address, kind), deadline_s=5)
        theirs = await accepted(a)
        # Of every carrier the same key, by which an attested machine is known.
        assert (mine.noise_key, theirs.noise_key) == (a.noise_key, b.noise_key)
        assert len(a.noise_key) == 32
        assert (mine.peer, theirs.peer) == (a.peer, b.peer)


@BOTH
async def test_somebody_else_at_the_address_is_refused(kind: str):
    async with networks(None, None) as (a, b):
        impostor = only(PeerAddress(Identity.ephemeral().peer, a.address.libp2p, a.address.direct), kind)
        with pytest.raises(ChannelClosed):
            await b.open_pipe(impostor, deadline_s=5)


async def test_the_direct_carrier_is_preferred():
    async with networks(None, None) as (a, b):
        await b.connect(bootstrap(a), deadline_s=5)
        assert (await b.open_pipe(a.address, deadline_s=5)).carrier == "direct"


async def test_without_a_direct_carrier_on_either_side_it_is_a_stream():
    async with opened() as a, opened(direct=False) as b:
        assert b.address.direct == ()
        assert (await b.open_pipe(a.address, deadline_s=5)).carrier == "libp2p-stream"
        assert (await a.open_pipe(b.address, deadline_s=5)).carrier == "libp2p-stream"


async def test_a_peer_whose_only_connection_is_its_own_to_us_is_reached_by_a_stream():
    async with networks(None) as (a,), opened(listen=False) as client:
        await client.connect(bootstrap(a), deadline_s=5)
        await trio.sleep(0.2)
        pipe = await a.open_pipe(client.address, deadline_s=5)
        theirs = await accepted(client)
        assert (pipe.peer, theirs.peer, pipe.carrier) == (client.peer, a.peer, "libp2p-stream")


async def test_an_unreachable_direct_address_falls_back_and_is_remembered():
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")  # takes connections and says nothing
    try:
        port = silent[0].socket.getsockname()[1]
        async with networks(None, None) as (a, b):
            dead = PeerAddress(a.peer, a.address.libp2p, (f"/ip4/127.0.0.1/tcp/{port}",))
            took_s = []
            for _ in range(2):
                start = trio.current_time()
                assert (await b.open_pipe(dead, deadline_s=4)).carrier == "libp2p-stream"
                took_s.append(trio.current_time() - start)
            assert took_s[0] > 4 * DIRECT_SHARE > took_s[1]
            assert (await b.open_pipe(a.address, deadline_s=4)).carrier == "direct"
    finally:
        await silent[0].aclose()


@BOTH
async def test_a_black_hole_before_the_good_address_costs_a_moment(kind: str):
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
    try:
        port = silent[0].socket.getsockname()[1]
        async with networks(None, None) as (a, b):
            hole, start = f"/ip4/127.0.0.1/tcp/{port}", trio.current_time()
            address = PeerAddress(a.peer, (hole, *a.address.libp2p), (hole, *a.address.direct))
            assert (await b.open_pipe(only(address, kind), deadline_s=30)).peer == a.peer
            assert trio.current_time() - start < 30 * DIRECT_SHARE / 2
    finally:
        await silent[0].aclose()


async def test_nobody_anywhere_is_an_error_within_the_deadline():
    async with opened() as network:
        gone = PeerAddress(Identity.ephemeral().peer, ("/ip4/127.0.0.1/tcp/1",), ("/ip4/127.0.0.1/tcp/1",))
        with trio.fail_after(15), pytest.raises(ChannelClosed):
            await network.open_pipe(gone, deadline_s=2)
        with pytest.raises(ChannelClosed):
            await network.open_pipe(PeerAddress(gone.peer), deadline_s=2)


@BOTH
async def test_closing_reaches_the_other_end(kind: str):
    async with piped(kind) as (mine, theirs):
        await mine.send_all(b"last words")
        await mine.aclose()
        assert await exactly(theirs, 10) == b"last words"
        with trio.fail_after(15), suppress(ChannelClosed):
            assert await theirs.receive_some() == b""
        with pytest.raises(ChannelClosed):
            await mine.send_all(b"more")
        await mine.aclose()
        await theirs.aclose()


@BOTH
async def test_closing_wakes_our_own_reader(kind: str):
    async with piped(kind) as (mine, _):
        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    with suppress(ChannelClosed):
                        assert await mine.receive_some() == b""

                nursery.start_soon(read)
                await trio.sleep(0.1)
                await mine.aclose()


@BOTH
async def test_a_send_to_a_peer_that_never_reads_can_be_given_up_and_breaks_the_pipe(kind: str):
    async with piped(kind) as (mine, theirs):
        with trio.move_on_after(0.5) as scope:
            await mine.send_all(bytes(64 << 20))
        assert scope.cancelled_caught
        with pytest.raises(ChannelClosed):
            await mine.send_all(b"x")
        await mine.aclose()
        await theirs.aclose()


async def test_two_senders_do_not_mix_their_bytes():
    async with piped("direct") as (mine, theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.send_all, b"a" * (1 << 20))
            nursery.start_soon(mine.send_all, b"b" * (1 << 20))
            data = await exactly(theirs, 2 << 20)
        assert data in (b"a" * (1 << 20) + b"b" * (1 << 20), b"b" * (1 << 20) + b"a" * (1 << 20))


@pytest.mark.parametrize(
    "forged", [b"\x00\x20" + bytes(32), b"\x00\x00", b"\x00\x05hello", b"\xff\xff" + bytes(65535)]
)
async def test_a_record_that_the_peer_did_not_seal_is_its_fault(forged: bytes):
    async with piped("direct") as (mine, theirs):
        assert isinstance(mine, DirectPipe)
        await mine._stream.send_all(forged)
        with trio.fail_after(15), pytest.raises(RemoteProtocolError):
            await theirs.receive_some()
        with pytest.raises(ChannelClosed):
            await theirs.send_all(b"x")


async def test_a_connection_cut_within_a_record_is_not_an_orderly_end():
    async with piped("direct") as (mine, theirs):
        assert isinstance(mine, DirectPipe)
        await mine._stream.send_all(b"\x40\x00half")
        await mine.aclose()
        with trio.fail_after(15), pytest.raises(ChannelClosed):
            await theirs.receive_some()


# --- sending at once, from any thread --------------------------------------------------------------------


async def test_a_direct_pipe_sends_at_once_from_any_thread():
    async with piped("direct") as (mine, theirs):
        assert mine.send_now(b"from the loop, ")
        assert await trio.to_thread.run_sync(mine.send_now, b"from a thread, ")
        await mine.send_all(b"and waiting")
        expected = b"from the loop, from a thread, and waiting"
        assert await exactly(theirs, len(expected)) == expected


async def test_a_libp2p_stream_leaves_it_to_the_loop():
    async with piped("libp2p") as (mine, _):
        assert mine.send_now(b"x") is False


async def test_what_the_socket_does_not_take_at_once_goes_first_later():
    record = os.urandom(60_000)
    async with piped("direct") as (mine, theirs):
        count = 0
        while not mine.unsent:
            assert mine.send_now(record)
            count += 1
        assert mine.send_now(record) is False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.send_all, b"")
            assert await exactly(theirs, count * len(record)) == record * count
        assert not mine.unsent
        assert mine.send_now(b"again")
        assert await exactly(theirs, 5) == b"again"


async def test_a_closed_pipe_sends_nothing_at_once():
    async with piped("direct") as (mine, _):
        await mine.aclose()
        with pytest.raises(ChannelClosed):
            mine.send_now(b"x")


async def test_channels_send_short_messages_from_other_threads_in_order():
    """Some go at once and some through the pump, behind a long one: each session's stay in order."""
    async with piped("direct") as pipes, trio.open_nursery() as nursery:
        a, b = (Channel(pipe) for pipe in pipes)
        numbers: list[int] = []

        async def take(_: Channel, message: Message, payload: bytes) -> None:
            assert isinstance(message, Step)
            assert len(payload) == message.hidden.rows * 4096
            numbers.append(message.number)

        for channel in (a, b):
            nursery.start_soon(channel.run, take)
        for channel in (a, b):
            await channel.wait_ready(5)

        def post() -> None:
            for number in range(200):
                rows = 1000 if number % 50 == 25 else 1
                a.send_now(
                    Step(bytes(16), number, 0, rows, 0, hidden_states("float32", rows, 1024)),
                    bytes(rows * 4096),
                )

        await trio.to_thread.run_sync(post)
        with trio.fail_after(20):
            while len(numbers) < 200:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert numbers == list(range(200))
        for channel in (a, b):
            channel.close()
        with pytest.raises(ChannelClosed):
            a.send_now(Close(bytes(16)))
