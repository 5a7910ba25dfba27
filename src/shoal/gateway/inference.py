"""``/v2/…``: graphs by the open inference protocol, which KServe's and Triton's clients speak."""

from __future__ import annotations

from functools import partial

import trio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from shoal.client.graph.encryptable import no_attested_graphs
from shoal.client.graph.graph_client import GraphAnswer, GraphClient
from shoal.errors import ShoalError, UnknownModel
from shoal.gateway.access.keys import Caller
from shoal.gateway.access.large_bodies import LargeBodies
from shoal.gateway.access.protection import unaudited_caller
from shoal.gateway.api.inference import (
    MAX_BINARY,
    MAX_TENSOR_JSON,
    MODEL_VERSION,
    InferRequest,
    metadata,
    read_infer,
    write_infer,
)
from shoal.gateway.body import read_raw
from shoal.gateway.error_forms import error_response
from shoal.gateway.errors import BadRequest
from shoal.gateway.exchange import Desk
from shoal.gateway.page.requests import Record
from shoal.gateway.sse import until_gone

LIVE = "/v2/health/live"
READY = "/v2/health/ready"
HEADER_SIZE = "inference-header-content-length"
"""Bytes of JSON that a body begins with, where tensors follow."""
PREFIX = "infer-"
ROUTE = "/v2/models/NAME/infer"
"""How requests are counted: callers make up names."""

LARGE_AT_ONCE = 8
"""Bodies with more than JSON may have, that are held at once."""


class InferenceRoutes:
    """The routes of the protocol, before the same desk as all others."""

    def __init__(self, desk: Desk, graphs: GraphClient) -> None:
        self._desk = desk
        self._graphs = graphs
        self._bodies = LargeBodies(MAX_TENSOR_JSON, LARGE_AT_ONCE)

    def routes(self) -> list[Route]:
        found = [Route("/v2", self._server), Route(LIVE, self._health), Route(READY, self._health)]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            found += [
                Route(model, self._metadata),
                Route(f"{model}/ready", self._ready),
                Route(f"{model}/infer", self._infer, methods=["POST"]),
            ]
        return found

    async def _server(self, request: Request) -> Response:
        import shoal  # noqa: PLC0415 - the face of the library, which imports us

        return JSONResponse(
            {"name": "shoal", "version": shoal.__version__, "extensions": ["binary_tensor_data"]}
        )

    async def _health(self, request: Request) -> Response:
        return Response()

    async def _metadata(self, request: Request) -> Response:
        _check_version(request)
        graph = await self._graphs.find_served(request.path_params["name"])
        return JSONResponse(metadata(graph))

    async def _ready(self, request: Request) -> Response:
        """200 when every segment of the graph is served, else 503."""
        _check_version(request)
        graph = await self._graphs.find_served(request.path_params["name"])
        return Response(status_code=200 if self._graphs.covered(graph) else 503)

    async def _infer(self, request: Request) -> InferExchange:
        _check_version(request)
        size = request.headers.get(HEADER_SIZE)
        if size is not None and not (size.isascii() and size.isdecimal() and len(size) < 12):
            raise BadRequest(f"{HEADER_SIZE} is {size[:40]!r}, which is no number of bytes")
        return InferExchange(
            self._desk,
            self._graphs,
            self._bodies,
            unaudited_caller(request),
            request.path_params["name"],
            None if size is None else int(size),
        )


class InferExchange:
    """One request and its answer. A client that goes away takes it with it."""

    def __init__(
        self,
        desk: Desk,
        graphs: GraphClient,
        bodies: LargeBodies,
        caller: Caller,
        name: str,
        header_size: int | None,
    ) -> None:
        self._desk = desk
        self._graphs = graphs
        self._bodies = bodies
        self._caller = caller
        self._name = name
        self._header_size = header_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Nobody's body is read before it is known that it may be answered.
        async with self._desk.limits.admitted(self._caller):
            with self._bodies.held(self._caller.id, Headers(scope=scope), receive) as held:
                body = await read_raw(Request(scope, held), MAX_BINARY)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(until_gone, receive, nursery.cancel_scope)
                    await (await self._response(scope, body))(scope, receive, send)
                    nursery.cancel_scope.cancel()

    async def _response(self, scope: Scope, body: bytes) -> Response:
        try:
            if self._caller.attested:
                raise no_attested_graphs()
            graph = await self._graphs.find_served(self._name)
            # Numbers in JSON take long to read.
            read = partial(read_infer, body, self._header_size)
            asked, tensors = await trio.to_thread.run_sync(read)
            if asked.parameters.get("encrypted"):
                raise _not_encrypted()
            record = self._desk.answers.records.begin(PREFIX, graph.name, self._caller.id)
            async with self._desk.recorded(record, self._caller, ROUTE):
                async with self._desk.limits.turn():
                    answer = await self._graphs.infer(graph, tensors)
                response = await trio.to_thread.run_sync(_written, graph.name, asked, answer)
                _follow(record, answer)
                return response
        except ShoalError as error:
            return error_response(error, scope)


def _written(name: str, asked: InferRequest, answer: GraphAnswer) -> Response:
    body, header_size = write_infer(name, asked, answer.outputs)
    if header_size is None:
        return Response(body, media_type="application/json")
    headers = {HEADER_SIZE: str(header_size)}
    return Response(body, media_type="application/octet-stream", headers=headers)


def _not_encrypted() -> BadRequest:
    return BadRequest(
        "encrypted inputs do not go by a gateway: it would see them, as it would have to encrypt them",
        check="ask on the machine that has the inputs: shoal infer GRAPH --encrypted, or "
        "swarm.run(…, encrypted=True)",
        param="parameters.encrypted",
    )


def _follow(record: Record, answer: GraphAnswer) -> None:
    """Note which way a request has gone, and what it took at each hop."""
    record.route = [
        {"peer": s.peer, "start": s.span.start, "end": s.span.end, "carrier": s.carrier} for s in answer.route
    ]
    record.own = [own.shown() for own in answer.own]
    between_ms = (trio.current_time() - record.arrived) * 1e3
    between_ms -= sum(stage.compute_ms + stage.waiting_ms for stage in answer.route)
    between_ms -= sum(own.compute_ms for own in answer.own)
    record.hops = [
        {
            "compute_ms": round(stage.compute_ms, 3),
            "network_ms": round(max(0.0, between_ms) / len(answer.route), 3),
            "waiting_ms": round(stage.waiting_ms, 3),
        }
        for stage in answer.route
    ]


def _check_version(request: Request) -> None:
    version = request.path_params.get("version", MODEL_VERSION)
    if version != MODEL_VERSION:
        raise UnknownModel(f"a graph has the version {MODEL_VERSION} alone, not {version[:40]!r}")
