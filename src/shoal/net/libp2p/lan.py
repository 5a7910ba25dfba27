"""Peers of one swarm on one local network, by multicast DNS (RFC 6762, RFC 6763).

Everybody on the network hears a multicast, so what members say is sealed: each announces a service under a
random name, without host name, port or address, whose text only members can open. A stranger learns that
some Shoal peer is there. The public swarm does the same under a key that everyone knows.

py-libp2p's own mDNS says peer ids in clear, joins no private network, and blocks the event loop.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from zeroconf import Error as ZeroconfError
from zeroconf import InterfaceChoice, IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from shoal.net.addresses import EVERYWHERE, version_of
from shoal.net.libp2p.private_network import lan_key
from shoal.types import PeerAddress, PeerId

SERVICE = "_shoal._udp.local."
NONCE = 12
PIECE = 250
"""Bytes of one string of a TXT record; it holds 255 with its key."""
SEALED_LIMIT = 1000
ADDRESSES_LIMIT = 8
SEEN_LIMIT = 256
"""Names remembered, and so looked up at most once each."""
WAITING_LIMIT = 64
ANSWER_WITHIN_MS = 2000
CLOSED_WITHIN_S = 2.0

OnFound = Callable[[PeerAddress], Awaitable[None]]
"""Told of each peer that is found."""

log = logging.getLogger(__name__)

_DECODER = msgspec.msgpack.Decoder(tuple[str, list[str]])


def seal(address: PeerAddress, secret: bytes | None) -> bytes:
    """What we say of ourselves, for members only."""
    said = msgspec.msgpack.encode((address.peer, address.libp2p[:ADDRESSES_LIMIT]))
    nonce = os.urandom(NONCE)
    return nonce + ChaCha20Poly1305(lan_key(secret or b"")).encrypt(nonce, said, SERVICE.encode())


def unseal(sealed: bytes, secret: bytes | None) -> PeerAddress | None:
    """What a member said; ``None`` for anything else."""
    if not NONCE < len(sealed) <= SEALED_LIMIT:
        return None
    cipher = ChaCha20Poly1305(lan_key(secret or b""))
    try:
        said = cipher.decrypt(sealed[:NONCE], sealed[NONCE:], SERVICE.encode())
        peer, addresses = _DECODER.decode(said)
    except (InvalidTag, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return PeerAddress(PeerId(peer), tuple(addresses[:ADDRESSES_LIMIT]))


class Lan:
    """Says where we are, and tells of each other member once."""

    def __init__(self, secret: bytes | None, address: PeerAddress, found: OnFound, *, host: str) -> None:
        self._host = host
        self._secret = secret
        self._address = address
        self._found = found
        self._name = f"{os.urandom(8).hex()}.{SERVICE}"
        self._seen: OrderedDict[str, None] = OrderedDict()

    async def run(self) -> None:
        """Look and be seen until cancelled. A machine without multicast finds nobody, and that is all."""
        where = InterfaceChoice.All if self._host in (EVERYWHERE, "0.0.0.0", "::") else [self._host]
        versions = {version_of(address) for address in self._address.libp2p}
        version = IPVersion.V6Only if ":" in self._host or versions == {6} else IPVersion.V4Only
        try:
            zeroconf = await trio.to_thread.run_sync(partial(Zeroconf, interfaces=where, ip_version=version))
        except (OSError, RuntimeError) as error:  # no interface, or none with such an address
            log.info("no multicast DNS on this machine: %s", error)
            return
        try:
            async with trio.open_nursery() as nursery:
                names = self._browse(zeroconf)
                nursery.start_soon(self._look, zeroconf, names, nursery)
                if self._address.libp2p:
                    await self._announce(zeroconf)
        finally:
            with trio.move_on_after(CLOSED_WITHIN_S, shield=True):
                await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)

    def _browse(self, zeroconf: Zeroconf) -> trio.MemoryReceiveChannel[str]:
        put, names = trio.open_memory_channel[str](WAITING_LIMIT)
        token = trio.lowlevel.current_trio_token()

        def take(name: str) -> None:
            try:
                put.send_nowait(name)
            except (trio.WouldBlock, trio.BrokenResourceError):
                log.debug("%s on the local network goes unheard", name)

        def changed(*, name: str, state_change: ServiceStateChange, **_: Any) -> None:
            if state_change is ServiceStateChange.Added:
                with suppress(trio.RunFinishedError):  # zeroconf's thread may outlive our loop
                    token.run_sync_soon(take, name)

        ServiceBrowser(zeroconf, SERVICE, handlers=[changed])
        return names

    async def _announce(self, zeroconf: Zeroconf) -> None:
        sealed = seal(self._address, self._secret)
        pieces = {str(i): sealed[i : i + PIECE] for i in range(0, len(sealed), PIECE)}
        info = ServiceInfo(
            SERVICE,
            self._name,
            port=0,
            server=self._name,
            # A record without an address is taken for incomplete; this one says nothing.
            addresses=[socket.inet_aton("127.0.0.1")],
            properties=pieces,
        )
        try:
            await trio.to_thread.run_sync(zeroconf.register_service, info, abandon_on_cancel=True)
        except (OSError, ZeroconfError) as error:
            log.info("not announced on the local network: %r", error)

    async def _look(
        self, zeroconf: Zeroconf, names: trio.MemoryReceiveChannel[str], nursery: trio.Nursery
    ) -> None:
        async for name in names:
            if name == self._name or name in self._seen:
                continue
            self._seen[name] = None
            if len(self._seen) > SEEN_LIMIT:
                self._seen.popitem(last=False)
            ask = partial(zeroconf.get_service_info, SERVICE, name, ANSWER_WITHIN_MS)
            try:
                info = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
            except (OSError, ZeroconfError) as error:
                log.debug("%s does not say who it is: %r", name, error)
                continue
            address = None if info is None else unseal(_text(info), self._secret)
            if address is not None and address.peer != self._address.peer:
                nursery.start_soon(self._found, address)


def _text(info: ServiceInfo) -> bytes:
    properties = info.properties
    return b"".join(properties.get(str(number).encode()) or b"" for number in range(SEALED_LIMIT // PIECE))
