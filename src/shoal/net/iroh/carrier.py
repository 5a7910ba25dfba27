"""Pipes over iroh: QUIC over UDP, from peer to peer where that goes, else over a relay that the user named.

Our own key is the endpoint's, so whoever is dialled by a peer id is that peer. On the one stream of each
connection goes what goes over a direct connection: libp2p's Noise, with the swarm's secret, and its records.
So a pipe over iroh is a :class:`~shoal.net.carriers.direct_pipe.DirectPipe` whose socket leads to a stream.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import trio

from shoal.errors import ChannelClosed, PortInUse
from shoal.net.addresses import EVERYWHERE, listening_hosts, to_socket
from shoal.net.carriers.direct import DirectCarrier
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.handshakes import HANDSHAKE_WITHIN_S
from shoal.net.identity import Identity, peer_of, public_key
from shoal.net.iroh.library import (
    FAILURES,
    BiStream,
    Connection,
    Endpoint,
    EndpointAddr,
    EndpointBuilder,
    EndpointId,
    Incoming,
    RecvStream,
    RelayMode,
    came_from,
    said,
)
from shoal.net.reach.iroh_addresses import IrohTarget, iroh_addresses
from shoal.types import PeerId

log = logging.getLogger(__name__)
ALPN = b"/shoal/pipe/1.0.0"
DIALLED_WITHIN_S = 10.0
CLOSED_WITHIN_S = 3.0
ARRIVES_WITHIN_S = 5.0
"""How long the end of a pipe waits until the peer has all that was sent."""
TAKEN_WITHIN_S = 60.0
"""How long a peer may take nothing of what is sent. Silence ends a channel sooner: this is for what waits
here when its pipe has ended already."""
READ = 1 << 16
RECEIVE_WINDOW = 1 << 21
"""Bytes of one connection that wait here unread at most."""
PIPES_LIMIT = 256
"""Pipes that others hold open to us."""
PIPES_PER_PEER = 8
"""Those of one peer: as many channels as the pool keeps of one."""
HANDSHAKES_LIMIT = 32
"""Connections that have not come so far; from half of it on each must show first that its address is true."""
HANDSHAKES_PER_HOST = 8
"""Those from one address, or through one relay; likewise: so nobody keeps a host out by sending as it."""

TakePipe = Callable[[DirectPipe], Awaitable[None]]


class IrohCarrier:
    """Dials and accepts pipes over iroh for one identity. ``run`` must be running.

    Args:
        carrier: makes pipes of connections.
        hosts: the interfaces to be on, as ``shoal.net.addresses.listening_hosts`` gives them.
        port: the UDP port; 0 takes a free one.
        relays: the URLs of the only relays that are ever spoken to, by what announces each.
    """

    def __init__(
        self,
        identity: Identity,
        carrier: DirectCarrier,
        hosts: Sequence[str],
        port: int,
        relays: Mapping[str, str],
    ) -> None:
        self._identity = identity
        self._carrier = carrier
        self._hosts = hosts
        self._port = port
        self.relays = relays
        self._endpoint: Endpoint | None = None
        self._nursery: trio.Nursery | None = None
        self._accepted = Counter[str]()
        """Pipes that are open, by who opened them."""
        self._handshakes = Counter[str]()
        """Connections without a pipe yet, by where they come from."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """What to announce: where the endpoint is as far as it knows, and its relay."""
        if self._endpoint is None:
            return ()
        found = self._endpoint.addr()
        return iroh_addresses(found.direct_addresses(), found.relay_url(), self.relays)

    async def run(
        self, take: TakePipe | None, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Be an endpoint until cancelled.

        Args:
            take: gets the pipes that others open to us; ``None`` lets nobody in.

        Raises:
            PortInUse: another program has the port.
        """
        endpoint = self._endpoint = await self._bind(listens=take is not None)
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                if take is not None:
                    await self._listen(endpoint, take)
                await trio.sleep_forever()
        finally:
            self._endpoint = None
            with trio.move_on_after(CLOSED_WITHIN_S, shield=True):
                await endpoint.close()

    async def dial(self, peer: PeerId, target: IrohTarget) -> DirectPipe:
        """A pipe to ``peer``, who must be the one that answers there.

        Raises:
            ChannelClosed: nobody answers, or he refuses the handshake.
        """
        if self._endpoint is None:
            raise ChannelClosed("no endpoint of iroh is open here")
        with trio.move_on_after(DIALLED_WITHIN_S):
            try:
                wanted = EndpointId.from_bytes(public_key(peer))
                at = EndpointAddr(wanted, target.relay, list(target.hosts))
                connection = await self._endpoint.connect(at, ALPN)
                stream = await self._lead(connection, connection.open_bi)
            except (ValueError, *FAILURES) as error:
                raise ChannelClosed(f"{peer} does not answer over iroh ({said(error)})") from error
            return await self._carrier.initiate(stream, peer, "iroh")
        raise ChannelClosed(f"{peer} did not answer over iroh within {DIALLED_WITHIN_S:.0f} s")

    async def _bind(self, *, listens: bool) -> Endpoint:
        # Minimal: no look-up by others' servers, and no relay but those that follow.
        builder = EndpointBuilder()
        builder.apply_minimal()
        builder.secret_key(self._identity.seed)
        builder.alpns([ALPN] if listens else [])
        urls = list(self.relays.values())
        builder.relay_mode(RelayMode.custom_from_urls(urls) if urls else RelayMode.disabled())
        try:
            for address in _bound_to(self._hosts, self._port):
                builder.bind_addr(address)
            return await builder.bind()
        except FAILURES as error:
            raise PortInUse(
                f"UDP port {self._port} on {', '.join(self._hosts)} cannot be listened on: {said(error)}",
                check="find out which program uses it, or choose another direct-port; 0 picks a free one",
                next_command="shoal doctor",
            ) from error

    async def _listen(self, endpoint: Endpoint, take: TakePipe) -> None:
        assert self._nursery is not None
        try:
            while (incoming := await endpoint.accept_next()) is not None:
                self._nursery.start_soon(self._admit, incoming, take)
        except FAILURES as error:  # a fault of the library: the other ways go on
            log.warning("nobody is let in over iroh any more: %s", said(error))

    async def _admit(self, incoming: Incoming, take: TakePipe) -> None:
        """Let one peer in who dials us; returns when its pipe has ended."""
        pipe: DirectPipe | None = None
        # A stranger, or noise: nothing of ours is touched.
        with trio.move_on_after(HANDSHAKE_WITHIN_S), suppress(ChannelClosed, *FAILURES):
            pipe = await self._handshake_in_turn(incoming)
        if pipe is None:
            return
        if self._accepted[pipe.peer] >= PIPES_PER_PEER:
            await pipe.aclose()
            return
        self._accepted[pipe.peer] += 1
        try:
            await take(pipe)
            await pipe.closed.wait()
        finally:
            _less(self._accepted, pipe.peer)
            await pipe.aclose()

    async def _handshake_in_turn(self, incoming: Incoming) -> DirectPipe | None:
        """A pipe, if there is room for one more handshake and one more pipe."""
        host = await came_from(incoming)
        self._handshakes[host] += 1
        try:
            waits, here = self._handshakes.total(), self._handshakes[host]
            crowded = waits > HANDSHAKES_LIMIT or here > HANDSHAKES_PER_HOST
            busy = waits > HANDSHAKES_LIMIT // 2 or here > HANDSHAKES_PER_HOST // 2
            if crowded or self._accepted.total() >= PIPES_LIMIT:
                await incoming.refuse()
            elif busy and not await incoming.remote_addr_validated():
                await incoming.retry()
            else:
                return await self._handshake(incoming)
        finally:
            _less(self._handshakes, host)
        return None

    async def _handshake(self, incoming: Incoming) -> DirectPipe:
        connection = await (await incoming.accept()).connect()
        peer = peer_of(connection.remote_id().to_bytes())
        stream = await self._lead(connection, connection.accept_bi)
        return await self._carrier.respond(stream, peer, "iroh")

    async def _lead(
        self, connection: Connection, opened: Callable[[], Awaitable[BiStream]]
    ) -> trio.SocketStream:
        """A socket whose other end leads to a stream of iroh, until either ends. Owns the connection."""
        assert self._nursery is not None
        try:
            _bound(connection)
            both = await opened()
        except BaseException:
            connection.close(0, b"")
            raise
        ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in socket.socketpair())
        self._nursery.start_soon(_pass_on, theirs, connection, both)
        return ours


