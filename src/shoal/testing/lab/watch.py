"""Looks at the swarm from outside: what nodes show, what processes hold, who is still listed."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress

import psutil
import trio

from shoal.client.swarm import Swarm
from shoal.swarm.announcement import Announcement
from shoal.testing.lab.judge import Fault, ghosts, held, leaks
from shoal.testing.lab.nodes import LabNode, LabSwarm
from shoal.types import PeerId

LOOK_EVERY_S = 0.1
HEARD_WITHIN_S = 30.0
"""By when a client has to have heard of a node that serves."""
IDLE_WITHIN_S = 20.0
"""By when every node has to have freed all its KV, once nobody asks."""
FIGURES_WITHIN_S = 5.0
SPARE_TASKS = 12
"""Tasks that the client may have more for each node than when it began: channels and connections."""


class NodeMonitor:
    """What a client sees of the lab's nodes, and what their processes show.

    Args:
        liars: members in this process that know the nodes as the client does.
    """

    def __init__(self, lab: LabSwarm, client: Swarm, liars: int = 0) -> None:
        self._lab = lab
        self._client = client
        self._expiry_s = client.settings.expiry_s
        self._spare_tasks = SPARE_TASKS * len(lab.nodes) * (1 + liars)
        self._listed: set[PeerId] = set()
        self._files = self._descriptors()
        self._tasks = trio.lowlevel.current_statistics().tasks_living

    async def heard(self) -> list[str]:
        """Wait until the client knows of every node that serves; says of which it has not heard in time."""
        unheard: list[str] = []
        with trio.move_on_after(HEARD_WITHIN_S):
            while True:
                unheard = self._unheard()
                if not unheard:
                    break
                await trio.sleep(LOOK_EVERY_S)
        return [f"node {name} serves, and the client does not know" for name in unheard]

    async def idle(self) -> list[str]:
        """Wait until every node that is well shows that it holds nothing; says who still does."""
        held: dict[str, str] = {}

        async def let_go(node: LabNode) -> None:
            while found := await held_by(node):
                held[node.name] = found
                await trio.sleep(LOOK_EVERY_S)
            held.pop(node.name, None)

        with trio.move_on_after(IDLE_WITHIN_S):
            async with trio.open_nursery() as nursery:
                for node in self._lab.nodes.values():
                    nursery.start_soon(let_go, node)
        return [f"node {name} does not let go of {found}" for name, found in held.items()]

    async def look_for_ghosts(self) -> None:
        """Note every second who is listed long after its end, until cancelled."""
        while True:
            ended = {node.peer: node.ended for node in self._lab.nodes.values() if node.ended is not None}
            self._listed |= ghosts(self._client.announcements(), ended, time.time(), self._expiry_s)
            await trio.sleep(1.0)

    def noticed(self, run: int | None) -> list[Fault]:
        """What was noticed beside the answers since it was last asked."""
        found = [Fault(run, "process", message) for message in self._lab.faults]
        found += [
            Fault(run, "ghost", f"node {self._names[peer]} was listed long after its end")
            for peer in self._listed
        ]
        self._lab.faults.clear()
        self._listed.clear()
        return found

    def leaks(self) -> list[str]:
        """What the nodes' processes and this client hold more than when it all began."""
        found = leaks(self._files, self._descriptors())
        tasks = trio.lowlevel.current_statistics().tasks_living
        if tasks > self._tasks + self._spare_tasks:
            found.append(f"the client has {tasks} tasks, and had {self._tasks}")
        return found

    @property
    def _names(self) -> dict[PeerId, str]:
        return {node.peer: node.name for node in self._lab.nodes.values()}

    def _latest(self) -> Mapping[str, Announcement]:
        return {announcement.peer: announcement for announcement in self._client.announcements()}

    def _unheard(self) -> list[str]:
        latest = self._latest()
        return [
            node.name
            for node in self._lab.nodes.values()
            if node.well and (node.peer not in latest or latest[node.peer].issued < node.started)
        ]

    def _descriptors(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in self._lab.nodes.values():
            if node.well and node.process is not None:
                pid = node.process.process.pid
                with suppress(psutil.Error):  # it has just ended
                    found[f"node {node.name} (process {pid})"] = psutil.Process(pid).num_fds()
        return found


async def held_by(node: LabNode) -> str:
    """What a node holds, by its own figures; nothing when it is not well."""
    if not node.well:
        return ""
    try:
        return held(await shown_figures(node))
    except OSError as error:  # it has ended in this moment, or it does not answer
        return f"its figures ({error})"


async def shown_figures(node: LabNode) -> str:
    """What a node shows to Prometheus. Raises OSError: it has ended, or does not answer."""
    return await trio.to_thread.run_sync(_read, f"{node.figures}/metrics")


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=FIGURES_WITHIN_S) as answer:
        return answer.read().decode()
