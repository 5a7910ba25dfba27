"""The network (docs/hostile.md 14, 15 and 17) against a node on real TCP, with a client amid its answer.

On the network alone: ``test_hostile.py``, ``test_peerstore.py`` and ``test_dialable.py`` of ``tests/net``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.utils import encode_varint_prefixed

from shoal import config
from shoal.client.connect import open_swarm
from shoal.client.swarm import Swarm
from shoal.errors import ChannelClosed, NotAllowed
from shoal.models.store.store import ModelStore
from shoal.net import channel as channel_module
from shoal.net import handshakes as handshakes_module
from shoal.net import pool as pool_module
from shoal.net.host import NetworkSettings, open_network
from shoal.net.identity import Identity
from shoal.net.moving import liveness
from shoal.net.network import Network
from shoal.node.node import Node, start_node
from shoal.swarm import membership
from shoal.swarm.join import join_swarm
from shoal.swarm.membership import Membership
from shoal.testing.byhand import a_step, an_open, begun, by_hand, framed, rows
from shoal.testing.swarm import measured_once
from shoal.types import PeerAddress, Span
from shoal.wire.fields import NextHop
from shoal.wire.messages import NEWEST_VERSION, Hello, Opened, Refused, encode
from tests.hostile.conftest import ALIKE, BLOCKS, WIDTH, unharmed
from tests.one_process import KERNELS, OneProcess

GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x00\x20" + bytes(32),
    b"\xff\xff" + bytes(10),
    b"\x80\x04\x95" + bytes(300),
]


@dataclass
class RealSwarm:
    """A node and a client in this process, over TCP on loopback."""

    network: Network
    member_of: Membership
    client: Swarm
    nodes: list[Node] = field(default_factory=list[Node])

    @property
    def ports(self) -> list[int]:
        address = self.network.address
        return [int(a.rpartition("/")[2]) for a in (*address.libp2p, *address.direct)]

    @asynccontextmanager
    async def member(self, **settings: Any) -> AsyncGenerator[Any]:
        """One more peer that knows the swarm's secret, and means harm."""
        own = NetworkSettings(Identity.ephemeral(), self.member_of.secret, host="127.0.0.1", **settings)
        async with open_network(own) as network:
            yield network


@asynccontextmanager
async def real_swarm(home: Path, checkpoint: Path, **options: Any) -> AsyncGenerator[RealSwarm]:
    given = {"threads": 1, "mdns": False, "host": "127.0.0.1"} | KERNELS | options
    settings = config.load(given, {"SHOAL_HOME": str(home)})
    swarm = membership.create("hostile")
    model = await trio.to_thread.run_sync(ModelStore(settings.paths.models).resolve, str(checkpoint))
    async with (
        join_swarm(settings, swarm, Identity.ephemeral(), listen=True) as (network, member),
        start_node(network, member, model, Span(0, BLOCKS), settings, measure=measured_once) as node,
    ):
        bootstrap = tuple(f"{address}/p2p/{network.peer}" for address in network.address.libp2p)
        async with open_swarm(settings, replace(swarm, bootstrap=bootstrap)) as client:
            yield RealSwarm(network, swarm, client, [node])


@pytest.fixture
async def victim(
    tmp_path: Path,
    checkpoint: Path,
    whole: OneProcess,
    monkeypatch: pytest.MonkeyPatch,
    nursery: trio.Nursery,
) -> AsyncGenerator[RealSwarm]:
    """A real swarm of which nothing may be left behind; its deadlines are short enough to be waited for."""
    monkeypatch.setattr(handshakes_module, "FIRST_WITHIN_S", 0.5)
    monkeypatch.setattr(handshakes_module, "HANDSHAKE_WITHIN_S", 0.5)
    monkeypatch.setattr(channel_module, "SENT_WITHIN_S", 1.0)
    async with (
        real_swarm(tmp_path / "home", checkpoint) as swarm,
        unharmed(swarm, checkpoint, whole),
    ):
        yield swarm
        await trio.sleep(0.7)  # what is half open is given up by now


