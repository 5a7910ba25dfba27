"""How many large bodies are held at once: each is in memory until its request is answered."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from shoal.gateway.access.allowance import RETRY_S
from shoal.gateway.access.shared_places import SharedPlaces
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
        self._held = SharedPlaces(at_once)

    @contextmanager
    def held(self, caller: str, headers: Headers, receive: Receive) -> Generator[Receive]:
        """Hold a body of the caller's for the block; gives what it is read by.

        Raises:
            LimitReached: too many large ones are held. What it is read by raises the same, where a body that
                did not say its size becomes large.
        """
        body = _HeldBody(self, caller, receive)
        declared = headers.get("content-length", "")
        if declared.isascii() and declared.isdecimal():
            body.grow_to(int(declared[:20]))
        try:
            yield body.receive
        finally:
            if body.large:
                self._held.give_back(caller)

    def take(self, caller: str) -> None:
        """Count one more. Raises LimitReached: there are too many."""
        if not self._held.has_one_for(caller):
            raise LimitReached(
                f"{self._held.taken} bodies of more than {self.size} bytes are being answered; "
                f"{self._held.of(caller)} of them are this caller's",
                retry_after_s=RETRY_S,
            )
        self._held.take(caller)


class _HeldBody:
    """One body, by what is known of its size."""

    def __init__(self, bodies: LargeBodies, caller: str, receive: Receive) -> None:
        self._bodies = bodies
        self._caller = caller
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
            self._bodies.take(self._caller)
            self.large = True
