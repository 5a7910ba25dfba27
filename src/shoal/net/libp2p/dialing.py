"""Connections and streams of the libp2p host to a peer: dialled where it says it is, with our own errors.

py-libp2p's own dial tries one address of each transport, after a quarter of a second for nothing, and
refuses a peer for a minute once it has failed, even at a new address.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.transport.exceptions import UpgradeFailure
from multiaddr import Multiaddr

from shoal.errors import ChannelClosed, NotAllowed
from shoal.net.addresses import to_multiaddr
from shoal.net.happy_eyeballs import first
from shoal.net.libp2p.connections import Connections, ShoalHost
from shoal.net.libp2p.tcp import EarlyHangUp
from shoal.types import CarrierName, PeerAddress, PeerId

ADDRESSES_LIMIT = 8
CAUSES_LIMIT = 16
"""Errors of the library that are looked at, for one of ours."""


class PeerDialer:
    """Reaches peers for one host."""

    def __init__(self, host: ShoalHost, connections: Connections, *, private: bool) -> None:
        self._host = host
        self._connections = connections
        self._private = private

    async def connect(self, address: PeerAddress, *, deadline_s: float) -> None:
        """Have a connection to the peer: the one there is, or the first that one of its addresses gives.

        Raises:
            ChannelClosed: nobody answers there in time, or not that peer.
            NotAllowed: the peer refuses us.
        """
        peer = _to_id(address.peer)
        if peer == self._host.get_id():
            raise ChannelClosed(f"{address.peer} is this peer itself")
        # Also one that the peer opened: a second to it would be of no use.
        if any(not connection.is_closed for connection in self._connections.get_connections(peer)):
            return
        with trio.move_on_after(deadline_s):
            await first([partial(self._dial, peer, a) for a in address.libp2p[:ADDRESSES_LIMIT]], _close)
            return
        raise ChannelClosed(f"{address.peer} did not answer within {deadline_s:.0f} s")

    async def new_stream(self, peer: PeerId, protocol: str) -> INetStream:
        """A stream to a peer that we are connected to, or that the host knows an address of.

        Raises:
            ChannelClosed: the peer cannot be reached, or does not speak ``protocol``.
        """
        wanted = _to_id(peer)
        self._connections.unblock_peer(wanted)  # it may have restarted; whoever asks has a deadline
        try:
            return await self._host.new_stream(wanted, [TProtocol(protocol)])
        except (BaseLibp2pError, OSError, ValueError, ExceptionGroup, trio.TooSlowError) as error:
            # A ValueError: what it answered is no text, which the library does not expect.
            raise ChannelClosed(f"{peer} cannot be reached, or does not speak {protocol}") from error

    async def _dial(self, peer: ID, address: str) -> INetConn:
        try:
            return await self._connections.dial_addr(Multiaddr(address), peer)
        except (BaseLibp2pError, OSError, ValueError, ExceptionGroup, trio.TooSlowError) as error:
            raise self._told(error, peer, address) from error

    def _told(self, error: BaseException, peer: ID, address: str) -> ChannelClosed | NotAllowed:
        """The library's error as ours, by the types of its causes: the library itself raises one for all."""
        causes = _causes(error)

        def caused_by(kind: type[BaseException]) -> bool:
            return any(isinstance(cause, kind) for cause in causes)

        # In this order: the later kinds are among the causes of the earlier ones, too.
        if caused_by(EarlyHangUp):
            return ChannelClosed(
                f"the peer at {address} hung up before it said a word: it may be busy",
                check="try again in a moment",
            )
        if caused_by(PeerIDMismatchesPubkey):
            return ChannelClosed(f"somebody else than {peer} answers at {address}")
        # What another secret has encrypted is sometimes a whole message, and no text.
        if caused_by(UpgradeFailure) or caused_by(UnicodeDecodeError):
            kind = "of another swarm, or has another secret" if self._private else "of a private swarm"
            return NotAllowed(
                f"the peer at {address} refuses us: it may be {kind}",
                check="check that the invite is for this swarm",
                next_command="shoal join",
            )
        return ChannelClosed(
            f"{peer} cannot be reached at {address}: {type(causes[-1]).__name__}: {causes[-1]}"
        )


async def _close(connection: INetConn) -> None:
    with trio.move_on_after(2.0, shield=True):
        await connection.close()


def _to_id(peer: PeerId) -> ID:
    try:
        return ID.from_base58(peer)
    except ValueError as error:
        raise ChannelClosed(f"{peer!r} is no peer id") from error


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error and what led to it, the members of groups among them."""
    seen: list[BaseException] = []
    ahead = [error]
    while ahead and len(seen) < CAUSES_LIMIT:
        cause = ahead.pop(0)
        if cause is not None:
            seen.append(cause)
            ahead += cause.exceptions if isinstance(cause, BaseExceptionGroup) else ()
            ahead.append(cause.__cause__ or cause.__context__)
    return seen


def remote_of(connection: Any) -> str:
    """The multiaddr a connection leads to, or empty."""
    try:
        remote = connection.muxed_conn.get_remote_address()
    except (AttributeError, BaseLibp2pError, OSError):
        return ""
    return to_multiaddr(remote[0], remote[1]) if remote else ""


def path_of(connection: Any) -> Literal["direct", "relayed"]:
    """Whether a connection goes through a relay."""
    return "relayed" if connection.get_connection_type() is ConnectionType.RELAYED else "direct"


def carrier_of(stream: INetStream) -> CarrierName:
    """The carrier's name for a stream."""
    connection = getattr(stream, "swarm_conn", None)
    relayed = connection is not None and path_of(connection) == "relayed"
    return "relayed" if relayed else "libp2p-stream"
