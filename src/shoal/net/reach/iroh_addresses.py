"""Where a peer is reached over iroh: how that is announced, and what of it we dial. Pure.

It is among the addresses of the direct carrier, in a form that releases without iroh pass over. The key is
the peer's own, so an address is a UDP port, ``/ip4/192.0.2.1/udp/4002/iroh``, or a relay,
``/dns/relay.example.org/tcp/443/https/iroh``. A peer's relay is dialled only where our own user named it,
too: so nobody has us speak to a server of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shoal.net.addresses import is_loopback, is_private, to_multiaddr, to_socket
from shoal.net.dialable import LocalNetworks
from shoal.net.reach.ways import fit
from shoal.option_values import parse_iroh_relay
from shoal.types import PeerAddress

UDP_LIMIT = 4
"""UDP addresses that one peer announces, and that are dialled of one."""
_UDP = re.compile(r"(/ip[46]/[^/]+)/udp/([0-9]{1,5})/iroh")
_SOCKET = re.compile(r"\[([^]]+)\]:([0-9]+)|([^:]+):([0-9]+)")


@dataclass(frozen=True, slots=True)
class IrohTarget:
    """Where one peer is dialled over iroh."""

    hosts: tuple[str, ...]
    """``192.0.2.1:4002`` or ``[2001:db8::1]:4002``."""
    relay: str | None
    """The URL of the relay that it is at, as our user wrote it."""


def relay_address(url: str) -> str:
    """How a relay is announced.

    Raises:
        UsageError: this is no address of a relay.
    """
    scheme, host, port = parse_iroh_relay(url)
    kind = "ip6" if ":" in host else "ip4" if re.fullmatch("[0-9.]+", host) else "dns"
    return f"/{kind}/{host}/tcp/{port}/{scheme}/iroh"


def iroh_addresses(sockets: Iterable[str], relay: str | None, ours: Mapping[str, str]) -> tuple[str, ...]:
    """What we announce: public addresses first, loopback where there is no other; and our relay.

    Args:
        sockets: hosts and UDP ports at which the endpoint is reached.
        relay: the URL of the relay that it is at, as iroh writes it.
        ours: URLs of our user's relays, by what announces each.
    """
    found: list[tuple[str, int]] = []
    for text in sockets:
        match = _SOCKET.fullmatch(text)
        if match:
            found.append((match[1] or match[3], int(match[2] or match[4])))
    outward = [one for one in found if not is_loopback(one[0])] or found
    outward.sort(key=lambda one: (is_private(one[0]), ":" not in one[0]))
    udp = [f"{to_multiaddr(*one).replace('/tcp/', '/udp/')}/iroh" for one in outward[:UDP_LIMIT]]
    at = [relay_address(relay)] if relay else []
    return (*udp, *(address for address in at if address in ours))


def iroh_target(
    address: PeerAddress, nearby: LocalNetworks, router: str | None, ours: Mapping[str, str]
) -> IrohTarget | None:
    """Where a peer is dialled over iroh; ``None`` where it is not.

    Args:
        router: the public address that our own router speaks with, if it is known.
        ours: as in :func:`iroh_addresses`.
    """
    as_tcp = [f"{m[1]}/tcp/{m[2]}" for a in address.direct if (m := _UDP.fullmatch(a))]
    hosts = [
        to_socket(host, int(port))
        for plain in fit(address, as_tcp, nearby, router)
        for _, _, host, _, port in (plain.split("/"),)
    ]
    relay = next((ours[announced] for announced in address.direct if announced in ours), None)
    return IrohTarget(tuple(hosts[:UDP_LIMIT]), relay) if hosts or relay else None
