"""The direct carrier: libp2p's Noise over a plain TCP stream, dialled and accepted.

The handshake is libp2p's own (https://github.com/libp2p/specs/blob/master/noise/README.md) and binds the
peer id. What follows it is :mod:`shoal.net.carriers.direct_pipe`. The port takes two more kinds of
connection, told apart by their first bytes (:mod:`shoal.net.reach.openings`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID

from shoal.errors import ChannelClosed
from shoal.net.addresses import is_private
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.handshakes import HANDSHAKE_WITHIN_S, Handshakes, Ticket, host_of
from shoal.net.identity import Identity
from shoal.net.libp2p.private_network import SwarmNoise
from shoal.net.libp2p.tcp import BoundedTcpStream, EarlyHangUp, accept_in_turn, listen_on_all
from shoal.net.reach.openings import CONTROL, TOKEN, peek_opening, read_token
from shoal.net.reach.ports import dial_from, leave_no_trace, share_port
from shoal.types import PeerId, Way

FIRST_MESSAGE = 2 + 32
"""Bytes of the shortest first message: its length, and an ephemeral key."""
DIALLED_AGAIN_S = 0.4
"""When a dial from our own port is begun anew: sooner than the system sends its first packet again."""
PIPES_LIMIT = 1280
"""Pipes that others hold open to us: more than the pool keeps, so that the pool says who must go."""


class DirectGuests(Protocol):
    """Who takes what comes to the direct carrier's port. Each returns when the connection has ended."""

    async def take_pipe(self, pipe: DirectPipe) -> None:
        """A pipe that a peer opens to us."""
        ...

    async def take_control(self, pipe: DirectPipe, seen: str) -> None:
        """A control connection to us as a relay, of a peer that comes from ``seen``."""
        ...

    async def take_token(self, token: bytes, stream: trio.SocketStream) -> None:
        """A connection of somebody who has shown nothing but ``token``; it is the taker's to close."""
        ...


