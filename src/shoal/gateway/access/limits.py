"""Who waits and who is sent away: a bound on what runs, on what waits, and on what each key may ask."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from shoal.gateway.access.allowance import RETRY_S
from shoal.gateway.access.keys import Caller
from shoal.gateway.access.large_bodies import LargeBodies
from shoal.gateway.access.own_allowances import Allowances, OwnAllowances
from shoal.gateway.access.shared_places import SharedPlaces
from shoal.gateway.errors import LimitReached

RUNNING = 64
"""Requests that are answered at once: as many sessions as a node holds by default."""
WAITING = 256
"""Requests that wait for their turn, or are looked at; one more is sent away. Nobody can have all places."""
WAIT_S = 60.0
"""How long a request waits for its turn."""


@dataclass
class RequestLimiter:
    """This gateway's own bounds, and each caller's."""

    callers: Allowances = field(default_factory=OwnAllowances)
    """Who counts what each caller asks for."""
    running: int = RUNNING
    waiting: int = WAITING
    wait_s: float = WAIT_S
    bodies: LargeBodies = field(default_factory=LargeBodies)
    """Of all routes but those with a count of their own."""
    answering: int = 0
    """Requests that are answered now."""
    queued: int = 0
    """Requests that wait for their turn."""
    _awaited: int = 0
    """Those of them that the swarm is to answer."""
    _open: SharedPlaces = field(init=False)
    """Requests that were admitted and are not over; without those that nobody waits for."""
    _turns: trio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._open = SharedPlaces(self.running + self.waiting)
        self._turns = trio.Semaphore(self.running)

    @property
    def awaited(self) -> int:
        """Requests that somebody waits for: answered, or before their turn."""
        return self._awaited

    @asynccontextmanager
    async def admitted(self, caller: Caller, *, awaited: bool = True) -> AsyncGenerator[None]:
        """Count a request of the caller's for as long as the block takes, before anything costly is done.

        Args:
            awaited: whether the swarm is to answer it; what is only stored or read keeps no batch waiting.

        Raises:
            LimitReached: the caller is beyond its limits, or too many requests, of its own or of all callers,
                are here already.
            OutOfResources: its limits are counted in a database that cannot be reached.
        """
        if caller.background:
            async with self.callers.admitted(caller):
                yield
            return
        self._check_room(caller)
        async with self.callers.admitted(caller):
            # Only now, or those that their own limits send away would keep everybody else out.
            self._check_room(caller)
            self._open.take(caller.id)
            self._awaited += awaited
            try:
                yield
            finally:
                self._open.give_back(caller.id)
                self._awaited -= awaited

    def _check_room(self, caller: Caller) -> None:
        """Raises LimitReached: too many requests are here already."""
        if not self._open.has_one_for(caller.id):
            raise LimitReached(
                f"{self.answering} requests are being answered and {self._open.taken - self.answering} wait; "
                f"{self._open.of(caller.id)} of them are this caller's",
                retry_after_s=RETRY_S,
            )

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Wait for a turn to be answered, and hold it for the block. Who waits was admitted before.

        Raises:
            LimitReached: no turn came in time.
        """
        self.queued += 1
        try:
            with trio.move_on_after(self.wait_s) as waiting:
                await self._turns.acquire()
        finally:
            self.queued -= 1
        if waiting.cancelled_caught:
            raise LimitReached(f"no turn came within {self.wait_s:.0f} s", retry_after_s=RETRY_S)
        self.answering += 1
        try:
            yield
        finally:
            self.answering -= 1
            self._turns.release()

    async def charge(self, caller: Caller, tokens: int) -> None:
        """So many tokens, of prompts and answers, were used."""
        await self.callers.charge(caller, tokens)
