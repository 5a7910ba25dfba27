"""KV memory in pages: sessions take them as they grow and give them back when they end.

A session is promised pages before it takes them, so no step that has begun can fail for want of one. Promises
are made and forgotten by the event loop; pages are taken and given back by the thread that computes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shoal.errors import Busy
from shoal.executor.arrays import empty

PAGE = 16
"""Tokens of one page: the KV of all the span's blocks for them. As in native/attention.h."""


def pages_for(tokens: int) -> int:
    """Pages that hold ``tokens`` tokens."""
    return -(-tokens // PAGE)


class PagePool:
    """A bounded number of pages. With ``page_bytes`` they are one piece of memory, of which the system gives
    only what was ever used."""

    def __init__(self, pages: int, page_bytes: int = 0) -> None:
        self.pages = pages
        self.page_bytes = page_bytes
        self.arena = empty((pages * page_bytes,), np.uint8)
        self._promised = 0
        # The last page given back is the first taken again: what was used before is used before the rest.
        self._free: list[int] = []
        self._fresh = 0

    @property
    def tokens(self) -> int:
        """Tokens that all sessions together may hold."""
        return self.pages * PAGE

    @property
    def tokens_free(self) -> int:
        """Tokens that may still be promised."""
        return (self.pages - self._promised) * PAGE

    @property
    def taken(self) -> int:
        """Pages that hold something."""
        return self._fresh - len(self._free)

    def promise(self, tokens: int) -> Pages:
        """Room for a session of ``tokens`` tokens. Raises as :meth:`grow`."""
        pages = Pages(self)
        self.grow(pages, tokens)
        return pages

    def grow(self, pages: Pages, tokens: int) -> None:
        """Promise a session so many more pages that it may have ``tokens`` tokens.

        Raises:
            Busy: there is no room; says how much there is.
        """
        more = pages_for(tokens) - pages.promised
        if more > self.pages - self._promised:
            raise Busy(
                f"no room for {tokens} tokens of KV, {self.tokens_free} of {self.tokens} are free",
                tokens_free=self.tokens_free,
            )
        if more > 0:
            self._promised += more
            pages.promised += more

    def forget(self, pages: Pages) -> None:
        """Take a promise back. Its pages must be given back before a later promise takes any."""
        self._promised -= pages.promised

    def take(self) -> int:
        """A page that somebody was promised."""
        if self._free:
            return self._free.pop()
        # Pages never used before come last, so that the system need not give memory for them.
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, pages: Sequence[int]) -> None:
        """Free ``pages`` for others."""
        self._free.extend(pages)


@dataclass(eq=False, slots=True)
class Pages:
    """One session's pages, in order, and how many it was promised."""

    pool: PagePool
    promised: int = 0
    numbers: array[int] = field(default_factory=lambda: array("i"))
    """As the kernels read them."""

    def resize(self, tokens: int) -> None:
        """Take or give back pages until there are as many as ``tokens`` tokens need.

        Raises:
            Busy: that is more than was promised.
        """
        wanted = pages_for(tokens)
        if wanted > self.promised:
            raise Busy(f"{tokens} tokens of KV, where {self.promised * PAGE} were reserved")
        while len(self.numbers) < wanted:
            self.numbers.append(self.pool.take())
        if len(self.numbers) > wanted:
            self.pool.give_back(self.numbers[wanted:])
            del self.numbers[wanted:]