async def throw(port: int, data: bytes) -> None:
    """Send bytes to a port and wait until the other side hangs up."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    with trio.fail_after(25), suppress(trio.BrokenResourceError):
        await stream.send_all(data)
        while await stream.receive_some():
            pass
    await stream.aclose()


async def test_14_garbage_on_every_port_is_hung_up_on(victim: RealSwarm) -> None:
    async with trio.open_nursery() as nursery:
        for data in (*GARBAGE, os.urandom(5000)):
            for port in victim.ports:
                nursery.start_soon(throw, port, data)


async def test_14_a_hundred_who_say_nothing_hold_no_door(victim: RealSwarm) -> None:
    silent = [await trio.open_tcp_stream("127.0.0.1", port) for port in victim.ports for _ in range(100)]
    await trio.sleep(0.8)
    async with victim.member() as honest, by_hand(honest, victim.network.address) as peer:
        opened, _ = await peer.ask(an_open(victim.nodes[0].model.digest, BLOCKS, **ALIKE))
        assert isinstance(opened, Opened)
    for stream in silent:
        await trio.aclose_forcefully(stream)


async def test_14_partial_frames_and_a_payload_that_never_comes_cost_their_sender_alone(
    victim: RealSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "ENDED_WITHIN_S", 0.3)
    monkeypatch.setattr(liveness, "PING_EVERY_S", 0.1)
    async with victim.member() as evil, by_hand(evil, victim.network.address) as peer:
        await peer.channel._pipe.send_all(begun(99, 50_000, 400_000))
        with trio.fail_after(25):
            while not peer.channel.closed:  # noqa: ASYNC110
                await trio.sleep(0.05)


@pytest.mark.parametrize("direct", [True, False])
async def test_14_a_reader_that_never_reads_is_hung_up_on(
    victim: RealSwarm, nursery: trio.Nursery, direct: bool
) -> None:
    node = victim.nodes[0]
    opened = an_open(node.model.digest, BLOCKS, tokens=512, **ALIKE)
    step = a_step(WIDTH, tokens=200, rows=200, wanted=200)  # fits one fragment
    async with victim.member() as evil:
        address = victim.network.address
        pipe = await evil.open_pipe(
            address if direct else PeerAddress(address.peer, address.libp2p), deadline_s=3
        )
        await pipe.send_all(framed(encode(Hello(NEWEST_VERSION))) + framed(encode(opened)))

        async def ask_and_ask() -> None:
            with suppress(ChannelClosed):
                for number in itertools.count(1):
                    asked = msgspec.structs.replace(step, number=number)
                    await pipe.send_all(framed(encode(asked), rows(WIDTH, 200)))
                    await trio.sleep(0.02)  # or most would be refused, in few words

        with trio.fail_after(20):
            while node.server.sessions < 2:  # noqa: ASYNC110
                await trio.sleep(0.02)
            (theirs,) = (c for c in node.server.channels.all() if c.peer == evil.peer)
            nursery.start_soon(ask_and_ask)
            while not theirs.closed:  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert "has not read" in theirs.reason, theirs.reason
        await pipe.aclose()


async def test_14_one_peer_may_not_open_channels_without_end(victim: RealSwarm) -> None:
    async with victim.member() as evil:
        pipes = [
            await evil.open_pipe(victim.network.address, deadline_s=3)
            for _ in range(pool_module.PER_PEER_LIMIT + 4)
        ]
        await trio.sleep(0.3)
        theirs = [c for c in victim.nodes[0].server.channels.all() if c.peer == evil.peer]
        assert len(theirs) <= pool_module.PER_PEER_LIMIT
        for pipe in pipes:
            await pipe.aclose()


BOASTS = {
    "addresses": Identify(listen_addrs=[os.urandom(30)] * 3000),
    "protocols": Identify(protocols=[f"/p/{n}" for n in range(20_000)]),
    "key": Identify(public_key=bytes(300_000)),
    "record": Identify(signedPeerRecord=bytes(300_000)),
}


async def test_15_what_a_peer_says_of_itself_fills_no_memory(victim: RealSwarm) -> None:
    for said in BOASTS.values():
        async with victim.member() as evil:
            data = encode_varint_prefixed(said.SerializeToString())

            async def boast(stream: Any, data: bytes = data) -> None:
                with trio.move_on_after(0.5), suppress(Exception):  # the other side may hang up
                    for start in range(0, len(data), 60_000):
                        await stream.write(data[start : start + 60_000])
                    await stream.close()

            evil._host.set_stream_handler(TProtocol("/ipfs/id/1.0.0"), boast)
            with suppress(ChannelClosed, NotAllowed):
                address = victim.network.address
                await evil.connect(f"{address.libp2p[0]}/p2p/{address.peer}", deadline_s=2)
            await trio.sleep(0.3)


async def test_17_a_client_cannot_make_a_node_knock_at_its_own_machine(
    tmp_path: Path, checkpoint: Path
) -> None:
    (inside,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = inside.socket.getsockname()[1]
    hosts = (f"/ip4/127.0.0.1/tcp/{port}", f"/ip6/::ffff:127.0.0.1/tcp/{port}", f"/dns4/localhost/tcp/{port}")
    async with inside, real_swarm(tmp_path / "home", checkpoint, host="0.0.0.0") as swarm:
        if swarm.network.address.libp2p[0].startswith("/ip4/127."):
            pytest.skip("this machine has loopback alone")
        async with swarm.member() as client:
            with client._transport.named(swarm.network.address.libp2p[0]):
                await client.connect(
                    f"{swarm.network.address.libp2p[0]}/p2p/{swarm.network.peer}", deadline_s=3
                )
            async with by_hand(client, PeerAddress(swarm.network.peer)) as peer:
                onward = NextHop(Identity.ephemeral().peer, hosts, hosts)
                refused, _ = await peer.ask(
                    an_open(swarm.nodes[0].model.digest, BLOCKS, next=onward, **ALIKE)
                )
                assert isinstance(refused, Refused)
                assert refused.code == "channel_closed"
        with trio.move_on_after(0.2) as nobody:
            await inside.accept()
        assert nobody.cancelled_caught
