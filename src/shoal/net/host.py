"""One peer's place in a swarm, over py-libp2p and the direct carrier."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.ping import PingService
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb.rpc_pb2 import Message as GossipMessage
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from shoal.errors import ChannelClosed, DeadlineExceeded, NotAllowed, PortInUse
from shoal.net import stream as streams
from shoal.net.addresses import expand, split_bootstrap, without
from shoal.net.dialer import Dialer
from shoal.net.direct import DirectCarrier
from shoal.net.identity import Identity
from shoal.net.network import Answer, PeerConnection, Pipe, Validator
from shoal.net.secret import ProtectedUpgrader, pnet_key
from shoal.tasks import one_error
from shoal.types import PeerAddress, PeerId

PIPES_WAITING = 64
MESSAGES_WAITING = 1024
PROVIDERS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How to take part in a network."""

    identity: Identity
    secret: bytes | None
    """The swarm's secret; ``None`` for the public swarm."""
    host: str = "0.0.0.0"
    port: int = 0
    """TCP port of the libp2p host; 0 takes a free one."""
    direct_port: int = 0
    """TCP port of the direct carrier; 0 takes a free one."""
    listen: bool = True
    """Accept connections; without, this peer only dials."""
    direct: bool = True
    """Offer and use the direct carrier."""


@asynccontextmanager
async def open_network(settings: NetworkSettings) -> AsyncGenerator[Libp2pNetwork]:
    """Take part in a network until the block ends; then every task and socket of it is gone.

    Raises:
        PortInUse: a port was asked for and is taken.
    """
    _quiet()
    with one_error():
        async with AsyncExitStack() as stack:
            yield await _start(stack, settings)


async def _start(stack: AsyncExitStack, settings: NetworkSettings) -> Libp2pNetwork:
    host = _build_host(settings)
    listen = [Multiaddr(f"/ip4/{settings.host}/tcp/{settings.port}")] if settings.listen else []
    await _listen(stack, host, listen, settings.port)
    pubsub = _build_pubsub(host)
    dht = KadDHT(host, DHTMode.SERVER if settings.listen else DHTMode.CLIENT)
    for service in (pubsub.router, pubsub, dht):
        await stack.enter_async_context(background_trio_service(service))
    await pubsub.wait_until_ready()
    nursery = await stack.enter_async_context(trio.open_nursery())
    network = Libp2pNetwork(settings, host, pubsub, dht)
    await network.start(nursery)
    stack.push_async_callback(_close, host, nursery)
    return network


async def _close(host: IHost, nursery: trio.Nursery) -> None:
    nursery.cancel_scope.cancel()
    with trio.move_on_after(2.0, shield=True):
        await host.close()


