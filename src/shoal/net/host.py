"""One peer's place in a swarm, over py-libp2p and the direct carrier."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from libp2p.abc import INetStream
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.ping import ID as PING_PROTOCOL
from libp2p.host.ping import handle_ping
from libp2p.network.connection import swarm_connection
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from shoal.errors import ChannelClosed, DeadlineExceeded, PortInUse, ShoalError, UsageError
from shoal.net.addresses import (
    ADDRESSES_LIMIT,
    EVERYWHERE,
    announced,
    expand,
    host_and_port,
    listening_hosts,
    split_bootstrap,
    to_multiaddr,
)
from shoal.net.carriers import stream as streams
from shoal.net.carriers.calls import Calls
from shoal.net.carriers.dialer import Dialer
from shoal.net.carriers.direct import DirectCarrier
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.carriers.relay import Relay
from shoal.net.dialable import around
from shoal.net.identity import Identity
from shoal.net.libp2p.connections import Connections, ShoalHost, build_host
from shoal.net.libp2p.dialing import PeerDialer, carrier_of, path_of, remote_of
from shoal.net.libp2p.gossip import Gossip
from shoal.net.libp2p.providers import Providers
from shoal.net.libp2p.tcp import GuardedTCP
from shoal.net.mapping.port_mapper import NatPmp, Pcp, PortMapper, Upnp
from shoal.net.network import PeerConnection, Pipe, ReachView, RequestHandler, Validator
from shoal.net.reach.iroh_addresses import IrohTarget, iroh_target, relay_address
from shoal.net.reach.ports import end_for, forwarded
from shoal.net.reach.reachability import (
    ASKED_WITHIN_S,
    REACH_PROTOCOL,
    Reachability,
    RelayOffer,
    encode_offer,
)
from shoal.net.reach.ways import direct_targets, fit
from shoal.tasks import ends_alone, one_error
from shoal.types import PeerAddress, PeerId

if TYPE_CHECKING:
    from shoal.net.iroh.carrier import IrohCarrier

PIPES_WAITING = 64
PIPE_TAKEN_WITHIN_S = 10.0
"""How long a new pipe waits to be accepted; then it is closed."""
ANSWERS_AT_ONCE = 64
"""Questions that are answered at a time."""
ANSWERS_PER_PEER = 8
"""The same of one peer, with those that it has not said yet and those that wait; one more is refused."""
CLOSED_WITHIN_S = 3.0
OWN_LIMIT = 64
"""Addresses of ours that we know when somebody sees us there; fewer are announced."""
DIRECT_LIMIT = 16
"""Addresses of the direct carrier, relays and iroh that an announcement has room for."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How to take part in a network."""

    identity: Identity
    secret: bytes | None
    """The swarm's secret; ``None`` for the public swarm."""
    host: str = EVERYWHERE
    port: int = 0
    """TCP port of the libp2p host; 0 takes a free one."""
    direct_port: int = 0
    """TCP port of the direct carrier; 0 takes a free one."""
    forwarded: tuple[tuple[str, int], ...] = ()
    """Public hosts that lead here and are on no interface, each with the port that leads to the direct
    carrier's, or 0 where both ports keep their numbers. Of use while this peer listens."""
    listen: bool = True
    """Accept connections; without, this peer only dials."""
    direct: bool = True
    """Offer and use the direct carrier."""
    relay: bool = True
    """Be a relay for others, where this peer has a public address and a direct carrier."""
    port_map: bool = False
    """Ask the router for a public port that leads to the direct carrier's."""
    mdns: bool = False
    """Find peers on the local network, and be found by them."""
    iroh: bool = False
    """Offer and use iroh. Needs an extra."""
    iroh_relays: tuple[str, ...] = ()
    """URLs of the relays that iroh uses, and no others."""


