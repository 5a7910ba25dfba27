"""Routes whose caller is counted before anything that it has sent is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.gateway.access.guard import caller_of
from shoal.gateway.access.limits import RequestLimiter


class CountedRoute:
    """A route whose caller is counted from before its body is read until the end of its answer is sent.

    Args:
        answer: reads the request; what it returns gives the answer.
        awaited: whether the swarm is to answer it; what is only stored or read keeps no batch waiting.

    Raises:
        LimitReached: the caller is beyond its limits, or too many large bodies are held.
    """

    def __init__(
        self,
        limits: RequestLimiter,
        answer: Callable[[Request], Awaitable[ASGIApp]],
        *,
        awaited: bool = False,
    ) -> None:
        self._limits = limits
        self._answer = answer
        self._awaited = awaited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        async with AsyncExitStack() as counted:
            await counted.enter_async_context(
                self._limits.admitted(caller_of(request), awaited=self._awaited)
            )

            async def sending(message: Message) -> None:
                # Before its last bytes: who has them may ask again at once, and have no place but this one.
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    await counted.aclose()
                await send(message)

            with self._limits.bodies.held(caller_of(request).id, request.headers, receive) as held:
                response = await self._answer(Request(scope, held, sending))
                await response(scope, held, sending)


def caller_and_id(request: Request) -> tuple[str, str]:
    """Whose thing a request is about, and which one its path names."""
    return caller_of(request).id, request.path_params["id"]
