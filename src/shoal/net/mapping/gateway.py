"""The router of this machine's own network."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import psutil

ROUTES = Path("/proc/net/route")
_GATEWAY = 2


def gateway_of(routes: Path = ROUTES) -> str | None:
    """Its address there: what Linux routes everything to; elsewhere the first address of a private network,
    which most routers have. ``None`` where there is none.
    """
    if routes.exists():
        return read_routes(routes.read_text())
    for group in psutil.net_if_addrs().values():
        for entry in group:
            if entry.family == socket.AF_INET and entry.netmask:
                network = ipaddress.IPv4Network(f"{entry.address}/{entry.netmask}", strict=False)
                if network.is_private and not network.is_loopback and not network.is_link_local:
                    return str(network.network_address + 1)
    return None


def read_routes(text: str) -> str | None:
    """The gateway of the default route in Linux's table."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and int(fields[3], 16) & _GATEWAY:
            return str(ipaddress.IPv4Address(int(fields[2], 16).to_bytes(4, "little")))
    return None
