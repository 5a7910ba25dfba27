"""Takes messages from every channel: opens sessions on segments, answers requests, gives the graph's
manifest.

A request is computed alone, one after another: strangers' tensors are never put into one batch, which would
change their bits. A peer that breaks the protocol loses its channel, and nobody else is affected.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import msgspec
import trio

from shoal.errors import Busy, ChannelClosed, ModelError, NotAllowed, ShoalError, StepFailed, UnknownSession
from shoal.executor.encrypted.parameters import PARAMETERS
from shoal.executor.encrypted.processes import MapRunner
from shoal.executor.graph.runner import SegmentRunner
from shoal.executor.thread import ComputeThread
from shoal.metrics.logs import about
from shoal.metrics.meters import Metrics
from shoal.models.graph.graph_store import LocalGraph
from shoal.models.graph.manifest import GRAPH_NUMERICS, misfit
from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.node.admission import Service, check_open, refusal
from shoal.node.graph.graph_sessions import GraphSession, GraphSessions
from shoal.node.handlers import Handlers
from shoal.sharing.share_pace import SharePace
from shoal.sharing.weight_server import WeightServer
from shoal.types import Numerics, SessionId, Span
from shoal.wire.fetching import MAX_PIECE, Fetch, Fetched, NotFetched
from shoal.wire.fields import MAX_PAYLOAD
from shoal.wire.inferring import ArraySpec, Infer, InferEncrypted, Inferred, InferredEncrypted
from shoal.wire.messages import Close, Failed, Open, Opened, shorten

NEWEST = 0.2
"""Share of the newest request in the time that is announced."""
READ_WITHIN_S = 20.0
"""How long a peer may take to read an answer, beside what the size of all that it waits for asks for."""
READ_BYTES_S = 1e6
MANIFEST_QUEUE = b"manifest"
QUEUED_BYTES = 8 << 20
"""Bytes waiting for a peer, past which it is given no more of a manifest: it asks and does not read."""

GraphQuestion = Infer | InferEncrypted
GraphReply = Inferred | InferredEncrypted

log = logging.getLogger(__name__)


class GraphServer:
    """Serves one span of one graph. ``run`` must be running."""

    def __init__(
        self,
        network: Network,
        graph: LocalGraph,
        runner: SegmentRunner,
        thread: ComputeThread,
        numerics: Numerics = GRAPH_NUMERICS,
        *,
        max_sessions: int,
        share_rate: int = 0,
        linear: MapRunner | None = None,
    ) -> None:
        self.graph = graph
        self.runner = runner
        self.linear = linear
        """Computes all of the graph on encrypted rows, where it can."""
        self.numerics = numerics
        self.metrics = Metrics()
        self.draining = False
        """Set to refuse new sessions while requests come to their end."""
        self.step_ms = 0.0
        """Smoothed time of a request through the whole span."""
        self.wait_ms = 0.0
        """Smoothed time that a request waits for its turn."""
        self._peer = network.peer
        self._thread = thread
        self._open_sessions = GraphSessions(max_sessions)
        self._computed = 0
        self.weights = WeightServer(
            SharePace(share_rate), steps_waiting=lambda: self.waiting, steps=lambda: self._computed
        )
        """Gives what is shared of the graph: nothing unless it is told."""
        self._idle = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.handlers = Handlers()
        mine = self._open_sessions
        self.channels = ChannelPool(
            network, self.handlers.handle, self._lost, known=mine.knows, held=mine.holds
        )
        self.handlers.register(Open, self._open)
        self.handlers.register(Infer, self._infer)
        self.handlers.register(InferEncrypted, self._infer)
        self.handlers.register(Close, self._close)
        self.handlers.register(Fetch, self._fetch)

    @property
    def span(self) -> Span:
        return self.runner.span

    @property
    def sessions(self) -> int:
        return len(self._open_sessions)

    @property
    def waiting(self) -> int:
        """Requests that are here and have not been answered."""
        return self._open_sessions.requests

    @property
    def requests_free(self) -> int:
        """Requests that are still taken."""
        return 0 if self.draining else self._open_sessions.free

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.weights.run)
            await nursery.start(partial(self.channels.run, accept=True))
            task_status.started()

    async def wait_idle(self) -> None:
        """Wait until no request is here."""
        while self.waiting:
            self._idle = trio.Event()
            await self._idle.wait()

    async def _open(self, channel: Channel, message: Open, payload: bytes) -> None:
        service = Service(self._peer, self.graph.digest, self.span, self.numerics, self.draining)
        session = SessionId(message.session)
        try:
            check_open(message, service)
            if message.previous is not None or message.next is not None:
                raise NotAllowed("a graph's hop answers its client, and has no neighbours")
            span = Span(message.start, message.end)
            _, gone = self._open_sessions.open(session, channel, span, trio.current_time())
        except ShoalError as error:
            self.metrics.refusals.labels(error.code).inc()
            with suppress(ChannelClosed):
                channel.reply(refusal(message.session, error, self.requests_free))
            return
        for lost in gone:
            over = UnknownSession("others want its place")
            with suppress(ChannelClosed):
                lost.channel.reply(Failed(lost.session, None, 0, over.code, over.message))
        with suppress(ChannelClosed):
            channel.reply(Opened(message.session, self.requests_free))

    async def _infer(self, channel: Channel, message: GraphQuestion, payload: bytes) -> None:
        session = self._open_sessions.get(SessionId(message.session), channel)
        try:
            if session is None:
                raise UnknownSession("the session is not open here, or belongs to another")
            if isinstance(message, InferEncrypted):
                self._check_encrypted(session.span, message)
            else:
                self._check(session.span, message.arrays)
            self._open_sessions.begin(session, len(payload), trio.current_time())
        except ShoalError as error:
            self._fail(channel, message, error)
            return
        if self._nursery is not None:
            self._nursery.start_soon(self._answer, session, message, payload)

    async def _answer(self, session: GraphSession, message: GraphQuestion, payload: bytes) -> None:
        held = len(payload)
        try:
            with suppress(ChannelClosed):
                answer, made = await self._compute(session, message, payload)
                del payload
                self._open_sessions.answered(session, held, len(made))
                held = len(made)
                await self._send(session, answer, made)
        except (StepFailed, ModelError, Busy) as error:
            self._fail(session.channel, message, error)
        except Exception:
            # A defect of ours that one stranger's request has met must not end everybody else's.
            log.exception(
                "a request could not be answered", extra=about(session.channel.peer, message.session)
            )
            self._fail(session.channel, message, StepFailed("a defect in this node; its log says more"))
        finally:
            self._open_sessions.end(session, held, trio.current_time())
            if not self.waiting:
                self._idle.set()

    async def _compute(
        self, session: GraphSession, message: GraphQuestion, payload: bytes
    ) -> tuple[GraphReply, bytes]:
        """Raises ChannelClosed: nobody wants it any more. StepFailed, ModelError: it cannot be computed."""
        came = time.perf_counter()
        began = came

        def compute() -> tuple[GraphReply, bytes]:
            nonlocal began
            began = time.perf_counter()
            if self._open_sessions.get(session.session, session.channel) is not session:
                raise ChannelClosed("who asked is gone")
            return self._run(session.span, message, payload)

        answer, made = await self._thread.run(compute)
        if len(made) > MAX_PAYLOAD:
            raise StepFailed(f"segments {session.span} give {len(made)} bytes; {MAX_PAYLOAD} are sent")
        compute_us, waiting_us = round(1e6 * (time.perf_counter() - began)), round(1e6 * (began - came))
        self._note(session.span, compute_us, waiting_us, encrypted=isinstance(message, InferEncrypted))
        return msgspec.structs.replace(answer, compute_us=compute_us, waiting_us=waiting_us), made

    def _run(self, span: Span, message: GraphQuestion, payload: bytes) -> tuple[GraphReply, bytes]:
        """The answer to a question, and its payload; takes long. Raises StepFailed, ModelError."""
        if not isinstance(message, InferEncrypted):
            arrays, made = self.runner.run(span, message.arrays, payload)
            return Inferred(message.session, message.number, arrays), made
        if self.linear is None:
            raise _not_encrypted()
        scores = self.linear.run(message.sizes, payload)
        answer = InferredEncrypted(message.session, message.number, scores.sizes, scores.exponent)
        return answer, scores.ciphertexts

    async def _send(self, session: GraphSession, answer: GraphReply, made: bytes) -> None:
        """Send an answer, and see to it that it leaves: a peer that is too slow to read loses its channel."""
        channel = session.channel
        with trio.move_on_after(READ_WITHIN_S + self._open_sessions.owed(channel) / READ_BYTES_S) as sending:
            async with session.turn:
                await channel.send(answer, made)
                await channel.wait_room(session.session)
        if sending.cancelled_caught:
            log.info("answers are not read in time", extra=about(channel.peer, answer.session))
            channel.close("the answers to its requests are not read in time")

    def _check(self, span: Span, arrays: Sequence[ArraySpec]) -> None:
        """Raises StepFailed: these are not the tensors that the segments take."""
        manifest = self.graph.manifest
        wanted = manifest.takes(span)
        if [array.value for array in arrays] != wanted:
            raise StepFailed(f"segments {span} take the values {wanted}, in this order")
        for array in arrays:
            if (why := misfit(manifest.values[array.value], array.dtype, array.shape)) is not None:
                raise StepFailed(why)

    def _check_encrypted(self, span: Span, message: InferEncrypted) -> None:
        """Raises StepFailed: the graph is not run on encrypted rows here, or these are not its columns."""
        linear = self.graph.manifest.linear
        if self.linear is None or linear is None or span != self.span:
            raise _not_encrypted()
        if message.parameters != PARAMETERS:
            raise StepFailed(f"rows are encrypted by {PARAMETERS} alone, not {message.parameters!r}")
        if len(message.sizes) != linear.columns + 1:
            raise StepFailed(
                f"{len(message.sizes)} ciphertexts; a row has {linear.columns} columns, and one of 1"
            )

    def _note(self, span: Span, compute_us: int, waiting_us: int, *, encrypted: bool = False) -> None:
        """Count a request, and what the time of one through all segments is expected to be."""
        self._computed += 1
        self.metrics.step("infer", 1, compute_us, waiting_us)
        self.wait_ms += NEWEST * (waiting_us / 1e3 - self.wait_ms)
        if encrypted:  # says nothing of what others take
            return
        work = self.graph.manifest.work
        share = sum(work[span.start : span.end]) / sum(work[self.span.start : self.span.end])
        whole_ms = compute_us / 1e3 / share
        old = self.step_ms or whole_ms
        self.step_ms = old + NEWEST * (whole_ms - old)

    def _fail(self, channel: Channel, message: GraphQuestion, error: ShoalError) -> None:
        self.metrics.failures.labels(error.code).inc()
        log.info("a request failed: %s", error.message, extra=about(channel.peer, message.session))
        with suppress(ChannelClosed):
            channel.reply(Failed(message.session, message.number, 0, error.code, shorten(error.message)))

    async def _close(self, channel: Channel, message: Close, payload: bytes) -> None:
        self._open_sessions.close(SessionId(message.session), channel)

    async def _fetch(self, channel: Channel, message: Fetch, payload: bytes) -> None:
        """Give a piece of the manifest, in which is all that a client must know; or of what is shared."""
        if message.part != "manifest":
            await self.weights.take(channel, message, payload)
            return
        begin = message.index * MAX_PIECE
        piece = self.graph.raw[begin : begin + MAX_PIECE]
        if message.digest != self.graph.digest or (not piece and begin != len(self.graph.raw)):
            why = "only the manifest of the graph that is served here is given"
            with suppress(ChannelClosed):
                channel.reply(NotFetched(message.number, "unknown_model", why))
        elif channel.queued_bytes > QUEUED_BYTES:
            with suppress(ChannelClosed):
                channel.reply(NotFetched(message.number, "busy", "what was sent before is not read yet"))
        else:
            with suppress(ChannelClosed):
                channel.send_now(Fetched(message.number, len(piece)), piece, MANIFEST_QUEUE)

    def _lost(self, channel: Channel, reason: str) -> None:
        self._open_sessions.lost(channel)


def _not_encrypted() -> StepFailed:
    return StepFailed("this node does not compute all of this graph on encrypted inputs")
