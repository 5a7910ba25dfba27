"""A site's namespaces and interfaces: hosts, their gateway, and the device that leads to the backbone."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from shoal.testing.natlab.firewall import LAN, LAN_ADDRESS, WAN, set_up_firewall
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
        """The public addresses as they are in packets."""
        return [ipaddress.ip_address(address).packed for address in self.public_addresses]

    def host_addresses(self, index: int) -> tuple[str, ...]:
        """The addresses of a host's own interface."""
        return self.public_addresses if self.gateway is None else (f"192.168.7.{index + 2}",)


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
    addresses = {"public": (four, six), "v6": (six,)}.get(site.kind, (four,))
    device = outside.call(lambda: _tun(name))
    undo.callback(os.close, device)
    outside.call(lambda: configure(_join_internet(name, addresses)))
    if gateway is not None:
        gateway.call(lambda: configure(_join_hosts(hosts)))
        gateway.call(lambda: set_up_firewall(site.kind))
        for index, host in enumerate(hosts):
            host.call(lambda index=index: configure(_join_gateway(f"192.168.7.{index + 2}")))
    return WiredSite(site, gateway, hosts, device, addresses)


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


def _join_gateway(address: str) -> list[str]:
    return [
        "link set lo up",
        f"addr add {address}/24 dev {HOST}",
        f"link set {HOST} up",
        *default_routes([address], behind_gateway=True),
    ]


def default_routes(addresses: Sequence[str], *, behind_gateway: bool) -> list[str]:
    """What ``ip`` is told so that a host with these addresses sends everything to the internet."""
    way = f"via {LAN_ADDRESS}" if behind_gateway else f"dev {HOST}"
    return [f"route add {family} {way}" for family in _families(addresses)]


def _families(addresses: Sequence[str]) -> list[str]:
    """All of IPv6, or of IPv4, as each address says."""
    return ["::/0" if ":" in address else "0.0.0.0/0" for address in addresses]


def configure(commands: Sequence[str]) -> None:
    """Tell ``ip`` several things in this thread's namespace.

    Raises:
        ShoalError: it refused one.
    """
    run_program(["ip", "-batch", "-"], "\n".join(commands))