async def _pass_on(end: trio.SocketStream, connection: Connection, both: BiStream) -> None:
    """Pass bytes on both ways until our side has ended, and the peer has all of it, or the connection."""
    sending = both.send()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pass_in, both.recv(), end, nursery.cancel_scope)
            with suppress(*FAILURES, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
                while data := await end.receive_some(READ):
                    with trio.fail_after(TAKEN_WITHIN_S):
                        await sending.write_all(bytes(data))
                with trio.move_on_after(ARRIVES_WITHIN_S):
                    await sending.finish()
                    await sending.stopped()
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(end)
        connection.close(0, b"")


async def _pass_in(source: RecvStream, end: trio.SocketStream, both_ways: trio.CancelScope) -> None:
    try:
        while data := await source.read(READ):
            await end.send_all(data)
        await end.send_eof()
    except FAILURES:  # the connection is gone
        both_ways.cancel()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # our side has ended: what it sent before is still on its way


def _less(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _bound(connection: Connection) -> None:
    """What the peer may have of us in one connection: a single stream, and so many bytes unread."""
    connection.set_max_concurrent_bi_streams(1)
    connection.set_max_concurrent_uni_streams(0)
    connection.set_receive_window(RECEIVE_WINDOW)


def _bound_to(hosts: Sequence[str], port: int) -> list[str]:
    """The addresses to bind. Of an IP version that is not asked for, loopback: iroh would take all of it."""
    found = [to_socket(host, port) for host in hosts]
    if not any(":" in host for host in hosts) and "::" in listening_hosts(EVERYWHERE):
        found.append("[::1]:0")
    if all(":" in host for host in hosts):
        found.append("127.0.0.1:0")
    return found