class Libp2pNetwork:
    """Implements :class:`shoal.net.network.Network`."""

    def __init__(self, settings: NetworkSettings, host: IHost, pubsub: Pubsub, dht: KadDHT) -> None:
        self._settings = settings
        self._host = host
        self._pubsub = pubsub
        self._dht = dht
        self._direct = DirectCarrier(settings.identity, settings.secret)
        self._put, self._pipes = trio.open_memory_channel[Pipe](PIPES_WAITING)
        self._dialer = Dialer(self._direct if settings.direct else None, self._open_stream)
        self._libp2p: tuple[str, ...] = ()
        self._direct_addresses: tuple[str, ...] = ()

    async def start(self, nursery: trio.Nursery) -> None:
        """Begin to accept pipes. Raises PortInUse when the direct carrier's port is taken."""
        self._host.set_stream_handler(TProtocol(streams.PIPE_PROTOCOL), self._accept_stream)
        if not self._settings.listen:
            return
        for address in self._host.get_network().listeners.values():
            for listening in address.get_addrs():
                self._libp2p = expand(self._settings.host, int(listening.value_for_protocol("tcp") or 0))
        if self._settings.direct:
            listen = partial(
                self._direct.listen, self._settings.host, self._settings.direct_port, take=self._put.send
            )
            port = await nursery.start(listen)
            self._direct_addresses = expand(self._settings.host, port)

    @property
    def peer(self) -> PeerId:
        return self._settings.identity.peer

    @property
    def address(self) -> PeerAddress:
        return PeerAddress(self.peer, self._libp2p, self._direct_addresses)

    def sign(self, data: bytes) -> bytes:
        return self._settings.identity.sign(data)

    async def connect(self, multiaddr: str, *, deadline_s: float) -> PeerId:
        address, peer = split_bootstrap(multiaddr)
        await self._connect(peer, [address], deadline_s)
        return peer

    async def open_pipe(self, address: PeerAddress, *, deadline_s: float) -> Pipe:
        own = self._own_addresses()
        reachable = PeerAddress(
            address.peer, tuple(without(address.libp2p, own)), tuple(without(address.direct, own))
        )
        return await self._dialer.open(reachable, deadline_s)

    async def accept_pipes(self) -> AsyncIterator[Pipe]:
        async for pipe in self._pipes:
            yield pipe

    async def publish(self, topic: str, data: bytes) -> None:
        await self._pubsub.publish(topic, data)

    @asynccontextmanager
    async def subscribe(
        self, topic: str, validate: Validator
    ) -> AsyncGenerator[AsyncIterator[tuple[PeerId, bytes]]]:
        def check(_: ID, message: GossipMessage) -> bool:
            return validate(PeerId(str(ID(message.from_id))), message.data)

        self._pubsub.set_topic_validator(topic, check, False)
        subscription = await self._pubsub.subscribe(topic)

        async def messages() -> AsyncIterator[tuple[PeerId, bytes]]:
            while True:
                message = await subscription.get()
                author = PeerId(str(ID(message.from_id)))
                if author != self.peer:
                    yield author, message.data

        try:
            yield messages()
        finally:
            with trio.move_on_after(1.0, shield=True):
                await self._pubsub.unsubscribe(topic)
            self._pubsub.remove_topic_validator(topic)

    async def provide(self, key: bytes) -> None:
        with trio.move_on_after(30.0):
            await self._dht.provider_store.provide(multihash(key))

    async def find_providers(self, key: bytes, *, deadline_s: float) -> Sequence[PeerAddress]:
        with trio.move_on_after(deadline_s):
            found = await self._dht.provider_store.find_providers(multihash(key), PROVIDERS)
            addresses = {info.peer_id: tuple(_without_peer(str(a)) for a in info.addrs) for info in found}
            return [PeerAddress(PeerId(str(peer)), known) for peer, known in addresses.items()]
        return []

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, deadline_s: float) -> bytes:
        with trio.move_on_after(deadline_s):
            stream = await self._new_stream(peer, protocol)
            try:
                return await streams.ask(stream, body)
            finally:
                await streams.close(stream)
        raise DeadlineExceeded(f"{peer} did not answer within {deadline_s:.0f} s")

    def answer(self, protocol: str, handler: Answer) -> None:
        self._host.set_stream_handler(TProtocol(protocol), partial(_answer, handler=handler))

    async def ping(self, peer: PeerId, *, deadline_s: float) -> float:
        with trio.move_on_after(deadline_s):
            try:
                times = await PingService(self._host).ping(ID.from_base58(peer), 1)
            except (BaseLibp2pError, OSError, ValueError) as error:
                raise ChannelClosed(f"{peer} does not answer a ping") from error
            return times[0] / 1e6
        raise DeadlineExceeded(f"{peer} did not answer a ping within {deadline_s:.0f} s")

    def connections(self) -> Sequence[PeerConnection]:
        found: list[PeerConnection] = []
        for peer, connections in self._host.get_network().connections.items():
            if connections:
                address, path = _describe(connections[0])
                found.append(PeerConnection(PeerId(str(peer)), address, path))
        return found

    async def _accept_stream(self, stream: INetStream) -> None:
        pipe = streams.StreamPipe(stream, _carrier(stream))
        await self._put.send(pipe)
        await pipe.closed.wait()  # the library ends a stream with its handler

    async def _open_stream(self, address: PeerAddress, deadline_s: float) -> Pipe:
        if address.libp2p:
            await self._connect(address.peer, address.libp2p, deadline_s)
        stream = await self._new_stream(address.peer, streams.PIPE_PROTOCOL)
        return streams.StreamPipe(stream, _carrier(stream))

    async def _connect(self, peer: PeerId, addresses: Sequence[str], deadline_s: float) -> None:
        try:
            info = PeerInfo(ID.from_base58(peer), [Multiaddr(address) for address in addresses])
        except ValueError as error:
            raise ChannelClosed(f"{peer} at {', '.join(addresses)} is no peer's address") from error
        with trio.move_on_after(deadline_s) as scope:
            try:
                await self._host.connect(info)
            except (BaseLibp2pError, OSError, ExceptionGroup) as error:
                raise _refusal(error, peer, self._settings.secret is not None) from error
        if scope.cancelled_caught:
            raise ChannelClosed(f"{peer} did not answer within {deadline_s:.0f} s")

    async def _new_stream(self, peer: PeerId, protocol: str) -> INetStream:
        try:
            return await self._host.new_stream(ID.from_base58(peer), [TProtocol(protocol)])
        except (BaseLibp2pError, OSError, ValueError) as error:
            raise ChannelClosed(f"{peer} cannot be reached, or does not speak {protocol}") from error

    def _own_addresses(self) -> tuple[str, ...]:
        return self._libp2p + self._direct_addresses or expand("0.0.0.0", 1) + expand("127.0.0.1", 1)


