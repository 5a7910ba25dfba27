"""``/v1/responses``: answers in the words of OpenAI's newer API, and those that were kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shoal.errors import OutOfResources
from shoal.gateway.access.counted import CountedRoute, caller_and_id
from shoal.gateway.access.guard import caller_of
from shoal.gateway.access.keys import Caller
from shoal.gateway.api import responses
from shoal.gateway.api.request import GenerationRequest
from shoal.gateway.api.response_items import AnyItem, items_of, listed, parsed
from shoal.gateway.body import read_body
from shoal.gateway.errors import BadRequest, NotFound, Unauthorized
from shoal.gateway.exchange import Desk, Exchange, Form
from shoal.gateway.grammar.grammar import Grammars
from shoal.gateway.models import Models
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.chat import MAX_MESSAGES
from shoal.gateway.schema.responses import ResponsesRequest
from shoal.gateway.stored.paging import requested_page
from shoal.gateway.stored.responses import ResponseStore, StoredResponse

PATH = "/v1/responses"
log = logging.getLogger(__name__)


class ResponseRoutes:
    """The routes of the Responses API."""

    def __init__(self, desk: Desk, models: Models, grammars: Grammars, store: ResponseStore) -> None:
        self._desk = desk
        self._models = models
        self._grammars = grammars
        self._store = store

    def routes(self) -> list[Route]:
        counted = partial(CountedRoute, self._desk.limits)
        return [
            Route(PATH, counted(self._respond, awaited=True), methods=["POST"]),
            Route(f"{PATH}/compact", counted(self._compact), methods=["POST"]),
            Route(f"{PATH}/{{id}}", counted(self._show), methods=["GET"]),
            Route(f"{PATH}/{{id}}", counted(self._delete), methods=["DELETE"]),
            Route(f"{PATH}/{{id}}/input_items", counted(self._list_items), methods=["GET"]),
        ]

    async def _respond(self, request: Request) -> Exchange:
        body = await read_body(request, ResponsesRequest)
        model = await self._models.find(body.model)
        caller = caller_of(request)
        stored = self._store.keeping.on and body.store is not False
        answer: responses.ResponsesForm | None = None

        async def prepare() -> list[GenerationRequest]:
            history = await self._history(caller, body)
            return [await responses.responses_request(body, model, self._grammars, history)]

        def form(record: Record, asked: Sequence[GenerationRequest]) -> Form:
            nonlocal answer
            answer = responses.ResponsesForm(record, asked[0], body, stored=stored)
            return answer

        async def keep() -> None:
            if answer is not None and stored:
                answer.stored = await self._keep(caller, body, answer.whole())

        return Exchange(
            self._desk, caller, prepare, form, prefix=responses.PREFIX, stream=body.stream, ended=keep
        )

    async def _history(self, caller: Caller, body: ResponsesRequest) -> list[AnyItem]:
        if body.previous_response_id is None:
            return []
        found = await self._store.database.run(self._store.history, caller.id, body.previous_response_id)
        if len(found) > MAX_MESSAGES:
            raise BadRequest(
                f"the conversation has more than {MAX_MESSAGES} items",
                check="begin a new one, without previous_response_id",
                param="previous_response_id",
            )
        return parsed(found)

    async def _keep(self, caller: Caller, body: ResponsesRequest, response: dict[str, Any]) -> bool:
        items = [listed(item) for item in items_of(body.input)]
        turn = StoredResponse(response["id"], body.previous_response_id, items, response)
        try:
            return await self._store.database.run(self._store.save, caller.id, turn)
        except (OutOfResources, Unauthorized) as error:
            # A full disk must not end answers, nor a revoked key; the answer says that it is not kept.
            log.warning("a response is not stored: %s", error.message)
            return False

    async def _compact(self, request: Request) -> Response:
        raise NotFound(
            f"no route {request.scope['path']!r}: conversations are not compacted here",
            check="begin a new response with what you want to keep of it",
        )

    async def _show(self, request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            raise BadRequest(
                "a stored response is not streamed again", check="leave out stream", param="stream"
            )
        return JSONResponse(await self._store.database.run(self._store.find, *caller_and_id(request)))

    async def _delete(self, request: Request) -> Response:
        caller, id = caller_and_id(request)
        await self._store.database.run(self._store.delete, caller, id)
        return JSONResponse({"id": id, "object": "response", "deleted": True})

    async def _list_items(self, request: Request) -> Response:
        page = requested_page(request)
        items = await self._store.database.run(self._store.made_from, *caller_and_id(request))
        return JSONResponse(page.of(items))
