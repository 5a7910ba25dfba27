"""The lab's nodes: processes with a name, a home and ports of their own, and what can be done to them."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from shoal.config import Settings
from shoal.errors import DeadlineExceeded, ShoalError
from shoal.local.processes import START_WITHIN_S, Process, address_of, ended_with_us, free_ports, start
from shoal.net.identity import Identity
from shoal.swarm import membership
from shoal.testing.lab.plan import NodeAction, Place
from shoal.types import PeerId

SLOW_TURN_S = 0.1
SLOW_SHARE = 0.1
"""The part of each turn in which a slowed node runs."""


class LabNode:
    """One node, whether its process runs or not."""

    def __init__(self, place: Place, home: Path, host: str, ports: tuple[int, int]) -> None:
        self.place = place
        self.name = place.name
        self.home = home
        self.ports = ports
        """Of the libp2p host and of the direct carrier."""
        self.peer: PeerId = Identity.load_or_create(home / "identity.key").peer
        self.address = address_of(home, host, ports[0])
        self.process: Process | None = None
        self.serving = False
        """It has said that it serves, and has not ended or been asked to."""
        self.figures = ""
        """Where it shows its figures, ``http://127.0.0.1:PORT``."""
        self.frozen = False
        self.slowed: trio.CancelScope | None = None
        self.started = 0.0
        """When its process was last started, in seconds since the epoch, as announcements have it."""
        self.ended: float | None = None
        """When its process was seen to have ended; ``None`` while it runs, and before its first start."""
        self.asked_to_end = False

    @property
    def running(self) -> bool:
        """It was started, and its end has not been seen."""
        return self.started > 0 and self.ended is None

    @property
    def well(self) -> bool:
        """It serves, and nothing is being done to it."""
        return self.serving and self.running and not self.frozen and self.slowed is None


