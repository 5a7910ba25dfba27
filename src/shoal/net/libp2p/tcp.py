"""TCP under the libp2p host: py-libp2p's transport with what it lacks for peers that nobody trusts.

py-libp2p 0.8 listens with SO_REUSEPORT, so that a second node on a taken port starts without an error and
steals half of the connections; it leaves Nagle's algorithm on; it dials whatever address anybody names;
it reads as many bytes at once as a stranger's length asks for;
and an error out of its accept loop ends the whole trio run, because it runs as a system task.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import trio
from libp2p.abc import IListener, IRawConnection
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from shoal.errors import PortInUse
from shoal.net.addresses import host_and_port, to_multiaddr
from shoal.net.dialable import LocalNetworks
from shoal.net.handshakes import Handshakes, Ticket

BACKLOG = 256
READ = 1 << 16
PORTS_TRIED = 4
"""Free ports of one host that may be taken on another before it is an error."""
OUT_OF_DESCRIPTORS_S = 0.1
"""How long accepting pauses when this process has no descriptor left."""

log = logging.getLogger(__name__)

StreamHandler = Callable[[trio.SocketStream], Awaitable[None]]


async def listen_on(host: str, port: int) -> trio.SocketListener:
    """A listener on this port that nobody else has.

    Raises:
        PortInUse: the port is taken, or this machine has no such address.
    """
    try:
        (listener,) = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as error:
        raise PortInUse(
            f"port {port} on {host} cannot be listened on: {error.strerror or error}",
            check="find out which program uses it, or choose another port; 0 picks a free one",
            next_command="shoal doctor",
        ) from error
    return listener


async def listen_on_all(hosts: Sequence[str], port: int) -> list[trio.SocketListener]:
    """Listeners on the same port of several hosts; 0 takes one that is free on all of them.

    Raises:
        PortInUse: as :func:`listen_on`.
    """
    for _ in range(0 if port else PORTS_TRIED - 1):
        with suppress(PortInUse):
            return await _listen_on_all(hosts, port)
    return await _listen_on_all(hosts, port)


async def _listen_on_all(hosts: Sequence[str], port: int) -> list[trio.SocketListener]:
    with ExitStack() as opened:
        listeners: list[trio.SocketListener] = []
        for host in hosts:
            found = int(listeners[0].socket.getsockname()[1]) if listeners else port
            listeners.append(await listen_on(host, found))
            opened.callback(listeners[-1].socket.close)
        opened.pop_all()
    return listeners


async def accept_in_turn(
    listeners: Sequence[trio.SocketListener],
    handshakes: Handshakes,
    take: Callable[[trio.SocketStream, Ticket], Awaitable[None]],
) -> None:
    """As :func:`accept_forever`, but each connection when its peer has begun and it is its turn."""

    async def in_turn(stream: trio.SocketStream) -> None:
        ticket = await handshakes.wait_turn(stream)
        if ticket is None:
            await trio.aclose_forcefully(stream)
        else:
            await take(stream, ticket)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handshakes.run)
        for listener in listeners:
            nursery.start_soon(accept_forever, listener, in_turn)


async def accept_forever(listener: trio.SocketListener, take: StreamHandler) -> None:
    """Hand every connection to ``take``, each in a task of its own, until cancelled.

    ``take`` owns the stream it is given. What it raises ends that connection and nothing else.
    """

    async def guarded(stream: trio.SocketStream) -> None:
        try:
            await take(stream)
        except Exception as error:  # noqa: BLE001  a stranger's connection must not end ours; see above
            log.debug("a connection failed: %r", error)
            await trio.aclose_forcefully(stream)

    async with listener, trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except OSError:
                # The connection stays in the kernel's queue, so without a pause this loop would take a core.
                await trio.sleep(OUT_OF_DESCRIPTORS_S)
                continue
            nursery.start_soon(guarded, tuned(stream))


def tuned(stream: trio.SocketStream) -> trio.SocketStream:
    """The stream, without Nagle's algorithm: a decode step is one small message and must leave at once."""
    with suppress(OSError):  # the peer may have gone already; the next read will say so
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


