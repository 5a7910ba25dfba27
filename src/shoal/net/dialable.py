"""Which announced addresses we are willing to dial: the open internet's, and those of networks we are on.

Whoever announces an address, or names one as the next hop, makes others knock there. So a peer may not send
us to our own machine, into networks that we merely can reach, or to where clouds tell a machine its
credentials (libp2p/specs#536).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import psutil

from shoal.net.addresses import host_and_port

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

_METADATA = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")))
"""Where clouds tell a machine its credentials."""
_RANGES: tuple[IPNetwork, ...] = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)
"""What private networks (RFC 1918, 4193), carriers and overlay networks (RFC 6598) use."""
_TRANSLATED: tuple[IPv6Network, ...] = tuple(
    map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96"))
)
"""IPv6 addresses that stand for an IPv4 address, and so for any of those that are refused."""
_LONE = 2
"""An interface whose network has no more addresses tells nothing of the network behind it: clouds do that."""


@dataclass(frozen=True, slots=True)
class LocalNetworks:
    """The networks that we are on, beside the open internet."""

    networks: tuple[IPNetwork, ...] = ()
    loopback: bool = False
    """Whether the swarm is on this machine alone, or has been joined through it."""
    interfaces: tuple[IPNetwork, ...] = ()
    """The networks of our interfaces, of which ``networks`` may be the whole range."""

    def dialable(self, multiaddr: str) -> bool:
        """Whether an address that a peer announced may be dialled.

        Refused: what is no plain TCP address; unspecified, multicast, reserved and link-local hosts, and the
        metadata services of clouds; loopback and private hosts, unless we are there ourselves. Names are
        refused: they could stand for any of these.
        """
        target = _ip(multiaddr)
        if target is None or target in _METADATA or target.is_unspecified or target.is_multicast:
            return False
        if target.is_loopback:
            return self.loopback
        if target.is_link_local or target.is_reserved or getattr(target, "is_site_local", False):
            return False
        if any(target in network for network in _TRANSLATED):
            return False
        return target.is_global or any(target in network for network in self.networks)

    def on_interface(self, multiaddr: str) -> bool:
        """Whether one of our interfaces is on the network of an address, or the address is loopback."""
        target = _ip(multiaddr)
        return target is not None and (target.is_loopback or any(target in n for n in self.interfaces))

    def fit(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Those of ``addresses`` that may be dialled, in their order."""
        return tuple(address for address in addresses if self.dialable(address))

    def told_by(self, teller: str, addresses: Iterable[str]) -> tuple[str, ...]:
        """Where one who is at ``teller``, a multiaddr, may send us to meet a peer.

        That is one host of each IP version, whatever is named; and one of a private network only if
        ``teller`` is there too, for else it cannot have seen anybody there.
        """
        at = _ip(teller)
        found: list[str] = []
        host: dict[int, IPAddress] = {}
        for address in self.fit(addresses):
            target = _ip(address)
            if target is None or host.get(target.version, target) != target:
                continue
            both_here = at is not None and (
                (at.is_loopback and target.is_loopback)
                or any(at in network and target in network for network in self.networks)
            )
            if target.is_global or both_here:
                host[target.version] = target
                found.append(address)
        return tuple(found)

    def joined_through(self, multiaddr: str) -> LocalNetworks:
        """The same, once the user has named this address to join through."""
        target = _ip(multiaddr)
        return replace(self, loopback=True) if target is not None and target.is_loopback else self


def around(addresses: Sequence[str], *, trusting: bool) -> LocalNetworks:
    """What is nearby for a peer with these addresses of its own, as :func:`shoal.net.addresses.expand` gives.

    Args:
        trusting: the swarm is private. Its members may send each other through the whole private range that
            they are in, as sites of several networks need; in the public swarm, to our own network alone.
    """
    ours = [ip for ip in map(_ip, addresses) if ip is not None]
    networks = [_network(ip, trusting=trusting) for ip in ours if not ip.is_loopback]
    return LocalNetworks(
        tuple(network for network in networks if network is not None),
        any(ip.is_loopback for ip in ours),
        tuple(network for network in _interface_networks() if any(ip in network for ip in ours)),
    )


def _network(ip: IPAddress, *, trusting: bool) -> IPNetwork | None:
    """The private network that we are on with this address; ``None`` when it is a public one."""
    if ip.is_global:
        return None
    whole = next((range for range in _RANGES if ip in range), None)
    own = next((network for network in _interface_networks() if ip in network), None)
    if trusting or own is None or own.num_addresses <= _LONE:
        return whole or own
    return own


def _interface_networks() -> list[IPNetwork]:
    """The networks of this machine's interfaces, the narrowest first."""
    found: list[IPNetwork] = []
    for group in psutil.net_if_addrs().values():
        for entry in group:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and entry.netmask:
                address = entry.address.partition("%")[0]
                mask = int(ipaddress.ip_address(entry.netmask))
                found.append(ipaddress.ip_network(f"{address}/{mask.bit_count()}", strict=False))
    return sorted(found, key=lambda network: -network.prefixlen)


def _ip(multiaddr: str) -> IPAddress | None:
    found = host_and_port(multiaddr)
    # What follows a % names an interface of whoever wrote it, and hides an address from comparison.
    if found is None or "%" in found[0]:
        return None
    try:
        ip = ipaddress.ip_address(found[0])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return mapped or ip
