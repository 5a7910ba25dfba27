"""What a channel has sent and its peer has not yet said to have: what another pipe begins with. Pure.

Both ends count the bytes that went over a channel since it began, whichever pipe carried them. A position is
such a count.
"""

from __future__ import annotations

from collections import deque

from shoal.errors import RemoteProtocolError

TAIL_LIMIT = 4 << 20
"""Bytes that are kept. Pongs tell every second, and behind long messages, what has come; only a wide and far
link holds more, and over that a channel does not move until there is less."""


class SentTail:
    """The last of what was sent, in the pieces in which it was."""

    def __init__(self, limit: int = TAIL_LIMIT) -> None:
        self._limit = limit
        self._pieces: deque[bytes] = deque()
        self._kept = 0
        self.acknowledged = 0
        """The position up to which the peer has everything."""
        self.sent = 0
        """The position of the next byte."""

    @property
    def empty(self) -> bool:
        """Whether nothing is kept."""
        return not self._pieces

    @property
    def whole(self) -> bool:
        """Whether all that the peer may lack is kept."""
        return self.sent - self._kept <= self.acknowledged

    def add(self, piece: bytes) -> None:
        """A piece was sent."""
        self._pieces.append(piece)
        self._kept += len(piece)
        self.sent += len(piece)
        while self._kept > self._limit:
            self._kept -= len(self._pieces.popleft())

    def acknowledge(self, position: int) -> None:
        """The peer has everything before ``position``.

        Raises:
            RemoteProtocolError: it was never sent that.
        """
        if position > self.sent:
            raise RemoteProtocolError(f"the peer has {position} bytes of the {self.sent} that it was sent")
        self.acknowledged = max(self.acknowledged, position)
        while self._pieces and self.sent - self._kept + len(self._pieces[0]) <= self.acknowledged:
            self._kept -= len(self._pieces.popleft())

    def after(self, position: int) -> list[bytes] | None:
        """What was sent from ``position`` on; ``None`` when not all of it is kept, or it was never sent."""
        skipped = position - (self.sent - self._kept)
        if skipped < 0 or position > self.sent:
            return None
        found: list[bytes] = []
        for piece in self._pieces:
            if skipped < len(piece):
                found.append(piece[skipped:])
            skipped = max(0, skipped - len(piece))
        return found

    def clear(self) -> None:
        """Keep nothing of what was sent so far."""
        self._pieces.clear()
        self._kept = 0
