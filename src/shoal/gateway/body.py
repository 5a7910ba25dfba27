"""Reading a request's body: bounded in bytes and in time, then checked against a schema."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import trio
from pydantic import BaseModel, ValidationError
from pydantic.config import ExtraValues
from starlette.requests import ClientDisconnect, Request

from shoal.gateway.errors import BadRequest, BodyTooLarge, NotJson, RequestTimeout
from shoal.gateway.schema.sentences import sentence

MAX_BODY = 8 << 20
"""Bytes; as much as the chat template takes."""
BODY_WITHIN_S = 20.0
"""For the whole body to come, however slowly it is sent."""
ON_LOOP = 256 << 10
"""Bytes; a larger body is parsed on a thread."""

JSON = ("application/json", "application/x-www-form-urlencoded")

Schema = TypeVar("Schema", bound=BaseModel)


async def read_body(request: Request, schema: type[Schema], *, extra: ExtraValues | None = None) -> Schema:
    """The request's JSON body as ``schema``.

    Args:
        extra: what becomes of fields that the schema does not have; ``None`` as the schema says.

    Raises:
        BadRequest: it is not JSON, or not what the route takes.
        BodyTooLarge: more than :data:`MAX_BODY`.
        NotJson: by its headers it is something else, or packed.
        RequestTimeout: it did not come in time.
    """
    _check_kind(request)
    raw = await read_raw(request, MAX_BODY)
    check = partial(schema.model_validate_json, extra=extra)
    try:
        if len(raw) > ON_LOOP:
            return await trio.to_thread.run_sync(check, raw)
        return check(raw)
    except ValidationError as error:
        raise _bad(error) from error


def _check_kind(request: Request) -> None:
    """Without a word about its kind a body is JSON; with one it must be JSON in UTF-8, not packed.

    ``curl -d`` calls everything a form, so what is called one is read as JSON too. No form of a page is JSON,
    and a page of another origin is refused before.
    """
    said = request.headers.get("content-type", "application/json")
    kind, _, options = said.lower().partition(";")
    kind, options = kind.strip(), options.replace(" ", "").replace('"', "")
    charset = next(
        (o.removeprefix("charset=") for o in options.split(";") if o.startswith("charset=")), "utf-8"
    )
    json = kind in JSON or (kind.startswith("application/") and kind.endswith("+json"))
    if not json or charset not in ("utf-8", "utf8", "us-ascii"):
        raise NotJson(
            f"a body of type {said[:100]!r} cannot be read here", check="send Content-Type: application/json"
        )
    packed = request.headers.get("content-encoding", "identity")
    if packed.strip().lower() not in ("identity", ""):
        raise NotJson(
            f"a body encoded as {packed[:100]!r} cannot be read here",
            check="send the body without a Content-Encoding",
        )


async def read_raw(request: Request, most: int) -> bytes:
    """The request's body as it is, of ``most`` bytes at most.

    Raises:
        BadRequest, BodyTooLarge, RequestTimeout: as :func:`read_body`.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) > most:
        raise BodyTooLarge(f"a body of {declared[:20]} bytes; at most {most} are taken")
    pieces: list[bytes] = []
    size = 0
    with trio.move_on_after(BODY_WITHIN_S) as waiting:
        try:
            async for piece in request.stream():
                size += len(piece)
                if size > most:
                    raise BodyTooLarge(f"a body of more than {most} bytes")
                pieces.append(piece)
        except ClientDisconnect as error:
            raise BadRequest("the body was cut short") from error
    if waiting.cancelled_caught:
        raise RequestTimeout(f"the body did not come within {BODY_WITHIN_S:.0f} s")
    return b"".join(pieces)


def _bad(error: ValidationError) -> BadRequest:
    """The first thing that is wrong."""
    text, param = sentence(error.errors(include_url=False, include_input=False)[0])
    return BadRequest(text, param=param)
