"""Who waits and who is sent away: a bound on what runs, on what waits, and on what each key may ask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio

from shoal.gateway.access.keys import Caller
from shoal.gateway.errors import LimitReached

RUNNING = 64
"""Requests that are answered at once: as many sessions as a node holds by default."""
WAITING = 256
"""Requests that wait for their turn, or are looked at; one more is sent away."""
WAIT_S = 60.0
"""How long a request waits for its turn."""
RETRY_S = 2.0
"""When one that was sent away may come back."""
CALLERS = 4096
"""Callers that are remembered; the one that was longest silent is forgotten first."""


@dataclass(slots=True)
class Bucket:
    """An allowance that fills up evenly over a minute (a token bucket). Times are seconds of one clock."""

    per_minute: float
    level: float
    at: float

    @classmethod
    def full(cls, per_minute: float, now: float) -> Bucket:
        return cls(per_minute, per_minute, now)

    def wait_s(self, now: float) -> float:
        """Seconds until something is left; 0 when it is."""
        self._fill(now)
        return 0.0 if self.level >= 1 else (1 - self.level) * 60 / self.per_minute

    def take(self, amount: float, now: float) -> None:
        """Use so much. What is only known afterwards may bring the level below nothing."""
        self._fill(now)
        self.level -= amount

    def _fill(self, now: float) -> None:
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now


@dataclass(slots=True)
class _Book:
    """What one caller has going."""

    requests: Bucket | None
    tokens: Bucket | None
    open: int = 0


@dataclass
class RequestLimiter:
    """The gateway's own bounds, and each caller's."""

    running: int = RUNNING
    waiting: int = WAITING
    wait_s: float = WAIT_S
    answering: int = 0
    """Requests that are answered now."""
    queued: int = 0
    """Requests that wait for their turn."""
    _books: OrderedDict[tuple[str, bool], _Book] = field(default_factory=OrderedDict[tuple[str, bool], _Book])
    _open: int = 0
    """Requests that were admitted and are not over; without those that nobody waits for."""
    _awaited: int = 0
    """Those of them that the swarm is to answer."""
    _turns: trio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._turns = trio.Semaphore(self.running)

    @property
    def awaited(self) -> int:
        """Requests that somebody waits for: answered, or before their turn."""
        return self._awaited

    @contextmanager
    def admitted(self, caller: Caller, *, awaited: bool = True) -> Generator[None]:
        """Count a request of the caller's for as long as the block takes, before anything costly is done.

        Args:
            awaited: whether the swarm is to answer it; what is only stored or read keeps no batch waiting.

        Raises:
            LimitReached: the caller is beyond its limits, or too many requests are here already.
        """
        book = self._book(caller)
        self._check(caller, book)
        present = not caller.background
        if present and self._open >= self.running + self.waiting:
            raise LimitReached(
                f"{self.answering} requests are being answered and {self._open - self.answering} wait",
                retry_after_s=RETRY_S,
            )
        if book.requests is not None:
            book.requests.take(1, trio.current_time())
        book.open += 1
        self._open += present
        self._awaited += present and awaited
        try:
            yield
        finally:
            book.open -= 1
            self._open -= present
            self._awaited -= present and awaited

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

    def charge(self, caller: Caller, tokens: int) -> None:
        """So many tokens, of prompts and answers, were used."""
        book = self._book(caller)
        if book.tokens is not None:
            book.tokens.take(tokens, trio.current_time())

    def _check(self, caller: Caller, book: _Book) -> None:
        now, limits = trio.current_time(), caller.limits
        if limits.concurrency and book.open >= limits.concurrency:
            raise LimitReached(
                f"this key may have {limits.concurrency} requests at once", retry_after_s=RETRY_S
            )
        for bucket, name in ((book.requests, "requests"), (book.tokens, "tokens")):
            if bucket is not None and (wait_s := bucket.wait_s(now)):
                raise LimitReached(
                    f"this key has used its {bucket.per_minute:.0f} {name} a minute", retry_after_s=wait_s
                )

    def _book(self, caller: Caller) -> _Book:
        whose = (caller.id, caller.background)
        book = self._books.get(whose)
        if book is None:
            book = self._books[whose] = _fresh(caller, trio.current_time())
            for old in [name for name, b in self._books.items() if not b.open][: len(self._books) - CALLERS]:
                del self._books[old]
        self._books.move_to_end(whose)
        return book


def _fresh(caller: Caller, now: float) -> _Book:
    limits = caller.limits
    return _Book(
        Bucket.full(limits.requests_per_minute, now) if limits.requests_per_minute else None,
        Bucket.full(limits.tokens_per_minute, now) if limits.tokens_per_minute else None,
    )
