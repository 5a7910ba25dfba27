"""What is left unread of a request's body. It decides whether its connection can carry another request."""

from __future__ import annotations

import trio
from starlette.types import Message, Receive

DRAIN = 256 << 10
"""Bytes of an unwanted body that are read all the same, so that the client gets to our answer."""
DRAIN_WITHIN_S = 1.0


class Incoming:
    """ASGI's ``receive``, which knows whether the body has come to its end.

    HTTP/1.1 carries the next request behind this one's body. An answer that comes before the body was read,
    such as a 404 or a 401, would make the server close the connection without a word, and a client that
    still sends, or sends its next request, would meet a reset instead of the answer.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = trio.Event()
        self._reading = False
        self._bytes = 0

    async def __call__(self) -> Message:
        self._reading = True
        try:
            message = await self._receive()
        finally:
            self._reading = False
        self._bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._ended.set()
        return message

    async def drained(self) -> bool:
        """Whether the whole body was read, after what was left of it was, within bounds."""
        limit = self._bytes + DRAIN
        with trio.move_on_after(DRAIN_WITHIN_S):
            while not self._ended.is_set() and self._bytes <= limit:
                # The route may be waiting for a disconnect, and is given the body's end first.
                await (self._ended.wait() if self._reading else self())
        return self._ended.is_set()
