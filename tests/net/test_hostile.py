"""Peers and strangers that break the rules (docs/hostile.md 14): the honest are served all the same.

After each: the process is alive, open files and tasks are back to the baseline, the next peer is served.
"""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.pubsub.pb.rpc_pb2 import RPC, Message
from libp2p.stream_muxer.yamux.yamux import FLAG_SYN, TYPE_DATA, TYPE_WINDOW_UPDATE, YAMUX_HEADER_FORMAT
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from shoal.errors import ChannelClosed, DeadlineExceeded, RemoteProtocolError
from shoal.net import handshakes as handshakes_module
from shoal.net.host import ANSWERS_AT_ONCE, Libp2pNetwork
from shoal.net.identity import Identity
from shoal.net.libp2p import connections as connections_module
from shoal.net.libp2p import muxer as muxer_module
from shoal.types import PeerAddress, PeerId
from tests.net.conftest import SECRET, back_to_baseline, bootstrap, networks, only, opened, ping_once, port_of

PORTS = pytest.mark.parametrize("kind", ["libp2p", "direct"])
GARBAGE = [
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    os.urandom(4096),
    b"\x13/multistream/1.0.0\n",
    b"\x13/multistream/1.0.0\n" + b"\x07/noise\n" + b"\xff" * 3000,
    b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x13/multistream/1.0.0\n\x04\xff\xfe\xfd\n",
    b"\x13/multistream/1.0.0\n\x11/plaintext/2.0.0\n",
    b"\x00\x00" * 100,
    b"\x00\x20" + os.urandom(32),
    b"\xff\xff" + os.urandom(10),
]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshake deadlines short enough to be waited for."""
    monkeypatch.setattr(handshakes_module, "FIRST_WITHIN_S", 0.5)
    monkeypatch.setattr(handshakes_module, "HANDSHAKE_WITHIN_S", 0.5)


def anything(_: PeerId, __: bytes) -> bool:
    return True


async def echo(_: PeerId, body: bytes) -> bytes:
    return body


async def serves(network: Libp2pNetwork) -> None:
    """An honest peer is served, over both carriers."""
    network.answer("/test/1", echo)
    async with opened() as honest:
        await honest.connect(bootstrap(network), deadline_s=10)
        assert await honest.request(network.peer, "/test/1", b"?", deadline_s=10) == b"?"
        for kind, carrier in (("direct", "direct"), ("libp2p", "libp2p-stream")):
            pipe = await honest.open_pipe(only(network.address, kind), deadline_s=10)
            assert pipe.carrier == carrier
            async for theirs in network.accept_pipes():
                await pipe.send_all(b"x")
                assert await theirs.receive_some() == b"x"
                await theirs.aclose()
                break
            await pipe.aclose()


async def quiet(network: Libp2pNetwork) -> None:
    """Wait until every connection has ended."""
    with trio.fail_after(15):
        while network.connections():  # noqa: ASYNC110
            await trio.sleep(0.02)
    await trio.sleep(0.15)  # the library takes a tenth of a second to clean up behind one


@asynccontextmanager
async def survivor() -> AsyncGenerator[Libp2pNetwork]:
    """A network that must be as it was after the block, and then serve an honest peer."""
    async with networks(None) as (network,):
        await serves(network)
        await quiet(network)
        async with back_to_baseline():
            yield network
        await serves(network)


async def connected(evil: Libp2pNetwork, network: Libp2pNetwork) -> Any:
    """The muxer of an evil peer's connection, to send what it likes."""
    await evil.connect(bootstrap(network), deadline_s=3)
    await trio.sleep(0.1)
    return evil._connections.get_connections(ID.from_base58(network.peer))[0].muxed_conn


def frame(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(YAMUX_HEADER_FORMAT, 0, kind, flags, stream, length) + body


# --- strangers -------------------------------------------------------------------------------------------


async def test_garbage_on_a_port_is_hung_up_on():
    async with survivor() as network:

        async def throw(port: int, data: bytes) -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            with trio.fail_after(15), suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                while await stream.receive_some():
                    pass
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for data in GARBAGE:
                for address in network.address.libp2p + network.address.direct:
                    nursery.start_soon(throw, port_of(address), data)


@PORTS
async def test_plaintext_is_refused(kind: str):
    async with networks(None) as (network,):
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(getattr(network.address, kind)[0]))
        heard = b""
        with suppress(trio.BrokenResourceError), trio.move_on_after(2):
            await stream.send_all(b"\x13/multistream/1.0.0\n\x11/plaintext/2.0.0\n")
            while part := await stream.receive_some():
                heard += part
        await stream.aclose()
        assert heard == (b"\x13/multistream/1.0.0\n\x03na\n" if kind == "libp2p" else b"")