@asynccontextmanager
async def open_network(settings: NetworkSettings) -> AsyncGenerator[Libp2pNetwork]:
    """Take part in a network until the block ends; then every task and socket of it is gone.

    Raises:
        PortInUse: a port was asked for and is taken.
        IncompatibleLibrary: iroh is asked for, and is not installed.
    """
    _quiet()
    with one_error():
        async with AsyncExitStack() as stack:
            yield await _start(stack, settings)


async def _start(stack: AsyncExitStack, settings: NetworkSettings) -> Libp2pNetwork:
    noise = create_noise_key_pair()
    host, connections, transport = build_host(settings.identity, settings.secret, noise)
    hosts = listening_hosts(settings.host) if settings.listen else ()
    await stack.enter_async_context(host.run([Multiaddr(to_multiaddr(at, settings.port)) for at in hosts]))
    if len(connections.listeners) < len(hosts):
        raise PortInUse(
            f"port {settings.port} on {settings.host} cannot be listened on",
            check="find out which program uses it, or choose another port; 0 picks a free one",
            next_command="shoal doctor",
        )
    gossip = Gossip(host)
    providers = Providers(host, serve=settings.listen)
    for service in (gossip.gossiper, gossip, providers):
        await stack.enter_async_context(background_trio_service(service))
    await gossip.wait_until_ready()
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.push_async_callback(_close, host, connections, nursery)
    network = Libp2pNetwork(settings, host, connections, transport, gossip, providers, noise)
    await network.start(nursery)
    return network


async def _close(host: ShoalHost, connections: Connections, nursery: trio.Nursery) -> None:
    nursery.cancel_scope.cancel()
    with trio.move_on_after(CLOSED_WITHIN_S, shield=True):
        # All at once: the library closes one after the other, a fifth of a second each.
        async with trio.open_nursery() as closing:
            for connection in connections.get_connections():
                closing.start_soon(connection.close)
        await host.close()


