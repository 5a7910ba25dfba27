"""What callers have left of their limits where one gateway answers them: in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from shoal.gateway.access.allowance import Allowance
from shoal.gateway.access.keys import Caller

CALLERS = 4096
"""Callers that are remembered; the one that was longest silent is forgotten first."""


class Allowances(Protocol):
    """Who counts what callers ask for."""

    def admitted(self, caller: Caller) -> AbstractAsyncContextManager[None]:
        """Count a request of the caller's for as long as the block takes.

        Raises:
            LimitReached: the caller is beyond its limits.
            OutOfResources: it cannot be known now whether it is.
        """
        ...

    async def charge(self, caller: Caller, tokens: int) -> None:
        """So many tokens, of prompts and answers, were used. Raises nothing."""
        ...


@dataclass(slots=True)
class _Book:
    """What one caller has going."""

    allowance: Allowance
    open: int = 0


class OwnAllowances:
    """Counts of this gateway alone."""

    def __init__(self) -> None:
        self._books: OrderedDict[tuple[str, bool], _Book] = OrderedDict()

    @asynccontextmanager
    async def admitted(self, caller: Caller) -> AsyncGenerator[None]:
        book = self._book(caller)
        book.allowance.take_request(caller.limits, book.open, trio.current_time())
        book.open += 1
        try:
            yield
        finally:
            book.open -= 1

    async def charge(self, caller: Caller, tokens: int) -> None:
        left = self._book(caller).allowance.tokens
        if left is not None:
            left.take(tokens, trio.current_time())

    def _book(self, caller: Caller) -> _Book:
        whose = (caller.id, caller.background)
        book = self._books.get(whose)
        if book is None:
            book = self._books[whose] = _Book(Allowance.full(caller.limits, trio.current_time()))
            beyond = max(0, len(self._books) - CALLERS)
            for old in [name for name, b in self._books.items() if not b.open][:beyond]:
                del self._books[old]
        self._books.move_to_end(whose)
        return book
