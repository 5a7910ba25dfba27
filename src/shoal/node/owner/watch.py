"""A node looks after its machine: gives way to its owner, comes back, and counts the energy of its tokens.

A node that pauses says so first. A moment later it hands over the sessions that others have room for: two
nodes on one machine pause at the same time, and must not hand sessions to each other. How a session goes on
elsewhere is the client's part, as when a hop is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from shoal.node.owner.energy import EnergyMeter
from shoal.node.owner.handover import takable
from shoal.node.owner.machine import MachineReading, MachineSensors, use_between
from shoal.node.owner.yielding import YieldState, decide
from shoal.node.server import SpanServer
from shoal.routing.prices import Candidate
from shoal.swarm.announcement import candidate, numerics_of
from shoal.swarm.member import Member
from shoal.types import ModelShape, PeerId, YieldMode

LOOK_EVERY_S = 2.0
LOWERED_SHARE = 0.25
"""Share of the time in which a node computes while it gives way."""
SETTLE_S = 3.0
"""How long a node that has paused waits before it hands sessions over: longer than an announcement takes."""

log = logging.getLogger(__name__)

Turned = Callable[["OwnerWatch"], None]


class OwnerWatch:
    """What a node makes of its machine's readings.

    Args:
        turned: told whenever the node begins to give way, or has come back.
    """

    def __init__(
        self,
        server: SpanServer,
        member: Member,
        shape: ModelShape,
        mode: YieldMode,
        machine: MachineSensors,
        turned: Turned | None = None,
    ) -> None:
        self.mode: YieldMode = mode
        self.energy = EnergyMeter()
        self.state = YieldState()
        self._server = server
        self._member = member
        self._shape = shape
        self._machine = machine
        self._turned = turned or _log

    @property
    def share(self) -> float:
        """Share of the time in which the node computes for others; 0 while it takes no new sessions."""
        return 0.0 if self._server.paused else self._server.share

    def __str__(self) -> str:
        """What it does and why, as a sentence's beginning."""
        if not self.state.yielding:
            return "at full share again: the machine is left alone"
        does = "paused" if self.mode == "pause" else f"share lowered to {LOWERED_SHARE:.0%}"
        return f"{does}: {self.state.why}"

    async def run(self) -> None:
        """Look at the machine until cancelled; for nothing but its energy only where it tells that."""
        before, counted = await self._read(), self._counts()
        if before is None or (self.mode == "off" and before.joules is None):
            if self.mode != "off":
                log.warning("this machine does not tell how much others use it: --yield changes nothing")
            return
        while True:
            await trio.sleep(LOOK_EVERY_S)
            after, counts = await self._read(), self._counts()
            if after is None:
                continue
            self.energy.note(before, after, max(0.0, counts[0] - counted[0]), counts[1] - counted[1])
            if self.mode != "off":
                await self._look(before, after)
            before, counted = after, counts

    async def _read(self) -> MachineReading | None:
        return await trio.to_thread.run_sync(self._machine.read)

    def _counts(self) -> tuple[float, int]:
        """Seconds of forwards and tokens so far; a node that moves begins again with the seconds."""
        return self._server.engine.busy_s, self._server.load.tokens

    async def _look(self, before: MachineReading, after: MachineReading) -> None:
        was = self.state.yielding
        self.state = decide(self.state, use_between(before, after), after.at)
        if self.state.yielding != was:
            self._server.share = LOWERED_SHARE if self.state.yielding else 1.0
            self._server.paused = self.state.yielding and self.mode == "pause"
            self._turned(self)
            if not self._server.draining:
                await self._member.announce()
        if self._server.paused and after.at - self.state.since >= SETTLE_S:
            self._hand_over()

    def _hand_over(self) -> None:
        """Sessions that nobody else can take stay, and go on slowly."""
        if not self._server.sessions:
            return
        for session in takable(self._server.held(), self._others(), self._shape.n_blocks):
            self._server.hand_over(session, f"this node has paused: {self.state.why}")

    def _others(self) -> list[Candidate]:
        serving = self._member.directory.serving(
            self._shape.digest, self._member.now(), self._server.engine.format
        )
        loose = self._server.engine.numerics.loose
        ourselves = self._member.network.peer
        return [
            candidate(PeerId(a.peer), a.served, None)
            for a in serving
            if a.served and a.peer != ourselves and loose.admits(numerics_of(a.served))
        ]


def _log(watch: OwnerWatch) -> None:
    log.warning("%s", watch)