class LabSwarm:
    """Made by :func:`lab_swarm`."""

    def __init__(
        self, settings: Settings, nodes: Sequence[LabNode], processes: list[Process], nursery: trio.Nursery
    ) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.membership = membership.create(settings.swarm)
        self.client_settings = replace(settings, bootstrap=tuple(node.address for node in nodes))
        self.faults: list[str] = []
        """What went wrong with processes to which nothing had been done."""
        self._settings = settings
        self._processes = processes
        self._nursery = nursery
        self._failure: ShoalError | None = None
        self._changed = trio.Event()

    def of_peer(self, peer: str) -> LabNode | None:
        return next((node for node in self.nodes.values() if node.peer == peer), None)

    def serving_block(self, block: int) -> list[LabNode]:
        """The nodes that serve a block now, well or not."""
        return [node for node in self.nodes.values() if node.serving and block in node.place.span]

    async def start_all(self) -> None:
        """Start every node that is no spare, and wait until all of them serve.

        Raises:
            ShoalError: a node did not come up; the error is that node's own.
            DeadlineExceeded: it took too long.
        """
        first = [node for node in self.nodes.values() if not node.place.spare]
        for node in first:
            self._start(node)
        await self.wait_until(lambda: all(node.serving for node in first), START_WITHIN_S)

    async def wait_until(self, holds: Callable[[], bool], within_s: float) -> None:
        """Wait until something holds that changes with the nodes.

        Raises:
            ShoalError: a node could not be started.
            DeadlineExceeded: it did not come to hold.
        """
        with trio.move_on_after(within_s):
            while not holds():
                if self._failure is not None:
                    raise self._failure
                await self._changed.wait()
            return
        bad = [node.name for node in self.nodes.values() if not node.well and not node.place.spare]
        raise DeadlineExceeded(f"nodes {', '.join(bad)} did not come up within {within_s:.0f} s")

    def do(self, deed: NodeAction, nodes: Iterable[LabNode]) -> None:
        """Do something to nodes, all at the same moment. What is done to one that is down has no effect."""
        for node in nodes:
            if deed == "revive":
                self._revive(node)
            elif node.running and node.process is not None:
                self._harm(deed, node, node.process)
        self._note_change()

    def revive_all(self) -> None:
        """Undo whatever was done to the nodes, except to spare ones that are down."""
        self.do("revive", [n for n in self.nodes.values() if n.running or not n.place.spare])

    def _harm(self, deed: NodeAction, node: LabNode, process: Process) -> None:
        match deed:
            case "kill":
                node.serving, node.asked_to_end = False, True
                process.signal(signal.SIGKILL)
            case "stop":
                node.serving, node.asked_to_end = False, True
                process.signal(signal.SIGTERM)
            case "freeze":
                self._let_go(node)
                node.frozen = True
                process.signal(signal.SIGSTOP)
            case "slow" if node.slowed is None and not node.frozen:
                node.slowed = trio.CancelScope()
                self._nursery.start_soon(self._slow, process, node.slowed)
            case _:
                pass

    def _revive(self, node: LabNode) -> None:
        if not node.running:
            self._start(node)
        elif node.asked_to_end:
            self._nursery.start_soon(self._start_after_end, node)
        self._let_go(node)

    def _let_go(self, node: LabNode) -> None:
        if node.slowed is not None:
            node.slowed.cancel()
            node.slowed = None
        if node.frozen and node.process is not None:
            node.frozen = False
            node.process.signal(signal.SIGCONT)

    async def _slow(self, process: Process, scope: trio.CancelScope) -> None:
        with scope:
            try:
                while not process.ended:
                    process.signal(signal.SIGSTOP)
                    await trio.sleep(SLOW_TURN_S * (1 - SLOW_SHARE))
                    process.signal(signal.SIGCONT)
                    await trio.sleep(SLOW_TURN_S * SLOW_SHARE)
            finally:
                process.signal(signal.SIGCONT)

    async def _start_after_end(self, node: LabNode) -> None:
        started = node.started
        while node.running and node.started == started:
            await self._changed.wait()
        if node.started == started:
            self._start(node)

    def _start(self, node: LabNode) -> None:
        node.frozen, node.slowed, node.asked_to_end = False, None, False
        node.process, node.started, node.ended = None, time.time(), None
        self._nursery.start_soon(self._live, node)

    async def _live(self, node: LabNode) -> None:
        others = tuple(other.address for other in self.nodes.values() if other is not node)
        port, direct_port = node.ports
        settings = replace(self._settings, port=port, direct_port=direct_port, bootstrap=others)
        span = node.place.span
        process = node.process = await start(settings, self.membership, span, node.home, self._processes)
        try:
            node.figures = (await process.event("serving"))["figures"]
            node.serving = not node.asked_to_end
            self._note_change()
            await process.process.wait()
        except ShoalError as error:
            await process.process.wait()
            if not node.asked_to_end:
                self._failure = error
        if node.serving:
            code, words = process.process.returncode, process.last_words()
            self.faults.append(f"node {node.name} ended by itself with exit code {code}: {words}")
        if process.process.stdout is not None:
            await process.process.stdout.aclose()
        self._processes.remove(process)
        node.serving, node.ended = False, time.time()
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def lab_swarm(settings: Settings, places: Sequence[Place], folder: Path) -> AsyncGenerator[LabSwarm]:
    """Nodes for ``places``, not started yet. Their processes end with the block.

    Args:
        settings: as :func:`shoal.local.processes.on_this_machine` makes them.
        folder: where the nodes have their homes, with their logs.
    """
    ports = free_ports(settings.host, 2 * len(places))
    pairs = zip(ports[::2], ports[1::2], strict=True)
    nodes = [
        LabNode(place, folder / place.name, settings.host, pair)
        for place, pair in zip(places, pairs, strict=True)
    ]
    async with ended_with_us() as processes, trio.open_nursery() as nursery:
        swarm = LabSwarm(settings, nodes, processes, nursery)
        yield swarm
        nursery.cancel_scope.cancel()
