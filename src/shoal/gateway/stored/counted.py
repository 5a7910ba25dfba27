"""Routes of what is stored: who calls them is counted, and they are nobody's answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shoal.gateway.access.guard import caller_of
from shoal.gateway.access.limits import RequestLimiter


class CountedRoute:
    """A route whose caller is counted until all of its answer was sent.

    Raises:
        LimitReached: the caller is beyond its limits.
    """

    def __init__(self, limits: RequestLimiter, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._limits = limits
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        async with self._limits.admitted(caller_of(request), awaited=False):
            response = await self._answer(request)
            await response(scope, receive, send)


def caller_and_id(request: Request) -> tuple[str, str]:
    """Whose thing a request is about, and which one its path names."""
    return caller_of(request).id, request.path_params["id"]
