"""JSON as a stream: as server-sent events, or one object a line. Every send has a deadline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import trio
from starlette.types import Receive, Send

EVENTS = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"
"""The media types of both."""
HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # or a proxy would keep tokens until its buffer is full
]
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """One event; JSON has no line breaks, so one ``data:`` line holds it."""
    head = f"event: {name}\ndata: ".encode() if name else b"data: "
    return head + msgspec.json.encode(data) + b"\n\n"


def line(data: Any) -> bytes:
    """One object on a line of its own."""
    return msgspec.json.encode(data) + b"\n"


async def until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    """Give an answer up when the client disconnects; the request's body was read already."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class EventStream:
    """The body of one answer, started with its first event."""

    def __init__(
        self, send: Send, headers: Mapping[str, str] | None = None, media_type: str = EVENTS
    ) -> None:
        self._send = send
        own = {"content-type": media_type, **(headers or {})}
        self._headers = [*HEADERS, *((k.encode(), v.encode()) for k, v in own.items())]
        self.started = False

    async def write(self, *events: bytes) -> None:
        """Send events. Waits while the client does not read."""
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        if events:
            await self._send({"type": "http.response.body", "body": b"".join(events), "more_body": True})

    async def end(self) -> None:
        """No more events."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