async def test_many_who_say_nothing_hold_no_door_for_long():
    async with survivor() as network:
        ports = [port_of(address) for address in network.address.libp2p + network.address.direct]
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for port in ports for _ in range(100)]
        await trio.sleep(0.8)
        await serves(network)
        for stream in silent:
            await trio.aclose_forcefully(stream)


async def test_a_closed_connection_gives_its_place_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections_module, "CONNECTIONS_LIMIT", 4)
    async with networks(None) as (network,):
        for _ in range(6):
            await serves(network)
            await quiet(network)


async def test_a_host_with_too_many_connections_loses_its_oldest_idle_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections_module, "PER_NETWORK_LIMIT", 2)
    async with networks(None) as (network,):
        async with networks(None, None, None) as (a, b, c):
            for peer in (a, b, c):
                await peer.connect(bootstrap(network), deadline_s=3)
            with trio.fail_after(15):
                while len(network.connections()) > 2:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            assert {b.peer, c.peer} == {connection.peer for connection in network.connections()}
        await quiet(network)
        await serves(network)


FIRST_MESSAGES = {
    "silence": {"libp2p": b"", "direct": b""},
    "a byte": {"libp2p": b"\x13", "direct": b"\0"},
}


@pytest.mark.parametrize("said", FIRST_MESSAGES)
@pytest.mark.parametrize("secret", [None, SECRET], ids=["public", "private"])
async def test_a_crowd_that_begins_and_does_not_go_on_keeps_nobody_out(
    said: str, secret: bytes | None, monkeypatch: pytest.MonkeyPatch
):
    """300 sockets on each port, opened again as soon as they are closed: whoever comes is in within 3 s."""
    monkeypatch.undo()  # the deadlines of the product
    async with networks(secret) as (network,):

        async def hold(kind: str) -> None:
            port = port_of(getattr(network.address, kind)[0])
            while True:
                with suppress(OSError, trio.BrokenResourceError):
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                    await stream.send_all(FIRST_MESSAGES[said][kind])
                    while await stream.receive_some():
                        pass
                await trio.sleep(0.2)

        async with trio.open_nursery() as nursery:
            for kind in ("libp2p", "direct"):
                for _ in range(300):
                    nursery.start_soon(hold, kind)
            await trio.sleep(1.5)
            for _ in range(3):
                async with opened(secret) as honest:
                    await honest.connect(bootstrap(network), deadline_s=3)
                    pipe = await honest.open_pipe(only(network.address, "direct"), deadline_s=3)
                    assert pipe.carrier == "direct"
                    await pipe.aclose()
            nursery.cancel_scope.cancel()


async def test_a_peer_that_hangs_up_unheard_may_be_busy_and_is_not_called_a_stranger():
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async with networks(SECRET) as (member,), trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(ChannelClosed, match="hung up before it said a word: it may be busy"):
            await member.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.ephemeral().peer}", deadline_s=3)
        nursery.cancel_scope.cancel()


