"""One lab with a site of every kind, and what hosts say to each other over plain sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shoal.testing.natlab.lab import LabHost, NatLab
from shoal.testing.natlab.sites import Site

WAIT_S = 0.15
"""For what must not come. On this machine everything that comes does so within a few milliseconds."""
ALLOWED_S = 3.0
"""For what must."""


@pytest.fixture(scope="package")
def lab(nat_lab: type[NatLab]) -> Iterator[NatLab]:
    sites = [Site("public", (name,)) for name in ("p", "q")]
    sites += [Site("cone", ("a",)), Site("cone", ("b",)), Site("cone", ("h1", "h2"))]
    sites += [
        Site("sym", ("s",)),
        Site("full", ("f",)),
        Site("upnp", ("u",)),
        Site("v6", ("v",)),
        Site("dual", ("d",)),
    ]
    with nat_lab(sites) as made:
        yield made


def udp(host: LabHost, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    opened = host.socket(socket.SOCK_DGRAM, family)
    opened.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    opened.settimeout(ALLOWED_S)
    return opened


def listener(host: LabHost, port: int) -> socket.socket:
    opened = host.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind(("0.0.0.0", port))
    opened.listen()
    opened.settimeout(ALLOWED_S)
    return opened


def dialled(host: LabHost, address: str, port: int, within_s: float = ALLOWED_S) -> socket.socket:
    opened = host.socket()
    opened.settimeout(within_s)
    opened.connect((address, port))
    return opened


def comes(receiver: socket.socket, within_s: float = ALLOWED_S) -> bool:
    """Whether anything does, within the time."""
    receiver.settimeout(within_s)
    try:
        return bool(receiver.recvfrom(2048)[0])
    except TimeoutError:
        return False
    finally:
        receiver.settimeout(ALLOWED_S)


def seen_from(sender: socket.socket, observer: socket.socket, at: tuple[str, int]) -> tuple[str, int]:
    """Where a datagram from ``sender`` comes from, as the observer at this address sees it."""
    sender.sendto(b"who am I", at)
    return observer.recvfrom(2048)[1][:2]
