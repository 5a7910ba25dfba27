"""The lines of a batch's files: what is asked for, and what came of it. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, cast

import msgspec

from shoal.gateway.stored.batches.batch import MAX_ERRORS, BatchError

MAX_CUSTOM_ID = 512


class BatchLine(msgspec.Struct, frozen=True):
    """One request of a batch."""

    custom_id: str
    body: dict[str, Any]


class _Named(msgspec.Struct):
    custom_id: str | None = None


class LineFault(Exception):
    """A line that is no request; says which field is wrong."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def read_line(data: bytes, endpoint: str) -> BatchLine:
    """A line of an input file.

    Raises:
        LineFault: it is no request of this batch.
    """
    try:
        line: object = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineFault("invalid_json_line", "the line is not JSON") from error
    if not isinstance(line, dict):
        raise LineFault("invalid_json_line", "the line must be an object")
    fields = cast("dict[str, Any]", line)
    custom_id, body = fields.get("custom_id"), fields.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        said = f"custom_id must be a string of 1 to {MAX_CUSTOM_ID} characters"
        raise LineFault("invalid_custom_id", said, "custom_id")
    if fields.get("method") != "POST":
        raise LineFault("invalid_method", "method must be 'POST'", "method")
    if fields.get("url") != endpoint:
        raise LineFault("invalid_url", f"url must be the batch's endpoint, {endpoint!r}", "url")
    if not isinstance(body, dict):
        raise LineFault("missing_required_parameter", "body must be an object", "body")
    return BatchLine(custom_id, cast("dict[str, Any]", body))


def custom_id_of(data: bytes) -> str | None:
    """By what name a line asks to be answered, also where it can no longer be read; ``None`` without one."""
    try:
        return msgspec.json.decode(data, type=_Named).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def is_blank(data: bytes) -> bool:
    return not data.strip()


def check_lines(lines: Iterable[tuple[int, bytes]], endpoint: str) -> tuple[list[int], list[BatchError]]:
    """The numbers of the lines that are requests, and what is wrong with a file: then none of it is run."""
    numbers: list[int] = []
    errors: list[BatchError] = []
    seen: set[str] = set()
    for number, data in lines:
        if is_blank(data):
            continue
        try:
            line = read_line(data, endpoint)
            if line.custom_id in seen:
                raise LineFault("duplicate_custom_id", "another line has this custom_id", "custom_id")
        except LineFault as fault:
            errors.append(BatchError(code=fault.code, message=fault.message, line=number, param=fault.param))
            if len(errors) >= MAX_ERRORS:
                break
            continue
        seen.add(line.custom_id)
        numbers.append(number)
    if not numbers and not errors:
        errors.append(BatchError(code="empty_file", message="the input file has no requests"))
    return numbers, errors


def answered(custom_id: str, status: int, request_id: str, body: Any) -> bytes:
    """A line of an output file, or of an error file where the status is none of success."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _line(custom_id, response, None)


def not_answered(custom_id: str | None, code: str, message: str) -> bytes:
    """A line of an error file for a request that was never answered."""
    return _line(custom_id, None, {"code": code, "message": message})


def _line(custom_id: str | None, response: Any, error: Any) -> bytes:
    line = {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(line) + b"\n"
