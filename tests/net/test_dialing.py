"""Why a peer could not be dialled: told by the types of the library's errors, whatever their texts say.

A contract with the installed py-libp2p: real connections fail here, in each of the ways that we tell apart.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import trio
from libp2p.connection_types import ConnectionType

from shoal.errors import ChannelClosed, NotAllowed
from shoal.net.identity import Identity
from shoal.net.libp2p.dialing import carrier_of, path_of
from tests.net.conftest import OTHER_SECRET, SECRET, bootstrap, networks

SOMEBODY = Identity.ephemeral().peer


@asynccontextmanager
async def server(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[str]:
    """A TCP server on loopback, as a bootstrap address of ``SOMEBODY``."""
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{SOMEBODY}"
        nursery.cancel_scope.cancel()


async def hang_up(stream: trio.SocketStream) -> None:
    await stream.aclose()


async def speak_http(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await stream.aclose()


async def speak_no_text(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"\x04\x8f\xfe\xff\n")
    await stream.receive_some()


@pytest.mark.parametrize("secrets", [(SECRET, OTHER_SECRET), (SECRET, None), (None, SECRET)])
async def test_a_peer_of_another_swarm_refuses_us(secrets: tuple[bytes | None, bytes | None]):
    async with networks(*secrets) as (we, they):
        with pytest.raises(NotAllowed, match=r"another swarm|private swarm") as refused:
            await we.connect(bootstrap(they), deadline_s=6)
        assert refused.value.next_command == "shoal join"


async def test_a_message_that_is_no_text_is_another_swarms_too():
    async with networks(None) as (we,), server(speak_no_text) as address:
        with pytest.raises(NotAllowed, match="private swarm"):
            await we.connect(address, deadline_s=6)


@pytest.mark.parametrize("secret", [None, SECRET], ids=["public", "private"])
async def test_another_key_than_the_address_names_is_somebody_else(secret: bytes | None):
    async with networks(secret, secret) as (we, they):
        with pytest.raises(ChannelClosed, match=f"somebody else than {SOMEBODY}"):
            await we.connect(f"{they.address.libp2p[0]}/p2p/{SOMEBODY}", deadline_s=6)


@pytest.mark.parametrize("secret", [None, SECRET], ids=["public", "private"])
async def test_a_port_that_hangs_up_may_be_busy(secret: bytes | None):
    async with networks(secret) as (we,), server(hang_up) as address:
        with pytest.raises(ChannelClosed, match="it may be busy"):
            await we.connect(address, deadline_s=6)


@pytest.mark.parametrize("secret", [None, SECRET], ids=["public", "private"])
async def test_a_port_that_speaks_something_else_refuses_us(secret: bytes | None):
    async with networks(secret) as (we,), server(speak_http) as address:
        with pytest.raises(NotAllowed):
            await we.connect(address, deadline_s=6)


@pytest.mark.parametrize(
    "host", ["/ip4/127.0.0.1", "/dns4/handshake.invalid", "/dns4/negotiate.mismatch.invalid"]
)
async def test_nobody_at_an_address_is_no_refusal_whatever_the_address_says(host: str):
    async with networks(None) as (we,):
        with pytest.raises(ChannelClosed) as failed:
            await we.connect(f"{host}/tcp/1/p2p/{SOMEBODY}", deadline_s=6)
        assert "somebody else" not in failed.value.message


def test_only_a_relayed_connection_is_called_relayed():
    paths = {
        kind: path_of(SimpleNamespace(get_connection_type=lambda kind=kind: kind)) for kind in ConnectionType
    }
    assert {kind for kind, path in paths.items() if path == "relayed"} == {ConnectionType.RELAYED}
    assert paths[ConnectionType.DIRECT] == "direct"


def test_a_stream_says_over_which_carrier_it_goes():
    connection = SimpleNamespace(get_connection_type=lambda: ConnectionType.RELAYED)
    assert carrier_of(SimpleNamespace(swarm_conn=connection)) == "relayed"
    assert carrier_of(SimpleNamespace(swarm_conn=None)) == "libp2p-stream"
