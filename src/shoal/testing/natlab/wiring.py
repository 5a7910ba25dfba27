"""A site's namespaces and interfaces: hosts, their gateway, and the device that leads to the backbone."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from shoal.testing.natlab.gateway.firewall import LAN, LAN_ADDRESS, WAN, set_up_firewall
from shoal.testing.natlab.namespaces import Namespace
from shoal.testing.natlab.programs import run_program
from shoal.testing.natlab.sites import Site

HOST = "eth0"
"""Every host's interface."""
QUEUE = 4096
"""Packets that wait for the backbone; what it cannot move in time is lost, as anywhere."""

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


@dataclass(frozen=True, slots=True)
class WiredSite:
    """A site that has been set up."""

    site: Site
    number: int
    gateway: Namespace | None
    hosts: tuple[Namespace, ...]
    device: int
    """Descriptor of the TUN device: what is read was sent by the site, what is written arrives there."""
    public_addresses: tuple[str, ...]
    """Under which the internet knows the site."""

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        return self.hosts if self.gateway is None else (self.gateway, *self.hosts)

    @property
    def packed_addresses(self) -> list[bytes]:
        """The addresses that lead to the site, as they are in packets."""
        own = [a for index in range(len(self.hosts)) for a in self.host_addresses(index) if ":" in a]
        known = dict.fromkeys([*self.public_addresses, *own])
        return [ipaddress.ip_address(address).packed for address in known]

    def host_addresses(self, index: int) -> tuple[str, ...]:
        """The addresses of a host's own interface."""
        if self.gateway is None:
            return self.public_addresses
        return _behind_gateway(self.site, self.number, index)


def wire(site: Site, number: int, undo: ExitStack) -> WiredSite:
    """Make what a site consists of.

    Args:
        number: of the site in its lab, from 0 on; its public addresses follow from it.
        undo: is given what gives all of it up.

    Raises:
        ShoalError: a program refused.
        OSError: the kernel did.
    """
    four, six = f"20.0.{number + 1}.1", f"2a10:20:{number + 1:x}::1"
    hosts = tuple(_namespace(undo) for _ in site.hosts)
    gateway = _namespace(undo) if site.has_gateway else None
    outside, name = (hosts[0], HOST) if gateway is None else (gateway, WAN)
    addresses = {"public": (four, six), "dual": (four, six), "v6": (six,)}.get(site.kind, (four,))
    device = outside.call(lambda: _tun(name))
    undo.callback(os.close, device)
    outside.call(lambda: configure(_join_internet(name, addresses)))
    if gateway is not None:
        gateway.call(lambda: configure(_join_hosts(hosts)))
        if site.kind == "dual":
            gateway.call(lambda: configure([f"addr add {lan_prefix(number)}1/64 dev {LAN} nodad"]))
        gateway.call(lambda: set_up_firewall(site.kind))
        for index, host in enumerate(hosts):
            own = _behind_gateway(site, number, index)
            host.call(lambda own=own: configure(_join_gateway(own)))
    return WiredSite(site, number, gateway, hosts, device, addresses)


def lan_prefix(number: int) -> str:
    """What the IPv6 addresses behind the gateway of a site begin with."""
    return f"2a10:21:{number + 1:x}::"


def _behind_gateway(site: Site, number: int, index: int) -> tuple[str, ...]:
    four, six = f"192.168.7.{index + 2}", f"{lan_prefix(number)}{index + 2:x}"
    return (four, six) if site.kind == "dual" else (four,)


def _namespace(undo: ExitStack) -> Namespace:
    made = Namespace()
    undo.callback(made.close)
    return made


def _tun(name: str) -> int:
    """A TUN device in this thread's namespace. It ends with its descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _join_internet(name: str, addresses: Sequence[str]) -> list[str]:
    own = [f"addr add {address}/{128 if ':' in address else 32} dev {name}" for address in addresses]
    up = ["link set lo up", f"link set {name} mtu 1500 txqueuelen {QUEUE} up"]
    return [*up, *own, *(f"route add {family} dev {name}" for family in _families(addresses))]


def _join_hosts(hosts: Sequence[Namespace]) -> list[str]:
    """A gateway's switch, with a cable to each host."""
    # Without snooping, for which no router asks here, multicast reaches everybody.
    commands = [f"link add {LAN} type bridge mcast_snooping 0", f"addr add {LAN_ADDRESS}/24 dev {LAN}"]
    for index, host in enumerate(hosts):
        commands.append(f"link add port{index} type veth peer name {HOST} netns {host.path}")
        commands.append(f"link set port{index} master {LAN} up")
    return [*commands, f"link set {LAN} up"]


def _join_gateway(addresses: Sequence[str]) -> list[str]:
    return [
        "link set lo up",
        f"link set {HOST} up",
        *own_addresses(addresses, behind_gateway=True),
        *default_routes(addresses, behind_gateway=True),
    ]


def own_addresses(addresses: Sequence[str], *, behind_gateway: bool) -> list[str]:
    """What ``ip`` is told so that a host's interface has these addresses. It may have had them before."""
    sizes = {True: (64, 24), False: (128, 32)}[behind_gateway]
    # Nobody else has them: to ask would take a second.
    return [
        f"addr replace {address}/{sizes[0]} dev {HOST} nodad"
        if ":" in address
        else f"addr replace {address}/{sizes[1]} dev {HOST}"
        for address in addresses
    ]


def default_routes(addresses: Sequence[str], *, behind_gateway: bool) -> list[str]:
    """What ``ip`` is told so that a host with these addresses sends everything to the internet."""
    if not behind_gateway:
        return [f"route add {family} dev {HOST}" for family in _families(addresses)]
    gateways = [f"{a.rpartition(':')[0]}:1" if ":" in a else LAN_ADDRESS for a in addresses]
    ways = zip(_families(addresses), gateways, strict=True)
    return [f"route add {family} via {gateway} dev {HOST}" for family, gateway in ways]


def _families(addresses: Sequence[str]) -> list[str]:
    """All of IPv6, or of IPv4, as each address says."""
    return ["::/0" if ":" in address else "0.0.0.0/0" for address in addresses]


def configure(commands: Sequence[str]) -> None:
    """Tell ``ip`` several things in this thread's namespace.

    Raises:
        ShoalError: it refused one.
    """
    run_program(["ip", "-batch", "-"], "\n".join(commands))
