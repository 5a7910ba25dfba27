"""The routes, and what stands behind them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import msgspec
import trio
from prometheus_client.core import Metric
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from shoal.client.swarm import Swarm
from shoal.errors import OutOfResources, ShoalError
from shoal.gateway.access.counted import CountedRoute
from shoal.gateway.access.guard import AccessRules, GuardMiddleware, caller_of, log
from shoal.gateway.access.keys import Caller, KeyRing
from shoal.gateway.access.limits import RequestLimiter
from shoal.gateway.access.protection import unaudited_caller
from shoal.gateway.access.shared_allowances import SharedAllowances
from shoal.gateway.access.traced import TraceMiddleware
from shoal.gateway.access.usage import Usage
from shoal.gateway.answers import Answers
from shoal.gateway.api import chat, completions, embeddings, messages, tokens
from shoal.gateway.api.openapi import document
from shoal.gateway.api.request import GenerationRequest
from shoal.gateway.audio.routes import AudioRoutes
from shoal.gateway.body import read_body
from shoal.gateway.database.database import Database
from shoal.gateway.database.forgetting import forget_revoked
from shoal.gateway.database.once import sweep_writers
from shoal.gateway.embedding import EmbeddingExchange
from shoal.gateway.error_forms import OLLAMA_LACKING, error_response, speaks_anthropic
from shoal.gateway.errors import MethodNotAllowed, NotFound
from shoal.gateway.exchange import Desk, Exchange, Form
from shoal.gateway.grammar.grammar import Grammars
from shoal.gateway.inference import LIVE, READY, InferenceRoutes
from shoal.gateway.metrics import GatewayMetrics, gauge
from shoal.gateway.models import Models, Servable
from shoal.gateway.ollama import OllamaRoutes
from shoal.gateway.page.feed import Feed, Health
from shoal.gateway.page.history import Sight, SwarmHistory
from shoal.gateway.page.live import Invite, Live
from shoal.gateway.page.money import MoneyHistory, read_sums
from shoal.gateway.page.requests import Record, Records
from shoal.gateway.page.static import StaticPage
from shoal.gateway.prefixes import Prefixes
from shoal.gateway.schema.chat import ChatRequest
from shoal.gateway.schema.completions import CompletionRequest
from shoal.gateway.schema.embeddings import EmbeddingsRequest
from shoal.gateway.schema.messages import CountTokensRequest, MessagesRequest
from shoal.gateway.schema.tokens import DetokenizeRequest, TokenizeRequest
from shoal.gateway.stored.batches.in_process import RouteAnswer, asking
from shoal.gateway.stored.batches.routes import BatchRoutes
from shoal.gateway.stored.batches.runner import BatchRunner
from shoal.gateway.stored.batches.store import BatchStore
from shoal.gateway.stored.expiry import SWEEP_EVERY_S, Keeping
from shoal.gateway.stored.file_routes import FileRoutes
from shoal.gateway.stored.files import FileStore
from shoal.gateway.stored.response_routes import ResponseRoutes
from shoal.gateway.stored.responses import ResponseStore
from shoal.models.store.local_model import LocalModel

REFRESH_KEYS_S = 1.0
OPEN_PATHS = frozenset({"/health", LIVE, READY})


@dataclass(frozen=True, slots=True)
class Options:
    """What a gateway is told by its settings."""

    model: str
    """The one to have ready."""
    database: Database
    swarm: str
    """Its name on this machine."""
    invite: Invite
    health: Health
    origins: tuple[str, ...] = ()
    keeping: Keeping = field(default_factory=Keeping)
    """How long responses, files and batches are kept for their callers."""
    payment: PaidDoor | None = None
    """Who lets in whoever pays; ``None``: nobody without a key."""


class PaidDoor(Protocol):
    """What stands between the guard and the routes where answers can be paid for."""

    def is_paid(self, path: str) -> bool:
        """Whether what is behind a path can be paid for."""
        ...

    def before(self, routes: ASGIApp) -> ASGIApp:
        """The routes, for who has a key or has paid."""
        ...

    async def run(self) -> None:
        """Until cancelled: claim what was paid."""
        ...


class Gateway:
    """A swarm behind OpenAI's API. Made by :func:`open_gateway`; ``app`` is what a server runs."""

    def __init__(self, swarm: Swarm, options: Options) -> None:
        self.swarm = swarm
        self.models = Models(swarm, options.model)
        self.database = options.database
        self.keys = KeyRing(options.database)
        self.usage = Usage(options.database)
        self.responses = ResponseStore(options.database, options.keeping)
        self.files = FileStore(options.database, options.keeping)
        self.batches = BatchStore(self.files)
        self._shared = SharedAllowances(options.database) if options.database.shared else None
        self.limits = RequestLimiter(self._shared) if self._shared else RequestLimiter()
        self.grammars = Grammars()
        self.prefixes = Prefixes(swarm, options.database)
        self.records = Records()
        self.metrics = GatewayMetrics(self._now)
        self.feed = Feed(swarm, options.swarm, self.records, options.health)
        self._page = StaticPage()
        self.history = SwarmHistory(options.database, self._sight)
        self.money = MoneyHistory(options.database, partial(read_sums, swarm.settings.paths.payments))
        self._live = Live(
            self.feed,
            options.invite,
            options.model,
            history=self.history,
            money=self.money,
            usage=self.usage,
            keys=self.keys,
        )
        speculate = swarm.settings.speculate == "auto"
        answers = Answers(
            self.prefixes,
            self.grammars,
            self.records,
            self.metrics,
            speculate,
            audits=swarm.audits,
            protection=swarm.settings.protection,
            draft=swarm.draft,
        )
        self.desk = Desk(answers, self.limits, self.usage)
        self.ready = False
        """Whether the default model's ends are here."""
        self.batch_runner = BatchRunner(
            self.batches, self._ask, self.keys.caller, lambda: self.limits.awaited
        )
        routes = self._routes()
        self._ask_route = asking(routes)
        self._payment = options.payment
        rules = AccessRules(self._is_open, options.origins)
        if self._payment is not None:
            routes, rules = self._payment.before(routes), replace(rules, is_paid=self._payment.is_paid)
        self.app: ASGIApp = GuardMiddleware(TraceMiddleware(routes), rules, self.keys)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep what the routes need alive until cancelled.

        Raises:
            OutOfResources: the database cannot be read at the beginning.
        """
        try:
            await self.database.run_short(self.keys.refresh)
            over = trio.Event()
            async with trio.open_nursery() as counting:
                try:
                    await counting.start(self._count, over)
                    async with trio.open_nursery() as nursery:
                        await nursery.start(self.prefixes.run)
                        nursery.start_soon(self.feed.run)
                        nursery.start_soon(self.history.run)
                        nursery.start_soon(self.money.run)
                        nursery.start_soon(self._refresh_keys)
                        nursery.start_soon(self._sweep)
                        nursery.start_soon(self.batch_runner.run)
                        nursery.start_soon(self._load)
                        if self._payment is not None:
                            nursery.start_soon(self._payment.run)
                        task_status.started()
                finally:
                    over.set()
        finally:
            self.grammars.close()

    async def _count(
        self, over: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Write down what is used until all else is over: what ends then has used something, too."""
        async with trio.open_nursery() as nursery:
            if self._shared is not None:
                await nursery.start(self._shared.run)
            nursery.start_soon(self.usage.run)
            task_status.started()
            await trio.lowlevel.checkpoint_if_cancelled()  # who is not waited for any more ends here
            nursery.cancel_scope.shield = True
            await over.wait()
            nursery.cancel_scope.cancel()

    async def _ask(self, path: str, body: dict[str, Any], caller: Caller) -> RouteAnswer:
        return await self._ask_route(path, body, caller)

    async def _load(self) -> None:
        local = await self.models.load()
        if self.swarm.draft is not None:
            await self.swarm.draft.check(local)
        self.ready = True
        try:
            await self.models.prepare()
        except ShoalError as error:  # whoever asks is told; until then others may have come who serve it
            log.info("nothing is prepared for the first answer: %s", error.message)

    async def _refresh_keys(self) -> None:
        while True:
            await trio.sleep(REFRESH_KEYS_S)
            try:
                await self.database.run_short(self.keys.refresh)
            except OutOfResources as error:  # the keys that were read last stay good
                log.warning("the keys cannot be read: %s", error.message)

    async def _sweep(self) -> None:
        while True:
            others = (partial(each, self.database) for each in (forget_revoked, sweep_writers))
            for some in (self.responses.sweep, self.files.sweep, self.batches.sweep, *others):
                try:
                    while await self.database.run(some):
                        pass
                except OutOfResources as error:  # what has expired is given to nobody all the same
                    log.warning("what has expired cannot be deleted: %s", error.message)
            await trio.sleep(SWEEP_EVERY_S)

    def _is_open(self, path: str) -> bool:
        return path in OPEN_PATHS or path in self._page

    def _routes(self) -> ASGIApp:
        asked = partial(CountedRoute, self.limits, awaited=True)
        router = Router(
            routes=[
                *self._page.routes(),
                *self._live.routes(),
                *OllamaRoutes(self.desk, self.models, self.grammars, self.swarm).routes(),
                *ResponseRoutes(self.desk, self.models, self.grammars, self.responses).routes(),
                *FileRoutes(self.files, self.limits).routes(),
                *BatchRoutes(self.batches, self.batch_runner, self.limits).routes(),
                *AudioRoutes(self.desk, self.models, self.swarm).routes(),
                *InferenceRoutes(self.desk, self.swarm.graphs).routes(),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._document),
                Route("/v1/models", self._list_models),
                Route("/v1/models/{id:path}", self._show_model),
                Route("/v1/chat/completions", asked(self._chat), methods=["POST"]),
                Route("/v1/completions", asked(self._complete), methods=["POST"]),
                Route("/v1/embeddings", asked(self._embed), methods=["POST"]),
                Route("/v1/messages", asked(self._message), methods=["POST"]),
                Route("/v1/messages/count_tokens", asked(self._count_tokens), methods=["POST"]),
                Route("/tokenize", asked(self._tokenize), methods=["POST"]),
                Route("/detokenize", asked(self._detokenize), methods=["POST"]),
            ],
            redirect_slashes=False,
        )
        return ExceptionMiddleware(router, handlers={HTTPException: _not_routed, ShoalError: _refused})

    async def _chat(self, request: Request) -> Exchange:
        body = await read_body(request, ChatRequest)
        model = await self.models.find(body.model)

        async def prepare() -> list[GenerationRequest]:
            return [await chat.chat_request(body, model, self.grammars)]

        def form(record: Record, asked: Sequence[GenerationRequest]) -> Form:
            return chat.ChatForm(record, asked[0], include_usage=body.include_usage)

        return Exchange(self.desk, caller_of(request), prepare, form, prefix=chat.PREFIX, stream=body.stream)

    async def _complete(self, request: Request) -> Exchange:
        body = await read_body(request, CompletionRequest)
        prepare = partial(completions.completion_requests, body, await self.models.find(body.model))
        form = partial(completions.CompletionForm, include_usage=body.include_usage)
        return Exchange(
            self.desk, caller_of(request), prepare, form, prefix=completions.PREFIX, stream=body.stream
        )

    async def _embed(self, request: Request) -> EmbeddingExchange:
        body = await read_body(request, EmbeddingsRequest)
        prepare = partial(embeddings.openai_request, body, self.swarm, await self.models.find(body.model))
        write = partial(embeddings.openai_answer, body.encoding_format)
        caller = unaudited_caller(request, body.protect)
        return EmbeddingExchange(self.desk, self.swarm, caller, prepare, write, prefix=embeddings.PREFIX)

    async def _message(self, request: Request) -> Exchange:
        extra = "ignore" if messages.takes_betas(request.headers) else None
        body = await read_body(request, MessagesRequest, extra=extra)
        model = await self.models.find(body.model)

        async def prepare() -> list[GenerationRequest]:
            return [await messages.messages_request(body, model, self.grammars)]

        def form(record: Record, asked: Sequence[GenerationRequest]) -> Form:
            return messages.MessagesForm(record, asked[0], body)

        return Exchange(
            self.desk, caller_of(request), prepare, form, prefix=messages.PREFIX, stream=body.stream
        )

    async def _count_tokens(self, request: Request) -> Response:
        extra = "ignore" if messages.takes_betas(request.headers) else None
        body = await read_body(request, CountTokensRequest, extra=extra)
        return JSONResponse(await messages.count_tokens(body, await self.models.find(body.model)))

    async def _tokenize(self, request: Request) -> Response:
        body = await read_body(request, TokenizeRequest)
        return JSONResponse(await tokens.tokenize(body, await self.models.find(body.model)))

    async def _detokenize(self, request: Request) -> Response:
        body = await read_body(request, DetokenizeRequest)
        return JSONResponse(await tokens.detokenize(body, await self.models.find(body.model)))

    async def _list_models(self, request: Request) -> Response:
        found = await self.models.listed()
        if speaks_anthropic(request.scope):
            return JSONResponse(messages.model_list(found))
        return JSONResponse({"object": "list", "data": [_model_card(local) for local in found]})

    async def _show_model(self, request: Request) -> Response:
        found: Servable = await self.models.find(request.path_params["id"])
        card = messages.model_card if speaks_anthropic(request.scope) else _model_card
        return JSONResponse(card(found.local))

    async def _health(self, request: Request) -> Response:
        """200 when a model can be answered with, 503 while loading or with blocks that nobody serves."""
        if not self.ready:
            return JSONResponse({"status": "loading"}, 503)
        models = await self.models.listed()
        whole = [local.name for local in models if not self.models.missing(local)]
        if whole:
            return JSONResponse({"status": "ok", "models": whole})
        missing = {local.name: [str(span) for span in self.models.missing(local)] for local in models}
        return JSONResponse({"status": "no coverage", "missing": missing}, 503)

    async def _document(self, request: Request) -> Response:
        return JSONResponse(document())

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _sight(self) -> Sight | None:
        covered = self.models.covered()
        peers = len(self.swarm.member.directory)
        return None if covered is None else Sight(peers, covered, self.records.tokens)

    def _now(self) -> Iterable[Metric]:
        yield gauge("num_requests_running", "Requests that are answered", [((), self.limits.answering)])
        yield gauge("num_requests_waiting", "Requests that wait for their turn", [((), self.limits.queued)])
        yield gauge("kept_sessions", "Sessions that wait for a next turn", [((), self.prefixes.kept)])
        directory, now = self.swarm.member.directory, self.swarm.member.now()
        yield gauge("peers", "Peers that serve something", [((), len(directory))])
        in_all = self.swarm.member.size.peers
        yield gauge("swarm_peers", "Peers of the swarm, of a large one about so many", [((), in_all)])
        # Of the models that can be answered with alone: anybody can announce others, as many as he likes.
        models = self.models.served()
        missing = [((m.name,), sum(map(len, self.models.missing(m)))) for m in models]
        serving = [a.served for m in models for a in directory.serving(m.digest, now)]
        used = [1 - s.tokens_free / s.tokens for s in serving if s and s.tokens]
        yield gauge("blocks_missing", "Blocks that nobody serves", missing, ("model_name",))
        yield gauge(
            "kv_cache_usage_perc",
            "Of the fullest hop's KV, the part in use",
            [((), max(used))] if used else [],
        )
        if self.swarm.canaries is not None:
            counts = msgspec.structs.asdict(self.swarm.canaries.counts)
            found = [((result,), count) for result, count in counts.items()]
            yield gauge("canaries", "Canaries that came to their end, by what that was", found, ("result",))


