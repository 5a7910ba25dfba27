"""A request that this process makes of its own routes: answered as one that came over a socket."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import trio
from starlette.types import ASGIApp, Message

from shoal.gateway.access.guard import Defect
from shoal.gateway.access.keys import Caller
from shoal.gateway.errors import body_of, status_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """What a route has answered."""

    status: int
    request_id: str
    body: Any
    """Its JSON."""
    retry_after_s: float = 0.0


AskRoute = Callable[[str, dict[str, Any], Caller], Awaitable[RouteAnswer]]
"""Asks a route by its path, with a body, for a caller."""


def asking(app: ASGIApp) -> AskRoute:
    """Asks the routes of ``app``, which stand behind the guard: who calls is taken as given."""

    async def ask(path: str, body: dict[str, Any], caller: Caller) -> RouteAnswer:
        request_id = f"req_{secrets.token_hex(12)}"
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "client": None,
            "server": None,
            "app": None,
            "caller": caller,
            "request_id": request_id,
        }
        try:
            conversation = _Conversation(msgspec.json.encode(body))
            await app(scope, conversation.receive, conversation.send)
            return conversation.answer(request_id)
        except Exception:
            # As for callers on a socket: a defect that one request has met must not end the others.
            log.exception("%s: a defect", request_id)
            defect = Defect(request_id)
            return RouteAnswer(status_of(defect), request_id, body_of(defect))

    return ask


class _Conversation:
    """Both ends of one request: a body that is sent at once, and what comes back."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._status = 500
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []

    async def receive(self) -> Message:
        if self._body is None:
            await trio.sleep_forever()  # until the route is done: this caller never goes away
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], dict(message["headers"])
        else:
            self._pieces.append(message.get("body", b""))

    def answer(self, request_id: str) -> RouteAnswer:
        after = self._headers.get(b"retry-after", b"0")
        retry_after_s = float(after) if after.isdigit() else 0.0
        body = msgspec.json.decode(b"".join(self._pieces))
        return RouteAnswer(self._status, request_id, body, retry_after_s)