async def test_an_address_that_a_peer_announced_does_not_make_us_dial_our_own_machine():
    (victim,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"/ip4/127.0.0.1/tcp/{victim.socket.getsockname()[1]}"
    peer = Identity.ephemeral().peer
    async with opened(host="0.0.0.0") as network, victim:
        with pytest.raises(ChannelClosed):
            await network.open_pipe(PeerAddress(peer, (address,), (address,)), deadline_s=1)
        # The same through the library's own dials, which the DHT makes.
        network._host.get_peerstore().add_addrs(ID.from_base58(peer), [Multiaddr(address)], 60)
        with pytest.raises(ChannelClosed):
            await network.request(peer, "/test/1", b"", deadline_s=1)
        with trio.move_on_after(0.1) as nobody:
            await victim.accept()
        assert nobody.cancelled_caught


# --- peers, on their streams -----------------------------------------------------------------------------


BROKEN = [
    b"\xff" * 9 + b"\x01",  # a varint longer than any
    b"\x05hello",  # no protobuf
    b"\x80\x80\x80\x80\x04",  # 1 GiB to come
    b"\x7f\xff\xff\xff",  # 2 GiB to come
    os.urandom(20000),
]


PROTOCOLS = ["/ipfs/kad/1.0.0", "/meshsub/1.1.0", "/ipfs/ping/1.0.0", "/ipfs/id/push/1.0.0", "/test/1"]


async def test_garbage_on_a_stream_ends_that_stream():
    async with survivor() as network, opened() as evil:
        await evil.connect(bootstrap(network), deadline_s=3)
        for protocol in PROTOCOLS:
            for data in BROKEN:
                stream = await evil._host.new_stream(ID.from_base58(network.peer), [TProtocol(protocol)])
                with suppress(Exception):
                    await stream.write(data)
                    await stream.close()
            await ping_once(evil, network.peer)


async def test_a_protocol_name_that_is_no_text_ends_that_stream():
    async with survivor() as network, opened() as evil:
        muxer = await connected(evil, network)
        stream = await muxer.open_stream()
        await stream.write(b"\x13/multistream/1.0.0\n\x04\xff\xfe\xfd\n")
        await trio.sleep(0.1)
        await ping_once(evil, network.peer)


@pytest.mark.parametrize("said", [b"\x02\xff\n", b"\x13/multistream/1.0.0\n\x02\xff\n", b"\xff" * 20])
async def test_a_protocol_name_that_is_no_text_is_no_answer(said: bytes):
    async with networks(None, None) as (a, b):

        async def babble(stream: Any) -> None:
            await stream.write(said)

        await b.connect(bootstrap(a), deadline_s=3)
        a._connections.set_stream_handler(babble)
        with pytest.raises(ChannelClosed, match="does not speak"):
            await b.request(a.peer, "/test/1", b"", deadline_s=3)


@pytest.mark.parametrize("length", [1 << 20 | 1, 0xFFFFFFFF])
async def test_an_answer_too_long_is_its_authors_fault(length: int):
    async with networks(None, None) as (a, b):

        async def long(stream: Any) -> None:
            await stream.read(4)
            await stream.write(struct.pack(">I", length) + bytes(100))

        a._host.set_stream_handler(TProtocol("/long/1"), long)
        await b.connect(bootstrap(a), deadline_s=3)
        with pytest.raises(RemoteProtocolError):
            await b.request(a.peer, "/long/1", b"", deadline_s=3)


async def test_who_opens_streams_and_asks_nothing_holds_a_few_places_and_others_are_answered():
    async with survivor() as network, opened() as evil, opened() as honest:
        network.answer("/test/1", echo)
        await evil.connect(bootstrap(network), deadline_s=3)
        await honest.connect(bootstrap(network), deadline_s=3)
        silent: list[Any] = []
        for _ in range(2 * ANSWERS_AT_ONCE):
            with suppress(BaseLibp2pError):  # one too many is reset at once
                silent.append(
                    await evil._host.new_stream(ID.from_base58(network.peer), [TProtocol("/test/1")])
                )
        assert await honest.request(network.peer, "/test/1", b"?", deadline_s=2) == b"?"
        for stream in silent:
            with suppress(Exception):
                await stream.reset()
        await trio.sleep(0.1)
        assert await evil.request(network.peer, "/test/1", b"!", deadline_s=2) == b"!"


async def test_an_answer_that_stops_halfway_is_an_error_in_time():
    async with networks(None, None) as (a, b):

        async def half(stream: Any) -> None:
            await stream.write(struct.pack(">I", 1000) + bytes(10))
            await stream.close()

        async def stuck(stream: Any) -> None:
            await stream.write(struct.pack(">I", 1000) + bytes(10))
            await trio.sleep_forever()

        a._host.set_stream_handler(TProtocol("/half/1"), half)
        a._host.set_stream_handler(TProtocol("/stuck/1"), stuck)
        await b.connect(bootstrap(a), deadline_s=3)
        with pytest.raises(RemoteProtocolError):
            await b.request(a.peer, "/half/1", b"", deadline_s=3)
        with pytest.raises(DeadlineExceeded):
            await b.request(a.peer, "/stuck/1", b"", deadline_s=0.3)


# --- peers, on their connection --------------------------------------------------------------------------


async def test_a_frame_longer_than_any_window_closes_the_connection():
    async with survivor() as network, opened() as evil:
        muxer = await connected(evil, network)
        await muxer._write_frame(frame(TYPE_DATA, FLAG_SYN, 9001, 0xFFFFFFFF))
        await quiet(network)


async def test_a_peer_that_ignores_windows_fills_no_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(muxer_module, "BUFFERED_LIMIT", 4 << 20)
    async with survivor() as network, opened() as evil:
        muxer = await connected(evil, network)
        pipe: Any = await evil.open_pipe(only(network.address, "libp2p"), deadline_s=3)
        number, before = (
            pipe._stream.muxed_stream.stream_id,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        )
        with suppress(Exception):  # until the other side hangs up
            for _ in range(1000):
                await muxer._write_frame(frame(TYPE_DATA, 0, number, 60000, bytes(60000)))
        await quiet(network)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB
        async for accepted in network.accept_pipes():
            await accepted.aclose()
            break


async def test_a_flood_of_streams_is_cut_short():
    async with survivor() as network, opened() as evil:
        muxer = await connected(evil, network)
        with suppress(Exception):
            for number in range(10001, 14001, 2):
                await muxer._write_frame(frame(TYPE_WINDOW_UPDATE, FLAG_SYN, number, 0))
        await trio.sleep(0.2)
        theirs: Any = network._connections.get_connections(ID.from_base58(evil.peer))
        assert sum(len(c.muxed_conn.streams) for c in theirs) <= muxer_module.STREAMS_LIMIT + 20


async def test_a_peer_gone_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(muxer_module, "PONG_WITHIN_S", 0.3)
    monkeypatch.setattr(muxer_module, "PING_EVERY_S", 0.3)
    async with networks(None) as (network,), opened() as evil:
        muxer = await connected(evil, network)

        async def mute(_: bytes) -> None:
            await trio.lowlevel.checkpoint()

        muxer._write_frame = mute
        await quiet(network)


async def test_a_cancelled_question_leaves_the_connection_whole():
    async with networks(None, None) as (a, b):
        a.answer("/test/1", echo)
        await b.connect(bootstrap(a), deadline_s=3)
        for wait in (0.0005, 0.001, 0.002, 0.004, 0.008):
            with suppress(DeadlineExceeded, ChannelClosed):
                await b.request(a.peer, "/test/1", bytes(1 << 20), deadline_s=wait)
        assert await b.request(a.peer, "/test/1", b"?", deadline_s=5) == b"?"
        assert len(b.connections()) == 1


# --- gossip ----------------------------------------------------------------------------------------------


def forged(evil: Identity, author: Identity, *, signature: bytes | None = None, **fields: Any) -> Message:
    said = {"data": b"forged", "topicIDs": ["t"], "from_id": ID.from_base58(author.peer).to_bytes()}
    message = Message(**said | {"seqno": os.urandom(8)} | fields)
    signed = evil.sign(b"libp2p-pubsub:" + message.SerializeToString())
    message.signature = signed if signature is None else signature
    return message


async def test_forged_messages_are_neither_delivered_nor_fatal():
    evil_identity, author = Identity.ephemeral(), Identity.ephemeral()
    messages = [
        forged(evil_identity, author),
        forged(evil_identity, author, signature=b""),
        forged(evil_identity, author, signature=b"x"),
        forged(evil_identity, author, from_id=b""),
        forged(evil_identity, author, from_id=b"\x00\x24nonsense"),
        forged(evil_identity, author, from_id=os.urandom(500), key=b"nonsense"),
        forged(evil_identity, evil_identity, data=bytes(65 << 10)),
        forged(evil_identity, evil_identity, topicIDs=["t"] * 1000, data=b"many topics"),
    ]
    async with (
        survivor() as network,
        opened(identity=evil_identity) as evil,
        network.subscribe("t", anything) as heard,
        evil.subscribe("t", anything),
    ):
        await evil.connect(bootstrap(network), deadline_s=3)
        await trio.sleep(0.2)
        peer = ID.from_base58(network.peer)
        for message in messages:
            stream = await evil._host.new_stream(peer, [TProtocol("/meshsub/1.1.0")])
            with suppress(Exception):
                await stream.write(encode_varint_prefixed(RPC(publish=[message]).SerializeToString()))
        await trio.sleep(0.2)
        await evil.publish("t", b"honest")
        with trio.fail_after(15):
            got = {(await anext(heard))[1]}
            while b"honest" not in got:
                got.add((await anext(heard))[1])
        assert got <= {b"honest", b"many topics"}


async def test_two_peers_with_one_identity_do_not_harm_each_other():
    twin = Identity.ephemeral()
    async with survivor() as network, opened(identity=twin) as one:
        network.answer("/test/1", echo)
        async with opened(identity=twin) as two:
            await one.connect(bootstrap(network), deadline_s=3)
            await two.connect(bootstrap(network), deadline_s=3)
            for peer in (one, two):
                assert await peer.request(network.peer, "/test/1", b"?", deadline_s=3) == b"?"
        await trio.sleep(0.3)
        assert await one.request(network.peer, "/test/1", b"?", deadline_s=3) == b"?"
        assert [c.peer for c in network.connections()] == [twin.peer]
