"""What a lab's internet consists of: sites with a link each, and the hosts there."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from shoal.errors import UsageError

SiteKind = Literal["public", "v6", "cone", "full", "sym", "upnp", "dual", "static"]
"""How a site is joined to the internet.

``public``: one host with an IPv4 and an IPv6 address of its own. ``v6``: one with an IPv6 address alone. All
others: hosts with private IPv4 addresses behind a gateway that translates them. ``cone``: the same public
port for all destinations, and only who was sent something may answer (endpoint-independent mapping, address
and port dependent filtering, RFC 4787). ``full``: the same mapping, and whoever sends to it gets in. ``sym``:
another random port for each destination. ``upnp``: a cone whose hosts can ask for ports, by UPnP, NAT-PMP
and PCP.
``dual``: a cone whose hosts have public IPv6 addresses as well, and a firewall that lets in only answers.
``static``: one host; its gateway's address is led to it on every port, as rented machines have it (1:1 NAT).
"""
MAX_SITES = 64

_SITE = re.compile(r"([a-z0-9]+)(?:\*([1-9]))?")


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """A site's link to the middle of the internet, the same in both directions."""

    delay_ms: float = 0.0
    """One way. Two hosts are as far apart as their two links together."""
    rate_mbit: float = 0.0
    """Megabits in a second; 0 is as many as this machine can move."""
    loss: float = 0.0
    """The part of all packets that is lost."""

    def __post_init__(self) -> None:
        if not (0 <= self.delay_ms <= 60_000 and 0 <= self.rate_mbit <= 100_000 and 0 <= self.loss <= 1):
            raise UsageError(
                f"there is no link with {self}",
                check="give a delay of 0 to 60000 ms, a rate of 0 to 100000 Mbit/s, and a loss of 0 to 1",
            )


@dataclass(frozen=True, slots=True)
class Site:
    """One place with one link. Several hosts are on one local network, behind one gateway."""

    kind: SiteKind
    hosts: tuple[str, ...]
    """Their names, unique in the lab."""
    link: LinkQuality = field(default_factory=LinkQuality)

    @property
    def has_gateway(self) -> bool:
        return self.kind not in ("public", "v6")

    def __post_init__(self) -> None:
        if self.kind not in get_args(SiteKind):
            kinds = ", ".join(get_args(SiteKind))
            raise UsageError(f"there is no kind of network {self.kind!r}", check=f"use one of: {kinds}")
        if not self.hosts or (len(self.hosts) > 1 and self.kind in ("public", "v6", "static")):
            raise UsageError(
                f"a site of kind {self.kind!r} cannot have {len(self.hosts)} hosts",
                check="name one host; several need a gateway that they share",
            )


def parse_sites(text: str, link: LinkQuality | None = None) -> list[Site]:
    """The sites of ``cone,sym*2,public``: two hosts behind the second gateway; the hosts are a, b, c and d.

    Args:
        link: of each of them.

    Raises:
        UsageError: it is no such list.
    """
    names = _names()
    found: list[Site] = []
    for word in text.split(","):
        match = _SITE.fullmatch(word.strip())
        if match is None:
            raise UsageError(
                f"{word.strip()!r} is no network", check="write a list such as cone,sym,public or cone*2,upnp"
            )
        hosts = tuple(next(names) for _ in range(int(match[2] or 1)))
        # Which kinds there are, the site itself knows.
        found.append(Site(match[1], hosts, link or LinkQuality()))  # pyright: ignore[reportArgumentType]
    return found


def _names() -> Iterator[str]:
    yield from string.ascii_lowercase
    yield from (f"{a}{b}" for a in string.ascii_lowercase for b in string.ascii_lowercase)
