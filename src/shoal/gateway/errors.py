"""What an error of ours is over HTTP: a status, and OpenAI's error body with all of its four fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from shoal.errors import (
    Busy,
    DeadlineExceeded,
    DigestMismatch,
    NoCoverage,
    NotAllowed,
    NotRunning,
    OutOfResources,
    PromptTooLong,
    ShoalError,
    UnknownModel,
    UsageError,
)


class HttpError(ShoalError):
    """An error that only a gateway has."""

    code = "http"
    status: ClassVar[int] = 400

    def __init__(self, message: str, *, check: str = "", param: str | None = None) -> None:
        super().__init__(message, check=check)
        self.param = param


class BadRequest(HttpError):
    """The body is not what the route takes; ``param`` names the field."""

    code = "invalid_value"


class Unauthorized(HttpError):
    code = "invalid_api_key"
    status = 401


class PaymentNeeded(HttpError):
    """``required`` is what the header ``PAYMENT-REQUIRED`` carries."""

    code = "payment_required"
    status = 402

    def __init__(self, message: str, *, required: str, check: str = "") -> None:
        super().__init__(message, check=check)
        self.required = required


class Forbidden(HttpError):
    code = "forbidden"
    status = 403


class NotFound(HttpError):
    code = "not_found"
    status = 404


class MethodNotAllowed(HttpError):
    """The route is for other methods; ``allow`` names them, as the header does."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class DatabaseAway(OutOfResources):
    """The database cannot be used. Its message names the server, for the log and the machine's own user."""


class RequestTimeout(HttpError):
    code = "request_timeout"
    status = 408


class BodyTooLarge(HttpError):
    code = "body_too_large"
    status = 413


class NotJson(HttpError):
    """The body says of itself that it is something else."""

    code = "unsupported_media_type"
    status = 415


class LimitReached(HttpError):
    """The caller has asked for more than it may; says in how many seconds to come back."""

    code = "rate_limit_exceeded"
    status = 429

    def __init__(self, message: str, *, retry_after_s: float, check: str = "") -> None:
        super().__init__(message, check=check)
        self.retry_after_s = retry_after_s


AGAIN = frozenset({429, 503})
"""Statuses of what may be asked again: there was no room, or blocks were lacking."""
MAYBE_AGAIN = frozenset({502, 504})
"""And of what may be asked again a few times: nodes have failed."""


@dataclass(frozen=True, slots=True)
class _Told:
    status: int
    type: str
    code: str | None = None
    """``None`` takes the error's own."""


_INVALID = "invalid_request_error"
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
}
_TOLD: tuple[tuple[type[ShoalError], _Told], ...] = (  # the first that fits
    (PromptTooLong, _Told(400, _INVALID, "context_length_exceeded")),
    (UsageError, _Told(400, _INVALID)),
    (UnknownModel, _Told(404, _INVALID, "model_not_found")),
    (Busy, _Told(429, "rate_limit_error", "overloaded")),
    (NotAllowed, _Told(403, "permission_error")),
    (NoCoverage, _Told(503, "server_error")),
    (NotRunning, _Told(503, "server_error")),
    (DigestMismatch, _Told(503, "server_error")),
    (OutOfResources, _Told(503, "server_error")),
    (DeadlineExceeded, _Told(504, "server_error")),
    (ShoalError, _Told(502, "server_error")),
)


def status_of(error: ShoalError) -> int:
    """The HTTP status that tells of ``error``."""
    return _told(error).status


def message_of(error: ShoalError) -> str:
    """What happened, and what to check."""
    said, check = told_to_callers(error), "" if isinstance(error, DatabaseAway) else error.check
    return f"{said}; check {check}" if check else said


def told_to_callers(error: ShoalError) -> str:
    """What happened; where the gateway's database is and what its server has said is not for callers."""
    return "the gateway's database is away" if isinstance(error, DatabaseAway) else error.message


def body_of(error: ShoalError) -> dict[str, Any]:
    """The error as OpenAI's clients read it; blocks that nobody serves are named beside."""
    told = _told(error)
    fields: dict[str, Any] = {
        "message": message_of(error),
        "type": told.type,
        "param": error.param if isinstance(error, HttpError) else None,
        "code": told.code or error.code,
    }
    if isinstance(error, NoCoverage):
        fields["missing"] = [str(span) for span in error.missing]
    return {"error": fields}


def headers_of(error: ShoalError) -> Mapping[str, str]:
    """What the status demands beside: ``Allow``, or ``Retry-After`` in whole seconds where it helps."""
    if isinstance(error, MethodNotAllowed):
        return {"allow": error.allow}
    if isinstance(error, PaymentNeeded):
        return {"payment-required": error.required}
    if isinstance(error, (LimitReached, Busy)):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    if status_of(error) == HTTPStatus.SERVICE_UNAVAILABLE:
        return {"retry-after": "5"}
    if status_of(error) == HTTPStatus.UNAUTHORIZED:
        return {"www-authenticate": "Bearer"}
    return {}


def _told(error: ShoalError) -> _Told:
    if isinstance(error, HttpError):
        return _Told(error.status, _TYPES.get(error.status, _INVALID))
    return next(told for kind, told in _TOLD if isinstance(error, kind))
