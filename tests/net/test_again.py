"""A peer that was gone and comes back is reached at once: no failure is held against it."""

from __future__ import annotations

import pytest
import trio

from shoal.errors import ChannelClosed
from shoal.net.carriers.dialer import DIRECT_SHARE
from shoal.net.host import Libp2pNetwork
from shoal.net.identity import Identity
from shoal.types import PeerAddress, PeerId
from tests.net.conftest import bootstrap, opened, ping_once, port_of


async def echo(_: PeerId, body: bytes) -> bytes:
    return body


async def gone_once(client: Libp2pNetwork, identity: Identity) -> PeerAddress:
    """Where a peer was that the client has known, and has found gone by every way."""
    async with opened(identity=identity) as node:
        node.answer("/test/1", echo)
        await client.connect(bootstrap(node), deadline_s=15)
        assert await client.request(node.peer, "/test/1", b"?", deadline_s=15) == b"?"
        address = node.address
    with trio.fail_after(15):
        while client.connections():  # noqa: ASYNC110
            await trio.sleep(0.02)
        with pytest.raises(ChannelClosed):
            await client.open_pipe(address, deadline_s=15)
        with pytest.raises(ChannelClosed):
            await client.request(address.peer, "/test/1", b"?", deadline_s=15)
        with pytest.raises(ChannelClosed):
            await client.ping(address.peer, deadline_s=15)
    return address


async def test_a_peer_that_comes_back_is_reached_at_once():
    identity = Identity.ephemeral()
    async with opened() as client:
        address = await gone_once(client, identity)
        ports = {"port": port_of(address.libp2p[0]), "direct_port": port_of(address.direct[0])}
        async with opened(identity=identity, **ports) as node:
            node.answer("/test/1", echo)
            start = trio.current_time()
            assert await client.request(node.peer, "/test/1", b"?", deadline_s=15) == b"?"
            assert (await client.open_pipe(address, deadline_s=15)).carrier == "direct"
            assert trio.current_time() - start < 10  # and not the minute for which it was found gone


async def test_a_peer_that_comes_back_elsewhere_is_reached_at_once():
    identity = Identity.ephemeral()
    async with opened() as client:
        await gone_once(client, identity)
        async with opened(identity=identity) as node:
            start = trio.current_time()
            assert (await client.open_pipe(node.address, deadline_s=15)).carrier == "direct"
            assert await client.connect(bootstrap(node), deadline_s=15) == node.peer
            await ping_once(client, node.peer)
            assert trio.current_time() - start < 10  # and not the minute for which it was found gone


async def test_a_closed_direct_port_costs_nothing():
    async with opened() as node, opened() as client:
        closed = PeerAddress(node.peer, node.address.libp2p, ("/ip4/127.0.0.1/tcp/1",))
        start = trio.current_time()
        assert (await client.open_pipe(closed, deadline_s=10)).carrier == "libp2p-stream"
        assert trio.current_time() - start < 10 * DIRECT_SHARE / 2
