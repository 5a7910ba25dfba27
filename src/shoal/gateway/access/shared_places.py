"""Places for what is under way, of which no caller can have all."""

from __future__ import annotations

from collections import Counter

LAST_PART = 8
"""The last eighth of the places is for callers that hold fewer than are left: whoever has taken all others
gets none of it, and there is mostly one for whoever has none."""


class SharedPlaces:
    """So many places, each held by a caller."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._held = Counter[str]()

    def of(self, caller: str) -> int:
        """How many a caller holds."""
        return self._held[caller]

    @property
    def taken(self) -> int:
        """How many all callers hold."""
        return self._held.total()

    def has_one_for(self, caller: str) -> bool:
        """Whether a caller may have one more."""
        free = self._count - self.taken
        return free > self._count // LAST_PART or self.of(caller) < free

    def take(self, caller: str) -> None:
        """Have one, until it is given back."""
        self._held[caller] += 1

    def give_back(self, caller: str) -> None:
        """Have one less."""
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]  # callers come and go
