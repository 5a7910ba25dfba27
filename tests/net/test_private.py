"""A private swarm: members reach each other, a stranger is refused everywhere and learns nobody's name."""

from __future__ import annotations

import base58
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ChannelClosed, LocalProtocolError, NotAllowed
from shoal.net.libp2p.private_network import lan_key, noise_key, pnet_key, xsalsa20
from tests.net.conftest import OTHER_SECRET, SECRET, bootstrap, networks, only, ping_once, port_of

STRANGERS = pytest.mark.parametrize("stranger", [None, OTHER_SECRET], ids=["public", "other secret"])


async def test_members_use_every_protocol():
    async with networks(SECRET, SECRET) as (a, b):

        async def echo(_: str, body: bytes) -> bytes:
            return body

        a.answer("/test/1", echo)
        async with a.subscribe("t", lambda _, __: True) as heard, b.subscribe("t", lambda _, __: True):
            await b.connect(bootstrap(a), deadline_s=5)
            await b.publish("t", b"hello")
            with trio.fail_after(15):
                assert await anext(heard) == (b.peer, b"hello")
        assert await b.request(a.peer, "/test/1", b"?", deadline_s=5) == b"?"
        await ping_once(b, a.peer)
        await a.provide(bytes(32))
        assert [p.peer for p in await b.find_providers(bytes(32), deadline_s=5)] == [a.peer]


@STRANGERS
async def test_a_stranger_is_refused_on_the_libp2p_port(stranger: bytes | None):
    async with networks(SECRET, stranger) as (member, outside):
        with trio.fail_after(8), pytest.raises(NotAllowed):
            await outside.connect(bootstrap(member), deadline_s=6)
        with trio.fail_after(8), pytest.raises((NotAllowed, ChannelClosed)):
            await member.connect(bootstrap(outside), deadline_s=6)
        assert member.connections() == outside.connections() == []


@STRANGERS
async def test_a_stranger_is_refused_on_the_direct_port(stranger: bytes | None):
    async with networks(SECRET, stranger) as (member, outside):
        with trio.fail_after(8), pytest.raises((ChannelClosed, NotAllowed)):
            await outside.open_pipe(only(member.address, "direct"), deadline_s=6)
        with trio.fail_after(8), pytest.raises((ChannelClosed, NotAllowed)):
            await member.open_pipe(only(outside.address, "direct"), deadline_s=6)


@pytest.mark.parametrize("kind", ["libp2p", "direct"])
@pytest.mark.parametrize(
    "hello",
    [b"", b"\x13/multistream/1.0.0\n\x07/noise\n", bytes(24), b"\x00\x20" + bytes(32), bytes(range(256)) * 8],
    ids=["silence", "multistream", "zeros", "noise", "garbage"],
)
async def test_a_port_tells_a_stranger_nothing(kind: str, hello: bytes):
    async with networks(SECRET) as (member,):
        port = port_of(getattr(member.address, kind)[0])
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        heard = b""
        with trio.move_on_after(0.4):
            if hello:
                await stream.send_all(hello)
            try:
                while part := await stream.receive_some():
                    heard += part
            except trio.BrokenResourceError:
                pass
        await stream.aclose()
        for telling in (
            member.peer.encode(),
            base58.b58decode(member.peer)[6:],
            b"multistream",
            b"noise",
            b"shoal",
        ):
            assert telling not in heard
        assert len(heard) <= (64 if kind == "libp2p" else 0)  # a nonce and sealed bytes; a closed door


def test_each_use_of_the_secret_has_a_key_of_its_own():
    keys = {make(secret) for make in (pnet_key, noise_key, lan_key) for secret in (SECRET, OTHER_SECRET)}
    assert len(keys) == 6
    assert {len(key) for key in keys} == {32}


def test_xsalsa20_is_the_one_of_nacl():
    # The stream of "Cryptography in NaCl" (Bernstein 2009), section 10, tests/stream3.c: its first 32 bytes.
    key = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
    nonce = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
    stream = xsalsa20(key, nonce).encrypt(bytes(32))
    assert stream.hex() == "eea6a7251c1e72916d11c2cb214d3c252539121d8e234e652d651fa4c8cff880"


@given(st.binary(max_size=2000), st.integers(min_value=0, max_value=2000))
@settings(max_examples=25, deadline=None)
def test_xsalsa20_goes_on_where_it_stopped(data: bytes, cut: int):
    key, nonce = bytes(32), bytes(24)
    whole, parts = xsalsa20(key, nonce), xsalsa20(key, nonce)
    assert whole.encrypt(data) == parts.encrypt(data[:cut]) + parts.encrypt(data[cut:])


def test_xsalsa20_refuses_other_sizes():
    for key, nonce in ((bytes(31), bytes(24)), (bytes(32), bytes(8))):
        with pytest.raises(LocalProtocolError):
            xsalsa20(key, nonce)
