"""Each request to a model as a span of a trace: of the caller's own, where it sends ``traceparent``."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.errors import ShoalError
from shoal.metrics import tracing
from shoal.metrics.tracing import TraceContext, TraceSpan

LONGEST_PATH = 128


class TraceMiddleware:
    """Stands inside of what admits requests, so that nobody who is turned away makes spans."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or len(scope["path"]) > LONGEST_PATH:
            await self._app(scope, receive, send)
            return
        above = TraceContext.parse(Headers(scope=scope).get("traceparent", ""))
        span = TraceSpan(
            f"POST {scope['path']}",
            "server",
            above.child() if above else TraceContext.begin(),
            above.span if above else b"",
            attributes={"http.request.method": "POST", "url.path": scope["path"]},
        )
        scope["trace"] = span  # an answer that fails when its head is out says so there
        if request_id := scope.get("request_id"):
            span.attributes["shoal.request_id"] = request_id

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.attributes["http.response.status_code"] = message["status"]
                if message["status"] >= 500:
                    span.error = str(message["status"])  # what caused it, the answer says, and spans below
            await send(message)

        try:
            with tracing.working_for(span.context):
                await self._app(scope, receive, watched)
        except Exception as error:  # of whatever kind: who stands outside answers it
            span.error = error.code if isinstance(error, ShoalError) else type(error).__name__
            raise
        finally:
            tracing.end(span)
