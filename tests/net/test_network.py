"""What one peer may ask of its network, between real hosts on loopback."""

from __future__ import annotations

import hashlib

import pytest
import trio
from libp2p.pubsub import pubsub

from shoal.errors import ChannelClosed, DeadlineExceeded, LocalProtocolError, PortInUse, UsageError
from shoal.net.identity import Identity, verify
from shoal.net.libp2p import gossip
from shoal.net.network import Pipe
from shoal.types import PeerId
from tests.net.conftest import back_to_baseline, bootstrap, networks, opened, ping_once, port_of

KEY = hashlib.sha256(b"a model").digest()


def everything(_: PeerId, __: bytes) -> bool:
    return True


async def accepted(network) -> Pipe:
    async for pipe in network.accept_pipes():
        return pipe
    raise AssertionError("no pipe")


async def test_a_peer_signs_as_itself():
    identity = Identity.ephemeral()
    async with opened(identity=identity) as network:
        assert network.peer == identity.peer
        assert verify(network.peer, b"data", network.sign(b"data"))


async def test_addresses_are_fit_to_be_announced():
    async with opened() as network, opened(host="0.0.0.0") as everywhere:
        assert all(
            a.startswith("/ip4/127.0.0.1/tcp/") for a in network.address.libp2p + network.address.direct
        )
        assert everywhere.address.libp2p
        assert not any("0.0.0.0" in a for a in everywhere.address.libp2p + everywhere.address.direct)
        assert len({port_of(a) for a in network.address.libp2p + network.address.direct}) == 2


async def test_what_a_router_leads_here_is_announced_with_our_own_ports():
    led_here = (("20.0.9.9", 0), ("20.0.9.8", 9000))
    async with opened(forwarded=led_here) as network, opened(forwarded=led_here, listen=False) as client:
        address = network.address
        # Who joins begins with it; only what keeps its number is known to lead to the libp2p host.
        assert address.libp2p[0] == f"/ip4/20.0.9.9/tcp/{port_of(address.libp2p[1])}"
        assert len(address.libp2p) == 2
        public = (f"/ip4/20.0.9.9/tcp/{port_of(address.direct[0])}", "/ip4/20.0.9.8/tcp/9000")
        assert address.direct[1:] == public
        assert network.reach().nat == "none"
        assert client.address.direct == ()


async def test_a_peer_that_only_dials_announces_nothing():
    async with networks(None) as (a,), opened(listen=False) as client:
        assert client.address.libp2p == client.address.direct == ()
        assert await client.connect(bootstrap(a), deadline_s=5) == a.peer


async def test_connecting_tells_both_sides_who_is_there():
    async with networks(None, None) as (a, b):
        assert await b.connect(bootstrap(a), deadline_s=5) == a.peer
        assert await b.connect(bootstrap(a), deadline_s=5) == a.peer
        await trio.sleep(0.1)
        assert [(c.peer, c.path) for c in a.connections()] == [(b.peer, "direct")]
        assert [(c.peer, c.address) for c in b.connections()] == [(a.peer, a.address.libp2p[0])]


async def test_a_bad_bootstrap_address_is_a_usage_error():
    async with opened() as network:
        for text in ("", "/ip4/127.0.0.1/tcp/1", "/ip4/1/tcp/1/p2p/12D3", "nonsense/p2p/x", "/p2p/"):
            with pytest.raises(UsageError):
                await network.connect(text, deadline_s=1)


async def test_nobody_there_is_said_soon():
    async with networks(None) as (a,):
        gone = Identity.ephemeral().peer
        with pytest.raises(ChannelClosed):
            await a.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{gone}", deadline_s=5)
        with pytest.raises(ChannelClosed):
            await a.connect(f"{a.address.libp2p[0]}/p2p/{a.peer}", deadline_s=5)


async def test_somebody_else_at_an_address_is_not_the_peer():
    async with networks(None, None) as (a, b):
        with pytest.raises(ChannelClosed):
            await b.connect(f"{a.address.libp2p[0]}/p2p/{Identity.ephemeral().peer}", deadline_s=5)
        assert b.connections() == []


