"""An error in the words of the API that was called: each client reads its own form."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Scope

from shoal.errors import Busy, ShoalError
from shoal.gateway.errors import DatabaseAway, body_of, headers_of, message_of, status_of

ANTHROPIC = "/v1/messages"
OVERLOADED = 529
"""Anthropic's status where others say 429 or 503 to everybody."""
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
OLLAMA = frozenset(
    {
        *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"),
        *("/api/pull", "/api/show", "/api/tags", "/api/ps", "/api/version"),
    }
)
OLLAMA_LACKING: Mapping[str, str] = {
    "/api/delete": "run this on the gateway's machine: shoal models rm NAME",
    "/api/push": "a node that serves a model shares it with others: shoal up --model NAME",
    "/api/create": "choose a model that GET /api/tags lists",
    "/api/copy": "choose a model that GET /api/tags lists",
}
"""Ollama's routes that are not here, and what to do instead."""
log = logging.getLogger(__name__)


def error_response(error: ShoalError, scope: Scope) -> JSONResponse:
    """The whole answer for an error that came before any byte of another."""
    if isinstance(error, DatabaseAway):  # callers are told no more than that
        log.warning("%s is refused: %s", scope.get("request_id"), error.message)
    if speaks_anthropic(scope):
        body, status = (
            anthropic_error(error) | {"request_id": scope.get("request_id")},
            anthropic_status(error),
        )
    elif _speaks_ollama(scope):
        body, status = ollama_error(error), ollama_status(error)
    elif speaks_v2(scope):
        body, status = {"error": message_of(error)}, status_of(error)
    else:
        body, status = body_of(error), status_of(error)
    return JSONResponse(body, status, headers=headers_of(error))


def speaks_v2(scope: Scope) -> bool:
    """Whether the caller reads the words of the open inference protocol."""
    path = scope.get("path", "")
    return path == "/v2" or path.startswith("/v2/")


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


def _speaks_ollama(scope: Scope) -> bool:
    """By the route alone: the page's own begin with ``/api`` too."""
    path = scope.get("path", "")
    return path in OLLAMA or path in OLLAMA_LACKING


def ollama_error(error: ShoalError) -> dict[str, Any]:
    """The error as Ollama's clients read it, also as the last line of a stream."""
    return {"error": message_of(error)}


def ollama_status(error: ShoalError) -> int:
    """The HTTP status that tells Ollama's clients of ``error``."""
    return HTTPStatus.SERVICE_UNAVAILABLE if isinstance(error, Busy) else status_of(error)
