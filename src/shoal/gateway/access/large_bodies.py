"""How many large bodies are held at once: each is in memory until its request is answered."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from shoal.gateway.access.allowance import RETRY_S
from shoal.gateway.errors import LimitReached

LARGE = 1 << 20
"""Bytes of a body; one of more is large. A long conversation has less, and images have more."""
HELD_AT_ONCE = 32


class LargeBodies:
    """Counts the large bodies that are held, of all callers.

    Args:
        size: bytes of the largest body that is not counted.
    """

    def __init__(self, size: int = LARGE, at_once: int = HELD_AT_ONCE) -> None:
        self.size = size
        self._at_once = at_once
        self._held = 0

    @contextmanager
    def held(self, headers: Headers, receive: Receive) -> Generator[Receive]:
        """Hold a body for the block; gives what it is read by.

        Raises:
            LimitReached: too many large ones are held. What it is read by raises the same, where a body that
                did not say its size becomes large.
        """
        body = _HeldBody(self, receive)
        declared = headers.get("content-length", "")
        if declared.isascii() and declared.isdecimal():
            body.grow_to(int(declared[:20]))
        try:
            yield body.receive
        finally:
            self._held -= body.large

    def take(self) -> None:
        """Count one more. Raises LimitReached: there are too many."""
        if self._held >= self._at_once:
            raise LimitReached(
                f"{self._held} bodies of more than {self.size} bytes are being answered",
                retry_after_s=RETRY_S,
            )
        self._held += 1


class _HeldBody:
    """One body, by what is known of its size."""

    def __init__(self, bodies: LargeBodies, receive: Receive) -> None:
        self._bodies = bodies
        self._receive = receive
        self._came = 0
        self.large = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._came += len(message.get("body", b""))
        self.grow_to(self._came)
        return message

    def grow_to(self, size: int) -> None:
        """It has so many bytes at the least. Raises LimitReached: it is too many large ones' next."""
        if size > self._bodies.size and not self.large:
            self._bodies.take()
            self.large = True
