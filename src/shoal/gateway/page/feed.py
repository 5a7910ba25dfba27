"""What the page shows, live: the swarm, the last requests, this machine's health, and tokens as they pass."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio
from starlette.types import Receive, Scope, Send

from shoal.client.swarm import Swarm
from shoal.errors import ShoalError
from shoal.gateway.page.requests import Record, Records
from shoal.gateway.page.view import swarm_view
from shoal.gateway.sse import KEEP_ALIVE, EventStream, event, until_gone
from shoal.types import PeerId

LISTENERS = 32
"""Pages that listen at once; one more is told to come back."""
QUEUED = 64
"""Events that wait for a listener; one that is slower is closed, and comes back for the newest."""
CHANGED_EVERY_S = 0.5
SNAPSHOT_S = 0.25
"""How old a view of the swarm may be that is given to whoever asks: it is made once for all of them."""
SWARM_BYTES_S = 400_000
"""Bytes a second of the swarm's view to one page: a large one is told more rarely."""
TOKEN_EVERY_S = 0.05
KEEP_ALIVE_S = 10.0
PING_EVERY_S = 5.0
PING_WITHIN_S = 3.0
PINGED = 64
"""Peers whose distance is measured at a time; of more, these in turn."""
HEALTH_EVERY_S = 60.0

log = logging.getLogger(__name__)
Health = Callable[[], list[dict[str, Any]]]
"""Looks at this machine, on a thread: the doctor's checks."""


