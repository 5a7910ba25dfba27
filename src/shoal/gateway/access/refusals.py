"""One question for each caller at a time: who would be refused as the last was is refused without asking.

So a caller that asks far more than it may costs the database no more than one that keeps to its limits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from shoal.errors import OutOfResources
from shoal.gateway.access.allowance import RETRY_S, ConcurrencyReached
from shoal.gateway.access.keys import Caller
from shoal.gateway.access.own_allowances import CALLERS
from shoal.gateway.errors import DatabaseAway, LimitReached

FREED_WITHIN_S = 0.25
"""How long a request waits for a place of its caller's: who has just got an answer may ask again, at another
gateway, before the first has said that it is done."""
LOOK_EVERY_S = 0.05
WAITING_EACH = 128
"""Requests of one caller that are looked at; one more is sent away."""


@dataclass(slots=True)
class _Door:
    """What one caller was last told."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    waiting: int = 0
    refusal: LimitReached | OutOfResources | None = None
    at: float = 0.0
    until: float = 0.0

    def known(self, asked_at: float, now: float) -> LimitReached | OutOfResources | None:
        """Why a request is refused that came then: what was heard since, or holds until later."""
        if self.refusal is None or (now >= self.until and self.at < asked_at):
            return None
        if isinstance(self.refusal, LimitReached):
            left = self.until - now
            return type(self.refusal)(self.refusal.message, retry_after_s=left if left > 0 else RETRY_S)
        return DatabaseAway(self.refusal.message, check=self.refusal.check)

    def refuse(self, error: LimitReached | OutOfResources, now: float) -> None:
        self.refusal, self.at = error, now
        if isinstance(error, ConcurrencyReached):  # a place may be free at any time
            self.until = now + LOOK_EVERY_S
        else:
            self.until = now + (error.retry_after_s if isinstance(error, LimitReached) else 0.0)


class Refusals:
    """What callers were told last."""

    def __init__(self) -> None:
        self._doors: OrderedDict[tuple[str, bool], _Door] = OrderedDict()

    async def ask(self, caller: Caller, question: Callable[[], Awaitable[None]]) -> None:
        """Ask whether a request is let in, or refuse it by what is known.

        Args:
            question: counts the request.

        Raises:
            LimitReached: the caller is beyond its limits, or too many of its requests are looked at.
            OutOfResources: it cannot be known.
        """
        give_up_at = trio.current_time() + FREED_WITHIN_S
        async with self._door(caller) as door:
            while True:
                asked_at = trio.current_time()
                async with door.lock:
                    refused = door.known(asked_at, trio.current_time())
                    if refused is None:
                        try:
                            await question()
                        except (LimitReached, OutOfResources) as error:
                            door.refuse(error, trio.current_time())
                            refused = error
                        else:
                            return
                if not isinstance(refused, ConcurrencyReached) or trio.current_time() >= give_up_at:
                    raise refused
                await trio.sleep(LOOK_EVERY_S)

    @asynccontextmanager
    async def _door(self, caller: Caller) -> AsyncGenerator[_Door]:
        whose = (caller.id, caller.background)
        door = self._doors.setdefault(whose, _Door())
        self._doors.move_to_end(whose)
        if door.waiting >= WAITING_EACH:
            raise LimitReached(f"{door.waiting} requests of this key are looked at", retry_after_s=RETRY_S)
        door.waiting += 1
        try:
            yield door
        finally:
            door.waiting -= 1
            beyond = max(0, len(self._doors) - CALLERS)
            for old in [name for name, door in self._doors.items() if beyond and not door.waiting][:beyond]:
                del self._doors[old]
