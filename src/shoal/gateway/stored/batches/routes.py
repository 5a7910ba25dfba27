"""``/v1/batches``: as OpenAI's API has them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shoal.gateway.access.counted import CountedRoute, caller_and_id
from shoal.gateway.access.guard import caller_of
from shoal.gateway.access.limits import RequestLimiter
from shoal.gateway.body import read_body
from shoal.gateway.errors import Forbidden
from shoal.gateway.schema.batches import BatchRequest
from shoal.gateway.stored.batches.batch import WINDOW_S, StoredBatch
from shoal.gateway.stored.batches.runner import BatchRunner
from shoal.gateway.stored.batches.store import BatchStore
from shoal.gateway.stored.files import new_file_id
from shoal.gateway.stored.paging import requested_page

PATH = "/v1/batches"


class BatchRoutes:
    """The routes of OpenAI's batches."""

    def __init__(self, store: BatchStore, runner: BatchRunner, limits: RequestLimiter) -> None:
        self._store = store
        self._limits = limits
        self._runner = runner

    def routes(self) -> list[Route]:
        counted = partial(CountedRoute, self._limits)
        return [
            Route(PATH, counted(self._create), methods=["POST"]),
            Route(PATH, counted(self._list), methods=["GET"]),
            Route(f"{PATH}/{{id}}", counted(self._show), methods=["GET"]),
            Route(f"{PATH}/{{id}}/cancel", counted(self._cancel), methods=["POST"]),
        ]

    async def _create(self, request: Request) -> Response:
        body = await read_body(request, BatchRequest)
        if not self._store.files.keeping.on:
            raise Forbidden("this gateway keeps no batches", check="set store_days in its config.toml")
        now, caller = self._store.clock(), caller_of(request)
        batch = StoredBatch(
            id=f"batch_{secrets.token_hex(12)}",
            endpoint=body.endpoint,
            input_file=body.input_file_id,
            output_file=new_file_id(),
            error_file=new_file_id(),
            created=now,
            expires=now + WINDOW_S,
            metadata=body.metadata,
            output_kept_s=body.output_expires_after.seconds if body.output_expires_after else None,
            protect=caller.protect,
        )
        await self._store.database.run(self._store.add, caller.id, batch)
        self._runner.look()
        return JSONResponse(batch.shown(0, 0))

    async def _list(self, request: Request) -> Response:
        page = requested_page(request)
        caller = caller_of(request).id

        def shown() -> dict[str, Any]:
            batches = {batch.id: batch for batch in self._store.list(caller)}
            found = page.of([{"id": id} for id in batches])
            listed = [batches[one["id"]] for one in found["data"]]
            # Only these are counted: that takes a look at all of their lines.
            counts = self._store.counts_of(listed)
            return found | {"data": [batch.shown(*counts[batch.id]) for batch in listed]}

        return JSONResponse(await self._store.database.run(shown))

    async def _show(self, request: Request) -> Response:
        return await self._told(partial(self._store.find, *caller_and_id(request)))

    async def _cancel(self, request: Request) -> Response:
        now = self._store.clock()
        caller, id = caller_and_id(request)

        def cancelled(batch: StoredBatch) -> StoredBatch:
            return batch.cancelled(now)

        answer = await self._told(partial(self._store.change, caller, id, cancelled))
        self._runner.look()
        return answer

    async def _told(self, find: Callable[[], StoredBatch]) -> Response:
        def shown() -> dict[str, Any]:
            batch = find()
            return batch.shown(*self._store.counts(batch))

        return JSONResponse(await self._store.database.run(shown))
