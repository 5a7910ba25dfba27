"""What a host remembers of other peers (docs/hostile.md 15): little, whatever they say of themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.envelope import Envelope, seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from shoal.net.host import Libp2pNetwork
from shoal.net.identity import Identity
from shoal.net.libp2p.peerstore import ADDRESSES_LIMIT, PEERS_LIMIT, PROTOCOLS_LIMIT, BoundedPeerStore
from shoal.types import PeerId
from tests.net.conftest import bootstrap, networks, opened, ping_once

ADDRESS = Multiaddr("/ip4/8.8.8.8/tcp/1")


def somebody() -> ID:
    return ID.from_base58(Identity.ephemeral().peer)


def address(number: int) -> bytes:
    return Multiaddr(f"/ip4/8.{number >> 16}.{number >> 8 & 255}.{number & 255}/tcp/1").to_bytes()


OVERSIZED: dict[str, Callable[[], bytes]] = {
    "addresses": lambda: Identify(listen_addrs=map(address, range(3000))).SerializeToString(),
    "protocols": lambda: Identify(protocols=map("/p/{}".format, range(20_000))).SerializeToString(),
    "long protocols": lambda: Identify(protocols=["x" * 30_000] * 10).SerializeToString(),
    "key": lambda: Identify(public_key=bytes(300_000)).SerializeToString(),
    "agent": lambda: Identify(agent_version="x" * 300_000).SerializeToString(),
    "record": lambda: Identify(signedPeerRecord=os.urandom(300_000)).SerializeToString(),
    "too long": lambda: bytes(1 << 20 | 1),
    "no protobuf": lambda: os.urandom(3000),
}


async def say(stream: Any, data: bytes) -> None:
    with trio.move_on_after(0.5), suppress(Exception):  # the other side may hang up, or not read
        for start in range(0, len(data), 60_000):
            await stream.write(data[start : start + 60_000])
        await stream.close()


async def test_little_is_kept_of_what_a_peer_says_of_itself():
    async def boast(node: Libp2pNetwork, said: Callable[[], bytes]) -> None:
        data = encode_varint_prefixed(said())

        async def answer(stream: Any) -> None:
            await say(stream, data)

        async with opened() as evil:
            evil._host.set_stream_handler(TProtocol("/ipfs/id/1.0.0"), answer)
            await evil.connect(bootstrap(node), deadline_s=3)
            push = [TProtocol("/ipfs/id/push/1.0.0")]
            await say(await evil._host.new_stream(ID.from_base58(node.peer), push), data)
            await trio.sleep(0.3)
            known = node._host.get_peerstore().peer_data_map[ID.from_base58(evil.peer)]
            assert len(known.addrs) <= ADDRESSES_LIMIT
            assert len(known.protocols) <= PROTOCOLS_LIMIT
            assert sum(map(len, known.protocols)) < 16 << 10
            await ping_once(evil, node.peer)

    async with opened() as node, trio.open_nursery() as nursery:
        for said in OVERSIZED.values():
            nursery.start_soon(boast, node, said)


def test_an_older_record_of_a_peer_is_no_fault_and_changes_nothing():
    peers, keys = BoundedPeerStore(create_new_key_pair(bytes(32))), create_new_key_pair(b"\x01" * 32)
    peer, forger = ID.from_pubkey(keys.public_key), create_new_key_pair(b"\x02" * 32)

    def record(number: int, port: int, signer: KeyPair = keys) -> Envelope:
        said = PeerRecord(peer, [Multiaddr(f"/ip4/8.8.8.8/tcp/{port}")], number)
        return seal_record(said, signer.private_key)

    assert peers.consume_peer_record(record(2, 22), 7200)
    assert peers.consume_peer_record(record(1, 11), 7200)
    for number in (1, 3):
        assert not peers.consume_peer_record(record(number, 33, forger), 7200)
    assert peers.addrs(peer) == [Multiaddr("/ip4/8.8.8.8/tcp/22")]


def test_only_so_many_peers_are_remembered_and_always_ourselves():
    keys = create_new_key_pair(bytes(32))
    peers, own = BoundedPeerStore(keys), ID.from_pubkey(keys.public_key)
    for _ in range(PEERS_LIMIT + 200):
        peers.add_addrs(somebody(), [ADDRESS], 7200)
        assert len(peers.peer_data_map) <= PEERS_LIMIT + 1
    assert peers.privkey(own) == keys.private_key
    assert len(peers.peer_data_map) > PEERS_LIMIT / 2


async def test_a_node_that_has_met_very_many_peers_works_as_before():
    async def echo(_: PeerId, body: bytes) -> bytes:
        return body

    def everything(_: PeerId, __: bytes) -> bool:
        return True

    async def used(node: Libp2pNetwork, peer: Libp2pNetwork, topic: str) -> None:
        async with node.subscribe(topic, everything), peer.subscribe(topic, everything) as heard:
            await peer.connect(bootstrap(node), deadline_s=3)
            assert await peer.request(node.peer, "/test/1", b"?", deadline_s=3) == b"?"
            await node.publish(topic, b"news")
            with trio.fail_after(15):
                assert await anext(heard) == (node.peer, b"news")

    async with networks(None, None) as (node, before), opened() as after:
        node.answer("/test/1", echo)
        await used(node, before, "1")
        store = node._host.get_peerstore()
        for _ in range(PEERS_LIMIT + 100):
            store.add_addrs(somebody(), [ADDRESS], 7200)
        await used(node, before, "2")
        await used(node, after, "3")
