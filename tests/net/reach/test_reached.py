"""Peers that cannot be dialled are reached: over real sockets of loopback, through a relay of the product."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio

from shoal.errors import ChannelClosed
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.channel import Channel
from shoal.net.host import Libp2pNetwork
from shoal.net.network import Pipe
from shoal.net.pool import ChannelPool
from shoal.net.reach.openings import TOKEN, new_token
from shoal.net.reach.ports import ARRIVED_WITHIN_S
from shoal.types import PeerAddress
from shoal.wire.messages import Close, Message
from tests.net.conftest import SECRET, back_to_baseline, bootstrap, opened, port_of
from tests.net.test_pipes import accepted, exactly

BOTH_SWARMS = pytest.mark.parametrize("secret", [None, SECRET], ids=["public", "private"])


@asynccontextmanager
async def behind_router(secret: bytes | None = None) -> AsyncGenerator[tuple[Libp2pNetwork, ...]]:
    """A relay, a node that takes itself for one behind a router and holds a place there, and a client."""
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(opened(secret))
        node = await stack.enter_async_context(opened(secret))
        node._calls.sessions.open = frozenset()  # pyright: ignore  on loopback nobody is behind a router
        await node.connect(bootstrap(relay), deadline_s=5)
        client = await stack.enter_async_context(opened(secret, listen=False))
        with trio.fail_after(25):
            while not node.reach().relays:  # noqa: ASYNC110
                await trio.sleep(0.02)
        yield relay, node, client


def unreachable(node: Libp2pNetwork) -> PeerAddress:
    """The node's address as it looks from behind another router: nothing but its places at relays."""
    circuits = tuple(a for a in node.address.direct if a.endswith("p2p-circuit"))
    return PeerAddress(node.peer, (), circuits)


