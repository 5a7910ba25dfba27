"""``/api/…`` as Ollama has it, beside the routes of the page, which share the prefix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shoal.client.swarm import Swarm
from shoal.gateway.access.allowance import RETRY_S
from shoal.gateway.access.counted import CountedRoute
from shoal.gateway.access.guard import caller_of
from shoal.gateway.access.protection import unaudited_caller
from shoal.gateway.api import embeddings, ollama, ollama_models
from shoal.gateway.api.ollama import OllamaForm, OllamaPiece, Wording
from shoal.gateway.api.ollama_pull import PullAnswer, name_to_pull
from shoal.gateway.api.request import GenerationRequest
from shoal.gateway.body import read_body
from shoal.gateway.embedding import EmbeddingExchange
from shoal.gateway.errors import Forbidden, LimitReached
from shoal.gateway.exchange import Desk, Exchange, Form, Prepare
from shoal.gateway.grammar.grammar import Grammars
from shoal.gateway.models import Models, Servable
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.embeddings import EmbedRequest, OneEmbeddingRequest
from shoal.gateway.schema.ollama import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaRequest,
    PullRequest,
    ShowRequest,
)
from shoal.gateway.sse import LINES
from shoal.progress import Progress

PULLS = 2
"""Models that are fetched at once."""


class OllamaRoutes:
    """The routes of Ollama's API, before the same desk as all others."""

    def __init__(self, desk: Desk, models: Models, grammars: Grammars, swarm: Swarm) -> None:
        self._desk = desk
        self._models = models
        self._grammars = grammars
        self._swarm = swarm
        self._pulls = 0

    def routes(self) -> list[Route]:
        counted = partial(CountedRoute, self._desk.limits)
        asked = partial(counted, awaited=True)
        return [
            Route("/api/chat", asked(self._chat), methods=["POST"]),
            Route("/api/generate", asked(self._generate), methods=["POST"]),
            Route("/api/embed", asked(self._embed), methods=["POST"]),
            Route("/api/embeddings", asked(self._embed_one), methods=["POST"]),
            Route("/api/show", counted(self._show), methods=["POST"]),
            Route("/api/tags", self._tags),
            Route("/api/ps", self._running),
            Route("/api/version", self._version),
            Route("/api/pull", counted(self._pull), methods=["POST"]),
        ]

    async def _chat(self, request: Request) -> Exchange | Response:
        body = await read_body(request, OllamaChatRequest)
        model = await self._find(body.model)
        if not body.messages:
            return JSONResponse(ollama.loaded(body, OllamaPiece.as_message))

        async def prepare() -> list[GenerationRequest]:
            return [await ollama.ollama_chat_request(body, model, self._grammars)]

        return self._exchange(request, body, prepare, OllamaPiece.as_message)

    async def _generate(self, request: Request) -> Exchange | Response:
        body = await read_body(request, OllamaGenerateRequest)
        model = await self._find(body.model)
        if not body.prompt:
            return JSONResponse(ollama.loaded(body, OllamaPiece.as_response))

        async def prepare() -> list[GenerationRequest]:
            return [await ollama.ollama_generate_request(body, model, self._grammars)]

        return self._exchange(request, body, prepare, OllamaPiece.as_response)

    async def _embed(self, request: Request) -> EmbeddingExchange | Response:
        return await self._embedding(request, await read_body(request, EmbedRequest))

    async def _embed_one(self, request: Request) -> EmbeddingExchange | Response:
        return await self._embedding(request, await read_body(request, OneEmbeddingRequest))

    async def _embedding(
        self, request: Request, body: EmbedRequest | OneEmbeddingRequest
    ) -> EmbeddingExchange | Response:
        model = await self._find(body.model)
        if (empty := embeddings.nothing(body)) is not None:
            return JSONResponse(empty)
        prepare = partial(embeddings.ollama_request, body, self._swarm, model)
        write = partial(embeddings.ollama_answer, body)
        caller, prefix = unaudited_caller(request, body.protect), embeddings.OLLAMA_PREFIX
        return EmbeddingExchange(self._desk, self._swarm, caller, prepare, write, prefix=prefix)

    def _exchange(
        self, request: Request, body: OllamaRequest, prepare: Prepare, wording: Wording
    ) -> Exchange:
        def form(record: Record, asked: Sequence[GenerationRequest]) -> Form:
            return OllamaForm(record, asked[0], body.model, wording)

        return Exchange(
            self._desk,
            caller_of(request),
            prepare,
            form,
            prefix=ollama.PREFIX,
            stream=body.stream,
            media_type=LINES,
        )

    async def _show(self, request: Request) -> Response:
        body = await read_body(request, ShowRequest)
        model = await self._find(body.wanted)
        sees = model.looking is not None and await model.looking.takes(model.local)
        return JSONResponse(await trio.to_thread.run_sync(partial(ollama_models.show, model, sees=sees)))

    async def _tags(self, request: Request) -> Response:
        found = await self._models.listed()
        return JSONResponse(await trio.to_thread.run_sync(ollama_models.tags, found))

    async def _running(self, request: Request) -> Response:
        whole = [local for local in await self._models.listed() if not self._models.missing(local)]
        return JSONResponse(await trio.to_thread.run_sync(ollama_models.running, whole))

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": ollama_models.VERSION})

    async def _pull(self, request: Request) -> PullAnswer:
        """Fetches onto this machine's disk: only an administrator's key may."""
        body = await read_body(request, PullRequest)
        if not caller_of(request).admin:
            check = "use a key made with: shoal key create NAME --admin"
            raise Forbidden("this key may not pull models", check=check)
        name = name_to_pull(ollama_models.known_name(body.wanted), self._models.served_names())
        if self._pulls >= PULLS:
            raise LimitReached(f"{PULLS} models are being pulled", retry_after_s=RETRY_S)

        async def pull(progress: Progress) -> None:
            self._pulls += 1
            try:
                await self._models.pull(name, progress)
            finally:
                self._pulls -= 1

        return PullAnswer(pull, stream=body.stream)

    async def _find(self, name: str) -> Servable:
        return await self._models.find(ollama_models.known_name(name))
