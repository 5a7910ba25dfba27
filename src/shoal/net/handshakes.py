"""Handshakes of accepted connections, in the order and number that a :class:`HandshakeBacklog` allows."""

from __future__ import annotations

import math
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from shoal.net.addresses import to_multiaddr
from shoal.net.handshake_backlog import HandshakeBacklog

FIRST_WITHIN_S = 5.0
"""How long a connection may take until its first message, and its turn, have come."""
HANDSHAKE_WITHIN_S = 5.0


@dataclass(eq=False)
class Ticket:
    """A connection whose peer has not shown its key yet."""

    host: str
    turn: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """What its task is doing now."""
    evicted: bool = False

    def evict(self) -> None:
        """It ends, for others."""
        self.evicted = True
        self.scope.cancel()


class Handshakes:
    """Those of the listeners of one port. ``run`` must be running.

    Args:
        first_message: bytes of the shortest first message. A connection that has not sent so many is silent.
    """

    def __init__(self, first_message: int, backlog: HandshakeBacklog[Ticket] | None = None) -> None:
        self.first_message = first_message
        self._backlog = backlog or HandshakeBacklog[Ticket]()
        self._wanted = trio.Event()

    def __len__(self) -> int:
        return len(self._backlog)

    async def run(self) -> None:
        """Let handshakes begin, as many as may."""
        while True:
            while True:
                begins, ends = self._backlog.begin(trio.current_time())
                if ends is not None:
                    ends.evict()
                if begins is None:
                    break
                begins.turn.set()
            # One event for all who wait: each listener of a host runs this.
            self._wanted = trio.Event() if self._wanted.is_set() else self._wanted
            wait_s = self._backlog.next_s(trio.current_time())
            with trio.move_on_after(math.inf if wait_s is None else wait_s):
                await self._wanted.wait()

    async def wait_turn(self, stream: trio.SocketStream) -> Ticket | None:
        """A ticket for ``handshake`` once the peer has begun and it is its turn.

        ``None`` when it says nothing in time, hangs up, or makes room for others; the stream is left open.
        """
        ticket = Ticket(host_of(stream.socket))
        evicted = self._backlog.arrive(ticket, ticket.host)
        if evicted is not None:
            evicted.evict()
        ticket.scope.deadline = trio.current_time() + FIRST_WITHIN_S
        turn = False
        try:
            with ticket.scope:
                if await self._spoken(stream.socket):
                    self._backlog.speak(ticket, ticket.host)
                    self._wanted.set()
                    await ticket.turn.wait()
                    turn = True
                    return ticket
            return None
        finally:
            if not turn:  # also where the system refuses what we ask of a socket that is gone already
                self._backlog.leave(ticket)

    @contextmanager
    def handshake(self, ticket: Ticket) -> Generator[trio.CancelScope]:
        """The block in which it runs; ended when it takes too long, or others need its place."""
        try:
            with trio.move_on_after(HANDSHAKE_WITHIN_S) as ticket.scope:
                if ticket.evicted:
                    ticket.scope.cancel()
                yield ticket.scope
        finally:
            self._backlog.leave(ticket)

    async def _spoken(self, raw: trio.socket.SocketType) -> bool:
        """Wait for the first message without taking it; whether it came before the peer hung up."""
        # Readable only once the whole first message is there: one byte is no sign of a peer.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self.first_message)
        await trio.lowlevel.wait_readable(raw)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        try:
            return len(await raw.recv(self.first_message, socket.MSG_PEEK)) >= self.first_message
        except OSError:
            return False


def host_of(raw: trio.socket.SocketType) -> str:
    """The address at the other end; empty if it is gone already."""
    try:
        return str(raw.getpeername()[0])
    except OSError:
        return ""


def multiaddr_of_peer(raw: trio.socket.SocketType) -> str:
    """The multiaddr at the other end; empty if it is gone already."""
    try:
        host, port = raw.getpeername()[:2]
    except OSError:
        return ""
    return to_multiaddr(host.removeprefix("::ffff:"), port)
