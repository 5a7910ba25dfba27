"""Pipes over iroh, between real endpoints on loopback, without any relay."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from iroh import iroh_ffi

from shoal.errors import ChannelClosed, IncompatibleLibrary, PortInUse
from shoal.net.host import Libp2pNetwork
from shoal.net.identity import Identity, public_key
from shoal.net.iroh import carrier
from shoal.net.network import Pipe
from shoal.net.reach.reachability import Reachability
from shoal.types import PeerAddress
from tests.net.conftest import OTHER_SECRET, SECRET, back_to_baseline, networks, opened

BIG = os.urandom(3 << 20)


def over_iroh(network: Libp2pNetwork, *more: str) -> PeerAddress:
    """The address with nothing but what iroh is for, and what is given."""
    found = tuple(a for a in network.address.direct if a.endswith("/iroh"))
    assert found
    return PeerAddress(network.peer, (), (*more, *found))


def udp_port(network: Libp2pNetwork) -> int:
    return next(int(a.split("/")[4]) for a in network.address.direct if a.startswith("/ip4") and "udp" in a)


async def accepted(network: Libp2pNetwork) -> Pipe:
    with trio.fail_after(25):
        async for pipe in network.accept_pipes():
            return pipe
    raise AssertionError


async def exactly(pipe: Pipe, size: int) -> bytes:
    data = b""
    with trio.fail_after(20):
        while len(data) < size:
            part = await pipe.receive_some()
            assert part
            data += part
    return data


async def stranger_near(network: Libp2pNetwork) -> tuple[iroh_ffi.Endpoint, iroh_ffi.EndpointAddr]:
    """An endpoint of somebody else, and where it reaches ``network``."""
    builder = iroh_ffi.EndpointBuilder()
    builder.apply_minimal()
    builder.relay_mode(iroh_ffi.RelayMode.disabled())
    builder.bind_addr("127.0.0.1:0")
    known = iroh_ffi.EndpointId.from_bytes(public_key(network.peer))
    return await builder.bind(), iroh_ffi.EndpointAddr(known, None, [f"127.0.0.1:{udp_port(network)}"])


@asynccontextmanager
async def piped(secret: bytes | None = None) -> AsyncGenerator[tuple[Pipe, Pipe]]:
    """Both ends of a pipe over iroh: the dialler's, the listener's."""
    async with networks(secret, secret, iroh=True) as (a, b):
        mine = await b.open_pipe(over_iroh(a), deadline_s=20)
        yield mine, await accepted(a)
        await mine.aclose()  # whoever dialled owns it


@pytest.mark.parametrize("secret", [None, SECRET], ids=["public", "private"])
async def test_bytes_arrive_whole_and_in_order_both_ways_between_two_who_know_each_other(secret):
    async with networks(secret, secret, iroh=True) as (a, b):
        mine = await b.open_pipe(over_iroh(a), deadline_s=20)
        theirs = await accepted(a)
        assert {pipe.carrier for pipe in (mine, theirs)} == {"iroh"}
        assert {pipe.way for pipe in (mine, theirs)} == {"iroh"}
        assert (mine.peer, theirs.peer) == (a.peer, b.peer)
        assert (mine.noise_key, theirs.noise_key) == (a.noise_key, b.noise_key)
        for sender, receiver in ((mine, theirs), (theirs, mine)):
            await sender.send_all(b"small")
            assert await exactly(receiver, 5) == b"small"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send_all, memoryview(BIG))
                assert await exactly(receiver, len(BIG)) == BIG


async def test_what_was_sent_arrives_before_the_end_and_the_end_does_too():
    async with piped() as (mine, theirs):
        await mine.send_all(BIG[:300_000])
        await mine.aclose()
        assert await exactly(theirs, 300_000) == BIG[:300_000]
        with trio.fail_after(20):
            assert await theirs.receive_some() == b""
        with pytest.raises(ChannelClosed):
            await mine.send_all(b"late")


async def test_a_peer_that_does_not_read_stops_who_sends():
    async with piped() as (mine, theirs):
        sent = 0
        with trio.move_on_after(2):
            while True:
                await mine.send_all(BIG)
                sent += len(BIG)
        assert sent < 5 * len(BIG)
        await theirs.aclose()


async def test_iroh_is_taken_where_the_direct_way_is_closed_and_not_where_it_is_open():
    closed = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = closed[0].socket.getsockname()[1]
    await closed[0].aclose()
    async with networks(None, None, iroh=True) as (a, b):
        assert (await b.open_pipe(a.address, deadline_s=20)).way == "lan"
        dead = over_iroh(a, f"/ip4/127.0.0.1/tcp/{port}")
        assert (await b.open_pipe(dead, deadline_s=20)).way == "iroh"
        with pytest.raises(ChannelClosed):  # it may go over a relay, so it is no way without anybody between
            await b.open_direct(dead, deadline_s=2)


async def test_a_client_that_does_not_listen_dials_over_iroh():
    async with networks(None, iroh=True) as (a,), opened(listen=False, direct=False, iroh=True) as client:
        assert client.address.direct == ()
        assert (await client.open_pipe(over_iroh(a), deadline_s=20)).carrier == "iroh"


async def test_an_announcement_with_many_addresses_has_room_for_it(monkeypatch: pytest.MonkeyPatch):
    many = tuple(f"/ip4/9.9.9.{n}/tcp/7" for n in range(20))
    async with opened(iroh=True) as a:
        monkeypatch.setattr(Reachability, "addresses", lambda _: many)
        assert len(a.address.direct) == 16
        assert a.address.direct[-1].endswith("/iroh")


async def test_whoever_has_it_off_neither_announces_nor_dials_it():
    async with networks(None, iroh=True) as (a,), opened() as b:
        assert not any(address.endswith("/iroh") for address in b.address.direct)
        with pytest.raises(ChannelClosed):
            await b.open_pipe(over_iroh(a), deadline_s=2)


async def test_who_has_it_reaches_those_who_have_not_as_ever():
    async with networks(None) as (a,), opened(iroh=True) as b:
        assert (await b.open_pipe(a.address, deadline_s=20)).carrier == "direct"
        plain = PeerAddress(a.peer, a.address.libp2p)
        assert (await b.open_pipe(plain, deadline_s=20)).carrier == "libp2p-stream"
    # And from a peer with iroh that no longer answers there, over what does.
    async with networks(None, iroh=True) as (a,), opened(iroh=True) as b:
        gone = PeerAddress(a.peer, a.address.libp2p, ("/ip4/127.0.0.1/udp/9/iroh",))
        assert (await b.open_pipe(gone, deadline_s=4)).carrier == "libp2p-stream"


async def test_one_peer_holds_so_many_pipes_and_others_still_come_in(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(carrier, "PIPES_PER_PEER", 1)
    async with networks(None, None, None, iroh=True) as (a, b, other):
        first = await b.open_pipe(over_iroh(a), deadline_s=20)
        await accepted(a)
        second = await b.open_pipe(over_iroh(a), deadline_s=20)
        with trio.fail_after(20):
            assert await second.receive_some() == b""
        assert (await other.open_pipe(over_iroh(a), deadline_s=20)).peer == a.peer
        await first.aclose()


async def test_what_a_peer_does_not_read_is_given_up_when_the_pipe_has_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(carrier, "TAKEN_WITHIN_S", 2)
    async with piped() as (mine, theirs):
        before = trio.lowlevel.current_statistics().tasks_living
        with trio.move_on_after(1):
            while True:
                await theirs.send_all(BIG)
        await theirs.aclose()
        with trio.fail_after(20):
            # The task that let the peer in, and both that passed bytes on for it.
            while trio.lowlevel.current_statistics().tasks_living > before - 3:  # noqa: ASYNC110
                await trio.sleep(0.05)
        await mine.aclose()


async def test_somebody_else_there_and_another_swarm_are_refused():
    async with networks(SECRET, SECRET, OTHER_SECRET, iroh=True) as (a, b, other):
        impostor = PeerAddress(Identity.ephemeral().peer, (), over_iroh(a).direct)
        for network, address in ((b, impostor), (other, over_iroh(a))):
            with pytest.raises(ChannelClosed):
                await network.open_pipe(address, deadline_s=2)
        assert (await b.open_pipe(over_iroh(a), deadline_s=20)).peer == a.peer


async def test_strangers_who_say_nothing_or_nonsense_keep_nobody_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(carrier, "HANDSHAKE_WITHIN_S", 0.5)
    monkeypatch.setattr(carrier, "PIPES_LIMIT", 1)
    async with networks(None, None, iroh=True) as (a, b):
        stranger, at = await stranger_near(a)
        silent = await stranger.connect(at, carrier.ALPN)
        loud = await stranger.connect(at, carrier.ALPN)
        stream = await loud.open_bi()
        await stream.send().write_all(b"\xff" * 4096)
        with trio.fail_after(20):
            await silent.closed()
            await loud.closed()
        pipe = await b.open_pipe(over_iroh(a), deadline_s=20)
        with pytest.raises(ChannelClosed):  # no more than may be
            await b.open_pipe(over_iroh(a), deadline_s=2)
        await pipe.aclose()
        await stranger.close()


async def test_hosts_with_many_handshakes_show_their_address_and_then_are_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(carrier, "HANDSHAKES_PER_HOST", 3)
    retried: list[bool] = []
    retry = iroh_ffi.Incoming.retry

    async def counted(incoming: iroh_ffi.Incoming) -> None:
        retried.append(True)
        await retry(incoming)

    monkeypatch.setattr(iroh_ffi.Incoming, "retry", counted)
    async with networks(None, None, iroh=True) as (a, b):
        stranger, at = await stranger_near(a)
        silent = [await stranger.connect(at, carrier.ALPN) for _ in range(2)]
        assert retried == [True]  # the second of them
        pipe = await b.open_pipe(over_iroh(a), deadline_s=20)
        assert retried == [True, True]
        silent.append(await stranger.connect(at, carrier.ALPN))
        with pytest.raises(ChannelClosed):
            await b.open_pipe(over_iroh(a), deadline_s=1)
        await pipe.aclose()
        await stranger.close()


async def test_nothing_is_left_behind():
    async with back_to_baseline(), piped() as (mine, theirs):
        await mine.send_all(b"x")
        assert await exactly(theirs, 1) == b"x"


async def test_its_port_is_the_number_of_the_direct_port_or_an_error_says_that_it_is_taken():
    async with opened(iroh=True) as a:
        port = udp_port(a)
        with pytest.raises(PortInUse, match=f"UDP port {port}"):
            async with opened(iroh=True, direct_port=port):
                pass
    async with opened(iroh=True, direct_port=port) as a:
        assert f"/ip4/127.0.0.1/udp/{port}/iroh" in a.address.direct


async def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    for name in ("shoal.net.iroh.carrier", "shoal.net.iroh.library"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "iroh", None)
    with pytest.raises(IncompatibleLibrary) as raised:
        async with opened(iroh=True):
            pass
    assert raised.value.next_command == "pip install 'shoal[iroh]'"


def test_bytes_are_given_to_the_library_at_once():
    # One by one, as its bindings do, this takes half a second.
    began = time.process_time()
    lowered = iroh_ffi._UniffiFfiConverterBytes.lower(BIG[: 1 << 20])
    assert time.process_time() - began < 0.1
    assert iroh_ffi._UniffiFfiConverterBytes.lift(lowered) == BIG[: 1 << 20]