async def test_a_port_in_use_is_named():
    async with opened() as network:
        for setting, address in (("port", network.address.libp2p), ("direct_port", network.address.direct)):
            port = port_of(address[0])
            with pytest.raises(PortInUse, match=str(port)):
                async with opened(**{setting: port}):
                    pass


async def test_the_first_message_after_connecting_arrives():
    async with (
        networks(None, None) as (a, b),
        a.subscribe("t", everything) as heard,
        b.subscribe("t", everything),
    ):
        await b.connect(bootstrap(a), deadline_s=5)
        await b.publish("t", b"first")
        with trio.fail_after(15):
            assert await anext(heard) == (b.peer, b"first")


async def test_gossip_reaches_beyond_the_neighbours_and_never_ourselves():
    async with networks(None, None, None) as (a, b, c):
        await a.connect(bootstrap(b), deadline_s=5)
        await c.connect(bootstrap(b), deadline_s=5)
        async with (
            a.subscribe("t", everything) as at_a,
            b.subscribe("t", everything) as at_b,
            c.subscribe("t", everything) as at_c,
        ):
            await a.publish("t", b"one")
            with trio.fail_after(15):
                assert await anext(at_b) == (a.peer, b"one")
                assert await anext(at_c) == (a.peer, b"one")
            await c.publish("t", b"two")
            with trio.fail_after(15):
                assert await anext(at_a) == (c.peer, b"two")


async def test_what_a_validator_refuses_is_neither_delivered_nor_forwarded():
    async with networks(None, None, None) as (a, b, c):
        await a.connect(bootstrap(b), deadline_s=5)
        await c.connect(bootstrap(b), deadline_s=5)
        judged: list[tuple[PeerId, bytes]] = []

        def good(author: PeerId, data: bytes) -> bool:
            judged.append((author, data))
            return data == b"good"

        async with (
            a.subscribe("t", everything),
            b.subscribe("t", good) as at_b,
            c.subscribe("t", everything) as at_c,
        ):
            await trio.sleep(0.3)
            await a.publish("t", b"bad")
            await a.publish("t", b"good")
            with trio.fail_after(15):
                assert await anext(at_b) == (a.peer, b"good")
                assert await anext(at_c) == (a.peer, b"good")
        assert (a.peer, b"bad") in judged


async def test_a_neighbour_that_floods_has_few_signatures_checked_and_delays_nobody(monkeypatch):
    checked: list[int] = []
    monkeypatch.setattr(gossip, "CHECKED_PER_S", 10)
    monkeypatch.setattr(gossip, "CHECKED_AT_ONCE", 20)
    async with networks(None, None, None) as (a, b, c):
        await a.connect(bootstrap(b), deadline_s=5)
        await c.connect(bootstrap(b), deadline_s=5)
        real = pubsub.signature_validator
        monkeypatch.setattr(pubsub, "signature_validator", lambda msg: checked.append(1) or real(msg))
        async with (
            a.subscribe("t", everything),
            b.subscribe("t", everything) as at_b,
            c.subscribe("t", everything),
        ):
            await trio.sleep(0.3)
            began = trio.current_time()
            for number in range(300):
                await a.publish("t", b"%d" % number)
            await c.publish("t", b"honest")
            with trio.fail_after(25):
                async for author, data in at_b:
                    if (author, data) == (c.peer, b"honest"):
                        break
            took_s = trio.current_time() - began
    # Publishing checks its own, 301 of them; b checks some, and c what b has handed on.
    assert len(checked) <= 301 + 2 * (20 + 2 * 10 * (took_s + 1))


async def test_a_validator_that_fails_refuses():
    async with networks(None, None) as (a, b):

        def fails(_: PeerId, data: bytes) -> bool:
            if data == b"bad":
                raise ValueError("not expected")
            return True

        async with a.subscribe("t", fails) as heard, b.subscribe("t", everything):
            await b.connect(bootstrap(a), deadline_s=5)
            await b.publish("t", b"bad")
            await b.publish("t", b"good")
            with trio.fail_after(15):
                assert await anext(heard) == (b.peer, b"good")


