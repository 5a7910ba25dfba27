"""A client's view of a swarm: who serves what, sessions over it, answers from it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, get_args

import trio

from shoal.client.answer import Answer, RouteStage
from shoal.client.generate import Delta, generate
from shoal.client.ring import HopRefused, Ring, RouteHop
from shoal.client.sampling import Sampling
from shoal.client.session import Session
from shoal.config import Settings
from shoal.errors import (
    BadWeights,
    Busy,
    ChannelClosed,
    DeadlineExceeded,
    DigestMismatch,
    NoCoverage,
    PromptTooLong,
    RemoteProtocolError,
    ShoalError,
    UsageError,
)
from shoal.executor.ends import EndsEngine
from shoal.executor.load import load_ends
from shoal.executor.thread import TorchThread
from shoal.models.store import LocalModel, ModelStore
from shoal.models.text import TextCodec
from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.routing.route import Candidate, choose_route
from shoal.swarm.announcement import Announcement
from shoal.swarm.directory import coverage, missing
from shoal.swarm.member import Member
from shoal.types import Digest, Format, ModelShape, PeerId, SessionId, Span, gaps
from shoal.wire.messages import Failed, Message, Opened, Refused, Step

OPEN_ATTEMPTS = 4
"""Routes that are tried before a refusal is passed on."""
HEAR_WITHIN_S = 6.0
"""How long a client that has just come waits to hear of nodes that serve what it wants."""
CLOSE_WITHIN_S = 2.0
DEFAULT_TOKENS = 1024

Messages = Sequence[dict[str, str]]


class Swarm:
    """For trio callers; :func:`shoal.connect` wraps it for all others. Made by :func:`open_swarm`."""

    def __init__(self, network: Network, member: Member, settings: Settings, store: ModelStore) -> None:
        self.network = network
        self.member = member
        self.settings = settings
        self.store = store
        self._rings: dict[SessionId, Ring] = {}
        self._ends: dict[tuple[Digest, Format], EndsEngine] = {}
        self._codecs: dict[Digest, TextCodec] = {}
        self._loading = trio.Lock()
        self._thread = TorchThread("shoal-ends")
        self._pool = ChannelPool(network, self._handle, self._lost)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move messages until cancelled."""
        try:
            await self._pool.run(accept=False, task_status=task_status)
        finally:
            self._thread.close()

    @asynccontextmanager
    async def session(
        self, model: str, *, tokens: int | None = None, format: Format | None = None
    ) -> AsyncGenerator[Session]:
        """A session over the cheapest route; closed on the way out.

        Args:
            tokens: what every hop reserves KV for; by default 1,024, or the model's context if that is less.
            model: a name that ``shoal models show`` knows, a folder or a GGUF file.
            format: how every hop holds its weights; by default what covers the model, the most exact first.

        Raises:
            UnknownModel, BadWeights: the model's ends cannot be loaded here.
            PromptTooLong: the model's context is shorter.
            NoCoverage: blocks that nobody serves.
            Busy: every route that was tried is full.
            DigestMismatch: only another version of the model is served.
        """
        local = await self.resolve(model)
        tokens = tokens or min(DEFAULT_TOKENS, local.shape.context)
        if tokens > local.shape.context:
            raise PromptTooLong(
                f"{tokens} tokens are more than the {local.shape.context} of {local.shape.name}",
                check="ask for fewer tokens, or shorten the prompt",
            )
        format = format or await self._served_format(local.shape)
        ends = await self._load_ends(local, format)
        ring = await self._open_ring(local.shape, format, tokens)
        session = Session(
            ring,
            ends,
            self._thread,
            shape=local.shape,
            prefill_chunk=self.settings.prefill_chunk,
        )
        try:
            yield session
        finally:
            del self._rings[ring.session]
            with trio.move_on_after(CLOSE_WITHIN_S, shield=True):
                await session.aclose()

    def generate(
        self,
        model: str,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Messages | None = None,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        format: Format | None = None,
        **sampling: Any,
    ) -> Answer:
        """An answer to ``prompt`` (text or token ids as they are) or ``messages`` (by the chat template).

        A model without a tokenizer takes token ids, and its answer has no text.

        Args:
            messages: ``[{"role": "user", "content": "…"}, …]``; for a model without a chat template their
                texts are put one after another.
            sampling: the fields of :class:`shoal.client.sampling.Sampling`; greedy without any.

        Raises:
            UsageError: at once, for an option that cannot be.
            ShoalError: while it is iterated; see :meth:`session`.
        """
        if (prompt is None) == (messages is None):
            raise UsageError("give either a prompt or messages")
        if max_tokens < 1:
            raise UsageError(f"max_tokens must be 1 or more, not {max_tokens}")
        try:
            chosen = Sampling(**sampling)
        except TypeError as error:
            raise UsageError(f"an unknown option: {error}") from error
        shown = prompt if isinstance(prompt, str) else ""

        async def stream(answer: Answer) -> AsyncGenerator[Delta]:
            local = await self.resolve(model)
            codec = await self._codec(local, needed=messages is not None or isinstance(prompt, str))
            if codec is None or not (prompt is None or isinstance(prompt, str)):
                token_ids = [int(token) for token in prompt or ()]
            elif messages is None:
                token_ids = codec.encode(answer.prompt)
            elif codec.has_template:
                answer.prompt = await trio.to_thread.run_sync(codec.render_chat, messages)
                token_ids = codec.encode(answer.prompt, rendered=True)
            else:
                answer.prompt = "\n\n".join(message["content"] for message in messages)
                token_ids = codec.encode(answer.prompt)
            answer.prompt_token_ids = token_ids
            room = local.shape.context - len(token_ids)
            if room < 1:
                raise PromptTooLong(
                    f"the prompt has {len(token_ids)} tokens, and {local.shape.name} takes "
                    f"{local.shape.context} with the answer",
                    check="shorten the prompt: it is never cut for you",
                )
            limit = min(max_tokens, room)
            async with self.session(model, tokens=len(token_ids) + limit, format=format) as session:
                answer.route = tuple(
                    RouteStage(hop.address.peer, hop.span, carrier)
                    for hop, carrier in zip(session.ring.route, session.ring.carriers, strict=True)
                )
                deltas = generate(
                    session,
                    token_ids,
                    codec.detokenizer() if codec else None,
                    sampling=chosen,
                    max_tokens=limit,
                    stop=stop,
                    end_tokens=local.end_tokens,
                    timing=answer.timing,
                )
                async for delta in deltas:
                    yield delta

        return Answer(shown, stream)

    def announcements(self) -> list[Announcement]:
        """Every peer that serves something now."""
        return self.member.alive()

    def models(self) -> list[ModelShape]:
        """Every model of which some span is served."""
        return self.member.directory.models(self.member.now())

    def coverage(self, digest: Digest) -> list[int]:
        """How many peers serve each block of a model; empty when nobody serves any."""
        serving = list(self.member.directory.serving(digest, self.member.now()))
        shapes = [a.served.n_blocks for a in serving if a.served]
        return coverage([a.served.span for a in serving if a.served], shapes[0]) if shapes else []

    async def resolve(self, model: str) -> LocalModel:
        """The model on this machine, fetched first if it is not here. Raises as ``ModelStore.resolve``."""
        return await trio.to_thread.run_sync(self.store.resolve, model, abandon_on_cancel=True)

    async def _codec(self, local: LocalModel, *, needed: bool) -> TextCodec | None:
        """The model's tokenizer; ``None`` when it has none and none is needed."""
        if local.digest not in self._codecs:
            try:
                self._codecs[local.digest] = await trio.to_thread.run_sync(TextCodec.load, local.path)
            except BadWeights:
                if needed:
                    raise
                return None
        return self._codecs[local.digest]

    async def _load_ends(self, local: LocalModel, format: Format) -> EndsEngine:
        async with self._loading:
            key = (local.digest, format)
            if key not in self._ends:
                settings = self.settings
                load = partial(load_ends, local, format, threads=settings.threads, cache=settings.paths.cache)
                self._ends[key] = EndsEngine(await self._thread.run(load), self._thread)
            return self._ends[key]

    async def _served_format(self, shape: ModelShape) -> Format:
        """The format in which the model is covered; the most exact when several are."""
        await self._hear_of(shape)
        serving = list(self.member.directory.serving(shape.digest, self.member.now()))
        formats: tuple[Format, ...] = get_args(Format)
        for format in formats:
            spans = [a.served.span for a in serving if a.served and a.served.format == format]
            if spans and not gaps(spans, shape.n_blocks):
                return format
        offered: list[Format] = [a.served.format for a in serving if a.served]
        return offered[0] if offered else "fp32"

    async def _hear_of(self, shape: ModelShape) -> None:
        """Wait, not long, until someone covers the model: a client that has just come knows few."""
        with trio.move_on_after(HEAR_WITHIN_S):
            asked = False
            while missing(self.member.directory, shape, self.member.now()):
                if not asked:
                    asked = True
                    with suppress(ChannelClosed, DeadlineExceeded, RemoteProtocolError):
                        await self.member.find(shape.digest)
                    continue
                await self.member.wait_changed()

    async def _open_ring(self, shape: ModelShape, format: Format, tokens: int) -> Ring:
        avoid: set[PeerId] = set()
        refused: ShoalError | None = None
        for _ in range(OPEN_ATTEMPTS):
            try:
                route = self._route(shape, format, tokens, avoid)
            except (NoCoverage, Busy):
                if refused is not None:
                    raise refused from None
                raise
            ring = Ring(
                self._pool,
                shape,
                route,
                format=format,
                wire=self.settings.wire,
                tokens=tokens,
                step_timeout_s=self.settings.step_timeout_s,
            )
            self._rings[ring.session] = ring
            try:
                await ring.open(self.settings.open_timeout_s)
                return ring
            except HopRefused as error:
                avoid.add(error.peer)
                refused = error.error
                await self._discard(ring)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._discard(ring)
                raise
        raise refused or NoCoverage("no route was found")

    async def _discard(self, ring: Ring) -> None:
        self._rings.pop(ring.session, None)
        with trio.move_on_after(CLOSE_WITHIN_S):
            await ring.aclose()

    def _route(self, shape: ModelShape, format: Format, tokens: int, avoid: set[PeerId]) -> list[RouteHop]:
        serving = {
            PeerId(a.peer): a
            for a in self.member.directory.serving(shape.digest, self.member.now(), format)
            if a.peer != self.network.peer
        }
        if not serving:
            self._explain_absence(shape, format)
        rtts = {channel.peer: channel.rtt_s for channel in self._pool.all()}
        candidates = [
            Candidate(peer, a.served.span, a.served.tokens_free, a.served.step_ms / 1e3, rtts.get(peer))
            for peer, a in serving.items()
            if a.served
        ]
        try:
            stages = choose_route(candidates, shape.n_blocks, tokens, avoid=avoid)
        except NoCoverage as error:
            error.next_command = f"shoal serve {shape.name} --span {error.missing[0]}"
            raise
        return [RouteHop(serving[stage.peer].address, stage.span) for stage in stages]

    def _explain_absence(self, shape: ModelShape, format: Format) -> None:
        now = self.member.now()
        others = [a.served for a in self.member.alive() if a.served and a.served.model == shape.name]
        if any(served.digest == shape.digest for served in others):
            raise NoCoverage(
                f"nobody serves {shape.name} in {format}",
                missing=[Span(0, shape.n_blocks)],
                check="shoal status shows in which formats it is served",
            )
        if others:
            raise DigestMismatch(
                f"the swarm serves {shape.name} as {others[0].digest[:23]}…, "
                f"and the one here is {shape.digest[:23]}…",
                check="which of the two is the one you want; remove the other",
                next_command=f"shoal models show {shape.name}",
            )
        heard = len(self.member.directory.alive(now))
        raise NoCoverage(
            f"blocks 0:{shape.n_blocks} of {shape.name} are served by nobody ({heard} other peers are known)",
            missing=[Span(0, shape.n_blocks)],
            check="whether a node of this swarm is up and can be reached: shoal status",
            next_command=f"shoal serve {shape.name}",
        )

    async def _handle(self, channel: Channel, message: Message, payload: bytes) -> None:
        match message:
            case Opened() | Refused() | Step() | Failed():
                ring = self._rings.get(SessionId(message.session))
                if ring is not None:  # else it was closed a moment ago
                    ring.deliver(channel, message, payload)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} to a client")

    def _lost(self, channel: Channel, reason: str) -> None:
        for ring in list(self._rings.values()):
            ring.lost_channel(channel, reason)
