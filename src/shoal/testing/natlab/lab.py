"""A lab of networks: sites with gateways and hosts, joined by links, and what can be done to them.

Everything stays inside of namespaces that nobody else can enter by name, and ends with the lab.
"""

from __future__ import annotations

import itertools
import math
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import msgspec

from shoal.errors import ShoalError, UsageError
from shoal.testing.natlab.gateway.firewall import drop_mappings
from shoal.testing.natlab.namespaces import Namespace, bring_workers_home, end_processes
from shoal.testing.natlab.programs import check_programs
from shoal.testing.natlab.router import (
    Carried,
    CountBytes,
    CutPairs,
    RouterCommand,
    SetOffline,
    ShapeLink,
    Wires,
)
from shoal.testing.natlab.sites import MAX_SITES, Site
from shoal.testing.natlab.wiring import HOST, WiredSite, configure, default_routes, own_addresses, wire

ROUTER_ENDS_WITHIN_S = 10.0
RUN_WITHIN_S = 60.0
PORT_MAPPER = "shoal.testing.natlab.gateway.port_mapper"


@dataclass(frozen=True, slots=True)
class LabHost:
    """One machine of the lab. Made by :class:`NatLab`."""

    name: str
    namespace: Namespace
    addresses: tuple[str, ...]
    """Of its own interface."""
    public_addresses: tuple[str, ...]
    """Under which the internet sees it: its own, or its gateway's."""
    forwarded: tuple[str, ...] = ()
    """Those of its gateway that lead to it on every port, of which a node must be told."""
    processes: list[subprocess.Popen[Any]] = field(default_factory=list[subprocess.Popen[Any]], repr=False)
    """What :meth:`popen` started."""

    @property
    def is_public(self) -> bool:
        """Whether others can dial it: it is behind no gateway."""
        return self.addresses == self.public_addresses

    @property
    def address(self) -> str:
        """Its own first address."""
        return self.addresses[0]

    @property
    def public_address(self) -> str:
        """The first under which the internet sees it."""
        return self.public_addresses[0]

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs ``argv`` on this host, for whoever starts processes in another way."""
        return self.namespace.command(argv)

    def run(
        self, argv: Sequence[str], *, timeout_s: float = RUN_WITHIN_S, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end, and give what it printed, as text.

        Args:
            options: of :func:`subprocess.run`.

        Raises:
            CalledProcessError: it failed.
            TimeoutExpired: it did not end.
        """
        given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": timeout_s} | options
        return subprocess.run(self.command(argv), check=True, **given)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on this host, in a process group of its own. It ends with the lab at the latest.

        Args:
            options: of :class:`subprocess.Popen`.
        """
        given: dict[str, Any] = {"process_group": 0} | options
        started = subprocess.Popen(self.command(argv), **given)
        self.processes.append(started)
        return started

    def socket(
        self, kind: socket.SocketKind = socket.SOCK_STREAM, family: socket.AddressFamily = socket.AF_INET
    ) -> socket.socket:
        """A socket of this host for this process."""
        return self.namespace.socket(family, kind)

    def unplug(self) -> None:
        """Take its interface down: addresses stay, routes go, and whoever sends is told so at once."""
        self.namespace.call(lambda: configure([f"link set {HOST} down"]))

    def plug_in(self) -> None:
        """Undo :meth:`unplug`."""
        gone = [address for address in self.addresses if ":" in address]  # these go with the link
        again = own_addresses(gone, behind_gateway=not self.is_public)
        routes = default_routes(self.addresses, behind_gateway=not self.is_public)
        self.namespace.call(lambda: configure([f"link set {HOST} up", *again, *routes]))


class NatLab:
    """A context: the lab is there inside of it.

    Several can be there at once, in one process or many. However the process ends, by Ctrl-C or SIGKILL too,
    nothing stays behind.
    """

    def __init__(self, sites: Sequence[Site], *, seed: int = 0) -> None:
        """
        Args:
            seed: the same one loses the same packets.

        Raises:
            UsageError: two hosts have one name, or there are too many sites.
        """
        names = [name for site in sites for name in site.hosts]
        if len(set(names)) < len(names):
            raise UsageError(
                "two hosts of the lab have the same name", check="give each host a name of its own"
            )
        if not 0 < len(sites) <= MAX_SITES:
            raise UsageError(f"a lab cannot have {len(sites)} sites", check=f"give it 1 to {MAX_SITES}")
        self._sites = list(sites)
        self._seed = seed
        self._undo = ExitStack()
        self._wired: list[WiredSite] = []
        self._hosts: dict[str, LabHost] = {}
        self._site_of = {name: number for number, site in enumerate(sites) for name in site.hosts}
        self._router: subprocess.Popen[bytes] | None = None
        self._port_mappers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """
        Raises:
            NotAllowed: this process is not root.
            ShoalError: something is missing on this machine.
        """
        check_programs()
        with ExitStack() as undo:
            for number, site in enumerate(self._sites):
                self._wired.append(wire(site, number, undo))
            self._hosts = {host.name: host for host in self._make_hosts()}
            undo.callback(self._end)
            self._router = self._start_router()
            self._start_port_mappers()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()
        bring_workers_home()

    @property
    def hosts(self) -> Mapping[str, LabHost]:
        """All of them, by name."""
        return self._hosts

    def host(self, name: str) -> LabHost:
        return self._hosts[name]

    def has_gateway(self, name: str) -> bool:
        """Whether a host is behind one."""
        return self._wired[self._site_of[name]].gateway is not None

    def shape(self, name: str, **changes: float) -> None:
        """Change ``delay_ms``, ``rate_mbit`` or ``loss`` of a host's site's link; what is not given stays."""
        number = self._site_of[name]
        site = self._sites[number]
        self._sites[number] = replace(site, link=replace(site.link, **changes))
        self._tell(ShapeLink(number, self._sites[number].link))

    def partition(self, *groups: Iterable[str]) -> None:
        """Let nothing pass between hosts of different groups, in place of an earlier partition.

        Hosts of one site are always on one side, and whoever is in no group reaches everybody.
        """
        sides = [{self._site_of[name] for name in group} for group in groups]
        crossing = (itertools.product(one, other) for one, other in itertools.combinations(sides, 2))
        self._tell(CutPairs([(a, b) for pairs in crossing for a, b in pairs if a != b]))

    def heal(self) -> None:
        """End the partition."""
        self._tell(CutPairs([]))

    def offline(self, name: str, for_s: float = math.inf) -> None:
        """Lose every packet from and to a host's site without a word, for so long or until :meth:`online`."""
        self._tell(SetOffline(self._site_of[name], min(for_s, 1e9)))

    def online(self, name: str) -> None:
        """End :meth:`offline`."""
        self._tell(SetOffline(self._site_of[name], 0.0))

    def drop_mappings(self, name: str) -> None:
        """Let the gateway of a host's site forget every connection and forwarded port, without a word.

        Raises:
            UsageError: the host has no gateway.
        """
        gateway = self._wired[self._site_of[name]].gateway
        if gateway is None:
            raise UsageError(f"host {name!r} has no gateway", check="name a host behind one")
        drop_mappings(gateway)

    def carried(self, source: str, destination: str) -> int:
        """Bytes that came from one host's site to the other's so far, headers included."""
        pair = (self._site_of[source], self._site_of[destination])
        return next((size for a, b, size in self._tell(CountBytes()).pairs if (a, b) == pair), 0)

    def _make_hosts(self) -> Iterable[LabHost]:
        for wired in self._wired:
            for index, (name, namespace) in enumerate(zip(wired.site.hosts, wired.hosts, strict=True)):
                public = wired.public_addresses
                led_here = public if wired.site.kind == "static" else ()
                yield LabHost(name, namespace, wired.host_addresses(index), public, led_here)

    @property
    def _namespaces(self) -> list[int]:
        return [namespace.fd for wired in self._wired for namespace in wired.namespaces]

    def _start_router(self) -> subprocess.Popen[bytes]:
        devices = [wired.device for wired in self._wired]
        addresses = [wired.packed_addresses for wired in self._wired]
        links = [site.link for site in self._sites]
        wires = Wires(devices, addresses, links, self._namespaces, self._seed)
        return subprocess.Popen(
            [sys.executable, "-m", "shoal.testing.natlab.router", msgspec.json.encode(wires).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what was not written is not tried again when the pipe is closed
            pass_fds=[*devices, *self._namespaces],
            start_new_session=True,  # it outlives Ctrl-C and whoever kills our group, to clean up after us
        )

    def _tell(self, command: RouterCommand) -> Carried:
        router = self._router
        assert router is not None and router.stdin is not None and router.stdout is not None
        with suppress(BrokenPipeError):
            router.stdin.write(msgspec.json.encode(command) + b"\n")
        line = router.stdout.readline()
        if not line:
            raise ShoalError(f"the lab's router has ended with exit code {router.wait()}")
        return msgspec.json.decode(line, type=Carried)

    def _start_port_mappers(self) -> None:
        """Start what answers UPnP and NAT-PMP, and wait for it. It ends with its namespace."""
        for wired in self._wired:
            if wired.site.kind == "upnp" and wired.gateway is not None:
                command = [sys.executable, "-m", PORT_MAPPER, wired.public_addresses[0]]
                started = subprocess.Popen(wired.gateway.command(command), stdout=subprocess.PIPE)
                self._port_mappers.append(started)
        for started in self._port_mappers:
            if started.stdout is None or not started.stdout.readline():
                raise ShoalError(f"a gateway's port mapper has ended with exit code {started.wait()}")

    def _end(self) -> None:
        router = self._router
        if router is None:
            return
        assert router.stdin is not None
        router.stdin.close()
        try:
            router.wait(ROUTER_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            router.kill()
        with router:
            pass
        if router.returncode:  # it was ended, and could not clean up
            end_processes(self._namespaces)
        for process in (*self._port_mappers, *(p for host in self._hosts.values() for p in host.processes)):
            with process:  # closes its pipes, and waits for it
                process.kill()
