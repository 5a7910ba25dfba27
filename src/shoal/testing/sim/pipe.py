"""A pipe through the simulated internet: bytes arrive in order, after their way; in a partition they wait."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import trio

from shoal.errors import ChannelClosed
from shoal.testing.memory import MemoryPipe

if TYPE_CHECKING:
    from shoal.testing.sim.internet import Internet, SimNetwork

SENT_AHEAD_S = 0.2
"""So much of the line's time may be taken by what is not on its way yet; more waits, as for a full socket."""
PING_MOST = 48
OVERHEAD = 60
"""Bytes that Noise and TCP add to what is sent at once."""


class SimPipe(MemoryPipe):
    """One end of a pipe."""

    def __init__(self, world: Internet, own: SimNetwork, other: SimNetwork) -> None:
        send, receive = trio.open_memory_channel[bytes](float("inf"))
        super().__init__(other.peer, send, receive)
        self._world = world
        self._own = own
        self._other_end: SimPipe | None = None
        self._stalled: deque[bytes] = deque()
        self._dead = False
        self.busy_at = trio.current_time()
        """When something longer than a ping was last sent."""
        own.pipes.append(self)

    @classmethod
    def pair(cls, world: Internet, a: SimNetwork, b: SimNetwork) -> tuple[SimPipe, SimPipe]:
        """Both ends: ``a``'s, then ``b``'s."""
        mine, theirs = cls(world, a, b), cls(world, b, a)
        mine._other_end, theirs._other_end = theirs, mine
        return mine, theirs

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.send_now(bytes(data))
        await trio.sleep(max(0.0, self._own.line_free_at - trio.current_time() - SENT_AHEAD_S))

    def send_now(self, data: bytes) -> bool:
        if self._dead:
            raise ChannelClosed("the pipe is gone")
        if len(data) > PING_MOST:
            self.busy_at = trio.current_time()
        delay_s = self._world.carry(self._own, self.peer, len(data) + OVERHEAD, "pipes")
        self._world.agenda.after(delay_s, partial(self._arrive, data))
        return True

    async def aclose(self) -> None:
        self.die(silent=False)
        await trio.lowlevel.checkpoint()

    def die(self, *, silent: bool) -> None:
        """This end is no more. Unless ``silent``, the other end is told: ``b""`` on its way."""
        if self._dead:
            return
        self._dead = True
        if self in self._own.pipes:
            self._own.pipes.remove(self)
        self._receive.close()
        if not silent:
            delay_s = self._world.carry(self._own, self.peer, OVERHEAD, "pipes")
            self._world.agenda.after(delay_s, partial(self._arrive, b""))

    def idle_s(self) -> float:
        """For how long neither end has sent anything but pings."""
        other = self._other_end
        return trio.current_time() - max(self.busy_at, other.busy_at if other else 0.0)

    def flush(self) -> None:
        """The way is open again."""
        stalled, self._stalled = self._stalled, deque()
        for data in stalled:
            self._arrive(data)

    def _arrive(self, data: bytes) -> None:
        other = self._other_end
        if other is None or other._dead:
            return
        if self._stalled or not self._world.open_way(self._own.peer, self.peer):
            self._stalled.append(data)
        elif data:
            other._send.send_nowait(data)
            other._own.received["pipes"] += len(data) + OVERHEAD
        else:
            other._send.close()
