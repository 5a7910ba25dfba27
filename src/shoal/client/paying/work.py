"""What a client has asked of a ring and what has come back, in tokens: what it owes goes by that. Pure."""

from __future__ import annotations

from collections import OrderedDict

MAX_UNANSWERED = 1 << 12
"""Steps without a result that are remembered; of older ones none comes any more."""


class RingWork:
    """Of one ring, over all its hops."""

    def __init__(self) -> None:
        self.asked = 0
        """Tokens of all steps that were sent."""
        self.came = 0
        """Tokens of those whose results have come, given up or not."""
        self._unanswered: OrderedDict[int, int] = OrderedDict()

    def sent(self, number: int, tokens: int) -> None:
        """A step was sent."""
        self.asked += tokens
        self._unanswered[number] = tokens
        if len(self._unanswered) > MAX_UNANSWERED:
            self._unanswered.popitem(last=False)

    def came_back(self, number: int) -> None:
        """A result has come; it counts once."""
        self.came += self._unanswered.pop(number, 0)


class HopWork:
    """Of one hop, from when it took its place until it lost it.

    Args:
        refilled: tokens for which its cache was filled when it took the place of another.
    """

    def __init__(self, ring: RingWork, refilled: int = 0) -> None:
        self._ring = ring
        self._from = (ring.asked, ring.came)
        self._until: tuple[int, int] | None = None
        self._refilled = refilled

    @property
    def asked(self) -> int:
        """Tokens that it may have computed."""
        return self._sums[0] - self._from[0] + self._refilled

    @property
    def came(self) -> int:
        """Tokens that it must have computed, as results have come through it."""
        back = self._sums[1] - self._from[1]
        return back + self._refilled if back else 0

    def end(self) -> None:
        """It has lost its place: what comes from now on is not its work."""
        self._until = self._until or (self._ring.asked, self._ring.came)

    @property
    def _sums(self) -> tuple[int, int]:
        return self._until or (self._ring.asked, self._ring.came)