@asynccontextmanager
async def open_gateway(swarm: Swarm, options: Options) -> AsyncGenerator[Gateway]:
    """A gateway that runs until the block ends.

    Raises:
        OutOfResources: its database cannot be read.
    """
    async with trio.open_nursery() as nursery:
        gateway = Gateway(swarm, options)
        await nursery.start(gateway.run)
        yield gateway
        nursery.cancel_scope.cancel()


def _model_card(local: LocalModel) -> dict[str, Any]:
    return {
        "id": local.name,
        "object": "model",
        "created": 0,
        "owned_by": "shoal",
        "max_model_len": local.shape.context,
        "digest": local.digest,
    }


async def _refused(request: Request, error: Exception) -> Response:
    """What a route raised before its answer began."""
    if not isinstance(error, ShoalError):
        raise error
    return error_response(error, request.scope)


async def _not_routed(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses, in the API's words."""
    path = request.scope["path"][:200]
    if not isinstance(error, HTTPException) or error.status_code != 405:
        instead = OLLAMA_LACKING.get(path, "see GET /openapi.json for every route")
        unknown = NotFound(f"no route {path!r}", check=instead)
        return error_response(unknown, request.scope)
    allow = (error.headers or {}).get("Allow", "")
    said = f"{request.method} is not for {path!r}: it takes {allow}"
    return error_response(MethodNotAllowed(said, allow=allow), request.scope)
