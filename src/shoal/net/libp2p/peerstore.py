"""What the host remembers of other peers: py-libp2p's store, within bounds, and never without ourselves.

py-libp2p 0.8 keeps 1,000 peers and drops those without an address first. Our own entry, which holds our key,
has none: a node that had met 1,000 peers could not sign its gossip any more. Of each peer it keeps every
address and protocol that the peer names, up to a megabyte of them. And it calls a signed record invalid when
it knows a newer one, for which the DHT then drops a provider that another peer names with its older record.
"""

from __future__ import annotations

from collections.abc import Sequence

from libp2p.crypto.keys import KeyPair
from libp2p.peer.envelope import Envelope
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr

PEERS_LIMIT = 1000
FORGOTTEN_AT_ONCE = 50
"""Peers dropped together once there are too many, as choosing them means to go over all of them."""
ADDRESSES_LIMIT = 16
PROTOCOLS_LIMIT = 64
NAME_LIMIT = 256
"""Characters of a protocol's name."""


class BoundedPeerStore(PeerStore):
    """The peer store of one host."""

    def __init__(self, keys: KeyPair) -> None:
        super().__init__(max_peers=PEERS_LIMIT)
        self._own = ID.from_pubkey(keys.public_key)
        self.add_key_pair(self._own, keys)

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        """As the base class; the newest ``ADDRESSES_LIMIT`` are kept."""
        super().add_addrs(peer_id, addrs[-ADDRESSES_LIMIT:], ttl)
        if peer_id in self.peer_data_map:
            del self.peer_data_map[peer_id].addrs[:-ADDRESSES_LIMIT]

    def add_protocols(self, peer_id: ID, protocols: Sequence[str]) -> None:
        """As the base class; the first ``PROTOCOLS_LIMIT`` are kept."""
        super().add_protocols(peer_id, [p for p in protocols[:PROTOCOLS_LIMIT] if len(p) <= NAME_LIMIT])
        del self.peer_data_map[peer_id].protocols[PROTOCOLS_LIMIT:]

    def consume_peer_record(self, envelope: Envelope, ttl: int) -> bool:
        """As the base class; a record older than the one we hold changes nothing, and is no fault."""
        record = envelope.record()
        held = self.peer_record_map.get(record.peer_id)
        if held is not None and held.seq > record.seq:
            return ID.from_pubkey(envelope.public_key) == record.peer_id
        return super().consume_peer_record(envelope, ttl)

    def _enforce_peer_limit(self) -> None:
        own = self.peer_data_map.pop(self._own)
        self.max_peers = PEERS_LIMIT - FORGOTTEN_AT_ONCE
        try:
            super()._enforce_peer_limit()
        finally:
            self.max_peers = PEERS_LIMIT
            self.peer_data_map[self._own] = own