class Libp2pNetwork:
    """Implements :class:`shoal.net.network.Network`."""

    def __init__(
        self,
        settings: NetworkSettings,
        host: ShoalHost,
        connections: Connections,
        transport: GuardedTCP,
        gossip: Gossip,
        providers: Providers,
        noise: KeyPair,
    ) -> None:
        self._settings = settings
        self.noise_key = noise.public_key.to_bytes()
        self._host = host
        self._connections = connections
        self._transport = transport
        self._gossip = gossip
        self._providers = providers
        self._peer_dialer = PeerDialer(host, connections, private=settings.secret is not None)
        self._direct = DirectCarrier(settings.identity, settings.secret, noise)
        # Who comes of a call was let in because we dialled as well.
        self._calls = Calls(self._direct, self._accept, lambda: self._transport.nearby)
        self._dialer = Dialer(
            self._direct if settings.direct else None,
            self._calls if settings.direct else None,
            self._open_stream,
            self._dial_iroh,
        )
        self._iroh = _iroh_carrier(settings, self._direct) if settings.iroh else None
        self._reach: Reachability | None = None
        self.relay = Relay(self._relays)
        """What this peer is for others that are behind routers."""
        self._put, self._pipes = trio.open_memory_channel[Pipe](PIPES_WAITING)
        self._answers = trio.CapacityLimiter(ANSWERS_AT_ONCE)
        self._asking = Counter[ID]()
        """Streams on which a peer asks something, or may."""
        self._address = PeerAddress(self.peer)

    async def start(self, nursery: trio.Nursery) -> None:
        """Begin to accept pipes.

        Raises:
            PortInUse: the direct carrier's port is taken.
        """
        self._host.set_stream_handler(TProtocol(streams.PIPE_PROTOCOL), self._accept_stream)
        self._host.set_stream_handler(PING_PROTOCOL, handle_ping)
        host = self._settings.host
        if self._settings.listen:
            listening = [t for a in self._host.get_transport_addrs() if (t := host_and_port(str(a)))]
            whole = [one for one in self._settings.forwarded if not one[1]]
            libp2p, direct = (*forwarded(whole, listening), *announced(listening)), ()
            if self._settings.direct:
                guests = _Guests(self._accept_direct, self._serve_control, self._calls, self.relay)
                hosts, port = listening_hosts(host), self._settings.direct_port
                direct = announced(
                    await nursery.start(partial(self._direct.listen, hosts, port, guests=guests))
                )
            self._address = PeerAddress(self.peer, libp2p, direct)
            # Known only now: a port 0 has become a real one.
            self._transport.announced = libp2p
        # Whoever only dials is on these networks, too; the port does not matter.
        own = self._address.libp2p or expand(host, 1)
        self._transport.nearby = around(own, trusting=self._settings.secret is not None)
        if self._settings.direct:
            await self._be_reachable(nursery)
        if self._iroh is not None:
            await nursery.start(self._iroh.run, self._accept if self._settings.listen else None)
        if self._settings.mdns:
            from shoal.net.libp2p.lan import Lan  # noqa: PLC0415  brings zeroconf, which only this needs

            nursery.start_soon(Lan(self._settings.secret, self._address, self._found, host=host).run)

    async def _be_reachable(self, nursery: trio.Nursery) -> None:
        await nursery.start(self._calls.run)
        if not self._settings.listen:
            # For those alone whom we ask to dial us: only so can a peer behind a symmetric router be reached.
            guests = _Guests(DirectPipe.aclose, self.relay.serve, self._calls, self.relay)
            hosts = listening_hosts(self._settings.host)
            await nursery.start(partial(self._direct.listen, hosts, 0, guests=guests))
        led_here = forwarded(self._settings.forwarded, self._direct.ends) if self._settings.listen else ()
        self._calls.sessions.own = frozenset((*announced(self._direct.ends, OWN_LIMIT), *led_here))
        self._calls.sessions.forwarded = frozenset(led_here)
        self._reach = Reachability(
            self._address.direct or announced(self._direct.ends),
            self._calls.sessions,
            partial(self.request, protocol=REACH_PROTOCOL, body=b"", deadline_s=ASKED_WITHIN_S),
            lambda: [connection.peer for connection in self.connections()],
            lambda: self._transport.nearby,
            led_here,
        )
        if self._settings.listen:
            self.answer(REACH_PROTOCOL, self._offer_relay)
            nursery.start_soon(self._reach.run)
            four = end_for(self._direct.ends, "0.0.0.0")
            if self._settings.port_map and four and 4 not in self._calls.sessions.open:
                self._reach.mapper = PortMapper(four[1], [NatPmp(), Upnp(), Pcp()])
                nursery.start_soon(self._map_port, self._reach.mapper)

    async def _map_port(self, mapper: PortMapper) -> None:
        with ends_alone(log, "the look for a port of the router"):
            await mapper.run()

    def _relays(self) -> bool:
        settings, reach = self._settings, self._reach
        return settings.listen and settings.relay and reach is not None and reach.public

    async def _offer_relay(self, peer: PeerId, question: bytes) -> bytes:
        direct = self._reach.open_addresses() if self._reach else ()
        return encode_offer(RelayOffer(direct[:ADDRESSES_LIMIT], self._relays()))

    @property
    def peer(self) -> PeerId:
        return self._settings.identity.peer

    @property
    def address(self) -> PeerAddress:
        if not self._settings.listen:
            return self._address
        direct = self._address.direct if self._reach is None else self._reach.addresses()
        iroh = self._iroh.addresses if self._iroh else ()
        return replace(self._address, direct=(*direct[: DIRECT_LIMIT - len(iroh)], *iroh))

    def reach(self) -> ReachView:
        return self._reach.view() if self._reach else ReachView("unknown", False, "", ())

    def doubt_ways(self) -> None:
        self._calls.sessions.doubt()

    async def observe(self) -> ReachView:
        if self._reach is not None:
            await self._reach.observe()
        return self.reach()

    async def wait_moved(self) -> None:
        if self._reach is None:
            await trio.sleep_forever()
        else:
            await self._reach.wait_changed()

    def sign(self, data: bytes) -> bytes:
        return self._settings.identity.sign(data)

    async def connect(self, multiaddr: str, *, deadline_s: float) -> PeerId:
        address, peer = split_bootstrap(multiaddr)
        try:
            ID.from_base58(peer)
            Multiaddr(address)
        except ValueError as error:
            raise UsageError(
                f"{multiaddr!r} is no address to join through: {error}",
                check="write it like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…",
            ) from error
        with self._transport.named(address):
            await self._peer_dialer.connect(PeerAddress(peer, (address,)), deadline_s=deadline_s)
        return peer

    async def approach(self, address: PeerAddress, *, deadline_s: float) -> None:
        await self._peer_dialer.connect(self._fit(address), deadline_s=deadline_s)

    async def disconnect(self, peer: PeerId) -> None:
        with trio.move_on_after(CLOSED_WITHIN_S):
            await self._connections.close_peer(ID.from_base58(peer))

    async def open_pipe(self, address: PeerAddress, *, deadline_s: float) -> Pipe:
        nearby, router = self._transport.nearby, self._router()
        targets = direct_targets(address, nearby, router)
        iroh = iroh_target(address, nearby, router, self._iroh.relays) if self._iroh else None
        return await self._dialer.open(self._fit(address), targets, deadline_s, iroh)

    async def open_direct(self, address: PeerAddress, *, deadline_s: float) -> Pipe:
        targets = direct_targets(address, self._transport.nearby, self._router())
        return await self._dialer.open_direct(address, targets, deadline_s)

    def _fit(self, address: PeerAddress) -> PeerAddress:
        """The address with those libp2p addresses alone that may be dialled."""
        return replace(address, libp2p=fit(address, address.libp2p, self._transport.nearby, self._router()))

    def _router(self) -> str | None:
        """The public address that our own router speaks with."""
        target = host_and_port(self._calls.sessions.believed or "")
        return target[0] if target else None

    async def accept_pipes(self) -> AsyncIterator[Pipe]:
        async for pipe in self._pipes:
            yield pipe

    async def publish(self, topic: str, data: bytes) -> None:
        await self._gossip.publish(topic, data)

    @asynccontextmanager
    async def subscribe(
        self, topic: str, validate: Validator
    ) -> AsyncGenerator[AsyncIterator[tuple[PeerId, bytes]]]:
        async with self._gossip.listen(topic, validate) as messages:
            yield messages

    async def provide(self, key: bytes) -> None:
        await self._providers.announce(key)

    async def find_providers(self, key: bytes, *, deadline_s: float) -> Sequence[PeerAddress]:
        return await self._providers.who_provides(key, deadline_s=deadline_s)

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, deadline_s: float) -> bytes:
        with trio.move_on_after(deadline_s):
            stream = await self._peer_dialer.new_stream(peer, protocol)
            try:
                return await streams.ask(stream, body)
            finally:
                await streams.reset(stream)
        raise DeadlineExceeded(f"{peer} did not answer within {deadline_s:.0f} s")

    def answer(self, protocol: str, handler: RequestHandler) -> None:
        async def answer(stream: INetStream) -> None:
            peer = stream.muxed_conn.peer_id
            # Before anything is waited for: streams that say nothing would hold every place.
            if self._asking[peer] >= ANSWERS_PER_PEER:
                await streams.reset(stream)
                return
            self._asking[peer] += 1
            try:
                async with self._answers:
                    await streams.answer_on(stream, handler)
            finally:
                self._asking[peer] -= 1
                if not self._asking[peer]:
                    del self._asking[peer]

        self._host.set_stream_handler(TProtocol(protocol), answer)

    async def ping(self, peer: PeerId, *, deadline_s: float) -> float:
        with trio.move_on_after(deadline_s):
            stream = await self._peer_dialer.new_stream(peer, PING_PROTOCOL)
            try:
                return await streams.ping_on(stream)
            finally:
                await streams.reset(stream)
        raise DeadlineExceeded(f"{peer} did not answer a ping within {deadline_s:.0f} s")

    def connections(self) -> Sequence[PeerConnection]:
        live = ((p, c) for p, many in self._connections.connections.items() for c in many if not c.is_closed)
        latest = dict(live)
        return [PeerConnection(PeerId(str(p)), remote_of(c), path_of(c)) for p, c in latest.items()]

    async def _accept_direct(self, pipe: DirectPipe) -> None:
        if self._reach is not None:
            self._reach.note_arrival(pipe.host)
        await self._accept(pipe)

    async def _serve_control(self, pipe: DirectPipe, seen: str) -> None:
        with self._reach.arrival(pipe.host) if self._reach is not None else nullcontext():
            await self.relay.serve(pipe, self._calls.sessions.led_to_us(pipe.peer, seen))

    async def _accept_stream(self, stream: INetStream) -> None:
        pipe = streams.StreamPipe(stream, carrier_of(stream))
        await self._accept(pipe)
        await pipe.closed.wait()  # the library ends a stream with its handler

    async def _accept(self, pipe: Pipe) -> None:
        with trio.move_on_after(PIPE_TAKEN_WITHIN_S):
            await self._put.send(pipe)
            return
        await pipe.aclose()

    async def _open_stream(self, address: PeerAddress, deadline_s: float) -> Pipe:
        if address.libp2p:
            await self._peer_dialer.connect(address, deadline_s=deadline_s)
        stream = await self._peer_dialer.new_stream(address.peer, streams.PIPE_PROTOCOL)
        return streams.StreamPipe(stream, carrier_of(stream))

    async def _dial_iroh(self, peer: PeerId, target: IrohTarget) -> DirectPipe:
        if self._iroh is None:
            raise ChannelClosed("iroh is off here")
        return await self._iroh.dial(peer, target)

    async def _found(self, address: PeerAddress) -> None:
        """Connect to a peer that the local network showed us."""
        try:
            await self.approach(address, deadline_s=PIPE_TAKEN_WITHIN_S)
        except ShoalError as error:
            log.debug("%s was seen on the local network: %s", address.peer, error.message)


