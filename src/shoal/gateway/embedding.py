"""Texts over HTTP and their embeddings: counted, limited and measured as answers are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from shoal.client.embeddings import embed_tokens
from shoal.client.session import Session
from shoal.client.swarm import Swarm
from shoal.errors import ShoalError
from shoal.executor.arrays import Floats
from shoal.gateway.access.keys import Caller
from shoal.gateway.api.embeddings import EmbeddingRequest, Made
from shoal.gateway.error_forms import error_response
from shoal.gateway.exchange import Desk
from shoal.gateway.page.requests import Record
from shoal.gateway.sse import until_gone

Write = Callable[[EmbeddingRequest, Record, Made], dict[str, Any]]
"""Writes the vectors down; on a thread."""


class EmbeddingExchange:
    """An ASGI response. A client that goes away takes its sessions with it: every hop is free at once.

    The caller was counted before its texts were read.
    """

    def __init__(
        self,
        desk: Desk,
        swarm: Swarm,
        caller: Caller,
        prepare: Callable[[], Awaitable[EmbeddingRequest]],
        write: Write,
        *,
        prefix: str,
    ) -> None:
        self._desk = desk
        self._swarm = swarm
        self._caller = caller
        self._prepare = prepare
        self._write = write
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_gone, receive, nursery.cancel_scope)
            try:
                asked = await self._prepare()
                response = await self._answer(scope["path"], asked)
            except ShoalError as error:
                response = error_response(error, scope)
            await response(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _answer(self, path: str, asked: EmbeddingRequest) -> JSONResponse:
        record = self._desk.answers.records.begin(self._prefix, asked.model.id, self._caller.id)
        async with self._desk.recorded(record, self._caller, path):
            vectors = await self._embed(asked, record)
            # On a thread: a thousand vectors are a million numbers to write.
            made = Made(vectors, trio.current_time() - record.arrived)
            return await trio.to_thread.run_sync(self._response, asked, record, made)

    def _response(self, asked: EmbeddingRequest, record: Record, made: Made) -> JSONResponse:
        return JSONResponse(self._write(asked, record, made))

    async def _embed(self, asked: EmbeddingRequest, record: Record) -> Floats:
        model, metrics = asked.model.id, self._desk.answers.metrics
        survived: dict[Session, int] = {}

        def follow(session: Session) -> None:
            record.follow(session)
            metrics.reroutes.labels(model).inc(len(session.reroutes) - survived.get(session, 0))
            survived[session] = len(session.reroutes)

        @asynccontextmanager
        async def counted(tokens: int) -> AsyncGenerator[Session]:
            async with opener(tokens) as session:
                if not record.prompt_tokens:  # before the first is open, nobody can have computed any of it
                    record.prompt_tokens = asked.tokens
                    metrics.prompt_tokens.labels(model).inc(asked.tokens)
                yield session

        async with self._desk.limits.turn():
            opener = self._swarm.opener(model, attested=self._caller.attested or None)
            run = partial(embed_tokens, counted, asked.texts, asked.settings, asked.dimensions, follow=follow)
            return await run()