class EarlyHangUp(ConnectionClosedError):
    """The peer closed the connection before it said a word: it is busy, or takes no connections."""


class BoundedTcpStream(TrioTCPStream):
    """A TCP stream that allocates no more than ``READ`` for one read, whatever length was announced.

    Args:
        ticket: of a connection that was accepted, for its handshake.
    """

    def __init__(self, stream: trio.SocketStream, ticket: Ticket | None = None) -> None:
        super().__init__(stream)
        self.ticket = ticket
        self._heard = False

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes, and up to ``READ``.

        Raises:
            EarlyHangUp: the peer has closed and had said nothing.
        """
        data = await super().read(READ if n is None else min(n, READ))
        if not data and n != 0 and not self._heard:
            raise EarlyHangUp("the peer hung up before it said a word")
        self._heard = True
        return data


class GuardedTCP(TCP):
    """Dials only what :class:`shoal.net.dialable.LocalNetworks` allows, or what our own user named."""

    def __init__(self, handshakes: Handshakes) -> None:
        super().__init__()
        self.handshakes = handshakes
        self.nearby = LocalNetworks()
        """The networks that we are on; nothing but the open internet before we know."""
        self.announced: tuple[str, ...] = ()
        """Where we listen, as others can dial it."""
        self._named: dict[str, int] = {}

    @contextmanager
    def named(self, multiaddr: str) -> Generator[None]:
        """Allow this address while the block runs: the user gave it, not a peer."""
        # Counted: two may join through one address at once.
        self._named[multiaddr] = self._named.get(multiaddr, 0) + 1
        self.nearby = self.nearby.joined_through(multiaddr)
        try:
            yield
        finally:
            self._named[multiaddr] -= 1
            if not self._named[multiaddr]:
                del self._named[multiaddr]

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """As the base class, within the rule above.

        Raises:
            OpenConnectionError: nobody answers, or the address may not be dialled.
        """
        address = str(maddr).partition("/p2p/")[0]
        if address not in self._named and not self.nearby.dialable(address):
            raise OpenConnectionError(f"{address} was announced by a peer and is not an address to dial")
        raw: Any = await super().dial(maddr)
        return RawConnection(BoundedTcpStream(tuned(raw.stream.stream)), initiator=True)

    def create_listener(self, handler_function: Any) -> Listener:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A listener of ours instead of the library's."""
        return Listener(handler_function, self.handshakes)


class Listener(IListener):
    """Accepts connections for the libp2p host in the nursery that the host gives."""

    background_nursery: trio.Nursery
    """Set by the library before it calls ``listen``."""

    def __init__(self, handler: Callable[[ReadWriteCloser], Awaitable[None]], handshakes: Handshakes) -> None:
        self._handler = handler
        self._handshakes = handshakes
        self._listener: trio.SocketListener | None = None
        self._scope = trio.CancelScope()
        self._done = trio.Event()
        self._done.set()

    async def listen(self, maddr: Multiaddr) -> None:
        """Start to listen.

        Raises:
            OpenConnectionError: the port is taken. The library swallows it and goes on without a listener;
                whoever starts the host checks that there is one.
        """
        host, port = host_and_port(str(maddr), listening=True) or ("", 0)
        try:
            self._listener = await listen_on(host, port)
        except PortInUse as error:
            raise OpenConnectionError(error.message) from error
        self._done = trio.Event()
        self.background_nursery.start_soon(self._run, self._listener)

    async def _run(self, listener: trio.SocketListener) -> None:
        try:
            with self._scope:
                await accept_in_turn([listener], self._handshakes, self._take)
        finally:
            self._done.set()

    async def _take(self, stream: trio.SocketStream, ticket: Ticket) -> None:
        await self._handler(BoundedTcpStream(stream, ticket))

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """The address listened on, with the port that was found."""
        if self._listener is None:
            return ()
        host, port = self._listener.socket.getsockname()[:2]
        return (Multiaddr(to_multiaddr(host, port)),)

    async def close(self) -> None:
        """Stop, and close every connection that is still under way to being accepted."""
        self._scope.cancel()
        await self._done.wait()
        self._listener = None
