"""Whom a full directory forgets for newcomers. Pure.

Identities cost nothing, so a flood of them must not fill the places of the honest (Sybil), nor close the
door to those who come later (eclipse). What costs something is to be in many networks, to have been there for
long, and to be connected. So the newest of the most crowded network goes, and never a peer that we are
connected to or use. Who lies about where it is spreads its identities: where no network is crowded, some of
the newer half go, chosen by chance. So those who were there first stay, and who comes during a flood is not
gone with the next to come. (Groups by network, and places for those known for long: Heilman et al.,
"Eclipse Attacks on Bitcoin's Peer-to-Peer Network", 2015.)
"""

from __future__ import annotations

import heapq
import ipaddress
import random
from collections import defaultdict
from collections.abc import Container, Mapping
from typing import Protocol

from shoal.net.addresses import host_and_port
from shoal.types import PeerAddress, PeerId


class KnownPeer(Protocol):
    """What is known of a peer in the directory, as far as it matters here."""

    @property
    def network(self) -> str: ...
    @property
    def met(self) -> float: ...


def stated_network(address: PeerAddress) -> str:
    """The network that a peer says it is in: its first address' /24, or /48 in IPv6; or empty."""
    for multiaddr in (*address.libp2p, *address.direct):
        found = host_and_port(multiaddr)
        if found is None:
            continue
        try:
            ip = ipaddress.ip_address(found[0])
        except ValueError:
            continue
        return str(ipaddress.ip_network(f"{ip}/{24 if ip.version == 4 else 48}", strict=False))
    return ""


def peers_to_evict(
    known: Mapping[PeerId, KnownPeer],
    friends: Container[PeerId],
    newcomer: str | None,
    count: int = 1,
    chance: random.Random | None = None,
) -> list[PeerId]:
    """Who goes so that newcomers can come.

    Args:
        newcomer: the network of the first; ``None`` for a friend, who may always come.
        friends: ourselves, and those whom we are connected to, or use.
        count: how many go at most: several at a time cost little more than one.

    Returns:
        Nobody where it may not: its network is the most crowded one already, or everybody is a friend.
    """
    crowds: defaultdict[str, list[PeerId]] = defaultdict(list)
    for peer, known_peer in known.items():
        if peer not in friends:
            crowds[known_peer.network].append(peer)
    most = max(map(len, crowds.values()), default=0)
    if not most or (newcomer is not None and len(crowds.get(newcomer, ())) >= most > 1):
        return []
    # Each is alone in its network, as a flood that lies about its addresses would be.
    if most == 1:
        alone = sorted((crowd[0] for crowd in crowds.values()), key=lambda peer: known[peer].met)
        newer = alone[len(alone) // 2 :]
        return (chance or random.Random()).sample(newer, min(count, len(newer)))
    for crowd in crowds.values():
        if len(crowd) > 1:
            crowd.sort(key=lambda peer: known[peer].met)
    largest = [(-len(crowd), network) for network, crowd in crowds.items()]
    heapq.heapify(largest)
    gone: list[PeerId] = []
    while len(gone) < count and largest[0][0] < -1:
        size, network = largest[0]
        # The newest of the largest crowd; after that another crowd may be the largest.
        gone.append(crowds[network].pop())
        heapq.heapreplace(largest, (size + 1, network))
    return gone