@dataclass
class Feed:
    """Collects what changes and hands it to every listener. ``run`` must be running."""

    swarm: Swarm
    name: str
    """The swarm's."""
    records: Records
    health: Health
    _listeners: set[trio.MemorySendChannel[bytes]] = field(default_factory=set[trio.MemorySendChannel[bytes]])
    _rtt_s: dict[PeerId, float] = field(default_factory=dict[PeerId, float])
    _checks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _token_at: float = 0.0
    _changed: set[str] = field(default_factory=set[str])
    _view: bytes = b""
    _view_at: float = -math.inf
    _swarm_due: float = -math.inf
    """When the swarm's view may be told again."""

    def __post_init__(self) -> None:
        self.records.on_change = lambda: self._changed.add("requests")
        self.records.on_token = self._token

    async def run(self) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as nursery:
            for watch in (self._tell, self._watch_swarm, self._watch_distances, self._watch_health):
                nursery.start_soon(watch)

    def swarm_now(self) -> bytes:
        """The swarm as this machine knows it, or knew it a moment ago; JSON."""
        if trio.current_time() - self._view_at > SNAPSHOT_S:
            self._view_at = trio.current_time()
            self._view = msgspec.json.encode(self._look())
        return self._view

    def _look(self) -> dict[str, Any]:
        member, rtts = self.swarm.member, self.swarm.rings.round_trips()
        return swarm_view(
            self.name,
            self.swarm.network.peer,
            member.directory,
            self.swarm.network.connections(),
            self._rtt_s | {peer: rtt for peer, rtt in rtts.items() if rtt is not None},
            [shown["route"] for shown in self.records.shown()],
            now=member.now(),
            wall=member.clock.wall(),
        )

    def health_now(self) -> dict[str, Any]:
        """What the doctor found last, and what the swarm's clocks say now."""
        checks = self._checks
        if doubts := self.swarm.member.clock.doubts():
            # No failure: words are read by either clock. But sooner or later somebody is misled.
            note = {"severity": "note", "message": doubts, "check": "", "next_command": ""}
            checks = [*checks, {"name": "clocks", "ok": True, **note}]
        if behind := self.swarm.member.behind():
            note = {"severity": "note", "message": behind, "check": "", "next_command": ""}
            checks = [*checks, {"name": "release", "ok": True, **note}]
        return {"ok": all(check["ok"] for check in checks), "checks": checks}

    def _now(self, name: str) -> bytes:
        made: dict[str, Callable[[], Any]] = {
            "swarm": lambda: msgspec.Raw(self.swarm_now()),
            "requests": self.records.shown,
            "health": self.health_now,
        }
        return event(made[name](), name)

    async def listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI answer: the events, for as long as the page listens."""
        outgoing, incoming = trio.open_memory_channel[bytes](QUEUED)
        stream = EventStream(send)
        self._listeners.add(outgoing)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_gone, receive, nursery.cancel_scope)
                await stream.write(*(self._now(name) for name in ("swarm", "requests", "health")))
                await self._forward(incoming, stream.write)
                await stream.end()
                nursery.cancel_scope.cancel()
        finally:
            self._listeners.discard(outgoing)

    @property
    def full(self) -> bool:
        """Whether no more pages may listen."""
        return len(self._listeners) >= LISTENERS

    async def _forward(
        self, incoming: trio.MemoryReceiveChannel[bytes], write: Callable[..., Awaitable[None]]
    ) -> None:
        while True:
            told = KEEP_ALIVE
            with trio.move_on_after(KEEP_ALIVE_S):
                try:
                    told = await incoming.receive()
                except trio.EndOfChannel:
                    return
            await write(told)

    def _publish(self, told: bytes) -> None:
        for listener in list(self._listeners):
            try:
                listener.send_nowait(told)
            except trio.WouldBlock:
                listener.close()
                self._listeners.discard(listener)

    def _token(self, record: Record) -> None:
        now = trio.current_time()
        self._changed.add("requests")
        if self._listeners and now - self._token_at >= TOKEN_EVERY_S:
            self._token_at = now
            route = [stage["peer"] for stage in record.route]
            self._publish(event({"request": record.id, "n": record.tokens, "route": route}, "token"))

    async def _tell(self) -> None:
        while True:
            await trio.sleep(CHANGED_EVERY_S)
            changed, self._changed = self._changed, set()
            if "swarm" in changed and trio.current_time() < self._swarm_due:
                changed.discard("swarm")
                self._changed.add("swarm")
            if self._listeners:
                for name in sorted(changed):
                    self._publish(self._now(name))
                if "swarm" in changed:
                    self._swarm_due = trio.current_time() + len(self._view) / SWARM_BYTES_S

    async def _watch_swarm(self) -> None:
        """An announcement that ends says nothing: it is looked for too."""
        known: frozenset[PeerId] = frozenset()
        while True:
            with trio.move_on_after(1.0) as waiting:
                await self.swarm.member.wait_changed()
            alive = self.swarm.member.directory.peers()
            if alive != known or not waiting.cancelled_caught:
                known = alive
                self._changed.add("swarm")
            await trio.sleep(CHANGED_EVERY_S)

    async def _watch_distances(self) -> None:
        begin = 0
        while True:
            if self._listeners:
                connected = [connection.peer for connection in self.swarm.network.connections()]
                begin = begin if begin < len(connected) else 0
                asked, begin = connected[begin : begin + PINGED], begin + PINGED
                found: dict[PeerId, float] = {}
                async with trio.open_nursery() as nursery:
                    for peer in asked:
                        nursery.start_soon(self._ping, peer, found)
                kept = set(connected).difference(asked)
                self._rtt_s = {peer: rtt for peer, rtt in self._rtt_s.items() if peer in kept} | found
                self._changed.add("swarm")
            await trio.sleep(PING_EVERY_S)

    async def _ping(self, peer: PeerId, found: dict[PeerId, float]) -> None:
        with suppress(ShoalError):  # a peer that does not answer has no round trip to show
            found[peer] = await self.swarm.network.ping(peer, deadline_s=PING_WITHIN_S)

    async def _watch_health(self) -> None:
        """Once, and then only while a page listens: some checks dial others."""
        while True:
            if self._listeners or not self._checks:
                self._checks = await trio.to_thread.run_sync(self.health, abandon_on_cancel=True)
                self._changed.add("health")
            await trio.sleep(HEALTH_EVERY_S)