class DirectCarrier:
    """Dials and accepts direct pipes for one identity in one swarm.

    Args:
        noise: our static key of the handshakes; by default a new one.
    """

    def __init__(self, identity: Identity, secret: bytes | None, noise: KeyPair | None = None) -> None:
        self.peer = identity.peer
        noise_key = (noise or create_noise_key_pair()).private_key
        self._transport = SwarmNoise(create_new_key_pair(identity.seed), noise_key)
        self._transport.secret = secret
        self._handshakes = Handshakes(FIRST_MESSAGE)
        self._accepted = 0
        self.ends: tuple[tuple[str, int], ...] = ()
        """The hosts and ports that we listen on, or hold, and can dial from: one of each IP version."""

    async def dial(self, host: str, port: int, peer: PeerId, way: Way = "public") -> DirectPipe:
        """A pipe to ``peer``, who must be the one that answers there.

        Raises:
            ChannelClosed: nobody answers, or somebody else does, or he refuses the handshake.
        """
        return await self._dialled(host, port, peer, way, b"", None)

    async def dial_control(
        self, host: str, port: int, relay: PeerId, local: tuple[str, int] | None
    ) -> DirectPipe:
        """A control connection to a relay, from the local address if that can be. Raises as :meth:`dial`."""
        return await self._dialled(host, port, relay, "public", CONTROL, local)

    async def _dialled(
        self, host: str, port: int, peer: PeerId, way: Way, opening: bytes, local: tuple[str, int] | None
    ) -> DirectPipe:
        try:
            stream = await dial_from(local, host, port, DIALLED_AGAIN_S)
            if opening:
                leave_no_trace(stream.socket)  # or the next to this relay could not come from our port
                await stream.send_all(opening)
        except (OSError, trio.BrokenResourceError) as error:
            raise ChannelClosed(f"nobody answers at {host}:{port} ({error})") from error
        with trio.move_on_after(HANDSHAKE_WITHIN_S):
            try:
                return await self.initiate(stream, peer, way)
            except SomebodyElse as error:
                raise ChannelClosed(f"somebody else answers at {host}:{port}") from error
        raise ChannelClosed(f"no handshake with {host}:{port} within {HANDSHAKE_WITHIN_S:.0f} s")

    async def initiate(self, stream: trio.SocketStream, peer: PeerId, way: Way) -> DirectPipe:
        """A pipe over a connection that there is, as the initiator of the handshake. It owns the connection.

        Raises:
            SomebodyElse: the other end is not ``peer``.
            ChannelClosed: the other end refuses the handshake, or is gone.
        """
        try:
            expected = ID.from_base58(peer)
        except ValueError as error:
            await trio.aclose_forcefully(stream)
            raise ChannelClosed(f"{peer!r} is no peer id") from error
        raw = RawConnection(BoundedTcpStream(stream), initiator=True)
        pipe = await _handshake(stream, self._transport.secure_outbound(raw, expected), way)
        if pipe.peer != peer:
            await pipe.aclose()
            raise SomebodyElse(f"somebody else than {peer} is at the other end")
        return pipe

    async def respond(self, stream: trio.SocketStream, peer: PeerId, way: Way) -> DirectPipe:
        """As :meth:`initiate`, as the responder."""
        raw = RawConnection(BoundedTcpStream(stream), initiator=False)
        pipe = await _handshake(stream, self._transport.secure_inbound(raw), way)
        if pipe.peer != peer:
            await pipe.aclose()
            raise SomebodyElse(f"somebody else than {peer} is at the other end")
        return pipe

    async def listen(
        self,
        hosts: Sequence[str],
        port: int,
        *,
        task_status: trio.TaskStatus[tuple[tuple[str, int], ...]],
        guests: DirectGuests,
    ) -> None:
        """Accept connections until cancelled. Started with the hosts and the port that it listens on.

        Raises:
            PortInUse: another program has the port.
        """
        listeners = await listen_on_all(hosts, port)
        for listener in listeners:
            share_port(listener.socket)

        async def accept(stream: trio.SocketStream, ticket: Ticket) -> None:
            token, pipe, control = b"", None, False
            # A stranger, or noise: nothing of ours is touched.
            with self._handshakes.handshake(ticket), suppress(ChannelClosed):
                opening = await peek_opening(stream)
                control = opening == CONTROL
                if opening == TOKEN:
                    token = await read_token(stream)
                elif control or self._accepted < PIPES_LIMIT:
                    pipe = await self._accept(stream, control)
            if token:
                await guests.take_token(token, stream)
            elif pipe is None:
                await trio.aclose_forcefully(stream)
            else:
                await self._hand_over(pipe, control, guests)

        found = int(listeners[0].socket.getsockname()[1])
        self.ends = tuple((host, found) for host in hosts)
        task_status.started(self.ends)
        await accept_in_turn(listeners, self._handshakes, accept)

    async def _accept(self, stream: trio.SocketStream, control: bool) -> DirectPipe:
        """Raises ChannelClosed: no handshake comes about."""
        if control:
            await stream.receive_some(len(CONTROL))  # has come: it was peeked at
        raw = RawConnection(BoundedTcpStream(stream), initiator=False)
        way = "lan" if is_private(host_of(stream.socket)) else "public"
        return await _handshake(stream, self._transport.secure_inbound(raw), way)

    async def _hand_over(self, pipe: DirectPipe, control: bool, guests: DirectGuests) -> None:
        if control:
            await guests.take_control(pipe, pipe.remote)
            return
        self._accepted += 1
        try:
            await guests.take_pipe(pipe)
            await pipe.closed.wait()
        finally:
            self._accepted -= 1
            await pipe.aclose()


class SomebodyElse(ChannelClosed):
    """The other end has another key than the peer that was meant."""


async def _handshake(stream: trio.SocketStream, handshake: Awaitable[Any], way: Way) -> DirectPipe:
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
    key = session.remote_permanent_pubkey.to_bytes()
    return DirectPipe(stream, session.conn.noise_state, PeerId(str(session.remote_peer)), way, key)
