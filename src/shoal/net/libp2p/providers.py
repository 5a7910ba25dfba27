"""Who serves what, in a Kademlia DHT that js-libp2p and go-libp2p understand.

Spec: https://github.com/libp2p/specs/blob/master/kad-dht/README.md, protocol ``/ipfs/kad/1.0.0``.

A record's key is the multihash of a CID: here 0x12 0x20 (sha2-256, 32 bytes) and then the 32 bytes that the
caller names. For a model these are its digest, so ``CID.createV1(raw.code, create(sha256.code, digest))`` in
js-libp2p asks for the same record.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import trio
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from shoal.errors import LocalProtocolError
from shoal.net.libp2p.connections import ShoalHost
from shoal.types import PeerAddress, PeerId

PROVIDE_WITHIN_S = 30.0
PEERS_ASKED = 20
ASKED_AT_ONCE = 6
PROVIDERS_LIMIT = 64
ADDRESSES_LIMIT = 8
KEYS_LIMIT = 10_000
"""Keys that we keep records of; the store of the library has no end."""
RESTART_S = 5.0

log = logging.getLogger(__name__)


def multihash(key: bytes) -> bytes:
    """The sha2-256 multihash whose digest is ``key``.

    Raises:
        LocalProtocolError: the key has not 32 bytes.
    """
    if len(key) != 32:
        raise LocalProtocolError(f"a key of {len(key)} bytes; it must have 32, as a sha-256")
    return b"\x12\x20" + key


@dataclass(slots=True)
class ProviderEntry:
    """A provider that a look-up came upon."""

    addresses: set[str] = field(default_factory=set[str])
    times: int = 0
    """How many peers named it."""


class Providers(KadDHT):
    """The DHT of one host. Run it as a service."""

    def __init__(self, host: ShoalHost, *, serve: bool) -> None:
        # Peers of one home share an address range, so the guard by range of the routing table is off.
        super().__init__(
            host,
            DHTMode.SERVER if serve else DHTMode.CLIENT,
            max_peers_per_subnet=0,
            enable_values=False,
        )
        _bound(self.provider_store)

    async def run(self) -> None:
        """As the base class; an error of the library starts it again instead of ending the host."""
        while True:
            try:
                await super().run()
                return
            except Exception as error:  # noqa: BLE001  any answer of a stranger may have led here
                log.debug("the DHT failed and starts again: %r", error)
                await trio.sleep(RESTART_S)

    async def announce(self, key: bytes) -> None:
        """Tell the peers nearest to ``key`` that we provide it. Records expire: say it again in time."""
        with trio.move_on_after(PROVIDE_WITHIN_S):
            await self.provider_store.provide(multihash(key))

    async def who_provides(self, key: bytes, *, deadline_s: float) -> list[PeerAddress]:
        """Ask the peers nearest to ``key``, and those whom they name; what came by the deadline.

        The library's own look-up answers from its memory once it has found anybody, for two days.
        """
        wanted, found = multihash(key), dict[ID, ProviderEntry]()
        _add(found, self.provider_store.get_providers(wanted))
        with trio.move_on_after(deadline_s):
            nearest = await self.peer_routing.find_closest_peers_network(wanted)
            named = await self._ask(nearest[:PEERS_ASKED], wanted, found)
            await self._ask([p for p in named if p not in set(nearest)][:PEERS_ASKED], wanted, found)
        # One liar can name many, but not make others name them.
        ranked = sorted(found.items(), key=lambda item: -item[1].times)
        return [
            PeerAddress(PeerId(str(peer)), tuple(sorted(entry.addresses)[:ADDRESSES_LIMIT]))
            for peer, entry in ranked[:PROVIDERS_LIMIT]
        ]

    async def _ask(self, peers: Sequence[ID], key: bytes, found: dict[ID, ProviderEntry]) -> list[ID]:
        named: dict[ID, None] = {}
        room = trio.CapacityLimiter(ASKED_AT_ONCE)

        async def ask(peer: ID) -> None:
            async with room:
                store = self.provider_store
                providers, closer = await store._get_providers_from_peer_with_closers(peer, key)  # pyright: ignore[reportPrivateUsage]
            _add(found, providers)
            named.update(dict.fromkeys(closer[:PEERS_ASKED]))

        async with trio.open_nursery() as nursery:
            for peer in peers:
                if peer != self.local_peer_id:
                    nursery.start_soon(ask, peer)
        return list(named)


def _add(found: dict[ID, ProviderEntry], providers: Iterable[PeerInfo]) -> None:
    for provider in list(providers)[:BUCKET_SIZE]:
        entry = found.setdefault(provider.peer_id, ProviderEntry())
        entry.times += 1
        entry.addresses.update(str(a).partition("/p2p/")[0] for a in provider.addrs[:ADDRESSES_LIMIT])


def _bound(store: ProviderStore) -> None:
    """Keep ``KEYS_LIMIT`` keys and the newest records of each.

    The library keeps any number of keys, and the first 20 providers of one for two days: whoever comes with
    20 identities would hide every other provider. Honest providers say again every few minutes that they are
    there; so the newest win.
    """
    add, records = store.add_provider, store.providers

    def bounded(key: bytes, provider: PeerInfo) -> None:
        # Taken out and put back at the end: so the key, and the provider, that were heard of longest ago go
        # first.
        of_key = records.pop(key, {})
        of_key.pop(str(provider.peer_id), None)
        while len(of_key) >= BUCKET_SIZE:
            del of_key[next(iter(of_key))]
        while len(records) >= KEYS_LIMIT:
            del records[next(iter(records))]
        records[key] = of_key
        add(key, PeerInfo(provider.peer_id, provider.addrs[:ADDRESSES_LIMIT]))

    store.add_provider = bounded
