"""The ports that a gateway forwards, kept where they are in force: in the kernel, which ends their leases."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shoal.testing.natlab.gateway.firewall import MAPPED
from shoal.testing.natlab.programs import run_program

LONGEST_LEASE_S = 604_800
"""A week: the longest that UPnP allows (WANIPConnection:2, 2.3.16)."""
TransportName = Literal["tcp", "udp"]


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A public port, and the host's address and port that it leads to."""

    protocol: TransportName
    public_port: int
    address: str
    port: int
    lease_s: int
    """What is left of it."""


class PortTable:
    """The mappings of the gateway in whose namespace this process is. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def find(self, protocol: TransportName, public_port: int) -> PortMapping | None:
        return next((m for m in self if (m.protocol, m.public_port) == (protocol, public_port)), None)

    def __iter__(self) -> Iterator[PortMapping]:
        listed = json.loads(run_program(["nft", "-j", "list", "map", *MAPPED]))
        (found,) = [entry["map"] for entry in listed["nftables"] if "map" in entry]
        for key, value in found.get("elem", []):
            protocol, public_port = key["elem"]["val"]["concat"]
            address, port = value["concat"]
            yield PortMapping(protocol, public_port, address, port, key["elem"]["expires"])

    def add(self, wanted: PortMapping) -> bool:
        """Forward a port, or renew its lease; false when it leads to another host."""
        with self._lock:
            old = self.find(wanted.protocol, wanted.public_port)
            if old is not None and old.address != wanted.address:
                return False
            remove = _order("delete", old) if old else ""
            run_program(["nft", "-f", "-"], remove + _order("add", wanted))
            return True

    def remove(self, mapping: PortMapping) -> None:
        """End a mapping that :meth:`find` found."""
        with self._lock:
            if self.find(mapping.protocol, mapping.public_port) is not None:
                run_program(["nft", "-f", "-"], _order("delete", mapping))


def _order(what: Literal["add", "delete"], mapping: PortMapping) -> str:
    key = f"{mapping.protocol} . {mapping.public_port}"
    if what == "add":
        key += f" timeout {mapping.lease_s}s : {mapping.address} . {mapping.port}"
    return f"{what} element {' '.join(MAPPED)} {{ {key} }}\n"
