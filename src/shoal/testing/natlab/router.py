"""The process in the middle of a lab: moves packets between TUN devices, and ends the lab with its owner.

It is told what to do in lines of JSON at its stdin, and answers each. When stdin ends, whoever made the lab
has given it up or was killed: then every process in the lab's namespaces is ended.
"""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import suppress

import msgspec
from msgspec import Struct

from shoal.testing.natlab.backbone import Backbone
from shoal.testing.natlab.namespaces import end_processes
from shoal.testing.natlab.sites import LinkQuality

BATCH = 64
"""Packets taken from one site before the others have their turn."""
PACKET = 65_536


class Wires(Struct, frozen=True):
    """What the router is told first. Sites are known by their place in these lists."""

    devices: list[int]
    """Descriptors, inherited."""
    addresses: list[list[bytes]]
    links: list[LinkQuality]
    namespaces: list[int]
    """Descriptors of all of the lab's, inherited."""
    seed: int = 0


class ShapeLink(Struct, frozen=True, tag=True):
    """Give a site's link another quality."""

    site: int
    link: LinkQuality


class SetOffline(Struct, frozen=True, tag=True):
    """Let nothing leave or reach a site for so long; 0 ends it."""

    site: int
    for_s: float


class CutPairs(Struct, frozen=True, tag=True):
    """Let nothing pass between the sites of each pair, and everything between others."""

    pairs: list[tuple[int, int]]


class CountBytes(Struct, frozen=True, tag=True):
    """Say how many bytes have arrived."""


RouterCommand = ShapeLink | SetOffline | CutPairs | CountBytes


class Carried(Struct, frozen=True):
    """The answer to every command: how many bytes arrived so far, by where they came from and went to."""

    pairs: list[tuple[int, int, int]]


class PacketRouter:
    """Moves packets until its stdin ends."""

    def __init__(self, wires: Wires) -> None:
        self._devices = wires.devices
        self._site_of = {device: site for site, device in enumerate(wires.devices)}
        addresses = {address: site for site, own in enumerate(wires.addresses) for address in own}
        self._backbone = Backbone(addresses, dict(enumerate(wires.links)), wires.seed)
        self._unread = b""

    def run(self) -> None:
        """Return when stdin ends."""
        control = sys.stdin.fileno()
        while True:
            due = self._backbone.next_due
            wait_s = None if due is None else max(0.0, due - time.monotonic())
            for ready in select.select([control, *self._devices], [], [], wait_s)[0]:
                if ready != control:
                    self._take_from(ready)
                elif not self._obey(control):
                    return
            for site, packet in self._backbone.give(time.monotonic()):
                with suppress(OSError):  # its host has its interface down: the packet is lost
                    os.write(self._devices[site], packet)

    def _take_from(self, device: int) -> None:
        site = self._site_of[device]
        with suppress(BlockingIOError):
            for _ in range(BATCH):
                packet = os.read(device, PACKET)
                self._backbone.take(time.monotonic(), site, packet)

    def _obey(self, control: int) -> bool:
        """Carry out the commands that have come; false when there will be no more."""
        piece = os.read(control, PACKET)
        *lines, self._unread = (self._unread + piece).split(b"\n")
        for line in lines:
            self._carry_out(msgspec.json.decode(line, type=RouterCommand))
            pairs = [(a, b, size) for (a, b), size in self._backbone.carried.items()]
            sys.stdout.buffer.write(msgspec.json.encode(Carried(pairs)) + b"\n")
            sys.stdout.flush()
        return bool(piece)

    def _carry_out(self, command: RouterCommand) -> None:
        match command:
            case ShapeLink():
                self._backbone.shape(command.site, command.link)
            case SetOffline():
                self._backbone.set_offline(command.site, time.monotonic() + command.for_s)
            case CutPairs():
                self._backbone.set_cuts(frozenset(frozenset(pair) for pair in command.pairs))
            case CountBytes():
                pass


def main() -> None:
    """Be the router of the lab that the first argument describes."""
    wires = msgspec.json.decode(sys.argv[1], type=Wires)
    try:
        PacketRouter(wires).run()
    finally:
        end_processes(wires.namespaces)


if __name__ == "__main__":
    main()
