"""``/v1/files``: uploads for batches, and what batches have written."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import IO, Any

import trio
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from shoal.gateway.access.allowance import RETRY_S
from shoal.gateway.access.counted import CountedRoute, caller_and_id
from shoal.gateway.access.guard import caller_of
from shoal.gateway.access.limits import RequestLimiter
from shoal.gateway.body import read_form
from shoal.gateway.errors import BadRequest, Forbidden, LimitReached
from shoal.gateway.schema.batches import EXPIRES
from shoal.gateway.stored.files import MAX_FILE, MAX_LINE, FileStore
from shoal.gateway.stored.paging import requested_page

PATH = "/v1/files"
UPLOADS = 8
"""At once, of all callers. Each lies in a temporary file until it is stored."""
STORED_AT_ONCE = 3
"""Each keeps a connection to the database for a while: there are fewer than those."""
STORED_WITHIN_S = 60.0
"""How long an upload waits to be stored."""
UPLOADS_EACH = 2
"""Of one caller, so that it leaves room for others."""
AROUND = 64 << 10
"""Bytes that a form may have beside the file."""
MAX_NAME = 256
LIST_MOST = 10_000


class FileRoutes:
    """The routes of OpenAI's files, for batches alone."""

    def __init__(self, store: FileStore, limits: RequestLimiter) -> None:
        self._store = store
        self._limits = limits
        self._uploads = Counter[str]()
        self._places = trio.Semaphore(STORED_AT_ONCE)

    def routes(self) -> list[Route]:
        counted = partial(CountedRoute, self._limits)
        return [
            Route(PATH, self._upload, methods=["POST"]),
            Route(PATH, counted(self._list), methods=["GET"]),
            Route(f"{PATH}/{{id}}", counted(self._show), methods=["GET"]),
            Route(f"{PATH}/{{id}}", counted(self._delete), methods=["DELETE"]),
            Route(f"{PATH}/{{id}}/content", counted(self._content), methods=["GET"]),
        ]

    async def _upload(self, request: Request) -> Response:
        caller = caller_of(request)
        if not self._store.keeping.on:
            raise Forbidden("this gateway keeps no files", check="set store_days in its config.toml")
        async with self._limits.admitted(caller, awaited=False):
            with self._under_way(caller.id):
                form = await read_form(request, MAX_FILE + AROUND)
                try:
                    file, seconds = _checked(form)
                    name = _named(file)
                    add = partial(self._store.add, caller.id, name, _lines(file.file), seconds)
                    async with self._place():
                        stored = await self._store.database.run(add)
                finally:
                    await form.close()
        return JSONResponse(stored.shown())

    @contextmanager
    def _under_way(self, caller: str) -> Generator[None]:
        """Count an upload. Raises LimitReached: there are too many, of this caller or of all."""
        if self._uploads[caller] >= UPLOADS_EACH or self._uploads.total() >= UPLOADS:
            raise LimitReached(
                f"{self._uploads[caller]} uploads of this key are under way, and {self._uploads.total()} of "
                f"all; {UPLOADS_EACH} and {UPLOADS} are the most",
                retry_after_s=RETRY_S,
            )
        self._uploads[caller] += 1
        try:
            yield
        finally:
            self._uploads[caller] -= 1
            self._uploads += Counter[str]()  # forgets whoever has none

    @asynccontextmanager
    async def _place(self) -> AsyncGenerator[None]:
        """Wait until few others are stored. Raises LimitReached: they were not in time."""
        with trio.move_on_after(STORED_WITHIN_S) as waiting:
            await self._places.acquire()
        if waiting.cancelled_caught:
            raise LimitReached("too many uploads are being stored", retry_after_s=RETRY_S)
        try:
            yield
        finally:
            self._places.release()

    async def _list(self, request: Request) -> Response:
        page = requested_page(request, most=LIST_MOST, default=LIST_MOST)
        purpose = request.query_params.get("purpose")
        found = await self._store.database.run(self._store.list, caller_of(request).id)
        return JSONResponse(page.of([f.shown() for f in found if purpose in (None, f.purpose)]))

    async def _show(self, request: Request) -> Response:
        found = await self._store.database.run(self._store.find, *caller_and_id(request))
        return JSONResponse(found.shown())

    async def _delete(self, request: Request) -> Response:
        caller, id = caller_and_id(request)
        await self._store.database.run(self._store.delete, caller, id)
        return JSONResponse({"id": id, "object": "file", "deleted": True})

    async def _content(self, request: Request) -> Response:
        caller, id = caller_and_id(request)
        file = await self._store.database.run(self._store.find, caller, id)
        headers = {"content-length": str(file.bytes), "content-disposition": "attachment"}
        return StreamingResponse(self._pieces(id), headers=headers, media_type="application/octet-stream")

    async def _pieces(self, id: str) -> AsyncGenerator[bytes]:
        after = 0
        while piece := await self._store.database.run(self._store.read, id, after):
            yield b"".join(data for _, data in piece)
            after = piece[-1][0]


def _checked(form: FormData) -> tuple[UploadFile, int | None]:
    """The file, and for how many seconds it is to be kept.

    Raises:
        BadRequest: a field is missing, or not what is taken here.
    """
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadFile):
        raise BadRequest("file is missing, or is no file", param="file")
    if purpose != "batch":
        raise BadRequest("purpose must be 'batch': files are kept for batches alone", param="purpose")
    if not file.size:
        raise BadRequest("file must not be empty", param="file")
    return file, _seconds({name: value for name, value in form.items() if isinstance(value, str)})


def _named(file: UploadFile) -> str:
    """What the file is called: names may hold bytes that are no text."""
    name = (file.filename or "upload.jsonl")[:MAX_NAME]
    return name.encode("utf-8", "replace").decode()


def _seconds(fields: Mapping[str, Any]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise BadRequest("expires_after.anchor must be 'created_at'", param="expires_after.anchor")
    text = seconds or ""
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) in EXPIRES):
        said = f"expires_after.seconds must be a whole number from {EXPIRES[0]} to {EXPIRES[-1]}"
        raise BadRequest(said, param="expires_after.seconds")
    return int(text)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The file's lines with their ends; a line that is too long comes as far as shows that it is."""
    file.seek(0)
    while line := file.readline(MAX_LINE + 1):
        yield line
