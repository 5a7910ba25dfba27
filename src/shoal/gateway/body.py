"""Reading a request's body: bounded in bytes and in time, then checked against a schema."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import trio
from pydantic import BaseModel, ValidationError
from pydantic.config import ExtraValues
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from shoal.errors import OutOfResources
from shoal.gateway.errors import BadRequest, BodyTooLarge, NotJson, RequestTimeout
from shoal.gateway.schema.sentences import sentence

MAX_BODY = 8 << 20
"""Bytes; as much as the chat template takes."""
BODY_WITHIN_S = 20.0
"""For the whole body to come, however slowly it is sent."""
FORM_WITHIN_S = 300.0
"""The same for a form with a file."""
FIELDS = 12
"""That a form may have beside its file."""
FIELD = 4096
"""Bytes of one."""
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


async def read_form(request: Request, most: int) -> FormData:
    """The form of ``most`` bytes at most that a request brings; its file lies on the disk until it is closed.

    Raises:
        BadRequest, BodyTooLarge, NotJson, RequestTimeout: as for other bodies.
        OutOfResources: there is no room for the file.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise NotJson(
            f"a body of type {kind[:100]!r} cannot be read here", check="send the file as multipart/form-data"
        )
    with trio.move_on_after(FORM_WITHIN_S):
        async with aclosing(_bounded(request, most)) as stream:
            parser = MultiPartParser(
                request.headers, stream, max_files=1, max_fields=FIELDS, max_part_size=FIELD
            )
            try:
                return await parser.parse()
            except (MultiPartException, KeyError, UnicodeError, LookupError) as error:
                said = error.message if isinstance(error, MultiPartException) else "it cannot be read"
                raise BadRequest(f"the form cannot be read: {said[:200]}") from error
            except ClientDisconnect as error:
                raise BadRequest("the form was cut short") from error
            except OSError as error:
                raise OutOfResources(
                    f"the file cannot be kept while it comes: {error.strerror}",
                    check="that there is room in the folder for temporary files of the gateway's machine",
                ) from error
    raise RequestTimeout(f"the file did not come within {FORM_WITHIN_S:.0f} s")


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes]:
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most:
            raise BodyTooLarge(f"a form of more than {most} bytes", param="file")
        yield piece


def checked(schema: type[Schema], fields: Mapping[str, Any]) -> Schema:
    """The fields of a form as ``schema``. Raises BadRequest: they are not what the route takes."""
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise _bad(error) from error


def _bad(error: ValidationError) -> BadRequest:
    """The first thing that is wrong."""
    text, param = sentence(error.errors(include_url=False, include_input=False)[0])
    return BadRequest(text, param=param)
