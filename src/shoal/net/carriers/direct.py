"""The direct carrier: libp2p's Noise over a plain TCP stream, dialled and accepted.

The handshake is libp2p's own (https://github.com/libp2p/specs/blob/master/noise/README.md) and binds the
peer id. What follows it is :mod:`shoal.net.carriers.direct_pipe`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID

from shoal.errors import ChannelClosed
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.handshakes import HANDSHAKE_WITHIN_S, Handshakes, Ticket
from shoal.net.identity import Identity
from shoal.net.libp2p.private_network import SwarmNoise
from shoal.net.libp2p.tcp import BoundedTcpStream, EarlyHangUp, accept_in_turn, listen_on, tuned
from shoal.types import PeerId

FIRST_MESSAGE = 2 + 32
"""Bytes of the shortest first message: its length, and an ephemeral key."""
PIPES_LIMIT = 1280
"""Pipes that others hold open to us: more than the pool keeps, so that the pool says who must go."""


class DirectCarrier:
    """Dials and accepts direct pipes for one identity in one swarm."""

    def __init__(self, identity: Identity, secret: bytes | None) -> None:
        self._transport = SwarmNoise(create_new_key_pair(identity.seed), create_noise_key_pair().private_key)
        self._transport.secret = secret
        self._handshakes = Handshakes(FIRST_MESSAGE)
        self._accepted = 0

    async def dial(self, host: str, port: int, peer: PeerId) -> DirectPipe:
        """A pipe to ``peer``, who must be the one that answers there.

        Raises:
            ChannelClosed: nobody answers, or somebody else does, or he refuses the handshake.
        """
        try:
            expected = ID.from_base58(peer)
            stream = tuned(await trio.open_tcp_stream(host, port))
        except (OSError, ValueError) as error:
            raise ChannelClosed(f"nobody answers at {host}:{port} ({error})") from error
        raw = RawConnection(BoundedTcpStream(stream), initiator=True)
        with trio.move_on_after(HANDSHAKE_WITHIN_S):
            pipe = await _handshake(stream, self._transport.secure_outbound(raw, expected))
            if pipe.peer == peer:
                return pipe
            await pipe.aclose()
            raise ChannelClosed(f"somebody else answers at {host}:{port}")
        raise ChannelClosed(f"no handshake with {host}:{port} within {HANDSHAKE_WITHIN_S:.0f} s")

    async def listen(
        self,
        host: str,
        port: int,
        *,
        task_status: trio.TaskStatus[int],
        take: Callable[[DirectPipe], Awaitable[None]],
    ) -> None:
        """Accept pipes until cancelled. Started with the port that it listens on.

        Raises:
            PortInUse: another program has the port.
        """
        listener = await listen_on(host, port)

        async def accept(stream: trio.SocketStream, ticket: Ticket) -> None:
            pipe = await self._accept(stream, ticket)
            if pipe is None:
                return
            self._accepted += 1
            try:
                await take(pipe)
                await pipe.closed.wait()
            finally:
                self._accepted -= 1
                await pipe.aclose()

        task_status.started(listener.socket.getsockname()[1])
        await accept_in_turn(listener, self._handshakes, accept)

    async def _accept(self, stream: trio.SocketStream, ticket: Ticket) -> DirectPipe | None:
        """The pipe, or none when there is no room or no handshake."""
        with self._handshakes.handshake(ticket):
            if self._accepted < PIPES_LIMIT:
                raw = RawConnection(BoundedTcpStream(stream), initiator=False)
                with suppress(ChannelClosed):  # a stranger, or noise: nothing of ours is touched
                    return await _handshake(stream, self._transport.secure_inbound(raw))
        await trio.aclose_forcefully(stream)
        return None


async def _handshake(stream: trio.SocketStream, handshake: Awaitable[Any]) -> DirectPipe:
    try:
        session = await handshake
    except EarlyHangUp as error:
        await trio.aclose_forcefully(stream)
        raise ChannelClosed("the peer hung up: it may be busy") from error
    except Exception as error:
        # What garbage does to the handshake is not listed by the library: parse errors of protobuf, of
        # keys, of Noise. All of them mean that no pipe came about.
        await trio.aclose_forcefully(stream)
        raise ChannelClosed(f"the handshake failed: {type(error).__name__}") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return DirectPipe(stream, session.conn.noise_state, PeerId(str(session.remote_peer)))