def _iroh_carrier(settings: NetworkSettings, carrier: DirectCarrier) -> IrohCarrier:
    from shoal.net.iroh.carrier import IrohCarrier  # noqa: PLC0415  an extra, which only this needs

    relays = {relay_address(url): url for url in settings.iroh_relays}
    port = settings.direct_port if settings.listen else 0
    return IrohCarrier(settings.identity, carrier, listening_hosts(settings.host), port, relays)


class _Guests:
    """Implements :class:`shoal.net.carriers.direct.DirectGuests`."""

    def __init__(
        self,
        accept: Callable[[DirectPipe], Awaitable[None]],
        serve: Callable[[DirectPipe, str], Awaitable[None]],
        calls: Calls,
        relay: Relay,
    ) -> None:
        self._accept = accept
        self._serve = serve
        self._calls = calls
        self._relay = relay

    async def take_pipe(self, pipe: DirectPipe) -> None:
        await self._accept(pipe)

    async def take_control(self, pipe: DirectPipe, seen: str) -> None:
        await self._serve(pipe, seen)

    async def take_token(self, token: bytes, stream: trio.SocketStream) -> None:
        # First those whom we wait for ourselves; else it may be an end of a circuit.
        if not self._calls.expected.give(token, stream):
            await self._relay.join(token, stream)


def _quiet() -> None:
    """The library logs what peers do to it, as if it were the user's business.

    One of its modules even logs to the root logger, by functions that install a handler on stderr.
    """
    for name in ("libp2p", "multiaddr", "async_service", "zeroconf"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    module: Any = swarm_connection
    module.logging = logging.getLogger("libp2p.network.connection")
