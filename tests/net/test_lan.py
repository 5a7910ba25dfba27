"""Peers on one local network find each other, and strangers who listen learn nothing (real multicast)."""

from __future__ import annotations

import socket
import threading

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from zeroconf import ServiceBrowser, ServiceInfo, Zeroconf

from shoal.net.identity import Identity
from shoal.net.libp2p.lan import SERVICE, seal, unseal
from shoal.types import PeerAddress
from tests.net.conftest import OTHER_SECRET, SECRET, networks

ADDRESS = PeerAddress(
    Identity.ephemeral().peer, ("/ip4/192.168.1.7/tcp/4001",), ("/ip4/192.168.1.7/tcp/4002",)
)


async def test_members_find_each_other_and_nobody_else():
    async with networks(SECRET, SECRET, None, None, mdns=True) as (a, b, c, d):
        pairs = [(a, b), (b, a), (c, d), (d, c)]
        with trio.fail_after(8):
            while not all(one.connections() for one, _ in pairs):  # noqa: ASYNC110
                await trio.sleep(0.05)
        for one, other in pairs:
            assert [connection.peer for connection in one.connections()] == [other.peer]


async def test_what_a_private_swarm_says_on_the_network_names_nobody():
    heard: list[ServiceInfo] = []
    done = threading.Event()

    def listen() -> None:
        zeroconf = Zeroconf(interfaces=["127.0.0.1"])

        def changed(*, name: str, **_: object) -> None:
            info = ServiceInfo(SERVICE, name)
            if info.load_from_cache(zeroconf):
                heard.append(info)
                done.set()

        ServiceBrowser(zeroconf, SERVICE, handlers=[changed])
        done.wait(6)
        zeroconf.close()

    async with networks(SECRET, None, OTHER_SECRET, mdns=True) as (member, public, other):
        with trio.fail_after(10):
            await trio.to_thread.run_sync(listen)
        await trio.sleep(0.3)
        assert member.connections() == public.connections() == other.connections() == []
        assert heard
        for info in heard:
            said = f"{info.name} {info.server} {info.port} {info.addresses} {info.text!r}"
            for telling in (member.peer, public.peer, other.peer, socket.gethostname(), "/ip4/"):
                assert telling not in said
            assert info.port == 0


def test_a_member_opens_what_a_member_sealed():
    for secret in (None, SECRET):
        said = unseal(seal(ADDRESS, secret), secret)
        assert said == PeerAddress(ADDRESS.peer, ADDRESS.libp2p)


def test_nobody_else_opens_it():
    sealed = seal(ADDRESS, SECRET)
    assert unseal(sealed, OTHER_SECRET) is None
    assert unseal(sealed, None) is None
    assert unseal(sealed[:-1] + bytes([sealed[-1] ^ 1]), SECRET) is None
    assert ADDRESS.peer.encode() not in sealed
    assert sealed != seal(ADDRESS, SECRET)


@given(st.binary(max_size=1100))
@settings(max_examples=50, deadline=None)
def test_nonsense_is_nobody(data: bytes):
    assert unseal(data, None) is None
