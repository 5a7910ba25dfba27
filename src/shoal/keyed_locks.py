"""Locks by name: who waits for one thing waits for nobody who is at another."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

LockKey = TypeVar("LockKey", bound=Hashable)


class KeyedLocks(Generic[LockKey]):
    """A lock for each key. It is as large as there are keys for which one is held."""

    def __init__(self) -> None:
        self._locks: dict[LockKey, trio.Lock] = {}

    def __len__(self) -> int:
        """For how many keys one is held."""
        return len(self._locks)

    @asynccontextmanager
    async def held(self, key: LockKey) -> AsyncGenerator[None]:
        """Wait until nobody else is in such a block for this key."""
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():  # else it is the next one's by now
                self._locks.pop(key, None)