def doors_closed(node: Libp2pNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is dialled at the node's port gets through, as behind a symmetric router."""

    async def refuse(*_: object, **__: object) -> None:
        raise ChannelClosed("refused")

    monkeypatch.setattr(node._calls, "_met", refuse)  # pyright: ignore[reportPrivateUsage]


@BOTH_SWARMS
async def test_a_node_behind_a_router_announces_its_place_and_is_met(secret: bytes | None):
    async with behind_router(secret) as (relay, node, client):
        assert node.reach().relays == (relay.peer,)
        assert node.address.direct[-1].endswith(f"/p2p/{relay.peer}/p2p-circuit")
        pipe = await client.open_pipe(unreachable(node), deadline_s=5)
        assert (pipe.peer, pipe.carrier, pipe.way) == (node.peer, "direct", "punched")
        await _talk(pipe, await accepted(node))


@BOTH_SWARMS
async def test_where_no_connection_comes_about_the_relay_carries_it(
    secret: bytes | None, monkeypatch: pytest.MonkeyPatch
):
    async with behind_router(secret) as (relay, node, client):
        doors_closed(node, monkeypatch)
        monkeypatch.setattr(client._calls, "meet", _refused)  # pyright: ignore[reportPrivateUsage]
        pipe = await client.open_pipe(unreachable(node), deadline_s=5)
        assert (pipe.peer, pipe.carrier, pipe.way) == (node.peer, "relayed", "relayed")
        theirs = await accepted(node)
        assert (theirs.peer, theirs.way, theirs.host) == (client.peer, "relayed", "")
        await _talk(pipe, theirs)
        assert relay.relay.circuits == 1
        assert relay.relay.relayed > 4 << 20
        await pipe.aclose()
        assert await theirs.receive_some() == b""
        await theirs.aclose()
        await trio.sleep(0.1)
        assert relay.relay.circuits == 0


async def _refused(_: PeerAddress) -> Pipe:
    raise ChannelClosed("refused")


async def _talk(mine: Pipe, theirs: Pipe) -> None:
    data = os.urandom(2 << 20)
    for sender, receiver in ((mine, theirs), (theirs, mine)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_all, data)
            assert await exactly(receiver, len(data)) == data


async def test_a_channel_over_a_relay_is_a_channel_like_any_other(monkeypatch: pytest.MonkeyPatch):
    async def ignore(channel: Channel, message: Message, payload: bytes) -> None:
        """Nothing comes but pings."""

    async with behind_router() as (_, node, client), trio.open_nursery() as nursery:
        monkeypatch.setattr(client._calls, "meet", _refused)  # pyright: ignore[reportPrivateUsage]
        mine = Channel(await client.open_pipe(unreachable(node), deadline_s=5))
        theirs = Channel(await accepted(node))
        for channel in (mine, theirs):
            nursery.start_soon(channel.run, ignore)
        await mine.wait_ready(5)
        await theirs.wait_ready(5)
        assert mine.way == "relayed"
        nursery.cancel_scope.cancel()


async def test_a_channel_over_a_relay_goes_on_directly_and_over_the_relay_again(
    monkeypatch: pytest.MonkeyPatch,
):
    """With real sockets and Noise: while messages go, the routers let us through, and then no more."""
    taken: list[Message] = []

    async def take(channel: Channel, message: Message, payload: bytes) -> None:
        taken.append(message)

    async with behind_router() as (_, node, client), trio.open_nursery() as nursery:
        pools = [ChannelPool(network, take, lambda *_: None) for network in (node, client)]
        await nursery.start(partial(pools[0].run, accept=True))
        await nursery.start(partial(pools[1].run, accept=False))
        with monkeypatch.context() as closed:
            closed.setattr(client._calls, "meet", _refused)  # pyright: ignore[reportPrivateUsage]
            channel = await pools[1].get(unreachable(node), deadline_s=5)
            assert channel.way == "relayed"
        sent: list[Message] = []
        for number in range(200):
            if number == 150:
                assert channel.way == "punched"
                monkeypatch.setattr(client._calls, "meet", _refused)  # pyright: ignore[reportPrivateUsage]
                await channel._pipe.inner.aclose()  # pyright: ignore[reportPrivateUsage]
            sent.append(Close(number.to_bytes(16, "big")))
            channel.send_now(sent[-1])
            await trio.sleep(0.01)
        with trio.fail_after(25):
            while len(taken) < len(sent):  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert taken == sent
        assert (channel.way, channel.moves) == ("relayed", 2)
        nursery.cancel_scope.cancel()


async def test_a_peer_is_met_again_and_again():
    """A connection that has ended keeps its two addresses for a minute, so each has another at our end."""
    async with behind_router() as (_, node, client):
        for _ in range(4):
            pipe = await client.open_pipe(unreachable(node), deadline_s=5)
            assert pipe.way == "punched"
            await pipe.aclose()


async def test_a_peer_that_was_met_gets_what_was_sent_before_the_close():
    """Such a connection leaves no trace, and yet the last payments of a client that ends arrive."""
    data = os.urandom(200_000)
    async with behind_router() as (_, node, client), trio.open_nursery() as nursery:
        with trio.fail_after(15):
            mine = await client.open_pipe(unreachable(node), deadline_s=5)
            theirs = await accepted(node)
            assert isinstance(mine, DirectPipe) and isinstance(theirs, DirectPipe) and mine.way == "punched"
            # More than the other end's system takes while nobody reads, and less than ours does.
            for pipe in (mine, theirs):
                pipe._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                pipe._stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
                await pipe.send_all(data)
            nursery.start_soon(mine.aclose)
            await trio.sleep(0.02)
            assert await exactly(theirs, len(data)) == data
            await mine.closed.wait()
            began = trio.current_time()
            await theirs.aclose()  # nobody is there any more who could get what is left
            assert trio.current_time() - began < ARRIVED_WITHIN_S / 2


async def test_a_relay_cannot_be_used_to_reach_somebody_else():
    async with behind_router() as (_, node, client), opened() as other:
        impostor = PeerAddress(other.peer, (), unreachable(node).direct)
        with pytest.raises(ChannelClosed):
            await client.open_pipe(impostor, deadline_s=3)


async def test_a_client_takes_only_connections_that_it_has_asked_for():
    async with behind_router() as (_, node, client):
        host, port = client._direct.ends[0]  # pyright: ignore[reportPrivateUsage]
        pipe = await node._direct.dial(host, port, client.peer)  # pyright: ignore[reportPrivateUsage]
        assert await pipe.receive_some() == b""
        await pipe.aclose()
        assert client.address.direct == ()


async def test_who_is_asked_tells_how_it_sees_us():
    async with behind_router() as (relay, _, client):
        await client.connect(bootstrap(relay), deadline_s=5)
        seen = await client.observe()
        assert (seen.nat, seen.relays) == ("unknown", ())  # loopback is no public address
        (session,) = client._calls.sessions.all()  # pyright: ignore[reportPrivateUsage]
        assert client._calls.sessions.own == {session.seen}  # pyright: ignore[reportPrivateUsage]


async def test_a_user_who_does_not_want_that_has_no_relay():
    async with opened(relay=False) as node, opened() as other:
        other._calls.sessions.open = frozenset()  # pyright: ignore
        await other.connect(bootstrap(node), deadline_s=5)
        await trio.sleep(2.5)
        assert other.reach().relays == ()
        assert node.relay.reservations == 0


async def test_a_place_is_lost_with_its_relay_and_another_is_found():
    async with opened() as node:
        node._calls.sessions.open = frozenset()  # pyright: ignore
        async with opened() as first, opened() as second:
            await node.connect(bootstrap(first), deadline_s=5)
            with trio.fail_after(25):
                while node.reach().relays != (first.peer,):
                    await node.wait_moved()
            await node.connect(bootstrap(second), deadline_s=5)
            with trio.fail_after(25):
                while len(node.reach().relays) < 2:
                    await node.wait_moved()
        with trio.fail_after(25):
            while node.reach().relays:
                await node.wait_moved()
        assert not any(a.endswith("p2p-circuit") for a in node.address.direct)


async def test_a_stranger_with_a_token_of_his_own_is_hung_up_on():
    async with opened() as node:
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(node.address.direct[0]))
        await stream.send_all(TOKEN + new_token())
        with trio.fail_after(15):
            assert await stream.receive_some(1) == b""
        await stream.aclose()


async def test_nothing_is_left_of_it():
    async with opened() as warm:
        assert warm.peer
    async with back_to_baseline(), behind_router() as (_, node, client):
        pipe = await client.open_pipe(unreachable(node), deadline_s=5)
        await pipe.aclose()
