"""The libp2p host: Noise alone, yamux within bounds, TCP that dials what it should.

What peers do must not end the host. In py-libp2p 0.8 an error out of a stream's handler ends the service
that holds every connection, and an accepted connection keeps one of the (300) inbound places for ever,
also after it has closed: a node would stop accepting after some days. Both are mended here.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import trio
from libp2p.abc import IMuxedConn, INetStream, IRawConnection
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from shoal.net.handshake_backlog import network_of
from shoal.net.handshakes import HANDSHAKE_WITHIN_S, Handshakes, Ticket
from shoal.net.identity import Identity
from shoal.net.libp2p.muxer import BoundedMuxers, BoundedYamux
from shoal.net.libp2p.peerstore import BoundedPeerStore
from shoal.net.libp2p.private_network import ProtectedUpgrader, pnet_key
from shoal.net.libp2p.tcp import BoundedTcpStream, GuardedTCP

CONNECTIONS_LIMIT = 300
PER_NETWORK_LIMIT = 64
"""Inbound connections from one network: a few dozen nodes may share one, a flood may not fill every place."""
FIRST_MESSAGE = len(b"\x13/multistream/1.0.0\n")
"""Bytes of the shortest first message; in a private swarm a longer nonce goes before it."""
NEGOTIATED_WITHIN_S = 5.0
PER_PEER_LIMIT = 3

log = logging.getLogger(__name__)


class Connections(Swarm):
    """Every connection of the host."""

    handshakes: Handshakes
    """Those of the transport."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._inbound: dict[str, list[BoundedYamux]] = {}
        """Accepted connections by network, the oldest first."""
        # Whoever uses the network says which connections it wants. Whatever its settings, the library would
        # dial peers that it has merely heard of until it has 150.
        self.auto_connector.maybe_connect = trio.lowlevel.checkpoint

    async def upgrade_inbound_raw_conn(self, raw_conn: IRawConnection, maddr: Multiaddr) -> IMuxedConn:
        """As the base class, within the limits; returns only by raising.

        The caller gives the connection's place back when this ends, so it ends when the connection does.
        """
        stream = cast(BoundedTcpStream, cast(Any, raw_conn).stream)
        connection: IMuxedConn | None = None
        with self.handshakes.handshake(cast(Ticket, stream.ticket)):
            connection = await super().upgrade_inbound_raw_conn(raw_conn, maddr)
        if not isinstance(connection, BoundedYamux):
            await stream.close()
            raise SwarmException("the handshake did not end in time, or others needed its place")
        host = (raw_conn.get_remote_address() or ("", 0))[0]
        await self._until_it_ends(connection, network_of(host))
        raise SwarmException("the connection has ended")

    async def _until_it_ends(self, connection: BoundedYamux, network: str) -> None:
        """A network that has too many connections loses the one that is least used, the oldest of those."""
        accepted = self._inbound.setdefault(network, [])
        accepted.append(connection)
        try:
            if len(accepted) > PER_NETWORK_LIMIT:
                # Not the one that has just come: it has had no time to open a stream.
                least = min(accepted[:-1], key=lambda other: len(other.streams))
                log.debug("%s has too many connections: that of %s ends", network, least.peer_id)
                await least.close()
            await connection.event_closed.wait()
        finally:
            accepted.remove(connection)
            if not accepted:
                self._inbound.pop(network, None)


class ShoalHost(BasicHost):
    """The library's host, whose streams cannot end it."""

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        try:
            await super()._swarm_stream_handler(net_stream)
        except Exception as error:  # noqa: BLE001  parse errors, text that is no UTF-8, closed channels: see above
            log.debug("a stream of %s failed: %r", net_stream.muxed_conn.peer_id, error)
            with trio.move_on_after(NEGOTIATED_WITHIN_S):
                await net_stream.reset()


def build_host(
    identity: Identity, secret: bytes | None, noise: KeyPair
) -> tuple[ShoalHost, Connections, GuardedTCP]:
    """A host that is not running yet, its connections and its transport.

    Args:
        noise: our static key of the handshakes.
    """
    keys = create_new_key_pair(identity.seed)
    store = BoundedPeerStore(keys)
    # Noise alone: the library's defaults would accept plaintext too.
    security = {NOISE: NoiseTransport(keys, noise_privkey=noise.private_key)}
    if secret is None:
        upgrader = TransportUpgrader(security, {})
    else:
        upgrader = ProtectedUpgrader(security, {})
        upgrader.key = pnet_key(secret)
    upgrader.muxer_multistream = BoundedMuxers()
    handshakes = Handshakes(FIRST_MESSAGE)
    transport = GuardedTCP(handshakes)
    config = ConnectionConfig(
        max_connections=CONNECTIONS_LIMIT,
        high_watermark=CONNECTIONS_LIMIT,
        min_connections=0,
        low_watermark=0,
        max_connections_per_peer=PER_PEER_LIMIT,
        inbound_upgrade_timeout=HANDSHAKE_WITHIN_S,
        outbound_upgrade_timeout=HANDSHAKE_WITHIN_S,
        inbound_stream_protocol_negotiation_timeout=NEGOTIATED_WITHIN_S,
        outbound_stream_protocol_negotiation_timeout=NEGOTIATED_WITHIN_S,
    )
    connections = Connections(
        ID.from_pubkey(keys.public_key),
        store,
        upgrader,
        transports=[transport],
        retry_config=RetryConfig(max_retries=0),
        connection_config=config,
    )
    connections.handshakes = handshakes

    def announced(_: list[Multiaddr]) -> list[Multiaddr]:
        # The library would announce 0.0.0.0, and what any peer says to have seen us at.
        return [Multiaddr(address) for address in transport.announced]

    host = ShoalHost(network=connections, addrs_factory=announced, disable_identify_address_discovery=True)
    return host, connections, transport