def multihash(key: bytes) -> bytes:
    """The sha2-256 multihash whose digest is ``key``, the form in which the DHT knows content.

    js-libp2p and go-libp2p find it with ``CID(v1, raw, multihash)``.
    """
    return b"\x12\x20" + key


def _build_host(settings: NetworkSettings) -> IHost:
    keys = create_new_key_pair(settings.identity.seed)
    # Noise alone: by default the library would accept plaintext too.
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    # Members keep the connections that they want themselves: the library need not dial more on its own.
    connections = ConnectionConfig(min_connections=0, low_watermark=0)
    host = new_host(
        keys, sec_opt={NOISE: noise}, muxer_opt={TProtocol(YAMUX): Yamux}, connection_config=connections
    )
    if settings.secret is not None:
        network: Any = host.get_network()
        upgrader = ProtectedUpgrader({NOISE: noise}, {TProtocol(YAMUX): Yamux})
        upgrader.key = pnet_key(settings.secret)
        network.upgrader = upgrader
    return host


def _build_pubsub(host: IHost) -> Pubsub:
    # A mesh of 6 (4 to 12) as in the gossipsub specification. The library's own guards by address range
    # would keep peers of one home out of each other's mesh; announcements are signed and bounded instead.
    router = GossipSub(
        [PROTOCOL_ID_V11, PROTOCOL_ID],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        eclipse_protection_enabled=False,
        max_messages_per_topic_per_second=1000,
    )
    return Pubsub(host, router, strict_signing=True)


async def _listen(stack: AsyncExitStack, host: IHost, addresses: list[Multiaddr], port: int) -> None:
    try:
        await stack.enter_async_context(host.run(addresses))
    except (BaseLibp2pError, OSError, ExceptionGroup) as error:
        raise PortInUse(
            f"port {port} cannot be listened on",
            check="which program has it, or choose another; 0 takes a free one",
            next_command="shoal doctor",
        ) from error


async def _answer(stream: INetStream, *, handler: Answer) -> None:
    await streams.answer_on(stream, handler)


def _refusal(error: BaseException, peer: PeerId, private: bool) -> ChannelClosed | NotAllowed:
    text = f"{peer} cannot be reached: {_root(error)}"
    if "negotiate the secure protocol" in str(_chain(error)) or "handshake" in str(_chain(error)).lower():
        return NotAllowed(
            f"{peer} refuses us"
            + (": another swarm, or another secret" if private else ": it may be private"),
            check="that the invite is of this swarm",
            next_command="shoal join CODE",
        )
    return ChannelClosed(text)


def _chain(error: BaseException | None) -> list[str]:
    seen: list[str] = []
    while error is not None and len(seen) < 16:
        seen.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return seen


def _root(error: BaseException) -> str:
    return _chain(error)[-1]


def _describe(connection: Any) -> tuple[str, Any]:
    kind = "relayed" if "relay" in str(connection.get_connection_type()).lower() else "direct"
    remote = connection.muxed_conn.get_remote_address()
    return (expand(remote[0], remote[1])[0] if remote else ""), kind


def _carrier(stream: INetStream) -> Any:
    conn: Any = getattr(stream, "swarm_conn", None)
    relayed = conn is not None and "relay" in str(conn.get_connection_type()).lower()
    return "relayed" if relayed else "libp2p-stream"


def _without_peer(multiaddr: str) -> str:
    return multiaddr.partition("/p2p/")[0]


def _quiet() -> None:
    """The library logs what peers do to it, as if it were the user's business."""
    for name in ("libp2p", "multiaddr", "async_service"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
