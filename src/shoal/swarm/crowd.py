"""Whom a full directory forgets for a newcomer. Pure.

Identities cost nothing, so a flood of them must not fill the places of the honest (Sybil), nor close the
door to those who come later (eclipse). What costs something is to be in many networks, to have been there for
long, and to be connected. So the newest of the most crowded network goes, and never a peer that we are
connected to or use. Who lies about where it is spreads its identities, and can push out those alone that came
last. (Groups by network, and places for those known for long: Heilman et al., "Eclipse Attacks on Bitcoin's
Peer-to-Peer Network", 2015.)
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Container, Mapping
from typing import Protocol

from shoal.net.addresses import host_and_port
from shoal.types import PeerAddress, PeerId


class Guest(Protocol):
    """What is known of a peer in the directory, as far as it matters here."""

    @property
    def network(self) -> str: ...
    @property
    def met(self) -> float: ...


def network_of(address: PeerAddress) -> str:
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


def whom_to_forget(
    guests: Mapping[PeerId, Guest], friends: Container[PeerId], newcomer: str | None
) -> PeerId | None:
    """Who goes so that a newcomer can come.

    Args:
        newcomer: its network; ``None`` for a friend, who may always come.
        friends: ourselves, and those whom we are connected to, or use.

    Returns:
        ``None`` where it may not: its network is the most crowded one already, or everybody is a friend.
    """
    strangers = {peer: guest for peer, guest in guests.items() if peer not in friends}
    crowds = Counter(guest.network for guest in strangers.values())
    most = max(crowds.values(), default=0)
    if not most or (newcomer is not None and crowds[newcomer] >= most > 1):
        return None
    candidates = [peer for peer, guest in strangers.items() if crowds[guest.network] == most]
    return max(candidates, key=lambda peer: strangers[peer].met)
