"""KV memory in pages: sessions take them as they grow and give them back when they end."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from shoal.errors import Busy

PAGE = 16
"""Tokens of one page: the KV of all the span's blocks for them."""


def pages_for(tokens: int) -> int:
    """Pages that hold ``tokens`` tokens."""
    return -(-tokens // PAGE)


class PagePool:
    """A bounded number of pages. What a session may grow to is promised when it opens, so no step can fail for it.

    With ``page_bytes`` the pages are one piece of memory, of which the system gives only what was ever used.
    """

    def __init__(self, pages: int, page_bytes: int = 0) -> None:
        self.pages = pages
        self.page_bytes = page_bytes
        self.arena = torch.empty(pages * page_bytes, dtype=torch.uint8)
        self._promised = 0
        # The last page given back is the first taken again: memory once used is used before more is asked for.
        self._free: list[int] = []
        self._fresh = 0

    @property
    def tokens_free(self) -> int:
        """Tokens that may still be promised."""
        return (self.pages - self._promised) * PAGE

    @property
    def taken(self) -> int:
        """Pages that hold something."""
        return self._fresh - len(self._free)

    def promise(self, tokens: int) -> Pages:
        """Room for a session of ``tokens`` tokens.

        Raises:
            Busy: there is none; says how much there is.
        """
        wanted = pages_for(tokens)
        if wanted > self.pages - self._promised:
            raise Busy(
                f"no room for {tokens} tokens of KV, {self.tokens_free} of {self.pages * PAGE} are free",
                tokens_free=self.tokens_free,
            )
        self._promised += wanted
        return Pages(self, wanted)

    def take(self) -> int:
        """A page that somebody was promised."""
        if self._free:
            return self._free.pop()
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, pages: list[int], promised: int) -> None:
        """Free ``pages``, and a promise of so many."""
        self._free += pages
        self._promised -= promised


@dataclass(slots=True)
class Pages:
    """One session's pages, in order, and how many it was promised."""

    pool: PagePool
    promised: int
    numbers: list[int] = field(default_factory=list)

    def grow(self, tokens: int) -> None:
        """Take pages until ``tokens`` tokens fit."""
        while len(self.numbers) < min(pages_for(tokens), self.promised):
            self.numbers.append(self.pool.take())

    def shrink(self, tokens: int) -> None:
        """Give back the pages beyond ``tokens`` tokens."""
        spare = self.numbers[pages_for(tokens) :]
        del self.numbers[pages_for(tokens) :]
        self.pool.give_back(spare, 0)

    def release(self) -> None:
        """Give everything back. Twice is no error."""
        self.pool.give_back(self.numbers, self.promised)
        self.numbers, self.promised = [], 0
