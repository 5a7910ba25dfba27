"""Memory for what peers have begun to send and not ended, over all channels of a process.

A message counts as far as it has come: to declare a length costs us nothing, and gains nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shoal.errors import RemoteProtocolError
from shoal.types import PeerId
from shoal.wire.fields import MAX_PAYLOAD
from shoal.wire.messages import MAX_HEADER

TOTAL_LIMIT = 512 << 20
"""Bytes of unfinished messages of all peers together."""
PEER_LIMIT = MAX_PAYLOAD + MAX_HEADER
"""Bytes of unfinished messages of one peer, however many channels it has: one of the largest size."""
STRANGER_LIMIT = 1 << 20
"""The same for a peer that takes part in no session here: what it may ask for is short."""


class ReceivingChannel(Protocol):
    """A channel, as far as it matters here."""

    @property
    def peer(self) -> PeerId: ...

    def close(self, reason: str = ...) -> None: ...


class ReceiveBudget:
    """Who holds how much.

    Args:
        known: whether a peer takes part, or took part, in a session here.
    """

    def __init__(self, known: Callable[[PeerId], bool] = lambda _: True, limit: int = TOTAL_LIMIT) -> None:
        self._known = known
        self._limit = limit
        self._held: dict[ReceivingChannel, int] = {}

    @property
    def held(self) -> int:
        """Bytes of unfinished messages now."""
        return sum(self._held.values())

    def note(self, channel: ReceivingChannel, held: int) -> None:
        """``channel`` holds so many bytes now. Past the limit of all, who holds most loses its channel.

        Raises:
            RemoteProtocolError: that is more than its peer may have here.
        """
        if not held:
            self._held.pop(channel, None)
            return
        self._held[channel] = held
        allowed = PEER_LIMIT if self._known(channel.peer) else STRANGER_LIMIT
        # By peer: with channels as the measure, more channels would allow it more.
        if sum(size for other, size in self._held.items() if other.peer == channel.peer) > allowed:
            raise RemoteProtocolError(f"more than {allowed} bytes of unfinished messages of one peer")
        while self.held > self._limit:
            most = max(self._held, key=lambda other: self._held[other])
            del self._held[most]
            most.close("there is no room for what it has begun to send")