async def test_the_newest_messages_are_kept_for_a_slow_listener():
    from shoal.net.libp2p.gossip import WAITING_LIMIT, Mailbox

    box = Mailbox(everything)
    for number in range(WAITING_LIMIT + 10):
        box.put(PeerId("p"), b"%d" % number)
    first = await anext(aiter(box.messages()))
    assert first == (PeerId("p"), b"10")


async def test_one_listener_for_a_topic():
    async with opened() as network, network.subscribe("t", everything):
        with pytest.raises(LocalProtocolError):
            async with network.subscribe("t", everything):
                pass


async def test_a_question_is_answered_once():
    async with networks(None, None) as (a, b):

        async def echo(peer: PeerId, body: bytes) -> bytes:
            return peer.encode() + body

        a.answer("/test/1", echo)
        await b.connect(bootstrap(a), deadline_s=5)
        assert await b.request(a.peer, "/test/1", b"?", deadline_s=5) == b.peer.encode() + b"?"
        big = bytes((1 << 20) - len(b.peer))
        assert await b.request(a.peer, "/test/1", big, deadline_s=10) == b.peer.encode() + big


async def test_a_question_that_gets_no_answer_says_why():
    async with networks(None, None) as (a, b):

        async def never(_: PeerId, __: bytes) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        async def too_long(_: PeerId, __: bytes) -> bytes:
            return bytes((1 << 20) + 1)

        a.answer("/never/1", never)
        a.answer("/long/1", too_long)
        await b.connect(bootstrap(a), deadline_s=5)
        with pytest.raises(DeadlineExceeded):
            await b.request(a.peer, "/never/1", b"", deadline_s=0.3)
        with pytest.raises(ChannelClosed):
            await b.request(a.peer, "/unknown/1", b"", deadline_s=5)
        with pytest.raises(LocalProtocolError):
            await b.request(a.peer, "/never/1", bytes((1 << 20) + 1), deadline_s=5)
        with pytest.raises(ChannelClosed):
            await b.request(Identity.ephemeral().peer, "/never/1", b"", deadline_s=5)
        with pytest.raises(ChannelClosed):
            await b.request(PeerId("no peer id"), "/never/1", b"", deadline_s=5)
        with pytest.raises(ChannelClosed):
            await b.request(a.peer, "/long/1", b"", deadline_s=5)


async def test_ping_gives_the_round_trip():
    async with networks(None, None) as (a, b):
        await b.connect(bootstrap(a), deadline_s=5)
        await ping_once(b, a.peer)
        await ping_once(a, b.peer)
        with pytest.raises(ChannelClosed):
            await a.ping(Identity.ephemeral().peer, deadline_s=1)


async def test_who_provides_a_key_is_found_through_a_third_peer():
    async with networks(None, None, None) as (a, b, c):
        await a.connect(bootstrap(b), deadline_s=5)
        await c.connect(bootstrap(b), deadline_s=5)
        await trio.sleep(0.5)
        assert await c.find_providers(KEY, deadline_s=3) == []
        await a.provide(KEY)
        await trio.sleep(0.2)
        found = await c.find_providers(KEY, deadline_s=5)
        assert [(p.peer, p.libp2p) for p in found] == [(a.peer, a.address.libp2p)]
        with pytest.raises(LocalProtocolError):
            await a.provide(b"short")


async def test_a_network_leaves_nothing_behind():
    async with networks(None) as (warm,):  # what the libraries open once for good
        await warm.find_providers(KEY, deadline_s=1)
    async with back_to_baseline(), networks(None, None, None) as (a, b, c):
        await b.connect(bootstrap(a), deadline_s=5)
        await c.connect(bootstrap(a), deadline_s=5)
        await b.open_pipe(a.address, deadline_s=5)
        async with a.subscribe("t", everything), b.subscribe("t", everything):
            await b.publish("t", b"x")


async def test_a_peer_that_left_is_no_longer_connected():
    async with networks(None) as (a,):
        async with opened() as b:
            await b.connect(bootstrap(a), deadline_s=5)
        with trio.fail_after(15):
            while a.connections():  # noqa: ASYNC110
                await trio.sleep(0.05)
