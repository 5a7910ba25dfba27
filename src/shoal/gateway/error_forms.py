"""An error in the words of the API that was called: each client reads its own form."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Scope

from shoal.errors import Busy, ShoalError
from shoal.gateway.errors import body_of, headers_of, message_of, status_of

ANTHROPIC = "/v1/messages"
OVERLOADED = 529
"""Anthropic's status where others say 429 or 503 to everybody."""
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


def error_response(error: ShoalError, scope: Scope) -> JSONResponse:
    """The whole answer for an error that came before any byte of another."""
    if speaks_anthropic(scope):
        body, status = (
            anthropic_error(error) | {"request_id": scope.get("request_id")},
            anthropic_status(error),
        )
    else:
        body, status = body_of(error), status_of(error)
    return JSONResponse(body, status, headers=headers_of(error))


def speaks_anthropic(scope: Scope) -> bool:
    """Whether the caller reads Anthropic's words: by the route, or by a header that its clients send."""
    path = scope.get("path", "")
    return (
        path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/") or "anthropic-version" in Headers(scope=scope)
    )


def anthropic_error(error: ShoalError) -> dict[str, Any]:
    """The error as Anthropic's clients read it, also as an event of a stream."""
    status = anthropic_status(error)
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message_of(error)}}


def anthropic_status(error: ShoalError) -> int:
    """The HTTP status that tells Anthropic's clients of ``error``."""
    return OVERLOADED if isinstance(error, Busy) else status_of(error)
